"""The `igds` command: run the notebooks of a preset, plan what they would cost, select from a pool of one's own.

igds run --preset quick --tasks math --set sft.lr=5e-5
igds select pool.jsonl --task math --ratio 0.5 --out selection
"""

import argparse
import sys
from pathlib import Path

from igds_utils.config.config import ConfigError, changes, load_preset, preset_names, task_names
from igds_utils.data.hub import SourceError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when done, 1 when a notebook failed, 2 when what was asked for was refused, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.changes = {field: value for text in options.changes for field, value in changes(text).items()}
        return options.call(options)
    except (ConfigError, SourceError) as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("interrupted: the same command continues where this run was", 130)


def _say(message: object, code: int) -> int:
    print(f"igds: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="igds", description="Interpretability-guided data selection.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    what = argparse.ArgumentParser(add_help=False)
    known = f"one of {', '.join(preset_names())}, or the path of a YAML file (default: quick)"
    what.add_argument("--preset", default="quick", help=known)
    what.add_argument("--model", default="", help="a model of the preset (default: the one that it chooses)")
    what.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="FIELD=VALUE",
        help="change fields of the preset, for example sft.lr=5e-5; can be repeated",
    )  # fmt: skip
    tasks = argparse.ArgumentParser(add_help=False, parents=[what])
    tasks.add_argument(
        "--tasks", type=task_names, default=[], help="tasks of the preset, comma-separated (default: all)"
    )
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--results", default="results", help="folder of all results (default: results)")
    where = argparse.ArgumentParser(add_help=False, parents=[tasks, folder])
    for name, call, parent, text in (
        ("run", _run, where, "run all notebooks of a preset in their order; continues what was interrupted"),
        ("plan", _plan, tasks, "print models, tasks, tokens, minutes, memory and disk; runs nothing"),
        ("report", _report, where, "make tables, figures and report again from stored results"),
        ("saes", _saes, where, "train the SAEs of the preset's model"),
    ):
        commands.add_parser(name, parents=[parent], help=text, description=text).set_defaults(call=call)
    text = "run as jobs of a cluster: slurm, or the folder of a snakemake profile (default: here, in order)"
    commands.choices["run"].add_argument("--profile", default="", help=text)
    _add_selection(commands, [what, folder])
    return parser


def _add_selection(commands, parents: list[argparse.ArgumentParser]) -> None:
    text = "rank a pool of your own and keep the best share of it"
    select = commands.add_parser("select", parents=parents, help=text, description=text)
    add, many = select.add_argument, {"dest": "columns", "action": "append", "default": []}
    add(
        "pool", nargs="+",
        help="JSON, CSV, Parquet or Arrow files, a folder of them, or a dataset of the hub as owner/name, "
        "owner/name:split or owner/name:split@configuration",
    )  # fmt: skip
    add("--task", required=True, help="the task of the preset that the samples belong to")
    add("--selector", default="igds", help="by name (default: igds)")
    add("--ratio", type=float, default=0.5, help="share of the pool that is kept (default: 0.5)")
    add(
        "--features", default="",
        help="task features such as l14_p11575, comma-separated, or a task_features.json "
        "(default: those that the preset's run found)",
    )  # fmt: skip
    add(
        "--column", **many, type=_column, metavar="FIELD=NAME",
        help="the column that holds a field of the task, where it has another name; dots lead into nested records, "
        "braces make a template such as '{instruction}\\n{input}'; `id=` numbers the records; can be repeated",
    )  # fmt: skip
    add(
        "--value", **many, type=_value, metavar="FIELD=TEXT",
        help="the same text for a field of all records, for example target_language=French; can be repeated",
    )  # fmt: skip
    add("--skip-bad", action="store_true", help="leave out records that cannot be used, and count them")
    add("--out", default="selection", help="folder of what is written (default: selection)")
    select.set_defaults(call=_select)
    text = "say why a sample of a selection ranks where it does"
    explain = commands.add_parser("explain", parents=parents, help=text, description=text)
    explain.add_argument("folder", help="what `igds select` wrote")
    explain.add_argument("sample", help="id of the sample, as in scores.csv")
    explain.set_defaults(call=_explain)


def _column(text: str) -> tuple[str, str]:
    field, equals, name = text.partition("=")
    if not (field and equals and (name or field == "id")):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NAME")
    return field, name.replace("\\n", "\n")


def _value(text: str) -> tuple[str, dict[str, str]]:
    field, value = _column(text)
    return field, {"value": value}


def _run(options: argparse.Namespace) -> int:
    from igds_utils.running.runner import STAGES

    return _notebooks(options, STAGES, profile=options.profile)


def _report(options: argparse.Namespace) -> int:
    from igds_utils.running.runner import REPORT_STAGES

    root = Path(options.results) / load_preset(options.preset).name
    if not (root / "run.json").is_file():
        mend = f"run the pipeline first (make reproduce PRESET={options.preset})"
        raise ConfigError(f"nothing is stored in {root}: {mend}")
    return _notebooks(options, REPORT_STAGES)


def _saes(options: argparse.Namespace) -> int:
    return _notebooks(options, ("00_sae_training",))


def _notebooks(options: argparse.Namespace, stages: tuple[str, ...], profile: str = "") -> int:
    from igds_utils.running import runner

    asked = {"model": options.model, "tasks": options.tasks, "overrides": options.changes, "results": options.results}
    try:
        runner.run(options.preset, profile, stages=stages, **asked)
    except runner.Refused as error:
        return _say(error, 2)
    except runner.RunError as error:
        return _say(error, 1)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from igds_utils.core.experiment import Run, counted
    from igds_utils.plan import render

    preset = load_preset(options.preset, options.model, options.tasks, options.changes)
    print(render(counted(Run(preset, Path())).preset))
    return 0


def _select(options: argparse.Namespace) -> int:
    from igds_utils.selection import tool

    made = tool.select(
        _opened(options, [options.task]), options.task, options.pool, options.out, options.selector,
        options.ratio, options.features, dict(options.columns), options.skip_bad,
    )  # fmt: skip
    for remark in made.facts["remarks"]:
        print(f"igds: note: {remark}", file=sys.stderr)
    kept = f"{made.facts['selected']} of {made.facts['samples']} samples, best first"
    print(f"{kept}: {options.out}/selection.jsonl")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from igds_utils.selection import explain

    print(explain.explain(_opened(options, []), options.folder, options.sample))
    return 0


def _opened(options: argparse.Namespace, tasks: list[str]):
    from igds_utils.core.experiment import open_run

    run = open_run(options.preset, options.model, tasks, options.changes, options.results, count=False)
    run.store.log = lambda line: print(line, file=sys.stderr)  # what is printed is the answer alone
    return run


if __name__ == "__main__":
    sys.exit(main())

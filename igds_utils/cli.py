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
        return COMMANDS[options.command][0](options)
    except (ConfigError, SourceError) as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("interrupted: the same command continues where this run was", 130)


def _say(message: object, code: int = 0) -> int:
    print(f"igds: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="igds", description="Interpretability-guided data selection.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, (_, options, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        for option in f"--preset --model --set {options}".split():
            command.add_argument(option, **OPTIONS[option])
    return parser


# ---- commands --------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from igds_utils.running import runner

    stages = {"report": runner.REPORT_STAGES, "saes": ("00_sae_training",)}.get(options.command, runner.STAGES)
    if first := getattr(options, "first", ""):
        numbers = [stage[:2] for stage in stages]
        if first not in numbers:
            raise ConfigError(f"--first {first}: give the number of a notebook, one of {', '.join(numbers)}")
        stages = stages[numbers.index(first) :]
    if options.command == "report":
        root = Path(options.results) / load_preset(options.preset).name
        if not (root / "run.json").is_file():
            mend = f"run the pipeline first (make reproduce PRESET={options.preset})"
            raise ConfigError(f"nothing is stored in {root}: {mend}")
    asked = {"model": options.model, "tasks": options.tasks, "overrides": options.changes, "results": options.results}
    try:
        runner.run(options.preset, getattr(options, "profile", ""), stages=stages, **asked)
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
        _say(f"note: {remark}")
    kept = f"{made.facts['selected']} of {made.facts['samples']} samples, best first"
    print(f"{kept}: {options.out}/selection.jsonl")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from igds_utils.selection import tool

    print(tool.explain(options.folder, options.sample))
    return 0


def _opened(options: argparse.Namespace, tasks: list[str]):
    from igds_utils.core.experiment import open_run

    run = open_run(options.preset, options.model, tasks, options.changes, options.results, count=False)
    run.store.log = lambda line: print(line, file=sys.stderr)  # what is printed is the answer alone
    return run


def _column(text: str) -> tuple[str, str]:
    field, equals, name = text.partition("=")
    if not (field and equals and (name or field == "id")):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NAME")
    return field, name.replace("\\n", "\n")


def _value(text: str) -> tuple[str, dict[str, str]]:
    field, value = _column(text)
    return field, {"value": value}


OPTIONS = {
    "--preset": dict(
        default="quick",
        help=f"one of {', '.join(preset_names())}, or the path of a YAML file (default: quick)",
    ),
    "--model": dict(default="", help="a model of the preset (default: the one that it chooses)"),
    "--set": dict(
        dest="changes", action="append", default=[], metavar="FIELD=VALUE",
        help="change fields of the preset, for example sft.lr=5e-5; can be repeated",
    ),
    "--tasks": dict(type=task_names, default=[], help="tasks of the preset, comma-separated (default: all)"),
    "--results": dict(default="results", help="folder of all results (default: results)"),
    "--first": dict(default="", metavar="NN", help="begin with this notebook, on what those before it stored"),
    "--profile": dict(
        default="",
        help="run as jobs of a cluster: slurm, or the folder of a snakemake profile (default: here, in order)",
    ),
    "pool": dict(
        nargs="+",
        help="JSON, CSV, Parquet or Arrow files, a folder of them, or a dataset of the hub as owner/name, "
        "owner/name:split or owner/name:split@configuration",
    ),
    "--task": dict(required=True, help="the task of the preset that the samples belong to"),
    "--selector": dict(default="igds", help="by name (default: igds)"),
    "--ratio": dict(type=float, default=0.5, help="share of the pool that is kept (default: 0.5)"),
    "--features": dict(
        default="",
        help="task features such as l14_p11575, comma-separated, or a task_features.json "
        "(default: those that the preset's run found)",
    ),
    "--column": dict(
        dest="columns", action="append", default=[], type=_column, metavar="FIELD=NAME",
        help="the column that holds a field of the task, where it has another name; dots lead into nested records, "
        "braces make a template such as '{instruction}\\n{input}'; `id=` numbers the records; can be repeated",
    ),
    "--value": dict(
        dest="columns", action="append", default=[], type=_value, metavar="FIELD=TEXT",
        help="the same text for a field of all records, for example target_language=French; can be repeated",
    ),
    "--skip-bad": dict(action="store_true", help="leave out records that cannot be used, and count them"),
    "--out": dict(default="selection", help="folder of what is written (default: selection)"),
    "folder": dict(help="what `igds select` wrote"),
    "sample": dict(help="id of the sample, as in scores.csv"),
}  # fmt: skip
SELECT = "pool --task --selector --ratio --features --column --value --skip-bad --out --results"
COMMANDS = {  # what it calls, its options beside preset, model and changes of fields, its help
    "run": (
        _run, "--tasks --results --profile --first",
        "run all notebooks of a preset in their order; continues what was interrupted",
    ),
    "plan": (_plan, "--tasks", "print models, tasks, tokens, minutes, memory and disk; runs nothing"),
    "report": (_run, "--tasks --results", "make tables, figures and report again from stored results"),
    "saes": (_run, "--tasks --results", "train the SAEs of the preset's model"),
    "select": (_select, SELECT, "rank a pool of your own and keep the best share of it"),
    "explain": (_explain, "folder sample", "say why a sample of a selection ranks where it does"),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

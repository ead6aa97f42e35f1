"""The `igds` command: run the notebooks of a preset, plan what they cost, select from a pool.

igds run --preset quick --tasks math --set sft.lr=5e-5
igds select pool.jsonl --task math --ratio 0.5 --out selection
"""

import argparse
import signal
import sys
from pathlib import Path

from igds_utils.config.config import ConfigError, changes, load_preset, preset_names, task_names
from igds_utils.data.hub import SourceError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a notebook failed, 2 refused, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.changes = changes(" ".join(options.changes))
        return options.call(options) or 0
    except (ConfigError, SourceError) as error:
        print(f"igds: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("igds: interrupted: the same command continues this run", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int | None:
    from igds_utils.running import runner

    stages = {stage[:2]: stage for stage in options.stages or runner.STAGES}
    first = options.first or next(iter(stages))
    if first not in stages:
        raise ConfigError(f"--first {first}: give the number of a notebook: {', '.join(stages)}")
    stages = list(stages.values())[list(stages).index(first) :]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    what = {"model": options.model, "tasks": options.tasks, "overrides": options.changes}
    what |= {"results": options.results, "stages": stages}
    try:
        runner.run(options.preset, options.profile, **what)
    except runner.RunError as error:
        print(f"igds: {error}", file=sys.stderr)
        return 1


def _plan(options: argparse.Namespace) -> None:
    from igds_utils.core.experiment import Run, counted
    from igds_utils.plan import render

    preset = load_preset(options.preset, options.model, options.tasks, options.changes)
    print(render(counted(Run(preset, Path())).preset))


def _select(options: argparse.Namespace) -> None:
    from igds_utils.core.experiment import open_run
    from igds_utils.selection import tool

    asked = (options.preset, options.model, [options.task], options.changes, options.results)
    run = open_run(*asked, count=False)
    run.store.log = lambda line: print(line, file=sys.stderr)  # printed is the answer alone
    where = (options.task, options.pool, options.out)
    how = (options.selector, options.ratio, options.features, dict(options.columns))
    made = tool.select(run, *where, *how, options.skip_bad)
    for remark in made.facts["remarks"]:
        print(f"igds: note: {remark}", file=sys.stderr)
    kept = f"{made.facts['selected']} of {made.facts['samples']} samples, best first"
    print(f"{kept}: {options.out}/selection.jsonl")


def _explain(options: argparse.Namespace) -> None:
    from igds_utils.selection import tool

    print(tool.explain(options.folder, options.sample))


def _column(text: str) -> tuple[str, str]:
    field, equals, name = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=NAME")
    return field, name.replace("\\n", "\n")


def _value(text: str) -> tuple[str, dict[str, str]]:
    field, value = _column(text)
    return field, {"value": value}


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    option = shared.add_argument
    more = {"action": "append", "default": []}  # can be repeated
    known = f"one of {', '.join(preset_names())}, or the path of a YAML file (default: quick)"
    option("--preset", default="quick", help=known)
    option("--model", default="", help="a model of the preset (default: its own)")
    text = "change fields of the preset, for example sft.lr=5e-5; can be repeated"
    option("--set", dest="changes", metavar="FIELD=VALUE", help=text, **more)
    option("--results", default="results", help="folder of all results (default: results)")
    shared.set_defaults(stages=(), tasks=[], first="", profile="")

    text = "Interpretability-guided data selection."
    parser = argparse.ArgumentParser(prog="igds", description=text)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name, call, text, **defaults):
        made = commands.add_parser(name, parents=[shared], help=text, description=text)
        made.set_defaults(call=call, **defaults)
        return made.add_argument

    run = command("run", _run, "run all notebooks in their order; continues a stopped run")
    run("--first", metavar="NN", help="begin with this notebook, on what is stored")
    run("--profile", help="run on a cluster: slurm, or the folder of a snakemake profile")
    stages = ["00_sae_training"]
    saes = command("saes", _run, "train the SAEs of the preset's model", stages=stages)
    plan = command("plan", _plan, "print tokens, minutes, memory and disk; runs nothing")
    for option in (run, saes, plan):
        option("--tasks", type=task_names, help="comma-separated (default: all)")

    option = command("select", _select, "rank a pool of your own and keep the best of it")
    text = "files, a folder of them, or a dataset of the hub: owner/name[:split[@configuration]]"
    option("pool", nargs="+", help=text)
    option("--task", required=True, help="the task of the preset that the samples belong to")
    option("--selector", default="igds", help="by name (default: igds)")
    option("--ratio", type=float, default=0.5, help="share that is kept (default: 0.5)")
    text = "task features such as l14_p11575,l9_p3, or a task_features.json (default: the run's)"
    option("--features", default="", help=text)
    text = (
        "the column that holds a field of the task; dots lead into nested records, braces make a "
        "template such as '{instruction}\\n{input}'; `id=` numbers the records; can be repeated"
    )
    option("--column", dest="columns", type=_column, metavar="FIELD=NAME", help=text, **more)
    text = "the same text for a field of all records, such as target_language=French"
    option("--value", dest="columns", type=_value, metavar="FIELD=TEXT", help=text, **more)
    option("--skip-bad", action="store_true", help="leave out records that cannot be used")
    option("--out", default="selection", help="folder of what is written (default: selection)")
    option = command("explain", _explain, "say why a sample ranks where it does")
    option("folder", help="what `igds select` wrote")
    option("sample", help="id of the sample, as in scores.csv")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Runs the notebooks of a preset in their order, and so that a run killed at any moment can be given again.

snakemake orders the notebooks (notebooks/Snakefile), papermill executes each one, and the products' own records decide
what is already done: every notebook is executed every time and skips what is fresh. The Snakefile's jobs are

    python -m igds_utils.running.runner RUN.json STAGE [TASK ARM | PART]

The executed notebook appears under its name (STAGE, STAGE.TASK.ARM for one arm alone, STAGE.part3of8 for a share) only
when every cell has passed; one that failed is kept beside it as NAME.failed.ipynb, with its traceback.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import papermill
import psutil
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError

from igds_utils.config.config import PROJECT, ConfigError, changes, load_preset, task_names
from igds_utils.config.settings import JobConfig
from igds_utils.core.arms import arms, asked_in_general
from igds_utils.core.launch import PROFILES, check_gpus, claim, follow, this_process
from igds_utils.core.manifest import timings
from igds_utils.core.store import write_whole
from igds_utils.display import duration

NOTEBOOKS = PROJECT / "notebooks"
STAGES = (
    "01_feature_recall",
    "02_causal_intervention",
    "03_data_scoring",
    "04_sft",
    "05_evaluation",
    "06_stability",
    "07_activation_distributions",
    "08_robustness",
    "09_feature_semantics",
    "10_general_capabilities",
    "12_planted_truth",
    "11_report",
)
ARMS_STAGE = "04_sft"  # the one that a cluster runs once for every arm
# what `launch.parts` jobs share; the notebooks have a parameter `part`
PART_STAGES = ("02_causal_intervention", "03_data_scoring", "06_stability")
EVALUATION = "05_evaluation"
# they read stored results, and run beside each other before the last one
READERS = STAGES[STAGES.index("07_activation_distributions") : -1]
REPORT_STAGES = (EVALUATION, "03_data_scoring", "06_stability", *READERS, STAGES[-1])
RUNNER = "IGDS_RUNNER"  # environment variable that names the process which must outlive its jobs
FAILED, PARTIAL = "{}.failed.ipynb", ".{}.partial.ipynb"  # PARTIAL: still being executed
LAST_OF_PART = "parts"  # tag of the cell after which the notebook of one share ends
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunError(RuntimeError):
    """A run that failed; the message says where to read more."""


class Refused(RuntimeError):
    """A run that was not begun, because another one is at work in its folder."""


def run(preset: str, profile: str = "", **what: Any) -> Path:
    """Execute notebooks in order; the folder <results>/<preset> with all that they made.

    profile: a snakemake profile, by its folder or its name under igds_utils/profiles (slurm): notebooks become jobs of
    a cluster, and every arm one of its own. Without it they run here, one after the other, but for shares
    (`launch.parts`). what: the other arguments of `asked`. Raises `ConfigError` before anything runs where preset,
    override or notebook do not fit together, `Refused` where another runner works in the folder, and `RunError` where a
    notebook fails. Main thread only.
    """
    started = time.time()
    request = asked(preset, **what, split=bool(profile))
    folder = profile_folder(profile) if profile else None
    root = Path(request["root"])
    with hold(root):
        timings(root)  # what a run that was stopped left; this one replaces snakemake's records
        claim(root, preset)
        write_whole(root / "run.json", json.dumps(request, indent=1))
        code = _snakemake(request, folder)
        timings(root)
    if code:
        raise RunError(_reason(root, started))
    made = root / "report.html" if REPORT_STAGES[-1] in request["stages"] else root
    print(f"All done in {duration(time.time() - started)}: {_short(made)}", flush=True)
    return root


# ---- what is asked for -----------------------------------------------------------------------------------


def asked(
    preset: str,
    model: str = "",
    tasks: Sequence[str] = (),
    overrides: dict[str, Any] | None = None,
    results: str | Path = "results",
    stages: Sequence[str] = STAGES,
    notebooks: str | Path = NOTEBOOKS,
    split: bool = False,
) -> dict[str, Any]:
    """What `run` is asked for, checked, as its jobs read it in run.json.

    model, tasks, overrides: as of `load_preset`. results: the folder of all results. stages: names of notebooks in the
    folder `notebooks`. split: whether every arm is a job of its own.
    Paths among the parameters are relative to the folder of the notebooks, in which these run: their executed copies
    name no folder of this machine.
    """
    tasks, overrides = task_names(tasks), changes(overrides)
    chosen = load_preset(preset, model, tasks, overrides)
    for task in chosen.tasks.values():  # a name that no arm has is refused here, not after hours
        asked_in_general(task)
    parts = chosen.launch.parts
    if ARMS_STAGE in stages and not split:  # what trains, on this machine
        check_gpus(chosen, parts)
    reading = tuple(stages) == REPORT_STAGES
    shared = [] if reading or parts == 1 else [stage for stage in stages if stage in PART_STAGES]
    notebooks, results = Path(notebooks).resolve(), Path(results).resolve()
    own = preset.endswith((".yaml", ".yml"))
    parameters = {
        "preset": os.path.relpath(Path(preset).resolve(), notebooks) if own else preset,
        "model": model,
        "tasks": tasks,
        "overrides": overrides,
        "results": "" if results == PROJECT / "results" else os.path.relpath(results, notebooks),
    }
    for stage in stages:
        _check_parameters(notebooks / f"{stage}.ipynb", [*parameters, *(["part"] if stage in shared else [])])
    jobs = chosen.jobs
    if unknown := sorted(set(jobs) - {"default", "arm", "part", *STAGES}):
        raise ConfigError(f"jobs: no notebook {unknown[0]!r}; known: default, arm, part, {', '.join(STAGES)}")
    default = jobs.get("default", JobConfig())
    every = [(name, arm.name) for name, task in chosen.tasks.items() for arm in arms(task)]
    return {
        "parameters": parameters,
        "stages": list(stages),
        "reading": reading,
        "notebooks": str(notebooks),
        "root": str(results / chosen.name),
        "arms": every if split else [],
        "parts": dict.fromkeys(shared, parts),
        "jobs": {name: jobs.get(name, default).resources for name in (*stages, "arm", "part")},
    }


def profile_folder(name: str) -> Path:
    """The folder of a snakemake profile, named by itself or by the profile's name; raises `ConfigError` without one."""
    folder = next((path for path in (PROFILES / name, Path(name)) if (path / "config.yaml").is_file()), None)
    if folder is None:
        raise ConfigError(f"no profile {name!r}: give slurm, or a folder with a snakemake config.yaml")
    return folder.resolve()


def _check_parameters(notebook: Path, parameters: Sequence[str]) -> None:
    """papermill only warns about a parameter that a notebook does not have: refuse it here."""
    if not notebook.is_file():
        raise ConfigError(f"no notebook {_short(notebook)}")
    known = papermill.inspect_notebook(_literal(notebook))
    if unknown := [name for name in parameters if name not in known]:
        raise ConfigError(
            f"{notebook.name}: no parameter {', '.join(map(repr, unknown))} in the cell tagged `parameters`; "
            f"known: {', '.join(known) or 'none'}"
        )


# ---- running ---------------------------------------------------------------------------------------------


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Be the only runner of the folder `root` in this context; raises `Refused` where another one is at work.

    The lock is the operating system's: it dies with the process that holds it and is never left behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    holder = root / ".runner"
    try:
        with FileLock(root / ".runner.lock", timeout=0):
            holder.write_text(f"process {os.getpid()}, since {time.strftime('%F %T %z')}")
            yield
    except Timeout:
        who = f" ({holder.read_text()})" if holder.exists() else ""
        message = f"another run works in {root}{who}: wait for it, end it, or give another folder with RESULTS="
        raise Refused(message) from None


def _snakemake(request: dict[str, Any], profile: Path | None) -> int:
    """snakemake's exit code. Its jobs write to our standard output; it and they end when we do."""
    root = Path(request["root"])
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(NOTEBOOKS / "Snakefile")),
        *("--directory", str(root), "--config", f"run={root / 'run.json'}"),
        *(("--profile", str(profile)) if profile else ("--cores", str(_cores()))),
        # the runner has its own lock, which unlike snakemake's is never left behind
        *("--nolock", "--rerun-incomplete", "--forceall", "--quiet", "all"),
    ]
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONNOUSERSITE": "1", RUNNER: this_process()}
    environment.pop("JUPYTER_PATH", None)  # its kernels would come before this environment's
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    finally:
        # it and all that it started: asked first, then forced
        family = [*process.children(recursive=True), process] if process.is_running() else []
        for ask in (psutil.Process.terminate, psutil.Process.kill):
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    ask(member)
            # snakemake takes its jobs back from a cluster
            family = psutil.wait_procs(family, timeout=60 if profile else 5)[1]
        signal.signal(signal.SIGTERM, before)
        for partial in root.glob(f"notebooks/{PARTIAL.format('*')}"):
            partial.unlink()


def _cores() -> int:
    """Threads of a notebook: what the user set, or the processors that this process may use."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        return int(threads.split(",")[0])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(root: Path, started: float) -> str:
    for failed in sorted(root.glob(f"notebooks/{FAILED.format('*')}")):
        if failed.stat().st_mtime >= started:
            error = json.loads(failed.read_text(encoding="utf8"))["metadata"]["igds"]["error"]
            name = failed.name.removesuffix(FAILED.format(""))
            return f"{name} failed: {error}\nThe notebook with its traceback: {_short(failed)}"
    return f"a job ended before its notebook did; snakemake's log: {_short(root)}/.snakemake/log"


def _short(path: Path) -> str:
    """As the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


# ---- one job ---------------------------------------------------------------------------------------------


def execute(run: dict[str, Any], stage: str, *which: str) -> bool:
    """Execute `notebooks/<stage>.ipynb` with the run's parameters; True when all of it passed.

    which: a task and one of its arms, for it alone; or a share such as "3/8"; without it, all. Writes
    <root>/notebooks/<name>.ipynb or <name>.failed.ipynb.
    """
    name, parameters, source = ".".join([stage, *which]), run["parameters"], Path(run["notebooks"], f"{stage}.ipynb")
    if len(which) == 2:
        task, arm = which
        overrides = parameters["overrides"] | {f"tasks.{task}.only_arms": [arm]}
        parameters = parameters | {"tasks": [task], "overrides": overrides}
    elif which:
        number, _, of = which[0].partition("/")
        name, parameters = f"{stage}.part{number}of{of}", parameters | {"part": which[0]}
        os.environ["IGDS_GPU"] = str(int(number) - 1)
    place, clock = f"[{run['stages'].index(stage) + 1}/{len(run['stages'])}] {name}", time.perf_counter()
    print(place, flush=True)
    folder = Path(run["root"], "notebooks")
    failed, partial = folder / FAILED.format(name), folder / PARTIAL.format(name)
    with FileLock(folder / f".{name}.lock"):  # the same job of a killed runner ends within a second or two
        failed.unlink(missing_ok=True)
        notebook = source
        if "part" in parameters:
            until = until_shared(json.loads(source.read_text(encoding="utf8")))
            notebook = write_whole(partial, json.dumps(until))
        error = _papermill(notebook, partial, parameters, source.parent)
        executed = json.loads(partial.read_text(encoding="utf8"))
        for path in ("input_path", "output_path"):  # of this machine
            executed["metadata"]["papermill"].pop(path)
        if error:
            executed["metadata"]["igds"] = {"error": error}
        text = json.dumps(executed, indent=1, ensure_ascii=False)
        write_whole(failed if error else folder / f"{name}.ipynb", f"{text}\n")
        partial.unlink()
    done = f"{'failed after' if error else 'done in'} {duration(time.perf_counter() - clock)}"
    print(f"{place}: {done}", flush=True)
    return not error


def until_shared(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without the cells after the one that is tagged `parts`, which need all shares."""
    tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    last = next(number for number, given in enumerate(tags) if LAST_OF_PART in given)
    return notebook | {"cells": notebook["cells"][: last + 1]}


def _literal(path: Path) -> str:
    """A path for papermill, which fills in parameters where braces stand."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _papermill(notebook: Path, output: Path, parameters: dict[str, Any], folder: Path) -> str:
    """Run all cells in `folder`, showing their output as it comes; the text of the error, or ""."""
    try:
        papermill.execute_notebook(
            _literal(notebook),
            _literal(output),
            parameters=parameters,
            kernel_name="python3",
            cwd=folder,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            coalesce_streams=True,  # a progress bar is kept as its last state, not as every state
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its warnings are about loopback sockets
            start_timeout=300,
            iopub_timeout=300,  # seconds; nbclient's 4 are too few on a busy machine
        )
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {ANSI.sub('', error.evalue)}"
    except DeadKernelError:
        return "the kernel died: it was ended from outside, or the machine ran out of memory"
    return ""


def main() -> int:
    file, stage, *which = sys.argv[1:]
    sys.stdout.reconfigure(line_buffering=True)  # into a pipe or a file too, what is said appears at once
    if runner := os.environ.get(RUNNER):
        threading.Thread(target=follow, args=(runner,), daemon=True).start()
    return 0 if execute(json.loads(Path(file).read_text(encoding="utf8")), stage, *which) else 1


if __name__ == "__main__":
    sys.exit(main())

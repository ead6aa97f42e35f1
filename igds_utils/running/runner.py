"""Runs the notebooks of a preset in their order; a killed run can be given again.

snakemake orders the notebooks (notebooks/Snakefile), papermill executes each one, and the products'
own records decide what is done already: every notebook is executed every time and skips what is
fresh. The Snakefile's jobs are

    python -m igds_utils.running.runner RUN.json STAGE [TASK ARM | PART]

The executed notebook appears under its name (STAGE, STAGE.TASK.ARM for one arm alone,
STAGE.part3of8 for a share) only when every cell has passed; one that failed is kept beside it as
NAME.failed.ipynb, with its traceback.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import papermill
import psutil
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError

from igds_utils.config.config import PROJECT, ConfigError, changes, load_preset, task_names
from igds_utils.core.arms import arms, asked_in_general
from igds_utils.core.launch import PROFILES, check_gpus, claim, configuration, follow, this_process
from igds_utils.core.manifest import timings
from igds_utils.core.store import write_whole
from igds_utils.display import duration, visible

NOTEBOOKS = PROJECT / "notebooks"
STAGES = tuple(
    "01_feature_recall 02_causal_intervention 03_data_scoring 04_sft 05_evaluation 06_stability "
    "07_activation_distributions 08_robustness 09_feature_semantics 10_general_capabilities "
    "12_planted_truth 11_report".split()
)
ARMS_STAGE = "04_sft"  # the one that a cluster runs once for every arm
# what `launch.parts` jobs share, up to the cell tagged `parts`
PART_STAGES = ("02_causal_intervention", "03_data_scoring", "06_stability")
RUNNER = "IGDS_RUNNER"  # environment variable: the process that must outlive its jobs


class RunError(RuntimeError):
    """A run that failed; the message says where to read more."""


def run(preset: str, profile: str = "", **what: Any) -> Path:
    """Execute notebooks in order; the folder <results>/<preset> with what they made.

    profile: a snakemake profile, by its folder or its name under igds_utils/profiles (slurm):
    notebooks become jobs of a cluster, and every arm one of its own. what: the other arguments of
    `asked`. Raises `ConfigError` where preset, override and notebook do not fit together or another
    runner works in the folder, and `RunError` where a notebook fails.
    """
    request = asked(preset, **what, split=bool(profile))
    where = ["--cores", os.environ.get("OMP_NUM_THREADS", "all")]
    if profile:
        folder = PROFILES / profile if (PROFILES / profile).is_dir() else Path(profile)
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"no {folder}/config.yaml: give slurm, or the folder of a profile")
        where = ["--profile", str(folder.resolve())]
    root, started = Path(request["root"]), time.time()
    root.mkdir(parents=True, exist_ok=True)
    try:  # the lock dies with its process
        held = FileLock(root / ".runner.lock").acquire(timeout=0)
    except Timeout:
        mend = "wait for it, end it, or give another folder with RESULTS="
        raise ConfigError(f"another run works in {root}: {mend}") from None
    with held:
        timings(root)  # of a run that was stopped: snakemake's records are replaced
        claim(root, preset)
        for old in root.glob("notebooks/*.failed.ipynb"):
            old.unlink()
        write_whole(root / "run.json", json.dumps(request, indent=1))
        code = _snakemake(root, where)
        timings(root)
    if code:
        failed = [str(path) for path in root.glob("notebooks/*.failed.ipynb")]
        read = ", ".join(failed) or f"{root}/.snakemake/log"
        raise RunError(f"the run failed; the traceback is in {read}")
    print(f"All done in {duration(time.time() - started)}: {root}", flush=True)
    return root


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

    model, tasks, overrides: as of `load_preset`. results: the folder of all results. stages: names
    of notebooks in the folder `notebooks`. split: whether every arm is a job of its own. Paths
    among the parameters are relative to the notebooks' folder: executed copies name no folder of
    this machine.
    """
    from igds_utils import selectors
    from igds_utils.core.experiment import Run

    tasks, overrides = task_names(tasks), changes(overrides)
    chosen = load_preset(preset, model, tasks, overrides)
    for name, task in chosen.tasks.items():  # what is unknown is refused here, not after hours
        Run(chosen, Path()).task(name)
        asked_in_general(task)
        judged = getattr(task.quality, "selectors", "all")
        for selector in [*task.selectors, *(judged if judged != "all" else ())]:
            selectors.get(selector)
    if chosen.launch.training:
        configuration(chosen.launch.training)
    parts = chosen.launch.parts
    if ARMS_STAGE in stages and not split:  # what trains, on this machine
        check_gpus(chosen, parts)
    shared = [stage for stage in stages if stage in PART_STAGES and parts > 1]
    folder, results = Path(notebooks).resolve(), Path(results).resolve()
    own = preset.endswith((".yaml", ".yml"))
    preset = os.path.relpath(Path(preset).resolve(), folder) if own else preset
    parameters = {"preset": preset, "model": model, "tasks": tasks, "overrides": overrides}
    parameters["results"] = os.path.relpath(results, folder)
    for stage in stages:  # papermill only warns about a parameter that a notebook does not have
        known = papermill.inspect_notebook(_as_it_is(folder / f"{stage}.ipynb"))
        given = [*parameters, *(["part"] if stage in shared else [])]
        if unknown := [name for name in given if name not in known]:
            cell = f"the cell tagged `parameters` has {', '.join(known) or 'none'}"
            raise ConfigError(f"{stage}.ipynb: no parameter {', '.join(unknown)}; {cell}")
    every = [(name, a.name) for name, task in chosen.tasks.items() for a in arms(task)]
    return {
        "parameters": parameters,
        "stages": list(stages),
        "notebooks": str(folder),
        "root": str(results / chosen.name),
        "arms": every if split else [],
        "parts": dict.fromkeys(shared, parts),
        "processes": chosen.launch.processes,
    }


def _snakemake(root: Path, where: Sequence[str]) -> int:
    """snakemake's exit code. It and its jobs end when this process is interrupted."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(NOTEBOOKS / "Snakefile")),
        *("--directory", str(root), "--config", f"run={root / 'run.json'}", *where),
        # the runner's lock, unlike snakemake's, is never left behind
        *("--nolock", "--rerun-incomplete", "--forceall", "--quiet", "all"),
    ]
    # kernels are this environment's
    own = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": "", "PYTHONNOUSERSITE": "1"}
    environment = os.environ | own | {RUNNER: this_process()}
    streams = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    process = psutil.Popen(command, env=environment, **streams)
    try:
        return process.wait()
    except BaseException:
        jobs = process.children(recursive=True)
        process.send_signal(signal.SIGINT)  # it takes its jobs back from a cluster
        for job in jobs:
            with suppress(psutil.NoSuchProcess):
                job.kill()
        process.wait()
        raise


def execute(run: dict[str, Any], stage: str, *which: str) -> bool:
    """Execute `notebooks/<stage>.ipynb` with the run's parameters; whether it passed.

    which: a task and one of its arms, for it alone; or a share such as "3/8", up to the cell tagged
    `parts`; without it, all. Writes <root>/notebooks/<name>.ipynb or <name>.failed.ipynb.
    """
    parameters, source = dict(run["parameters"]), Path(run["notebooks"], f"{stage}.ipynb")
    notebook, name = nbformat.read(source, 4), ".".join([stage, *which])
    if len(which) == 2:
        task, arm = which
        only = {f"tasks.{task}.only_arms": [arm]}
        parameters |= {"tasks": [task], "overrides": parameters["overrides"] | only}
    elif which:
        number, _, of = which[0].partition("/")
        name, parameters["part"] = f"{stage}.part{number}of{of}", which[0]
        notebook = until_shared(notebook)
        os.environ["IGDS_GPU"] = str(int(number) - 1)
    place = f"[{run['stages'].index(stage) + 1}/{len(run['stages'])}] {name}"
    print(place, flush=True)
    folder, started, error = Path(run["root"], "notebooks"), time.time(), ""
    partial = write_whole(folder / f".{name}.partial.ipynb", nbformat.writes(notebook))
    told = SimpleNamespace(write=lambda text: print(visible(text), end=""), flush=sys.stdout.flush)
    streams = {"stdout_file": told, "stderr_file": sys.stderr}  # as it comes
    # of a progress bar only its last state is kept
    streams |= {"progress_bar": False, "coalesce_streams": True}
    # nbclient's 4 seconds are too few on a busy machine
    patience = {"start_timeout": 300, "iopub_timeout": 300}
    how = streams | patience | {"extra_arguments": ["--IPKernelApp.log_level=ERROR"]}
    try:
        papermill.execute_notebook(
            *[_as_it_is(partial)] * 2, parameters, kernel_name="python3", cwd=source.parent, **how
        )
    except papermill.PapermillExecutionError as failed:
        error = f"{failed.ename}: {failed.evalue}"
    except DeadKernelError:
        error = "the kernel died: ended from outside, or the machine ran out of memory"
    executed = nbformat.read(partial, 4)
    executed.metadata.papermill |= {"input_path": "", "output_path": ""}  # of this machine
    final = folder / f"{name}{'.failed' if error else ''}.ipynb"
    write_whole(final, f"{nbformat.writes(executed)}\n")
    partial.unlink()
    print(f"{place}: {visible(error) or f'done in {duration(time.time() - started)}'}", flush=True)
    return not error


def _as_it_is(path: Path) -> str:
    """A path for papermill, which fills in what stands there in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def until_shared(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without the cells after the one tagged `parts`: they need all shares."""
    tagged = ["parts" in cell.metadata.get("tags", []) for cell in notebook.cells]
    notebook.cells = notebook.cells[: tagged.index(True) + 1]
    return notebook


def main() -> int:
    file, stage, *which = sys.argv[1:]
    sys.stdout.reconfigure(line_buffering=True)  # what is said appears at once
    if runner := os.environ.get(RUNNER):
        threading.Thread(target=follow, args=(runner,), daemon=True).start()
    return 0 if execute(json.loads(Path(file).read_text()), stage, *which) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Runs the notebooks of a preset in their order, and so that a run killed at any moment can be given again.

snakemake orders the notebooks (notebooks/Snakefile), papermill executes each one (job.py), and the products'
own records decide what is already done: every notebook is executed every time and skips what is fresh.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import papermill
import psutil
from filelock import FileLock, Timeout

from igds_utils.config.config import PROJECT, ConfigError, changes, load_preset, task_names
from igds_utils.config.settings import JobConfig
from igds_utils.core.arms import arms, asked_in_general
from igds_utils.core.launch import PROFILES, check_gpus, claim, this_process
from igds_utils.core.manifest import timings
from igds_utils.core.store import Store
from igds_utils.display import duration
from igds_utils.running.job import NAMES, RUNNER, literal

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
# What only reads stored results, beside each other: before the last, and after the first where a run has them after it.
REPORT_STAGES = ("05_evaluation", "03_data_scoring", *STAGES[STAGES.index("06_stability") :])


class RunError(RuntimeError):
    """A run that failed; the message says where to read more."""


class Refused(RuntimeError):
    """A run that was not begun, because another one is at work in its folder."""


def run(
    preset: str,
    model: str = "",
    tasks: list[str] | tuple[str, ...] = (),
    overrides: dict[str, Any] | None = None,
    results: str | Path = "results",
    stages: tuple[str, ...] = STAGES,
    profile: str = "",
    notebooks: str | Path = NOTEBOOKS,
) -> Path:
    """Execute the notebooks `stages` in order; the folder <results>/<preset> with all that they made.

    profile: a snakemake profile, by its folder or its name under igds_utils/profiles (slurm): notebooks become jobs of
    a cluster, and every arm one of its own. Without it they run here, one after the other, but for shares
    (`launch.parts`). Raises `ConfigError` before anything runs where preset, override or notebook do not fit together,
    `Refused` where another runner works in the folder, and `RunError` where a notebook fails. Main thread only.
    """
    started = time.time()
    request = _request(preset, model, tasks, overrides, results, stages, notebooks, split=bool(profile))
    folder = profile_folder(profile) if profile else None
    root = Path(request["root"])
    with hold(root):
        timings(root)  # what a run that was stopped left; this one replaces snakemake's records
        code = _snakemake(_write(request), request, folder)
        timings(root)
    if code:
        raise RunError(_reason(request, started))
    made = root / "report.html" if REPORT_STAGES[-1] in stages else root
    print(f"All done in {duration(time.time() - started)}: {_short(made)}", flush=True)
    return root


def prepare(**what: Any) -> Path:
    """Check what is asked for (as for `run`) and write it to <results>/<preset>/run.json, for the Snakefile."""
    return _write(_request(**what))


# ---- what is asked for -----------------------------------------------------------------------------------


def _request(
    preset="quick",
    model="",
    tasks=(),
    overrides=None,
    results="results",
    stages=STAGES,
    notebooks=NOTEBOOKS,
    split=False,
) -> dict[str, Any]:
    """split: whether every arm is a job of its own."""
    tasks, overrides = task_names(tasks), changes(overrides)
    chosen = load_preset(preset, model, tasks, overrides)
    for task in chosen.tasks.values():  # a name that no arm has is refused here, not after hours
        asked_in_general(task)
    if ARMS_STAGE in stages and not split:  # what trains, on this machine
        check_gpus(chosen, chosen.launch.parts)
    reading = tuple(stages) == REPORT_STAGES
    shared = (
        [] if reading or chosen.launch.parts == 1 else [stage for stage in stages if stage in PART_STAGES]
    )
    results = Path(results).resolve()
    request = {
        "parameters": {
            # notebooks run in their own folder, so a preset's path must not depend on where the runner was called
            "preset": str(Path(preset).resolve()) if preset.endswith((".yaml", ".yml")) else preset,
            "model": model,
            "tasks": tasks,
            "overrides": overrides,
            "results": "" if results == PROJECT / "results" else str(results),
        },
        "stages": list(stages),
        "reading": reading,
        "notebooks": str(Path(notebooks).resolve()),
        "root": str(results / chosen.name),
        "arms": [(name, arm.name) for name, task in chosen.tasks.items() for arm in arms(task)]
        if split
        else [],
        "parts": dict.fromkeys(shared, chosen.launch.parts),
        "jobs": resources(chosen.jobs, stages),
    }
    for stage in stages:
        given = [*request["parameters"], *(["part"] if stage in shared else [])]
        _check_parameters(Path(request["notebooks"]) / f"{stage}.ipynb", given)
    return request


def profile_folder(name: str) -> Path:
    """The folder of a snakemake profile, named by itself or by the profile's name; raises `ConfigError` without one."""
    folder = next((path for path in (PROFILES / name, Path(name)) if (path / "config.yaml").is_file()), None)
    if folder is None:
        raise ConfigError(f"no profile {name!r}: give slurm, or a folder with a snakemake config.yaml")
    return folder.resolve()


def resources(jobs: dict[str, JobConfig], stages: Sequence[str]) -> dict[str, dict[str, int]]:
    """What each of the notebooks `stages`, an arm and a part ask a cluster for; `ConfigError` for an unknown job."""
    if unknown := sorted(set(jobs) - {"default", "arm", "part", *STAGES}):
        raise ConfigError(f"jobs: no notebook {unknown[0]!r}; known: default, arm, part, {', '.join(STAGES)}")
    default = jobs.get("default", JobConfig())
    return {name: jobs.get(name, default).resources for name in (*stages, "arm", "part")}


def _check_parameters(notebook: Path, parameters: Sequence[str]) -> None:
    """papermill only warns about a parameter that a notebook does not have: refuse it here."""
    if not notebook.is_file():
        raise ConfigError(f"no notebook {_short(notebook)}")
    known = papermill.inspect_notebook(literal(notebook))
    if unknown := [name for name in parameters if name not in known]:
        raise ConfigError(
            f"{notebook.name}: no parameter {', '.join(map(repr, unknown))} in the cell tagged `parameters`; "
            f"known: {', '.join(known) or 'none'}"
        )


def _write(request: dict[str, Any]) -> Path:
    claim(Path(request["root"]), request["parameters"]["preset"])
    Store(Path(request["root"])).write("run.json", request)
    return Path(request["root"], "run.json")


# ---- running ---------------------------------------------------------------------------------------------


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Be the only runner of the folder `root` in this context; raises `Refused` where another one is at work.

    The lock is the operating system's: it dies with the process that holds it and is never left behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    store, since = Store(root), datetime.now().astimezone().isoformat(timespec="seconds")
    earlier = store.read(".runner.json") if store.has(".runner.json") else {}
    try:
        with FileLock(root / ".runner.lock", timeout=0):
            store.write(".runner.json", {"runner": this_process(), "since": since})
            yield
    except Timeout:
        who = f" (process {earlier['runner'].split()[1]}, since {earlier['since']})" if earlier else ""
        raise Refused(
            f"another run works in {root}{who}: wait for it, end it, or give another folder with RESULTS="
        ) from None


def _snakemake(run_file: Path, request: dict[str, Any], profile: Path | None) -> int:
    """snakemake's exit code. Its jobs write to our standard output; it and they end when we do."""
    where = ("--profile", str(profile)) if profile else ("--cores", str(_cores()))
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(NOTEBOOKS / "Snakefile")),
        *("--directory", request["root"], "--config", f"run={run_file}", *where),
        # the runner has its own lock, which unlike snakemake's is never left behind
        *("--nolock", "--rerun-incomplete", "--forceall", "--quiet", "all"),
    ]
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONNOUSERSITE": "1",
        RUNNER: this_process(),
    }
    environment.pop("JUPYTER_PATH", None)  # its kernels would come before this environment's
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        with _interrupt_on_sigterm():
            return process.wait()
    finally:
        _end(process, patience=60 if profile else 5)  # snakemake takes its jobs back from a cluster
        for partial in Path(request["root"], "notebooks").glob(NAMES[2].format("*")):
            partial.unlink()


def _cores() -> int:
    """Threads of a notebook: what the user set, or the processors that this process may use."""
    if threads := os.environ.get("OMP_NUM_THREADS"):
        return int(threads.split(",")[0])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen, patience: float) -> None:
    """End a process that still runs and all that it started: asked first, forced after `patience` seconds."""
    if process.poll() is not None:
        return
    top = psutil.Process(process.pid)
    family = [*top.children(recursive=True), top]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=patience)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


# ---- saying what happened --------------------------------------------------------------------------------


def _reason(request: dict[str, Any], started: float) -> str:
    for failed in sorted(Path(request["root"], "notebooks").glob(NAMES[1].format("*"))):
        if failed.stat().st_mtime >= started:
            error = json.loads(failed.read_text(encoding="utf8"))["metadata"]["igds"]["error"]
            name = failed.name.removesuffix(NAMES[1].format(""))
            return f"{name} failed: {error}\nThe notebook with its traceback: {_short(failed)}"
    return f"a job ended before its notebook did; snakemake's log: {_short(Path(request['root']))}/.snakemake/log"


def _short(path: Path) -> str:
    """As the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

"""One notebook of a run, executed by papermill whole or not at all.

`python -m igds_utils.running.job RUN.json STAGE [TASK ARM]` is what the Snakefile calls. The executed notebook
appears under its name (STAGE, or STAGE.TASK.ARM for one arm alone) only when every cell has passed; one that failed is
kept beside it as NAME.failed.ipynb, with its traceback.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from igds_utils import display
from igds_utils.core.processes import follow
from igds_utils.core.store import Store

RUNNER = "IGDS_RUNNER"  # environment variable that names the process which must outlive its jobs
NAMES = ("{}.ipynb", "{}.failed.ipynb", ".{}.partial.ipynb")  # whole, failed, still being executed
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def execute(run: dict[str, Any], stage: str, task: str = "", arm: str = "") -> bool:
    """Execute `notebooks/<stage>.ipynb` with the run's parameters, all arms or one alone; True when all of it passed.

    Writes <root>/notebooks/<name>.ipynb or <name>.failed.ipynb, and adds the time (s) and the peak memory
    (bytes) to <root>/timings.json.
    """
    folder = Path(run["root"]) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    name, parameters = stage, run["parameters"]
    if arm:
        name = f"{stage}.{task}.{arm}"
        overrides = parameters["overrides"] | {f"tasks.{task}.only_arms": [arm]}
        parameters = parameters | {"tasks": [task], "overrides": overrides}
    whole, failed, partial = (folder / form.format(name) for form in NAMES)
    failed.unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.perf_counter()
    error = _papermill(Path(run["notebooks"]) / f"{stage}.ipynb", partial, parameters)
    seconds = time.perf_counter() - clock
    # The kernel is a child that has been waited for; Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    entry = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "complete": not error,
    }
    _record(Path(run["root"]), name, entry)
    if error:
        _keep_failed(partial, failed, error)
    else:
        os.replace(partial, whole)
    place = f"[{run['stages'].index(stage) + 1}/{len(run['stages'])}] {name}"
    print(
        f"{place}: {'failed after' if error else 'done in'} {display.duration(seconds)}, peak {peak / 1e9:.1f} GB",
        flush=True,
    )
    return not error


def load_papermill() -> ModuleType:
    """papermill, imported in a third of the time: without a grammar of international web addresses.

    jsonschema, which checks that a notebook is one, builds that grammar when it is imported, for a check that no
    notebook asks for, and does without where its package is not there.
    """
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    return papermill


def literal(path: Path) -> str:
    """A path for papermill, which fills in parameters where braces stand."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _papermill(notebook: Path, output: Path, parameters: dict[str, Any]) -> str:
    """Run all cells, showing their output as it comes; the text of the error, or "" when there was none."""
    papermill = load_papermill()
    from nbclient.exceptions import DeadKernelError

    try:
        papermill.execute_notebook(
            literal(notebook),
            literal(output),
            parameters=parameters,
            kernel_name="python3",
            cwd=notebook.parent,
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


def _keep_failed(partial: Path, failed: Path, error: str) -> None:
    """Turn the half-executed notebook into one to read, with the error's text in its metadata for the runner."""
    notebook = json.loads(partial.read_text(encoding="utf8"))
    notebook["metadata"]["igds"] = {"error": error}
    Store(failed.parent).write(failed.name, notebook)
    partial.unlink()


def _record(root: Path, stage: str, entry: dict[str, Any]) -> None:
    store = Store(root)
    with FileLock(root / ".timings.lock"):
        timings = store.read("timings.json") if store.has("timings.json") else {}
        timings.setdefault(stage, []).append(entry)
        store.write("timings.json", timings)


def main() -> int:
    file, stage, *arm = sys.argv[1:]
    sys.stdout.reconfigure(line_buffering=True)  # into a pipe or a file too, what is said appears at once
    if runner := os.environ.get(RUNNER):
        threading.Thread(target=follow, args=(runner,), daemon=True).start()
    run = json.loads(Path(file).read_text(encoding="utf8"))
    print(f"[{run['stages'].index(stage) + 1}/{len(run['stages'])}] {' '.join([stage, *arm])}", flush=True)
    return 0 if execute(run, stage, *arm) else 1


if __name__ == "__main__":
    sys.exit(main())

"""One notebook of a run, executed by papermill whole or not at all.

`python -m igds_utils.running.job RUN.json STAGE [TASK ARM | PART]` is what the Snakefile calls. The executed notebook
appears under its name (STAGE, STAGE.TASK.ARM for one arm alone, STAGE.part3of8 for a share) only when every cell has
passed; one that failed is kept beside it as NAME.failed.ipynb, with its traceback.
"""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import papermill
from filelock import FileLock
from nbclient.exceptions import DeadKernelError

from igds_utils import display
from igds_utils.core.launch import follow
from igds_utils.core.store import write_whole

RUNNER = "IGDS_RUNNER"  # environment variable that names the process which must outlive its jobs
NAMES = ("{}.ipynb", "{}.failed.ipynb", ".{}.partial.ipynb")  # whole, failed, still being executed
LAST_OF_PART = "parts"  # tag of the cell after which the notebook of one share ends
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def execute(run: dict[str, Any], stage: str, *which: str) -> bool:
    """Execute `notebooks/<stage>.ipynb` with the run's parameters; True when all of it passed.

    which: a task and one of its arms, for it alone; or a share such as "3/8"; without it, all. Writes
    <root>/notebooks/<name>.ipynb or <name>.failed.ipynb.
    """
    name, parameters = ".".join([stage, *which]), run["parameters"]
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
    folder = Path(run["root"]) / "notebooks"
    with FileLock(folder / f".{name}.lock"):  # the same job of a killed runner ends within a second or two
        error = _whole_or_failed(Path(run["notebooks"]) / f"{stage}.ipynb", folder, name, parameters)
    done = f"{'failed after' if error else 'done in'} {display.duration(time.perf_counter() - clock)}"
    print(f"{place}: {done}", flush=True)
    return not error


def _whole_or_failed(source: Path, folder: Path, name: str, parameters: dict[str, Any]) -> str:
    """Execute a notebook; the text of the error, which the runner reads in the metadata of the failed notebook."""
    whole, failed, partial = (folder / form.format(name) for form in NAMES)
    failed.unlink(missing_ok=True)
    shared = "part" in parameters
    if shared:
        write_whole(partial, json.dumps(until_shared(json.loads(source.read_text(encoding="utf8")))))
    if error := _papermill(partial if shared else source, partial, parameters, source.parent):
        notebook = json.loads(partial.read_text(encoding="utf8"))
        notebook["metadata"]["igds"] = {"error": error}
        write_whole(failed, json.dumps(notebook, indent=1, ensure_ascii=False))
        partial.unlink()
    else:
        os.replace(partial, whole)
    return error


def until_shared(notebook: dict[str, Any]) -> dict[str, Any]:
    """A notebook without the cells after the one that is tagged `parts`, which need all shares."""
    last = next(
        number
        for number, cell in enumerate(notebook["cells"])
        if LAST_OF_PART in cell["metadata"].get("tags", [])
    )
    return notebook | {"cells": notebook["cells"][: last + 1]}


def literal(path: Path) -> str:
    """A path for papermill, which fills in parameters where braces stand."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _papermill(notebook: Path, output: Path, parameters: dict[str, Any], folder: Path) -> str:
    """Run all cells in `folder`, showing their output as it comes; the text of the error, or ""."""
    try:
        papermill.execute_notebook(
            literal(notebook),
            literal(output),
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

"""One runner a results folder.

The lock is the operating system's, so it dies with the process that holds it and is never left behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from igds_utils.core.processes import this_process
from igds_utils.core.store import Store
from igds_utils.running.job import RUNNER


class Refused(RuntimeError):
    """A run that was not begun, because another one is at work in its folder."""


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Be the only runner of the folder `root` in this context; raises `Refused` where another one is at work."""
    root.mkdir(parents=True, exist_ok=True)
    holder = root / ".runner.json"
    try:
        with FileLock(root / ".runner.lock", timeout=0):
            _outlive_survivors(_read_holder(holder))
            mine = {
                "runner": this_process(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            Store(root).write(holder.name, mine)
            yield
    except Timeout:
        other = _read_holder(holder)
        who = f" (process {other['runner'].split()[1]}, since {other['since']})" if other else ""
        raise Refused(
            f"another run works in {root}{who}: wait for it, end it, or give another folder with RESULTS="
        ) from None


def _read_holder(holder: Path) -> dict[str, str]:
    return json.loads(holder.read_text(encoding="utf8")) if holder.is_file() else {}


def _outlive_survivors(earlier: dict[str, str], patience: float = 30.0) -> None:
    """Wait (s) until no job of an earlier, killed runner is left: they end by themselves within a second or two."""
    deadline = time.monotonic() + patience
    while earlier and (left := [p.pid for p in psutil.process_iter() if _runner_of(p) == earlier["runner"]]):
        if time.monotonic() > deadline:
            raise Refused(f"process {left[0]} of an earlier run does not end: end it and run again")
        time.sleep(0.2)


def _runner_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(RUNNER)
    except (psutil.Error, OSError):  # gone, or somebody else's
        return None

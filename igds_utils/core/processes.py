"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import platform
import time

import psutil


def this_process() -> str:
    """Machine, id and birth (an id can be used again) of a runner, for the environment of its jobs."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time()}"


def follow(runner: str) -> None:
    """End this job and its kernel once the runner is gone (killed, so that it could not do it itself)."""
    machine, pid, created = runner.split()
    while machine == platform.node():
        time.sleep(0.5)
        try:
            process = psutil.Process(int(pid))
            # one that was killed stays in the list until its parent asks for it
            alive = (
                abs(process.create_time() - float(created)) < 1 and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            for child in psutil.Process().children(recursive=True):
                child.kill()
            os._exit(1)

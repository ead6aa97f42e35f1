"""The processes of an `accelerate launch`: each does its share, the main process writes.

Shares are fixed by the work alone, so that several processes give exactly what one gives.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=1)  # of a process that waits for others, which may score for hours


def processes() -> int:
    """How many processes work together, as `accelerate launch` says; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    return process_index() == 0


def connected():
    """What accelerate offers to the processes of a launch; the first call connects them."""
    import torch
    from accelerate import PartialState, utils

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return utils


def gathered(own: list) -> list:
    """The items of all processes, known to every one; they travel pickled."""
    return own if processes() == 1 else connected().gather_object(own)


def on_main_process(make: Callable[[], Any]) -> Any:
    """Runs `make` in the main process and broadcasts its result; the others wait."""
    if processes() == 1:
        return make()
    return connected().broadcast_object_list([make() if is_main_process() else None])[0]


def wait_for_everyone() -> None:
    if processes() > 1:
        connected().wait_for_everyone()

"""The processes of an `accelerate launch`: each does its share, the main process writes.

Shares are fixed by the work alone, so that several processes give exactly what one gives.
"""

import os
from collections.abc import Callable, Sequence
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


def own_gpu() -> int | None:
    """The GPU of this process of a launch or job of several (IGDS_GPU); None: all are its own."""
    number = os.environ.get("LOCAL_RANK" if processes() > 1 else "IGDS_GPU")
    return None if number is None else int(number)


def connected():
    """What accelerate offers to the processes of a launch; the first call connects them."""
    import torch
    from accelerate import PartialState, utils

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return utils


def map_in_order(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`function` of every item, in the order of the items, known to every process.

    Process r of n takes the items r, r + n, r + 2n, ...; results travel pickled.
    """
    mine = range(process_index(), len(items), processes())
    done = [(number, function(items[number])) for number in mine]
    known = dict(done if processes() == 1 else connected().gather_object(done))
    return [known[number] for number in range(len(items))]


def on_main_process(make: Callable[[], Any]) -> Any:
    """Runs `make` in the main process and broadcasts its result; the others wait."""
    if processes() == 1:
        return make()
    return connected().broadcast_object_list([make() if is_main_process() else None])[0]


def wait_for_everyone() -> None:
    if processes() > 1:
        connected().wait_for_everyone()

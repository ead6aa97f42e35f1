"""The processes of an `accelerate launch`: each does its share of the work, and the main process writes.

Shares are fixed by the work alone, so that several processes give exactly what one gives.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
# How long a process waits for another: one may score or load for hours. One that dies ends the others at once.
PATIENCE = timedelta(days=1)


def processes() -> int:
    """How many processes work together, as `accelerate launch` says; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    return process_index() == 0


def own_gpu() -> int | None:
    """Number of the GPU of this process of a launch, or of this job of several (IGDS_GPU); None: all are its own."""
    number = os.environ.get("LOCAL_RANK", 0) if processes() > 1 else os.environ.get("IGDS_GPU")
    return None if number is None else int(number)


def start() -> None:
    """Connect the processes of a launch and give each its GPU; the first step of a launch.

    Only where they are connected does transformers leave reading a sharded model's weights to one process.
    """
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def map_in_order(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in the order of the items, known to every process.

    Process r of n takes the items r, r + n, r + 2n, ...; items: the same in every process, longest first or alike.
    Results travel pickled: numbers, arrays and tables, no tensors of a GPU.
    """
    mine = range(process_index(), len(items), processes())
    done = [(number, function(items[number])) for number in mine]
    known = dict(done if processes() == 1 else _connected().gather_object(done))
    return [known[number] for number in range(len(items))]


def on_main_process(make: Callable[[], Result]) -> Result:
    """Runs `make` in the main process and broadcasts its result; the others wait."""
    if processes() == 1:
        return make()
    accelerate = _connected()
    return accelerate.broadcast_object_list([make() if is_main_process() else None])[0]


def wait_for_everyone() -> None:
    if processes() > 1:
        _connected().wait_for_everyone()


def _connected():
    """What accelerate offers to processes that are connected."""
    from accelerate import utils

    start()
    return utils


def end() -> None:
    """Disconnect the processes when all have come here; one that just ends may crash on its open connections."""
    from torch import distributed

    if processes() > 1 and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()

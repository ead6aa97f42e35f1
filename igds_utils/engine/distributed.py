"""The processes of an `accelerate launch`: each does its share of the work, and the main process writes.

Shares are fixed by the work alone, so that several processes give exactly what one gives. Without a launch there is
one process, and nothing here costs anything.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
# How long a process waits for another: one may score or load for hours. One that dies ends the others at once.
PATIENCE = timedelta(days=1)


def processes() -> int:
    """How many processes work together (what torchrun and `accelerate launch` say in the environment)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    return process_index() == 0


def own_gpu() -> int:
    """Number of the GPU for this process of a launch, or for this job of several that share the work (IGDS_GPU)."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("IGDS_GPU") or 0)


def shares_machine() -> bool:
    """Whether the other GPUs of this machine are for other processes."""
    return processes() > 1 or "IGDS_GPU" in os.environ


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
    if processes() > 1:
        from accelerate.utils import gather_object

        start()
        done = sorted(gather_object(done), key=itemgetter(0))
    return [result for _, result in done]


def on_main_process(make: Callable[[], Result]) -> Result:
    """Runs `make` in the main process and broadcasts its result; the others wait."""
    if processes() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    start()
    box = [make() if is_main_process() else None]
    return broadcast_object_list(box)[0]


def wait_for_everyone() -> None:
    if processes() > 1:
        from accelerate.utils import wait_for_everyone

        start()
        wait_for_everyone()


def end() -> None:
    """Disconnect the processes when all have come here; one that just ends may crash on its open connections."""
    from torch import distributed

    if processes() > 1 and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()

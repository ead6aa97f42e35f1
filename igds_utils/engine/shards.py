"""Work that the processes of an `accelerate launch` share: each takes its part, and all know the whole.

The pieces are fixed by the work alone, never by how many processes there are, so that several processes give exactly
what one gives. Without a launch there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from operator import itemgetter
from typing import Any, TypeVar

from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")
# How long a process waits for another: one may score or load for hours. One that dies ends the others at once.
PATIENCE = timedelta(days=1)


def processes() -> int:
    """How many processes work together (what torchrun and `accelerate launch` say in the environment)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def meet() -> None:
    """Let the processes of a launch find each other, and take each its own GPU; nothing happens in one alone.

    The first step of a launch: transformers leaves reading the weights of a model that will be sharded to one process
    only where they have met.
    """
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def map_in_order(function: Callable[[Item], Result], items: Sequence[Item], **bar: Any) -> list[Result]:
    """`function` of every item, in the order of the items, known to every process; each process calls it on its part.

    items: the same in every process, with a cost that does not grow along the sequence (longest first, or alike):
    process r of n takes the items r, r + n, r + 2n, ... Results travel pickled: numbers, arrays and tables, no
    tensors of a GPU. bar: options of the progress bar.
    """
    mine = range(int(os.environ.get("RANK", 0)), len(items), processes())
    done = [(number, function(items[number])) for number in tqdm(mine, **bar)]
    if processes() > 1:
        from accelerate.utils import gather_object

        meet()
        done = sorted(gather_object(done), key=itemgetter(0))
    return [result for _, result in done]


def from_first(make: Callable[[], Result]) -> Result:
    """What `make` gives in the first process, known to all; the others wait for it and do not call it."""
    if processes() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    meet()
    box = [make() if is_first() else None]
    return broadcast_object_list(box)[0]


def leave() -> None:
    """End what the processes share, when all have come here; one that just ends may crash on its open connections."""
    from torch import distributed

    if processes() > 1 and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()

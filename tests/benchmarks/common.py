"""What the rows of the benchmark share: the default model, a pool of random words, and turns of measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from random import Random
from statistics import median
from typing import Any

import torch

from igds_utils.core.experiment import open_run
from igds_utils.engine import prompts
from igds_utils.engine.lm import LM, residuals, unembed
from igds_utils.engine.losses import Pair

LAYER = 12  # of 30: a mid-depth feature
WORDS = "time year people way day man thing woman life child world school state family student group country".split()
BATCH = 2048  # tokens of a forward pass
sizes = {"small": False}  # small: sizes that only show that a row works


@cache
def model() -> tuple[LM, Any]:
    run = open_run("quick", tasks=["math"])
    return run.lm, run.saes


def size(full: int, little: int) -> int:
    return little if sizes["small"] else full


def medians(repeats: int, **variants: Callable[[], object]) -> dict[str, float]:
    """Median wall seconds of each variant; one after the other, `repeats` times."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(size(repeats, 1)):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: median(seconds) for name, seconds in taken.items()}


def pool(n: int, prompt: int, target: int, seed: int = 0) -> tuple[list[str], list[Pair]]:
    """n samples of random words, prompts and targets of about so many tokens: texts, and token ids with targets."""
    draw, (lm, _) = Random(seed), model()
    words = lambda mean: " ".join(draw.choices(WORDS, k=draw.randint(mean * 3 // 5, mean * 7 // 5)))  # noqa: E731
    texts = [f"{words(prompt)}\nSolution:" for _ in range(n)]
    return texts, prompts.encode_pairs(lm.tokenizer, texts, [f" {words(target)}" for _ in texts])


@torch.inference_mode()
def packed(tokens: int, layers: int, head: int = 0, length: int = 128) -> None:
    """A bare forward pass of the first blocks over so many tokens without padding, and the head over `head` of them."""
    lm, _ = model()
    for _ in range(max(1, round(tokens / BATCH))):
        ids = torch.randint(100, 40_000, (BATCH // length, length))
        h = residuals(lm, [layers - 1], input_ids=ids)[layers - 1]
    for done in range(0, head, BATCH):
        unembed(lm, h.flatten(0, 1)[: min(BATCH, head - done)])

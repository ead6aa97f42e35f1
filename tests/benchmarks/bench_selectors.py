"""Speed of the selectors that do more than sort: `make bench-selectors`, or python tests/benchmarks/bench_selectors.py.

Ratios of medians; what is compared runs in turn. Times are the processor's, which other work on the machine disturbs
less than the clock's. About two minutes; the first run fetches the default model. Writes
results/reference/bench/selectors.json.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from statistics import median
from unittest.mock import patch

import numpy as np

from igds_utils.config.config import PROJECT
from igds_utils.core import store
from igds_utils.core.experiment import open_run
from igds_utils.core.manifest import machine
from igds_utils.engine import loading, losses
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selection.pool import Pool, open_pool
from igds_utils.selectors import rank_pool
from igds_utils.selectors.base import document
from igds_utils.selectors.diversity import Bundle, lazy_greedy
from igds_utils.tasks.examples import Example
from igds_utils.tasks.own_data import draw_problem

LARGE, SMALL = 20_000, 5_000  # samples of a pool
BUDGET = 200  # of ZIP: two rounds of its defaults
LM_POOL = 16  # samples that the default model reads
SHARED = [
    "loss",
    "loss_highest",
    "ifd",
    "ifd_perplexity",
    "mona",
    "mona_least",
    "greedselect",
    "simscale",
    "instag",
]


def medians(repeats: int, **variants: Callable[[], object]) -> dict[str, float]:
    """Median processor seconds of each variant; one after the other, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, call in variants.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: round(median(taken), 4) for name, taken in seconds.items()}


def feature_sets(n: int, features: int = 4608, mean: int = 60) -> list[np.ndarray]:
    """Sets of features of n samples, a few frequent and many rare ones, as SAEs show them."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, features + 1)
    sizes = random.poisson(mean, n) + 1
    return [np.unique(random.choice(features, size, p=share / share.sum())) for size in sizes]


def plain_greedy(sets: list[np.ndarray], ties: np.ndarray, size: int) -> np.ndarray:
    """GreedSelect without the queue: every gain is calculated anew for every sample taken."""
    covered, left, order = np.zeros(4608, dtype=bool), set(range(len(sets))), []
    while len(order) < size:
        gains = {i: int((~covered[sets[i]]).sum()) for i in left}
        best = min(left, key=lambda i: (-gains[i], ties[i]))
        if not gains[best]:
            covered[:] = False
            continue
        covered[sets[best]] = True
        order.append(best)
        left.remove(best)
    return np.array(order)


def bench_greedy(size: int = 30) -> dict:
    sets, ties = feature_sets(LARGE), np.arange(LARGE)
    taken = medians(
        3, lazy=lambda: lazy_greedy(sets, ties, size), plain=lambda: plain_greedy(sets, ties, size)
    )
    more = medians(1, lazy=lambda: lazy_greedy(sets, ties, LARGE // 10))
    return {
        "pool": LARGE,
        "size": size,
        "seconds": taken,
        "plain_over_lazy": taken["plain"] / taken["lazy"],
        "same_choice": np.array_equal(lazy_greedy(sets, ties, size), plain_greedy(sets, ties, size)),
        "lazy_seconds_for_a_tenth": more["lazy"],
    }


def problems(n: int) -> list[Example]:
    """Word problems of the default task."""
    random = Random(0)
    drawn = (draw_problem(random, random.randint(1, 3), 20) for _ in range(n))
    return [
        Example(f"p{i:05d}", one.fields, one.target.partition("\n")[0], ()) for i, one in enumerate(drawn)
    ]


def bench_zip() -> dict:
    pools = {n: Pool(None, "", problems(n), "") for n in (SMALL, LARGE)}
    taken = medians(
        3,
        small=lambda: rank_pool("zip", pools[SMALL], BUDGET),
        large=lambda: rank_pool("zip", pools[LARGE], BUDGET),
    )
    growth = LARGE * math.log(LARGE) / (SMALL * math.log(SMALL))
    return {
        "pools": [SMALL, LARGE],
        "budget": BUDGET,
        "seconds": taken,
        "large_over_small": taken["large"] / taken["small"],
        "n_log_n": growth,
    } | bench_bundle(pools[SMALL].samples)


def bench_bundle(members: list[Example], kept: int = 1500, tried: int = 300) -> dict:
    """A kept compressor state against compressing everything again: time of a trial, and how often g differs."""
    texts = [f"{document(one)}\n".encode() for one in members]
    bundle, whole = Bundle(), b"".join(texts[:kept])
    for text in texts[:kept]:
        bundle.add(text)
    trials = texts[kept : kept + tried]
    state = [bundle.ratio_with(text) for text in trials]
    again = [(len(whole) + len(text)) / len(zlib.compress(whole + text, 9)) for text in trials]
    taken = medians(
        3,
        kept_state=lambda: [bundle.ratio_with(text) for text in trials[:20]],
        again=lambda: [zlib.compress(whole + text, 9) for text in trials[:20]],
    )
    return {
        "bytes_selected": len(whole),
        "trials": tried,
        "ratios_that_differ": sum(a != b for a, b in zip(state, again, strict=True)),
        "again_over_kept_state": taken["again"] / taken["kept_state"],
    }


def rank_fresh(names: list[str]) -> Counter:
    """Rank one pool with several selectors, nothing measured before; how often each measurement and loss pass ran."""
    calls: Counter = Counter()

    def counted(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    changed = {"tasks.math.sizes.pool": LM_POOL, "selection.examples": 8}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run("quick", tasks=["math"], overrides=changed, results=folder)
        run.store.log = lambda line: None
        pool, known = open_pool(run, "math"), default_lm()
        measured = {name: (counted(name, one), reads) for name, (one, reads) in MEASUREMENTS.items()}
        passes = counted("loss passes", losses.target_losses)
        loaded = patch.object(loading, "load_lm", lambda ref, dtype: known)
        with (
            loaded,
            patch.dict(MEASUREMENTS, measured),
            patch.object(losses, "target_losses", passes),
        ):
            for name in names:
                rank_pool(name, pool, LM_POOL // 2)
    return calls


@cache
def default_lm():
    return open_run("quick", tasks=["math"]).lm


def bench_shared() -> dict:
    rank_fresh(["loss"])  # the first pass of a process is slower
    taken = medians(3, ifd=lambda: rank_fresh(["ifd"]), both=lambda: rank_fresh(["ifd", "loss"]))
    calls = rank_fresh(SHARED)
    return {
        "pool": LM_POOL,
        "seconds": taken,
        "ifd_and_loss_over_ifd": taken["both"] / taken["ifd"],
        "selectors": SHARED,
        "loss_passes": calls.pop("loss passes"),
        "times_a_measurement_was_made": dict(sorted(calls.items())),
    }


def main() -> None:
    found = {"machine": machine()}
    for name, bench in (("greedy", bench_greedy), ("zip", bench_zip), ("shared", bench_shared)):
        found[name] = bench()
        print(name, json.dumps(found[name], indent=1), flush=True)
    file = Path(PROJECT) / "results" / "reference" / "bench" / "selectors.json"
    store.write_whole(file, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

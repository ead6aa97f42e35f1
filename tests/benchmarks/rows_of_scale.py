"""Rows of the benchmark that grow with the pool or belong to a whole run."""

from __future__ import annotations

import json
import subprocess
import sys

from common import size

from igds_utils.config.config import PROJECT

# One process a size: its peak memory is its own. Prompts are read part by part, as a pool is measured.
GROWTH = """
import json, resource, sys, time
from itertools import islice
from igds_utils import tiny
from igds_utils.engine import activations
from igds_utils.engine.lm import LM
from igds_utils.selection.measurements import PROMPTS
from igds_utils.engine.sae import Feature
lm, n = LM(tiny.model("llama"), tiny.tokenizer(), "llama"), int(sys.argv[1])
saes = type("Saes", (dict,), {"device": "cpu"})({1: tiny.sae(seed=1)})
def score(texts):
    residual = activations.critical_residuals(lm, texts, [1], batch_tokens=8192)
    return activations.feature_activations(residual, saes, [Feature(1, 7)])
score(["7 + 12 apples?\\nSolution:"] * 64)
texts, total = (f"{i} + {i % 97} apples?\\nSolution:" for i in range(n)), 0.0
start = time.perf_counter()
while part := list(islice(texts, PROMPTS)):
    total += float(score(part).sum())
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"samples": n, "seconds": seconds, "peak_bytes": peak, "total": total}))
"""


IMPORTS = """
import time
start = time.perf_counter()
import torch, transformers, sae_lens, trl
print(time.perf_counter() - start)
"""


def pool_growth() -> dict:
    """Scoring with a tiny model at three sizes: time a sample at the largest over the middle one, and peak memory."""
    found = []
    for n in (size(1_000, 100), size(10_000, 1_000), size(100_000, 2_000)):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(n)], capture_output=True, text=True, check=True, cwd=PROJECT
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    middle, large = found[1:]
    return {
        "value": (large["seconds"] / large["samples"]) / (middle["seconds"] / middle["samples"]),
        "memory_growth": large["peak_bytes"] / middle["peak_bytes"] - 1,
        "sizes": found,
    }


def notebook_overhead() -> dict:
    """Share of a quick run's wall time that no product was being made in; nothing without such a run.

    Imports are stated beside it: a kernel that imports what 04_sft does.
    """
    root = PROJECT / "results" / "quick"
    if not (root / "timings.json").exists():
        print("overhead: no results/quick to look at; run `make reproduce` first")
        return {}
    timings = json.loads((root / "timings.json").read_text())
    whole = sum(run["seconds"] for run in timings.values())
    made = sum(json.loads(file.read_text())["seconds"] for file in root.glob("*/**/*.made.json"))
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    imports = float(done.stdout.splitlines()[-1])
    share = 1 - made / whole
    return {
        "value": share - len(timings) * imports / whole,
        "with_imports": share,
        "imports_seconds": imports,
        "notebooks": len(timings),
        "run_seconds": whole,
    }

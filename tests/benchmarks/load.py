"""What `igds select` takes for large pools: `make load`, or python tests/benchmarks/load.py [rows ...].

Pools of 100,000, 300,000 and 1,000,000 made-up records, by a selector that reads prompts alone and by ZIP. All is as
the command does it, but for the pass of the model with its tokens, which gives noise. Each is a process of its own, and
replaces its row of results/reference/faults/load.csv: seconds of the clock, and of all processors, which other work on
the machine disturbs less; peak memory, with the pages of mapped files, which the system takes back when it needs them,
and (own_mb) without; how far the longest progress bar was off at its worst, from its first tenth on: the end that it
foretold against the true one, as a share of the time that the bar was there.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from random import Random
from unittest.mock import patch

import pandas as pd

SIZES = [100_000, 300_000, 1_000_000]
ASKED = {
    "igds": ["--features", "l2_p3", "--ratio", "0.5"],
    "zip": ["--ratio", "0.001"],  # a round of ZIP for every 100,000 rows
}
WORDS = "a bus with nine passengers stops then seven leave how many apples does Ann have left now".split()
Reading = tuple[object, float, float, float, float]  # a bar, its clock, done, total, rate


def write_pool(file: Path, rows: int) -> None:
    """Records of 8 to 40 words and a target of 4 to 12, in no order of their length."""
    random = Random(0)
    with file.open("w") as lines:
        for i in range(rows):
            question = " ".join(random.choices(WORDS, k=random.randint(8, 40)))
            target = " ".join(random.choices(WORDS, k=random.randint(4, 12)))
            lines.write(json.dumps({"id": f"r{i}", "question": f"{i}: {question}?", "target": target}) + "\n")


def estimate_error(read: list[Reading]) -> float:
    """Of the bar that was there for longest; NaN where none gave an estimate."""
    longest = max(read, key=lambda one: one[1], default=[None])[0]
    bar = [one for one in read if one[0] is longest]
    whole = bar[-1][1] if bar else 0
    known = [(at, (total - n) / rate) for _, at, n, total, rate in bar if n >= total / 10 and rate]
    return max((abs(at + left - whole) / whole for at, left in known), default=float("nan"))


def child(selector: str, pool: str, folder: str) -> None:
    """One `igds select`, and what it took, as JSON."""
    import torch
    from tqdm import tqdm

    from igds_utils import cli

    read: list[Reading] = []
    own = [0.0]

    def watch():
        while True:
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
            own[0] = max(own[0], (resident - shared) * resource.getpagesize() / 2**20)
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()

    def noise(lm, texts, layers, _):
        return {layer: torch.randn(len(texts), lm.width) for layer in layers}

    def display(bar, *_args, **_kwargs):
        known = bar.format_dict
        if bar.total:
            rate = known["rate"] or bar.n / max(known["elapsed"], 1e-9)
            read.append((bar, known["elapsed"], bar.n, bar.total, rate))

    arguments = ["select", pool, "--preset", "smoke", "--task", "math", "--selector", selector]
    arguments += [*ASKED[selector], "--results", folder, "--out", f"{folder}/selection"]
    start = time.perf_counter()
    with patch("igds_utils.engine.activations.critical_residuals", noise), patch.object(tqdm, "display", display):
        if cli.main(arguments):
            sys.exit("refused")
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    row = {"seconds": round(seconds, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
    row |= {"peak_mb": round(used.ru_maxrss / 1024), "own_mb": round(own[0])}
    row["estimate_error"] = round(estimate_error(read), 3)
    Path(folder, "row.json").write_text(json.dumps(row))


def main(sizes: list[int]) -> None:
    from igds_utils.config.config import PROJECT

    file = PROJECT / "results/reference/faults/load.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    for selector, rows in product(ASKED, sizes):
        with tempfile.TemporaryDirectory() as folder:
            write_pool(pool := Path(folder, "pool.jsonl"), rows)
            command = [sys.executable, __file__, "child", selector, str(pool), folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            row = {"selector": selector, "rows": rows} | json.loads(Path(folder, "row.json").read_text())
        print(row, flush=True)
        known = pd.read_csv(file) if file.exists() else None
        table = pd.concat([known, pd.DataFrame([row])]).drop_duplicates(["selector", "rows"], keep="last")
        table.sort_values(["selector", "rows"]).to_csv(file, index=False, lineterminator="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main([*map(int, sys.argv[1:])] or SIZES)

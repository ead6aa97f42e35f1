"""What the engine reaches, against its targets and against what people run today: `make bench`, about 16 minutes.

    python tests/benchmarks/bench.py [--only NAME ...] [--again] [--small] [--out FOLDER]

Every row is a ratio of medians, measured in turns in one process, with the default model on the machine as it stands:
run it when nothing else does. A row is stored as it is finished; the next call measures what is missing, or what
--only names, and on another processor everything again. Writes bench.json, bench.md and a figure into
results/reference/bench.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rows_of_filter import decoding_share, filter_against_batch, filter_against_batch_1
from rows_of_scale import notebook_overhead, pool_growth
from rows_of_scoring import (
    frs_against_forward,
    frs_math,
    frs_summarization,
    ifd_against_forward,
    loss_against_forward,
)
from rows_of_training import training

from igds_utils.config.config import PROJECT
from igds_utils.core.manifest import machine
from igds_utils.core.store import write_whole
from igds_utils.plots import style
from igds_utils.reporting.report import to_markdown

OUT = PROJECT / "results" / "reference" / "bench"

# name: (what, target, whether lower is better, how it is measured)
ROWS: dict[str, tuple[str, float, bool, Callable[[], dict]]] = {
    "frs_math": ("FRS / Loss, prompt a third of the tokens", 0.18, True, frs_math),
    "frs_summarization": ("FRS / Loss, prompt 85 % of the tokens or more", 0.45, True, frs_summarization),
    "frs_forward": ("FRS / bare forward pass of its blocks, per token", 1.15, True, frs_against_forward),
    "filter_batch": ("causal filter, times faster than generate with a hook", 2.5, False, filter_against_batch),
    "filter_batch_1": ("the same, against batch size 1", 10, False, filter_against_batch_1),
    "decoding": ("decoding / forward pass, tokens per second", 0.6, False, decoding_share),
    "loss_forward": ("Loss / bare forward pass, per token", 1.15, True, loss_against_forward),
    "ifd_forward": ("IFD / bare forward pass, per token", 1.15, True, ifd_against_forward),
    "growth": ("scoring 100K samples / 10 x 10K, time per sample", 1.1, True, pool_growth),
    "training": ("SFT / bare PyTorch loop, tokens per second", 0.9, False, training),
    "overhead": ("share of a quick run outside of model work", 0.15, True, notebook_overhead),
}  # fmt: skip


NOTES = {
    "prompt_share": "prompts are {:.0%} of the tokens",
    "same_outputs": "{:.0%} of the compared outputs identical",
    "difference_from_batch_1": "{:.0e} from batch size 1",
    "times_faster_than_batch_1": "{:.1f} times faster than batch size 1",
    "memory_growth": "peak memory {:+.1%}",
    "with_imports": "{:.0%} with imports",
    "imports_seconds": "imports take {:.0f} s per notebook",
}


def beside(row: dict) -> str:
    """What else a row found, in words."""
    return "; ".join(text.format(row[key]) for key, text in NOTES.items() if key in row)


def stored(out: Path) -> dict[str, dict]:
    """The rows that were measured on this processor, by name."""
    file = out / "bench.json"
    before = json.loads(file.read_text()) if file.exists() else {"machine": machine(), "rows": {}}
    return before["rows"] if before["machine"]["processor"] == machine()["processor"] else {}


def keep(out: Path, rows: dict[str, dict]) -> None:
    ordered = {name: rows[name] for name in ROWS if name in rows}
    write_whole(out / "bench.json", json.dumps({"machine": machine(), "rows": ordered}, indent=1) + "\n")


def draw(values: dict[str, float]) -> Figure:
    """Times better than the target on a log axis, a row each: right of 1 is good, whichever way a row counts."""
    rows = [ROWS[name][:3] for name in values]
    better = pd.DataFrame({"score": [
        target / max(value, 1e-3) if lower else value / target
        for value, (_, target, lower) in zip(values.values(), rows, strict=True)
    ]})  # fmt: skip
    figure, axes = style.new_figure(style.PAGE, 0.6 + 0.25 * len(rows))
    axis, at = axes[0, 0], np.arange(len(rows))
    axis.axvline(1, **style.DASHED)
    for met, colour, label in ((True, style.ACCENT, "target met"), (False, style.AGAIN, "target missed")):
        here = (better["score"] >= 1) == met
        axis.hlines(at[here], 1, better["score"][here], color=colour)
        style.dots(axis, better[here], at[here], ["score"], color=colour, label=label)
    style.name_rows(axis, [what for what, *_ in rows])
    axis.set(xscale="log", xlabel="times better than the target")
    low, high = axis.get_xlim()
    ticks = [tick for tick in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(axis="x")
    return style.with_legend(figure)


def report(out: Path, found: dict[str, dict]) -> None:
    """bench.md and the figure of the rows."""
    lines = []
    for name, row in found.items():
        what, target, lower, _ = ROWS[name]
        met = row["value"] <= target if lower else row["value"] >= target
        lines.append({
            "What": what, "Measured": f"{row['value']:.2f}", "Target": f"{'<=' if lower else '>='} {target:g}",
            "Met": "yes" if met else "no", "Beside it": beside(row),
        })  # fmt: skip
    on = machine()
    caption = f"Benchmarks on {on['processor']}, {on['threads']} threads"
    write_whole(out / "bench.md", to_markdown(pd.DataFrame(lines), caption))
    style.save_figure(draw({name: row["value"] for name, row in found.items()}), out, "bench")
    print(to_markdown(pd.DataFrame(lines), caption))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[], metavar="NAME")
    parser.add_argument("--again", action="store_true", help="measure rows that are stored, too")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes: shows that rows work, measures nothing"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    common.sizes["small"] = options.small
    rows = stored(options.out)
    for name in options.only or ROWS:
        if name in rows and not options.again and not options.only:
            continue
        start = time.perf_counter()
        if row := ROWS[name][-1]():
            rows[name] = row | {"took": round(time.perf_counter() - start, 1)}
            keep(options.out, rows)
            print(f"{name}: {row['value']:.3f}", flush=True)
    report(options.out, {name: rows[name] for name in ROWS if name in rows})


if __name__ == "__main__":
    main()

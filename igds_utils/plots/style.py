"""The look of all figures (igds.mplstyle), dots with given intervals, and saving."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igds_utils.core.store import write_whole
from igds_utils.display import SELECTORS, task_title

PAGE = 6.8  # inches
INK, MUTED, PALE = "#222222", "#6b6b6b", "#c4c4c4"
ACCENT, AGAIN = "#0072B2", "#D55E00"  # AGAIN: measured a second time
DASHED = {"color": INK, "linewidth": 0.9, "linestyle": "--", "zorder": 1}  # a reference line


def in_order(selectors: Iterable[str]) -> list[str]:
    """The paper's selectors in its order, then all others by name."""
    seen = sorted(set(selectors))
    return [name for name in SELECTORS | dict.fromkeys(seen) if name in seen]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A styled Figure (inches) and its axes of shape (rows, columns)."""
    plt.style.use(Path(__file__).with_name("igds.mplstyle"))
    size = {"figsize": (width, height), "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **size, **options)
    plt.close(figure)  # a notebook shows it where it says so, and only there
    return figure, axes


def task_panels(tables: dict, height: float, **options) -> tuple[Figure, list[tuple]]:
    """A figure with a panel for each task side by side; axis, task and table of each."""
    figure, axes = new_figure(PAGE, height, columns=len(tables), **options)
    for axis, task in zip(axes[0], tables, strict=True):
        axis.set_title(task_title(task))
    return figure, list(zip(axes[0], tables, tables.values(), strict=True))


def dots(
    axis: Axes,
    table: pd.DataFrame,
    at: Sequence[float],
    names: Sequence[str] = ("score", "low", "high"),
    factor: float = 1.0,
    upright: bool = False,
    **look,
) -> None:
    """Dots with intervals at the rows `at` (n,), or at columns where they stand upright.

    names: columns of value, low and high, or of the value alone; all times `factor`. An
    unknown interval has no line. look: of `Axes.errorbar`.
    """
    value, *ends = table[list(names)].to_numpy(float).T * factor
    bars = np.maximum([value - ends[0], ends[1] - value], 0) if ends else None
    places = (at, value, bars) if upright else (value, at, None, bars)
    look = {"fmt": "o", "markersize": 4.5, "elinewidth": 1.2, "color": ACCENT} | look
    axis.errorbar(*places, **look)


def name_rows(axis: Axes, names: Iterable[str], rows: int = 0) -> None:
    """Name the rows 0, 1, ... from top to bottom; rows: of which there is room at least."""
    names = list(names)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(rows, len(names)) - 0.5, -0.5)


def with_legend(figure: Figure) -> Figure:
    """The figure with one legend below all panels; every entry once."""
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    entries = {name: one for pair in found for one, name in zip(*pair, strict=True)}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=3)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png (200 dpi) and `name`.pdf into `folder`, without dates or versions."""
    unsaid = {"png": ["Software"], "pdf": ["CreationDate", "Producer", "Creator"]}
    for kind, keys in unsaid.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(keys))
        write_whole(Path(folder) / f"{name}.{kind}", buffer.getvalue())

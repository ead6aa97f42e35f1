"""One look for all figures (igds.mplstyle), dots with given intervals, legends, and how a figure is written.

Only this package imports a plotting library. A selector has one colour everywhere, safe for colour-blind readers.
"""

import io
from collections.abc import Collection, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igds_utils.core.store import write_whole
from igds_utils.display import MORE_SELECTORS, SELECTORS, task_title

COLUMN, PAGE = 3.3, 6.8  # inches
INK, MUTED, PALE, GRID = "#222222", "#6b6b6b", "#c4c4c4", "#dddddd"
ACCENT, AGAIN = "#0072B2", "#D55E00"  # AGAIN: measured a second time, on other samples
MORE = ("#D55E00", "#7A5195", "#A67C00", "#00868B", "#B03A5B", "#5B7F2B")  # selectors that the paper does not have
SELECTOR_COLOURS = dict(zip(MORE_SELECTORS, cycle(MORE), strict=False)) | {
    "original": "#8c8c8c", "full": INK, "random": "#E69F00", "loss": "#CC79A7", "ifd": "#009E73", "zip": "#56B4E9",
    "igds": ACCENT, "clean": "#5B7F2B", "corrupted": "#B03A5B",
}  # fmt: skip
SELECTOR_MARKERS = dict(zip(MORE_SELECTORS, cycle("sD^vP"), strict=False))  # with six colours 30 pairs
DIVERGING = sns.blend_palette([ACCENT, "#f7f7f7", AGAIN], as_cmap=True)
DASHED = {"color": INK, "linewidth": 0.9, "linestyle": "--", "zorder": 1}  # a reference line: tau, Full, chance


def selector_colour(selector: str) -> str:
    """The colour of a selector; one of your own is grey."""
    return SELECTOR_COLOURS.get(selector, MUTED)


def in_order(selectors: Collection[str]) -> list[str]:
    """The paper's selectors in its order, then all others by name."""
    return [s for s in SELECTORS if s in set(selectors)] + sorted(set(selectors) - set(SELECTORS))


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A styled Figure (inches) outside pyplot's registry, and its axes of shape (rows, columns)."""
    if shell := get_ipython():  # a notebook shows a figure made outside pyplot as text, unless told otherwise
        select_figure_formats(shell, {"retina"}, bbox_inches=None)  # its layout leaves nothing outside
    matplotlib.style.use(Path(__file__).with_name("igds.mplstyle"))
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def task_panels(tasks: Sequence[str], height: float, **options) -> tuple[Figure, np.ndarray]:
    """A figure with a panel for each task side by side, and their axes."""
    width = PAGE if len(tasks) > 1 else COLUMN + 0.6
    figure, axes = new_figure(width, height, columns=len(tasks), **options)
    for axis, task in zip(axes[0], tasks, strict=True):
        axis.set_title(task_title(task))
    return figure, axes[0]


def empty_figure(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure, axes = new_figure(COLUMN, 0.8)
    axes[0, 0].set_axis_off()
    figure.suptitle(text, color=MUTED)
    return figure


def dots(
    axis: Axes, table: pd.DataFrame, at: Sequence[float], names: Sequence[str] = ("score", "low", "high"),
    colour: str | Sequence[str] = ACCENT, factor: float = 1.0, upright: bool = False, **options,
) -> None:  # fmt: skip
    """Dots with intervals: `names` are the columns of value, low and high, or of the value alone; times `factor`.

    at (n,): rows of the dots, or their columns where intervals stand upright. An unknown interval has no line; an empty
    table leaves no trace, in the legend neither.
    """
    if table.empty:
        return
    value, *ends = table[list(names)].to_numpy(float).T * factor
    at, colours = np.asarray(at, float), np.broadcast_to(colour, len(table))
    if ends:
        known = np.isfinite(ends).all(axis=0)
        lines = axis.vlines if upright else axis.hlines
        lines(at[known], *(end[known] for end in ends), colors=list(colours[known]), linewidth=1.2, zorder=2)
    places = (at, value) if upright else (value, at)
    axis.scatter(*places, **{"s": 20, "facecolor": list(colours), "zorder": 3, "linewidth": 0} | options)


def name_rows(axis: Axes, names: Sequence[str], strong: Collection[str] = ()) -> None:
    """Name the rows 0, 1, ... from top to bottom; those among `strong` in bold."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in set(strong) else "normal")


def with_legend(figure: Figure) -> Figure:
    """The figure with one legend below all panels in place of one in each; every entry once."""
    entries: dict = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
        if legend := axis.get_legend():
            legend.remove()
    if entries:
        fit = int(figure.get_figwidth() / (0.45 + 0.065 * max(map(len, entries))))
        columns = min(max(1, fit), len(entries))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png (200 dpi) and `name`.pdf into `folder`, whole or not at all, without dates or versions."""
    unsaid = {"png": ["Software"], "pdf": ["CreationDate", "Producer", "Creator"]}
    for kind, keys in unsaid.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(keys))
        write_whole(Path(folder) / f"{name}.{kind}", buffer.getvalue())

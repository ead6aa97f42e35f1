"""One look for all figures: widths, colours, fonts, and how a figure reaches the disk.

Only the modules of this package import a plotting library. Figures are legible in a paper's column (3.3 in)
or page (6.8 in) width. A selector has one colour everywhere, safe for colour-blind readers, and is named in dark
text beside its mark rather than in a legend.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.core.pylabtools import select_figure_formats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.optimize import isotonic_regression

from igds_utils.core.store import write_whole
from igds_utils.display import MORE_SELECTORS, Metric

COLUMN, PAGE = 3.3, 6.8  # inches
INK, MUTED, GRID = "#222222", "#6b6b6b", "#dddddd"
ACCENT = "#0072B2"
AGAIN = "#D55E00"  # what was measured a second time, on other samples
HALO = (withStroke(linewidth=2.2, foreground="white"),)  # keeps a label readable where it crosses a line
SELECTOR_COLOURS = {  # Okabe and Ito's palette; IGDS has the accent, the two controls are grey
    "original": "#8c8c8c",
    "full": "#222222",
    "random": "#E69F00",
    "loss": "#CC79A7",
    "ifd": "#009E73",
    "zip": "#56B4E9",
    "igds": ACCENT,
}
MORE_COLOURS = ("#D55E00", "#7A5195", "#A67C00", "#00868B", "#B03A5B", "#5B7F2B")


def selector_colour(selector: str) -> str:
    """The colour of a selector; those that the paper does not have take turns, so neighbours in a list differ."""
    if selector in SELECTOR_COLOURS:
        return SELECTOR_COLOURS[selector]
    known = list(MORE_SELECTORS)
    place = known.index(selector) if selector in known else zlib.crc32(selector.encode())
    return MORE_COLOURS[place % len(MORE_COLOURS)]


def use_style() -> None:
    """Set the one style of all figures (global matplotlib parameters); every plot function calls it."""
    if shell := get_ipython():  # a notebook shows a figure made outside pyplot as text, unless told otherwise
        select_figure_formats(shell, {"retina"}, bbox_inches=None)  # its layout leaves nothing outside
    sns.set_theme(
        style="ticks",
        rc={
            "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8.5, "axes.titleweight": "bold",
            "axes.titlelocation": "left", "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.linewidth": 0.7,
            "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.major.size": 3, "ytick.major.size": 3,
            "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
            "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.3,
            "figure.facecolor": "white", "savefig.facecolor": "white", "pdf.fonttype": 42,
        },
    )  # fmt: skip


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options
) -> tuple[Figure, np.ndarray]:
    """A styled Figure outside pyplot's registry (nothing piles up in a long run) and its axes (rows, columns)."""
    use_style()
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def empty_figure(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    figure, axes = new_figure(COLUMN, 0.8)
    axes[0, 0].text(0.5, 0.5, text, ha="center", va="center", color=MUTED)
    axes[0, 0].axis("off")
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png (200 dpi) and `name`.pdf into `folder`, whole or not at all, without dates or versions.

    Where the PNG that is there shows the same figure, pixel for pixel, both stay: the fonts of a PDF take longer than
    all the rest.
    """
    png, pdf = (Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf"))
    pixels = _drawn(figure, "png", Software=None)
    if not (pdf.is_file() and png.is_file() and png.read_bytes() == pixels):
        # in this order: a PNG that is there tells that its PDF is, also after a run that was killed in between
        write_whole(pdf, _drawn(figure, "pdf", CreationDate=None, Producer=None, Creator=None))
        write_whole(png, pixels)
    return [png, pdf]


def _drawn(figure: Figure, kind: str, **metadata: None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    return buffer.getvalue()


def dashed(width: float = 0.9) -> dict:
    """How a reference line (tau, Full, a cut) is drawn."""
    return {"color": INK, "linewidth": width, "linestyle": (0, (4, 2)), "zorder": 1}


def beside_line(axis: Axes, x: float, y: float, text: str, fixed: str, **options) -> None:
    """Text where the coordinate `fixed` ("x" or "y") is a share of the axes and the other one is data."""
    transform = axis.get_yaxis_transform() if fixed == "x" else axis.get_xaxis_transform()
    axis.text(x, y, text, transform=transform, path_effects=HALO, **options)


def interval_line(axis: Axes, low, high, row: float, metric: Metric, colour: str, width: float) -> None:
    """A horizontal interval in the units of the metric; nothing where it is unknown."""
    if pd.notna(low) and pd.notna(high):
        ends = [low * metric.factor, high * metric.factor]
        axis.plot(ends, [row, row], color=colour, linewidth=width, zorder=2, solid_capstyle="butt")


class Mark(NamedTuple):
    """Something drawn at (x, y), in the units of the data, and what it is called."""

    x: float
    y: float
    name: str
    colour: str


def name_marks(axis: Axes, marks: list[Mark], at: float = 1.05, ha: str = "left", size: float = 7) -> None:
    """Name marks in one column at `at` (share of the axes' width), a dotted line from each name to its mark.

    Names are in the order of their marks, as near to their heights as they can be without overlapping. The limits of
    the axes must be final.
    """
    axis.figure.draw_without_rendering()  # settles the layout: how much of the height one name takes
    gap = 1.25 * size / 72 * axis.figure.dpi / axis.get_window_extent().height
    marks = sorted(marks, key=lambda mark: mark.y)
    to_share = axis.transData + axis.transAxes.inverted()
    wanted = np.array([to_share.transform((mark.x, mark.y))[1] for mark in marks])
    steps = gap * np.arange(len(marks))
    lowest = np.clip(wanted - steps, gap / 2, max(gap / 2, 1 - gap / 2 - steps[-1]))
    heights = isotonic_regression(lowest).x + steps
    for mark, height in zip(marks, heights, strict=True):
        axis.annotate(
            mark.name, (mark.x, mark.y), xytext=(at, height), textcoords="axes fraction", ha=ha, va="center",
            fontsize=size, annotation_clip=False, path_effects=HALO,
            arrowprops={"arrowstyle": "-", "color": mark.colour, "linewidth": 0.8, "linestyle": (0, (1, 1.5)),
                        "patchA": None, "shrinkA": 2, "shrinkB": 3, "relpos": (float(ha == "right"), 0.5)},
        )  # fmt: skip

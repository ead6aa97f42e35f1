"""Table 5 as a picture."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from igds_utils.plots.style import ACCENT, COLUMN, INK, MUTED, PAGE, new_figure


def rank_agreement(
    best: dict[str, list[str]], shared: set[str], paper: dict[str, list[str]] | None = None
) -> Figure:
    """Ranks of the best features on each source; those that all share beyond chance are joined in colour.

    `best[source]` = feature names, best first; `shared` = `stability.beyond_chance`; `paper` is the same as `best` from
    Table 5, drawn as a second panel.
    """
    panels = {"This run": (best, shared)}
    if paper:
        panels["Paper, Gemma-2-2B"] = (paper, set.intersection(*map(set, paper.values())))
    rows = max(len(names) for columns, _ in panels.values() for names in columns.values())
    figure, axes = new_figure(
        PAGE if len(panels) == 2 else COLUMN, 0.75 + 0.3 * rows, columns=len(panels), sharey=True
    )
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        _ranks(axis, *panel)
        axis.set_title(title)
    axes[0, 0].set(ylabel="rank by causal effect", ylim=(rows + 0.5, 0.5), yticks=range(1, rows + 1))
    return figure


def _ranks(axis: Axes, columns: dict[str, list[str]], shared: set[str]) -> None:
    place = {
        (source, name): (x, rank)
        for x, (source, names) in enumerate(columns.items())
        for rank, name in enumerate(names, start=1)
    }
    sources = list(columns)
    for left, right in zip(sources[:-1], sources[1:], strict=True):
        for name in sorted(set(columns[left]) & set(columns[right])):
            (x0, y0), (x1, y1) = place[left, name], place[right, name]
            colour, width = (ACCENT, 1.4) if name in shared else (MUTED, 0.8)
            axis.plot([x0 + 0.34, x1 - 0.34], [y0, y1], color=colour, linewidth=width)
    for (_, name), (x, rank) in place.items():
        style = {"color": ACCENT, "fontweight": "bold"} if name in shared else {"color": INK}
        axis.text(x, rank, name, ha="center", va="center", fontsize=7, **style)
    axis.set_xticks(range(len(sources)), sources)
    axis.set_xlim(-0.5, len(sources) - 0.5)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)

"""Benchmarks: how far each measured ratio is from its target."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from igds_utils.plots.style import ACCENT, AGAIN, INK, PAGE, dashed, new_figure

TICKS = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5)


def bench_ratios(
    values: dict[str, float], targets: dict[str, tuple[float, bool]], labels: dict[str, str]
) -> Figure:
    """Times better than the target, a row each on a log axis: right of 1 is good, whichever way a row counts.

    targets: value, and whether lower is better. Rows keep their order, from top to bottom; what missed its target is
    drawn in the other colour.
    """
    figure, axes = new_figure(PAGE, 0.6 + 0.25 * len(values))
    axis = axes[0, 0]
    for place, (name, value) in enumerate(values.items()):
        target, lower = targets[name]
        better = target / max(value, 1e-3) if lower else value / target
        colour = ACCENT if better >= 1 else AGAIN
        axis.plot([1, better], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
        axis.scatter(better, place, s=28, color=colour, zorder=3)
        said = f"{value:.2f}, {'at most' if lower else 'at least'} {target:g} wanted"
        axis.text(1.02, place, said, transform=axis.get_yaxis_transform(), va="center", fontsize=7, color=INK)
    axis.axvline(1, **dashed())
    axis.set(xscale="log", xlabel="times better than the target")
    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    shown = [tick for tick in TICKS if low <= tick <= high]
    axis.set_xticks(shown, [f"{tick:g} ×" for tick in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(values)), [labels[name] for name in values])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.invert_yaxis()
    return figure

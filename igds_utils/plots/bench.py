"""Benchmarks: how far each measured ratio is from its target."""

from __future__ import annotations

from matplotlib.figure import Figure

from igds_utils.plots.style import ACCENT, AGAIN, MUTED, PAGE, dashed, new_figure


def bench_ratios(
    values: dict[str, float], targets: dict[str, tuple[float, bool]], labels: dict[str, str]
) -> Figure:
    """Measured over target, a bar a row on a log axis; what missed its target is drawn in the other colour.

    targets: value, and whether lower is better. Rows keep their order, from top to bottom.
    """
    figure, axes = new_figure(PAGE, 0.6 + 0.3 * len(values))
    axis = axes[0, 0]
    for place, (name, value) in enumerate(values.items()):
        target, lower = targets[name]
        met = value <= target if lower else value >= target
        ratio = max(value, 1e-3) / target
        axis.barh(place, ratio - 1, left=1, height=0.55, color=ACCENT if met else AGAIN)
        said = f"{value:.2f}, {'at most' if lower else 'at least'} {target:g} wanted"
        axis.text(
            1.02, place, said, transform=axis.get_yaxis_transform(), va="center", fontsize=7, color=MUTED
        )
    axis.axvline(1, **dashed())
    axis.set_xscale("log")
    axis.set_yticks(range(len(values)), [labels[name] for name in values])
    axis.invert_yaxis()
    axis.set_xlabel("measured / target")
    return figure

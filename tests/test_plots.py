"""Figures: written whole and repeatable, and what they show is what they were given."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image

from igds_utils import plots
from igds_utils.display import Metric

POINTS = Metric("accuracy (%)", "points", 100, 1)


def intervals(axis):
    """(low, high) of every drawn interval, horizontal or upright, in the order of drawing."""
    bars = [drawn for drawn in axis.collections if isinstance(drawn, LineCollection)]
    lines = [line for drawn in bars for line in drawn.get_segments()]
    return [tuple(line[:, int(line[0, 0] == line[1, 0])]) for line in lines]


def points(axis, label=""):
    """(x, y) of every dot (with that legend entry): of scatters, then of lines with markers."""
    scattered = [dots for dots in axis.collections if isinstance(dots, PathCollection)]
    named = [dots for dots in scattered if dots.get_label().startswith(label)]
    drawn = [np.ma.filled(dots.get_offsets(), np.nan) for dots in named]
    if not label:
        drawn += [line.get_xydata() for line in axis.lines if line.get_marker() != "None"]
    return [tuple(map(float, place)) for dots in drawn for place in dots]


def legend(figure):
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def rows(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def features(n, seed=0):
    deltas = np.sort(np.random.default_rng(seed).normal(0, 0.05, n))[::-1]
    return [
        {"name": f"l14_p{i}", "delta": d, "delta_low": d - 0.06, "delta_high": d + 0.05, "delta_loglik": 2 * d,
         "delta_loglik_low": d, "delta_loglik_high": 3 * d, "confirmation_loglik": d if i == 0 else None,
         "confirmation_loglik_low": d / 2, "confirmation_loglik_high": 2 * d,
         "confirmation_delta": 0.01 if i == 0 else None, "confirmation_low": -0.05, "confirmation_high": 0.07}
        for i, d in enumerate(deltas)
    ]  # fmt: skip


def record(selector, score, ratio=0.5):
    ends = {"low": score - 0.1, "high": score + 0.2}
    return {"selector": selector, "ratio": ratio, "main": ratio in (None, 0.5), "score": score, **ends}


SUMMARY = {
    "math": [record("original", 0.15, None), record("full", 0.6, None)]
    + [record("random", 0.55), record("igds", 0.6)],
    "translation": [record("full", 0.3, None), record("igds", 0.31), record("igds", 0.2, ratio=0.2)],
}


def test_every_effect_has_its_interval_and_the_chosen_one_its_confirmation():
    given = features(5)
    axis = plots.causal_effects(given, ["l14_p0"], POINTS, "score").axes[0]
    order = [*given[1:], given[0]]  # the chosen one is drawn on top
    assert points(axis)[:-1] == [pytest.approx((100 * f["delta"], given.index(f))) for f in order]
    expected = [(100 * f["delta_low"], 100 * f["delta_high"]) for f in order] + [(-5, 7)]
    assert intervals(axis) == [pytest.approx(ends) for ends in expected]
    x, y = points(axis)[-1]
    assert x == pytest.approx(1) and 0 < y < 0.5  # just below the first row
    assert rows(axis) == [f["name"] for f in given]


def test_main_result_has_every_arm_in_its_row_in_the_metrics_unit():
    math, translation = (figure := plots.main_result(SUMMARY, dict.fromkeys(SUMMARY, POINTS))).axes
    assert rows(math) == ["Original", "Full", "Random", "IGDS"]
    assert legend(figure) == ["score of Full"]
    assert points(math) == [pytest.approx(place) for place in [(15, 0), (60, 1), (55, 2), (60, 3)]]
    assert intervals(math) == [pytest.approx(ends) for ends in [(5, 35), (50, 80), (45, 75), (50, 80)]]
    assert points(translation) == [pytest.approx(place) for place in [(30, 1), (31, 3)]]


def test_saved_figures_are_repeatable_and_leave_nothing_else(tmp_path):
    for folder in "ab":
        figure = plots.causal_effects(features(16), ["l14_p0"], POINTS, "score")
        plots.save_figure(figure, tmp_path / folder, "effects")
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in "ab")
    assert [path.name for path in first] == ["effects.pdf", "effects.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert Image.open(first[1]).info["dpi"][0] == pytest.approx(200, abs=1)

"""Figure 4, Tables 3 and 4: what was not run says so, ours and the paper's stay apart."""

import numpy as np
import pandas as pd
import pytest
from test_plots import POINTS, assert_tidy, intervals, legend

from igds_utils import plots
from igds_utils.display import MORE_SELECTORS, NOT_RUN, paper_values
from igds_utils.tables import table3, table4

PAPER, METRICS = paper_values(), {"math": POINTS, "translation": POINTS}


def record(selector, score, ratio=0.5, versus=None):
    names = ("vs_full", "vs_full_low", "vs_full_high", "vs_full_judged")
    gap = dict(zip(names, versus or (None,) * 4, strict=True))
    return {
        "selector": selector,
        "ratio": ratio,
        "main": ratio in (None, 0.5),
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        **gap,
    }


SUMMARY = {
    "math": [
        record("full", 0.6, None), record("random", 0.4, 0.2), record("random", 0.5),
        record("igds", 0.65, 0.2, (0.05, 0.01, 0.09, True)), record("igds", 0.55, 0.5, (-0.05, -0.1, 0.1, True)),
        record("igds_k3", 0.5), record("loss", 0.45),
    ],
    "translation": [record("igds", 0.3)],
}  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_figure4_draws_ratios_full_and_what_was_not_run():
    figure = plots.score_against_ratio(SUMMARY, METRICS)
    assert_tidy(figure)
    math, translation = figure.axes
    assert legend(figure) == ["Random", "Loss", "IGDS", "Full"]  # no ablation
    lines = {line.get_color(): list(line.get_ydata()) for line in math.lines}
    drawn = [lines[plots.selector_colour(name)] for name in ("igds", "random", "loss")]
    assert drawn == [pytest.approx(scores) for scores in ([65, 55], [40, 50], [45])]  # loss has no curve
    assert lines[plots.selector_colour("full")] == [60, 60]
    assert intervals(math)[:2] == [pytest.approx((30, 50)), pytest.approx((40, 60))]  # of Random
    ticks = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes]
    assert ticks == [["20 %", "50 %", "80 %\nnot run"], ["20 %\nnot run", "50 %", "80 %\nnot run"]]
    assert len(intervals(translation)) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ratios", [(0.5,), (0.2, 0.5, 0.8)])
@pytest.mark.parametrize("selectors", [("random", "loss", "ifd", "zip", "igds"), tuple(MORE_SELECTORS)[:12]])
def test_figure4_keeps_selectors_of_one_ratio_together(selectors, ratios):
    names = [name for name in selectors if not name.startswith("igds_")]
    records = [record("full", 0.6, None)] + [record(name, 0.5, ratio) for name in names for ratio in ratios]
    figure = plots.score_against_ratio(dict.fromkeys(["math", "translation", "other"], records), {
        "math": POINTS, "translation": POINTS, "other": POINTS})  # fmt: skip
    assert_tidy(figure)
    for line in figure.axes[0].lines:
        if len(drawn := line.get_xdata()) == len(ratios):  # Full is a line of two points
            at = [(0.2, 0.5, 0.8).index(ratio) for ratio in ratios]
            assert np.abs(np.array(drawn) - at).max() < 0.36  # nearer to its own ratio than to another


def test_table3_has_the_trained_ablations_and_says_which_are_not():
    table = table3(SUMMARY, METRICS, PAPER).set_index("Method")
    assert table.loc["k = 3", "Math, accuracy (%)"] == "50.0 [40.0, 60.0]"
    assert (
        table.loc["k = 5", "Math, accuracy (%)"] == NOT_RUN
        and table.loc["k = 5", "Paper: Math, pass@8 accuracy (%)"] == "31.8"
    )
    assert table.loc["IGDS (k = 1)", "Math, accuracy (%)"] == "55.0 [45.0, 65.0]"  # at 50 %
    assert "IGDS (k = 3)" in set(table3(SUMMARY, METRICS, PAPER, k=3)["Method"])
    assert table.loc["without frequency recall", "Paper: Translation, COMET × 100"] == "63.19"


def test_table4_is_relative_to_loss_and_recomputes_the_papers_percentages():
    math = pd.DataFrame(
        [("loss", 20.0, 400, 8e9), ("igds", 5.0, 100, 1e9), ("random", 0.0, 0, 0.0)],
        columns=["selector", "seconds", "tokens", "operations"],
    )
    other = pd.DataFrame({"selector": ["igds"], "seconds": [4.0], "tokens": [None], "operations": [None]})
    table = table4({"math": math, "translation": other}, PAPER).set_index(["Task", "Method"])
    igds = table.loc["Math", "IGDS"]
    assert (igds["Seconds"], igds["vs Loss (%)"], igds["Tokens read"]) == ("5.0", "−75", "100")
    assert igds["Operations vs Loss (%)"] == "−88" and igds["Paper: vs Loss (%)"] == "−17"
    assert table.loc[("Math", "ZIP"), "Seconds"] == NOT_RUN
    assert table.loc[("Math", "IFD"), "Paper: vs Loss (%)"] == "+117 (printed +167)"
    assert table.loc[("Math", "Random"), "Paper: hours"] == "–"
    assert table.loc[("Translation", "IGDS"), "vs Loss (%)"] == "–"  # no Loss to compare with
    assert table.loc[("Translation", "IGDS"), "Operations vs Loss (%)"] == "–"

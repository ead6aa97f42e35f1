"""Figure 4, Tables 3 and 4: what was not run says so, ours and the paper's stay apart."""

import pandas as pd
import pytest
from test_plots import POINTS, assert_tidy, intervals, legend

from igds_utils import plots
from igds_utils.display import NOT_RUN, paper_values
from igds_utils.tables import table3, table4

PAPER, METRICS = paper_values(), {"math": POINTS, "translation": POINTS}


def record(selector, score, ratio=0.5, **versus):
    ends = {"low": score - 0.1, "high": score + 0.1, "vs_full": None}
    return {"selector": selector, "ratio": ratio, "main": ratio in (None, 0.5), "score": score, **ends, **versus}


SUMMARY = {
    "math": [
        record("full", 0.6, None), record("random", 0.4, 0.2), record("random", 0.5), record("igds", 0.65, 0.2),
        record("igds", 0.55), record("igds_k3", 0.5), record("loss", 0.45),
    ],
    "translation": [record("igds", 0.3)],
}  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_figure4_draws_ratios_full_and_what_was_not_run():
    figure = plots.score_against_ratio(SUMMARY, METRICS)
    assert_tidy(figure)
    math, translation = figure.axes
    assert legend(figure) == ["Full", "Random", "Loss", "IGDS"]  # no ablation
    lines = {line.get_label(): list(line.get_ydata()) for line in math.lines}
    drawn = [[y for _, y in box.lines[0].get_xydata()] for box in math.containers]
    assert drawn == [pytest.approx(scores) for scores in ([40, 50], [45], [65, 55])]  # loss has no curve
    assert lines["Full"] == [60, 60]
    assert intervals(math)[:2] == [pytest.approx((30, 50)), pytest.approx((40, 60))]  # of Random
    ticks = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes]
    assert ticks == [["20 %", "50 %", "80 %\nnot run"], ["20 %\nnot run", "50 %", "80 %\nnot run"]]
    assert len(intervals(translation)) == 1


def test_table3_has_the_trained_ablations_and_says_which_are_not():
    table = table3(SUMMARY, METRICS, PAPER).set_index("Method")
    ours, papers = "Math, accuracy (%)", "Paper: Math, pass@8 accuracy (%)"
    assert table.loc["k = 3", ours] == "50.0 [40.0, 60.0]"
    assert table.loc["k = 5", ours] == NOT_RUN and table.loc["k = 5", papers] == "31.8"
    assert table.loc["IGDS (k = 1)", ours] == "55.0 [45.0, 65.0]"  # at 50 %
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

"""Tables: what they say about our numbers and the paper's, and how they are written."""

import csv

import pandas as pd
import pytest

from igds_utils.display import NOT_JUDGED, NOT_RUN, NOTHING, SELECTORS, Metric, paper_values
from igds_utils.reporting.report import load_table, save_table
from igds_utils.tables import table1, table2, table3, table4

PAPER = paper_values()
POINTS = Metric("accuracy (%)", "points", 100, 1)


@pytest.fixture
def found():
    top = {
        "name": "l14_p7", "delta": 0.0625, "delta_low": -0.03, "delta_high": 0.15, "delta_loglik": 0.0123,
        "confirmation_delta": -0.015625, "confirmation_low": -0.1, "confirmation_high": 0.07,
        "established": False,
    }  # fmt: skip
    recall = {"n_candidates": 37, "basis_points": 20.073}
    evidence = {"reliability": {"score": 0.1, "loglik": 0.98}, "differ_p": {"score": 0.4, "loglik": 0.0001}}
    evidence["placebos"] = {"a": {"p": 0.2}, "b": {"p": 0.04}}
    features = {"features": [top], "selected": ["l14_p7"], "established": False, "evidence": evidence}
    features["ranked_by"] = "score"
    return {"math": {"recall": recall, "features": features}}


def test_table1_has_our_numbers_and_the_papers_model_below(found):
    table = table1(found, {"math": POINTS}, "smollm2-135m", PAPER)
    ours, theirs = table.iloc[0], table.iloc[1]
    assert [f"{title} (paper)" for title in PAPER["models"].values()] == list(table["Model"])[1:]
    assert ours["Top feature"] == "l14_p7"
    assert (ours["Recalled"], ours["Recalled (‱)"], ours["Ranked by"]) == ("37", "20.07", "score (δ)")
    assert ours["δ (validation)"] == "+6.2 [−3.0, +15.0]"
    assert ours["δ (confirmation)"] == "−1.6 [−10.0, +7.0]" and ours["Established"] == "no"
    assert ours["Δ log-likelihood (validation)"] == "+0.012"
    assert theirs["Model"] == "Gemma-2-2B (paper)" and theirs["Top feature"] == "l14_p11575"
    assert theirs["Task, unit of δ"] == "Math, ACC"
    assert ours["Task, unit of δ"] == "Math, points"
    assert theirs["δ (validation)"] == "+12" and theirs["δ (confirmation)"] == NOTHING


def test_table1_says_what_is_established_and_how_sure_the_filter_is(found):
    found["math"]["features"]["features"][0]["established"] = True
    assert table1(found, {"math": POINTS}, "x", PAPER)["Established"][0] == "no"
    found["math"]["features"] |= {"established": True, "ranked_by": "loglik"}
    row = table1(found, {"math": POINTS}, "x", PAPER).iloc[0]
    shown = row[["Established", "Ranked by", "Reliability", "p, candidates differ", "p, placebos"]]
    assert shown.tolist() == ["yes", "log-likelihood", "0.98", "<0.001", "0.200"]


def record(selector, score, ratio=0.5, **more):
    blank = {f"vs_random{part}": None for part in ("", "_low", "_high", "_p", "_judged")}
    given = {"selector": selector, "ratio": ratio, "main": ratio in (None, 0.5), "score": score}
    given |= {"low": score - 0.1, "high": score + 0.1}
    given |= {"n_train": 64, "target_tokens": 1200.5, "steps": 4.0, "n": 64, "gain_over_full": 5.0}
    return blank | given | {"by_seed": [score]} | more


VERSUS = {"vs_random": 0.13, "vs_random_low": -0.01, "vs_random_high": 0.27}


def test_table2_marks_what_was_not_run_beside_the_papers_numbers():
    records = [
        record("original", 0.1, None, n_train=0, target_tokens=None, steps=None),
        record("full", 0.6, None),
        record("random", 0.386, by_seed=[0.409, 0.364]),
        record("igds", 0.63, **VERSUS, vs_random_p=0.0823, vs_random_judged=True),
        record("igds", 0.2, ratio=0.2),
        record("mona", 0.4, **VERSUS, vs_random_judged=False),
    ]
    table = table2({"math": records}, {"math": POINTS}, PAPER).set_index("Arm")
    theirs = "Paper: Gemma-2-2B (vs Full, %)"
    assert list(table.index) == [*SELECTORS.values(), "MONA"]
    assert table.loc["IFD", "Score"] == NOT_RUN
    assert table.loc["IFD", theirs] == "30.0 (−6.8)"
    assert table.loc["IGDS", "Score"] == "63.0 [53.0, 73.0]"  # at the main ratio
    assert table.loc["IGDS", "vs Random"] == "+13.0 [−1.0, +27.0]"
    assert table.loc["IGDS", "vs Full (%)"] == "+5.0"
    assert table.loc["IGDS", "p (Holm)"] == "0.082"
    assert table.loc["MONA", "p (Holm)"] == NOT_JUDGED
    assert table.loc["Random", "By seed"] == "40.9, 36.4"
    assert table.loc["IGDS", "By seed"] == NOTHING
    assert table.loc["IGDS", theirs] == "37.8 (+17.4)"
    assert table.loc["Full", theirs] == "32.2"
    assert table.loc["IGDS", "Paper: Qwen3-8B (vs Full, %)"] == "61.1 (+0.5)"
    assert set(table["Paper: metric"]) == {"pass@8 accuracy (%)"}
    trained_on = ["Samples", "Target tokens", "Steps"]
    assert list(table.loc["Full", trained_on]) == ["64", "1,200", "4"]
    assert set(table.loc["Original", trained_on]) == {NOTHING}
    assert table.loc["Full", "vs Full (%)"] == NOTHING
    assert table.loc["MONA", theirs] == NOTHING


def test_table2_shows_likelihoods_and_the_place_among_randoms_draws():
    likely = {"loglik": -1.25, "loglik_low": -1.3, "loglik_high": -1.2}
    versus = {f"loglik_{name}": value / 10 for name, value in VERSUS.items()}
    igds = record("igds", 0.6, **likely, **versus, loglik_vs_random_p=0.01, above_random=3)
    random = record("random", 0.5, by_seed=[0.5] * 4 + [0.7], **likely, above_random=None)
    table = table2({"math": [random, igds]}, {"math": POINTS}, PAPER).set_index("Arm")
    assert table.loc["IGDS", "Log-likelihood"] == "−1.250 [−1.300, −1.200]"
    assert table.loc["IGDS", "vs Random (nats)"] == "+0.013 [−0.001, +0.027]"
    assert table.loc["IGDS", "p (Holm, nats)"] == "0.010"
    assert table["Above Random's draws"].tolist()[2:] == [NOTHING] * 4 + ["3 of 5"]


def test_table3_has_the_trained_ablations_and_says_which_are_not():
    math = [record("igds", 0.65, 0.2), record("igds", 0.55), record("igds_k3", 0.5)]
    given = {"math": math, "translation": []}, {"math": POINTS, "translation": POINTS}, PAPER
    table = table3(*given).set_index("Method")
    ours, papers = "Math, accuracy (%)", "Paper: Math, pass@8 accuracy (%)"
    assert table.loc["k = 3", ours] == "50.0 [40.0, 60.0]"
    assert table.loc["k = 5", ours] == NOT_RUN and table.loc["k = 5", papers] == "31.8"
    assert table.loc["IGDS (k = 1)", ours] == "55.0 [45.0, 65.0]"  # at 50 %
    assert "IGDS (k = 3)" in set(table3(*given, k=3)["Method"])
    assert table.loc["without frequency recall", "Paper: Translation, COMET × 100"] == "63.19"


def test_table4_is_relative_to_loss_and_recomputes_the_papers_percentages():
    columns = ["selector", "seconds", "tokens", "operations"]
    math = [("loss", 20.0, 400, 8e9), ("igds", 5.0, 100, 1e9), ("random", 0.0, 0, 0.0)]
    rows = {"math": math, "translation": [("igds", 4.0, None, None)]}
    costs = {task: pd.DataFrame(values, columns=columns) for task, values in rows.items()}
    table = table4(costs, PAPER).set_index(["Task", "Method"])
    igds = table.loc["Math", "IGDS"]
    assert (igds["Seconds"], igds["vs Loss (%)"], igds["Tokens read"]) == ("5.0", "−75", "100")
    assert igds["Operations vs Loss (%)"] == "−88" and igds["Paper: vs Loss (%)"] == "−17"
    assert table.loc[("Math", "ZIP"), "Seconds"] == NOT_RUN
    assert table.loc[("Math", "IFD"), "Paper: vs Loss (%)"] == "+117 (printed +167)"
    assert table.loc[("Math", "Random"), "Paper: hours"] == NOTHING
    alone = table.loc[("Translation", "IGDS")]  # without Loss to compare with
    assert alone["vs Loss (%)"] == alone["Operations vs Loss (%)"] == NOTHING


def test_a_table_is_written_in_three_forms_and_nothing_else(tmp_path):
    frame = pd.DataFrame({"Arm": ["IGDS", "a|b"], "Gain (%)": ["−1.5 [−2, 3]", "x_1 & y"]})
    save_table(frame, tmp_path / "tables", "table2", "Scores at 50 %")
    paths = sorted((tmp_path / "tables").iterdir())
    rows = list(csv.reader(paths[0].open(encoding="utf8")))
    assert rows == [["Arm", "Gain (%)"], ["IGDS", "-1.5 [-2, 3]"], ["a|b", "x_1 & y"]]
    assert load_table(tmp_path / "tables", "table2")["Gain (%)"][0].startswith("−1.5 [−2")
    latex = paths[2].read_text(encoding="utf8")
    assert r"x\_1 \& y \\" in latex and r"$-$1.5" in latex
    assert r"\toprule" in latex and r"50 \%" in latex

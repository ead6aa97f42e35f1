"""The report's framing sentences."""

from igds_utils import story
from igds_utils.config import load_preset
from igds_utils.display import metric_of
from igds_utils.tasks import get

METRICS = {"math": metric_of(get("math"))}


def check(name, passed):
    return {"name": name, "gain": 0.25, "low": 0.1 if passed else -0.1, "high": 0.4, "passed": passed}


def test_checks_are_named_and_failures_stand_out():
    made = {"math": [check("full - original", True), check("clean - defective", False)]}
    first, second = story.checks_text(made, METRICS).splitlines()
    assert "untrained" in first and "+25.0 [+10.0, +40.0] points" in first and "passed" in first
    assert "spoilt on purpose" in second and "**failed" in second


def test_cost_is_that_of_the_last_complete_run_of_each_notebook():
    entry = {"seconds": 60.0, "peak_bytes": 2e9, "complete": True}
    notebooks = {"01": [entry | {"seconds": 999.0}, entry], "02": [entry | {"peak_bytes": 3e9}]}
    text = story.cost_text({"notebooks": notebooks})
    assert "2 min 00 s in all" in text and "3.0 GB" in text
    assert "not recorded" in story.cost_text({"notebooks": {}})


def test_what_to_run_next_depends_on_what_was_left_open():
    preset = load_preset("quick")
    record = {"selector": "igds", "vs_random_low": -0.1, "vs_random_high": 0.2}
    assert "could not be told apart on Math" in story.next_steps(preset, {"math": [record]})
    settled = record | {"vs_random_low": 0.05}
    assert "could not be told apart" not in story.next_steps(preset, {"math": [settled]})


def test_figure_2_counts_come_from_preset_and_recall():
    recall = {"n_features_total": 100, "n_candidates": 30, "n_cut": 14}
    counts = story.pipeline_counts(load_preset("quick"), recall, ["l1_p2"], "math")
    assert counts["task_feature"] == "l1_p2"
    assert (counts["features"], counts["candidates"], counts["tested"], counts["selected"]) == (
        100,
        30,
        16,
        64,
    )

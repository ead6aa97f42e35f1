"""The report's framing sentences."""

import pandas as pd

from igds_utils.config.config import load_preset
from igds_utils.core.experiment import Run
from igds_utils.display import metric_of
from igds_utils.reporting import story
from igds_utils.tasks import get

METRICS = {"math": metric_of(get("math"))}


def check(name, passed):
    return {"name": name, "gain": 0.25, "low": 0.1 if passed else -0.1, "high": 0.4, "passed": passed}


def test_checks_are_named_and_failures_stand_out():
    made = {"math": [check("full - original", True), check("clean - corrupted", False)]}
    first, second = story.checks_text(made, METRICS).splitlines()
    assert "untrained" in first and "+25.0 [+10.0, +40.0] points" in first and "passed" in first
    assert "spoilt on purpose" in second and "**failed: this test does not tell them apart**" in second
    wrong = {"math": [check("clean - corrupted", False) | {"high": -0.02}]}
    assert "**failed: the other one did better**" in story.checks_text(wrong, METRICS)
    once = story.checks_text({"math": [check("full - original", None)]}, METRICS)
    assert "not judged" in once and "passed" not in once and "failed" not in once


def test_a_difference_of_half_an_interval_is_seen_half_of_the_time():
    record = {
        "selector": "igds",
        "ratio": 0.3,
        "main": True,
        "n": 96,
        "vs_random_low": -0.01,
        "vs_random_high": 0.17,
        "vs_random_judged": True,
    }
    said = story.sight({"math": [record]}, METRICS)
    assert "half of the time where it is 9.0 points (Math, 96 items); to be seen four times in five" in said
    assert story.sight({"math": [record | {"vs_random_low": None}]}, METRICS) == ""
    assert story.sight({"math": [record | {"vs_random_judged": False}]}, METRICS) == ""


def test_the_cost_is_the_sum_of_all_notebooks_and_the_peak_of_the_largest():
    entry = {"seconds": 60.0, "peak_bytes": 2e9}
    text = story.cost_text({"notebooks": {"01": entry, "02": entry | {"peak_bytes": 3e9}}})
    assert "2 min 00 s in all" in text and "3.0 GB" in text
    assert "not recorded" in story.cost_text({"notebooks": {}})


def test_what_to_run_next_depends_on_what_was_left_open():
    preset = load_preset("quick", tasks=["translation"])
    record = {
        "selector": "igds",
        "main": True,
        "vs_random_low": -0.1,
        "vs_random_high": 0.2,
        "vs_random_judged": True,
    }
    steps = story.next_steps(preset, {"translation": [record]})
    size = 4 * preset.tasks["translation"].sizes.test
    assert (
        "could not be told apart on Translation" in steps and f"tasks.translation.sizes.test={size}" in steps
    )
    assert "tasks.math" not in steps and "make plan PRESET=laptop" in steps
    once = story.next_steps(preset, {"translation": [record | {"vs_random_judged": False}]})
    assert "told apart" not in once and 'SET="tasks.translation.seeds=[0,1,2]"' in once
    settled = record | {"vs_random_low": 0.05}
    assert "could not be told apart" not in story.next_steps(preset, {"translation": [settled]})
    of_curve = record | {"main": False}
    assert "told apart" not in story.next_steps(preset, {"translation": [settled, of_curve]})
    paper = story.next_steps(load_preset("paper", tasks=["math"]), {"math": [settled]})
    assert "max_candidates" not in paper and "make plan" not in paper


def test_a_models_facts_need_no_model():
    recall = {"n_features_total": 18432, "layers": [6, 12, 18, 24], "model_layers": 30, "model_width": 576}
    facts = story.model_facts(load_preset("quick"), recall)
    assert (facts["layers"], facts["width"], facts["d_sae"]) == (30, 576, 4608)
    assert facts["identify"] == facts["train"] == "SmolLM2-135M-Instruct"


def test_exhibits_are_told_from_what_is_stored(tmp_path):
    run = Run(load_preset("quick", tasks=["math"]), tmp_path)
    run.store.write("math/summary.json", [])
    told = story.told(run, METRICS)
    assert told["figure4"] == "No task has both IGDS and Full." and "cost_benefit" not in told
    assert told["table9"].endswith("these tasks: Math.")  # quick asks math in a chat
    bare = load_preset("quick", tasks=["math"], overrides={"tasks.math.rendering": "bare"})
    assert "table9" not in story.told(Run(bare, tmp_path), METRICS)
    run.store.write("benefit.json", {"story": "It costs $5 and saves $6."})
    assert story.told(run, METRICS)["cost_benefit"] == r"It costs \$5 and saves \$6."  # no equation in Markdown
    run.store.write("math/words.parquet", pd.DataFrame({"word": ["step", "the"], "rises": [False, False]}))
    assert story.told(run, METRICS)["figure6"] == "Math: no word of 2 rises beyond chance."


def test_figure_2_counts_come_from_preset_and_recall():
    recall = {"n_features_total": 100, "n_candidates": 30, "n_cut": 14}
    counts = story.pipeline_counts(load_preset("quick"), recall, ["l1_p2"], "math")
    assert counts["Task features"] == "l1_p2"
    shown = [counts[stage] for stage in ("SAE features", "Recall: candidates", "Amplification: features")]
    assert shown == ["100", "30", "16"]
    assert int(counts["Selection: samples"]) == int(counts["Pool: samples"]) / 2
    fewer = load_preset("quick", overrides={"tasks.math.sizes.pool": 100, "tasks.math.ratio": 0.3})
    assert story.pipeline_counts(fewer, recall, ["l1_p2"], "math")["Selection: samples"] == "30"


def test_what_was_run_tells_the_ratio_of_all_selectors_and_that_of_some():
    facts = {"machine": {"gpus": 0, "threads": 2, "processor": "a machine"}, "commit": "abc"}
    told = story.what_was_run(load_preset("smoke"), facts)
    assert "Random, Loss, IFD, ZIP, IGDS at 50 % (Random, IGDS also at 25 %), beside the untrained" in told
    assert "IGDS (k = 3) at 50 %, beside the untrained" in told

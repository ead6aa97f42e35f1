"""Exercises: right answers are accepted in any form, wrong ones get a hint and not the solution."""

import numpy as np
import pandas as pd
import pytest

from igds_utils.config.config import PROJECT
from igds_utils.core.arms import arms
from igds_utils.core.experiment import open_run
from igds_utils.engine.features import Feature
from igds_utils.reporting import exercises
from igds_utils.reporting.exercises import EXERCISES, Exercise, check

CASES = [  # name, right, wrong
    ("01.1", 2, 3),
    ("01.2", 5, 4),
    ("01.3", [Feature(0, 2)], ["l0_p2", "l0_p1"]),
    ("02.1", np.int64(2), 1),
    ("02.2", 0.26, 0.5),
    ("02.3", 0, 1),
    ("03.1", 1, 2),
    ("03.2", 0.11, 1 / 3),
    ("03.3", pd.Series(["noise"]), ["noise", "wrong answer"]),
    ("04.1", 4.0, 2),
    ("04.2", 3, 2),
    ("04.3", " LOSS@0.25", "igds@0.25"),
    ("05.1", 36, 9),
    ("05.2", 0.917, 0.5),
    ("05.3", 2, 1),
    ("06.1", ["l1_p2", "l1_p0"], ["l1_p0"]),
    ("06.2", 0.1535, 0.25),
    ("06.3", 1, 2),
    ("07.1", "IGDS", "random"),
    ("07.2", 0.5, -0.5),
    ("07.3", "full", "none"),
    ("08.1", 0.25, 4),
    ("08.2", np.bool_(False), True),
    ("08.3", 0.667, 0.5),
    ("09.1", 0.25, 0.75),
    ("09.2", 0.75, 0.5),
    ("09.3", ["solution"], ["solution", "question"]),
    ("10.1", 2, 1),
    ("10.2", 0.523, 0.0052),
    ("10.3", 0.5, 1),
]


@pytest.fixture
def run(tmp_path):
    sizes = {"sizes.pool": 100, "sft.global_batch": 8, "sft.device_batch": 8, "ratio": 0.25}
    sizes["curve"] = {"ratios": [0.5], "selectors": ["random", "igds"]}
    overrides = {f"tasks.math.{name}": value for name, value in sizes.items()}
    run = open_run("quick", overrides=overrides, results=str(tmp_path))
    for path, product in (identified() | trained(run) | analysed()).items():
        run.store.write(path, pd.DataFrame(product) if path.endswith(".parquet") else product)
    return run


def identified():
    def recalled(*rows):
        names = ["layer", "feature", "frequency", "mean_activation", "candidate"]
        return pd.DataFrame([(*row[:3], 1.0, row[3]) for row in rows], columns=names)

    effects = [
        {"sample_id": sample, "layer": 0, "feature": feature, "score_original": 0.0, "score_amplified": score,
         "output_original": "one", "output_amplified": "one" if feature == 1 else "two"}
        for feature, scores in ((1, (1.0, 0.0)), (2, (0.0, 1.0)))
        for sample, score in zip("ab", scores, strict=True)
    ]  # fmt: skip
    confirmed = [
        row | {"output_amplified": "two" if row["sample_id"] == "b" else "one"} for row in effects[:2]
    ]
    bounds = [(0.1, 0.2), (-0.3, -0.1), (0.0, 0.1), (-0.1, 0.1)]
    return {
        "math/recall.parquet": recalled(
            (0, 1, 1.0, True), (0, 2, 1.0, True), (0, 3, 0.875, True), (1, 1, 0.875, True),
            (1, 4, 0.5, False), (0, 9, 0.375, False),
        ),
        "math/recall.json": {"n_prior": 8, "layers": [0, 1]},
        "translation/recall.parquet": recalled((0, 2, 1.0, True), (1, 5, 1.0, True)),
        "math/task_features.json": {
            "features": [{"delta_low": a, "delta_high": b} for a, b in bounds], "selected": ["l0_p1"],
        },
        "math/effects_validation.parquet": effects,
        "math/effects_confirmation.parquet": confirmed,
    }  # fmt: skip


def trained(run):
    known = {
        "math/selected/igds@0.25.jsonl": [{"id": "a"}, {"id": "b"}],
        "math/selected/random@0.25.jsonl": [{"id": "b"}, {"id": "c"}],
        "math/quality/defects.parquet": {
            "selector": ["igds", "igds", "igds", "loss"],
            "defect": ["noise", "wrong answer", "clean", "truncated target"],
            "share": [0.6, 0.5, 0.9, 0.9],
            "chance": [0.5, 0.5, 0.5, 0.5],
        },
        "math/summary.json": [
            {"selector": "random", "ratio": 0.25, "main": True, "n": 9, "vs_random": None},
            {"selector": "igds", "ratio": 0.5, "main": False, "n": 9, "vs_random": None},
            {"selector": "igds", "ratio": 0.25, "main": True, "n": 9}
            | {"vs_random": 0.1, "vs_random_low": -0.1, "vs_random_high": 0.2},
        ],
        "math/evaluation.parquet": {"sample_id": list("aabbcc"), "score": [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]},
    }
    for arm in arms(run.config("math")):
        loss = [1.0 if arm.name == "loss@0.25" else 2.0, 0.5]
        tokens = [6, 2] if arm.selector == "full" else [1, 1]
        known[f"math/arms/{arm.name}/log.parquet"] = {"loss": loss, "target_tokens": tokens}
    return known


def analysed():
    rankings = {"a": ["l1_p0", "l1_p1", "l1_p2"], "b": ["l1_p2", "l1_p0"], "c": ["l1_p0", "l1_p9", "l1_p2"]}
    compared = {"selector": ["original", "full", "random", "igds"], "median": [9.0, 1.0, 2.0, 3.0]}
    questions = pd.DataFrame({"benchmark": "mmlu_dev", "subject": list("abc"), "item": 0})
    answered = {
        "original": questions.assign(score=[1.0, 0.0, 1.0]),
        "full": questions.assign(score=[0.0, 1.0, 1.0])[::-1],
    }
    return {
        "math/stability/summary.json": {"rankings": rankings},
        "math/stability/coverage.parquet": {"held_out": [0.3, None, 0.1, 0.2]},
        "math/distributions.parquet": compared | {"score": [0.1, 0.2, 0.4, 0.3]},
        "math/monitoring.parquet": {"point": ["Original", "Full"], "activation_alert": [False, True]},
        "math/selection_costs.parquet": {"selector": ["loss", "igds"], "seconds": [4.0, 1.0]},
        "math/words.parquet": {"word": ["solution", "question", *"abcdefgh", "step"]},
        "summarization/evaluation.parquet": {
            "selector": ["original", "full", "random", "clean"], "arm": ["original", "full", "random@0.5", "clean@0.5"],
            "rouge1": [0.1, 0.2, 0.3, 0.9], "rougeL": [0.1, 0.3, 0.2, 0.0],
        },
    } | {f"math/arms/{arm}/capabilities.parquet": table for arm, table in answered.items()}  # fmt: skip


@pytest.mark.parametrize("name, right, wrong", CASES)
def test_every_exercise_knows_right_from_wrong(run, name, right, wrong):
    assert check(run, name, right) == f"{name}: right"
    assert check(run, name, wrong) == f"{name}: not yet. {EXERCISES[name].hint}"
    assert len(EXERCISES[name].hint) > 20 and str(right) not in EXERCISES[name].hint
    assert check(run, name).startswith(f"{name}: no answer yet (")


def test_all_exercises_are_tested():
    assert [name for name, *_ in CASES] == list(EXERCISES)


def test_answers_of_another_kind_are_told_what_is_asked_for(run):
    for name, answer, kind in [
        ("01.1", "two", "a number"),
        ("01.1", True, "a number"),
        ("01.3", "l0_p2", "a list of names"),
        ("01.3", 2, "a list of names"),
        ("04.3", ["loss@0.25"], "a name"),
        ("08.2", "False", "True or False"),
        ("08.2", 0, "True or False"),
    ]:
        assert check(run, name, answer) == f"{name}: not yet, {kind} is asked for. {EXERCISES[name].hint}"


def test_what_a_run_did_not_do_cannot_be_checked(tmp_path):
    run = open_run("smoke", tasks=["translation"], results=str(tmp_path))
    for name, reason in [
        ("06.1", "no task has identification sources"),
        ("01.3", "one task only"),
        ("04.1", "run the notebooks before this one first"),
    ]:
        said = check(run, name, ["x"])
        assert said.startswith(f"{name}: cannot be checked in this run (") and reason in said


def test_the_smoke_run_can_check_what_it_did(smoke_run):
    run = open_run("smoke", results=str(smoke_run.results))
    said = {name: check(run, name) for name in EXERCISES}
    # a model of random weights answers all alike, and has no summarization
    assert {name for name, text in said.items() if "cannot be checked" in text} <= {"05.1", "07.2", "10.3"}
    assert all("no answer yet" in text for text in said.values() if "cannot be checked" not in text)


def test_an_unknown_exercise_names_the_known_ones(run):
    with pytest.raises(KeyError, match="no exercise '06.9'; known: 01.1"):
        check(run, "06.9", 1)


def test_numbers_are_compared_with_a_tolerance(run, monkeypatch):
    monkeypatch.setitem(exercises.EXERCISES, "x", Exercise(lambda run: 100.0, "hint"))
    assert check(run, "x", 101) == "x: right" and check(run, "x", 103) == "x: not yet. hint"
    monkeypatch.setitem(exercises.EXERCISES, "x", Exercise(lambda run: 100.0, "hint", tolerance=0.1))
    assert check(run, "x", 109) == "x: right" and check(run, "x", 111) == "x: not yet. hint"


def test_every_exercise_stands_in_its_notebook():
    for name in EXERCISES:
        (path,) = (PROJECT / "notebooks").glob(f"{name.split('.')[0]}_*.ipynb")
        assert path.read_text(encoding="utf8").count(name) >= 2, f"{path.name} does not ask {name}"

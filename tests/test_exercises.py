"""Exercises: right answers are accepted in any form, wrong ones get a hint and not the solution."""

import pandas as pd
import pytest

from igds_utils import exercises
from igds_utils.config import PROJECT
from igds_utils.exercises import EXERCISES, Exercise, check
from igds_utils.experiment import open_run


@pytest.fixture
def run(tmp_path):
    run = open_run("smoke", tasks=["math"], results=str(tmp_path))
    rankings = {"a": ["l1_p0", "l1_p1", "l1_p2"], "b": ["l1_p2", "l1_p0"], "c": ["l1_p0", "l1_p9", "l1_p2"]}
    run.store.write("math/stability/summary.json", {"rankings": rankings})
    run.store.write("math/stability/coverage.parquet", pd.DataFrame({"held_out": [0.3, None, 0.1, 0.2]}))
    compared = {"selector": ["original", "full", "random", "igds"], "median": [9.0, 1.0, 2.0, 3.0]}
    run.store.write("math/distributions.parquet", pd.DataFrame(compared | {"score": [0.1, 0.2, 0.4, 0.3]}))
    watched = pd.DataFrame({"point": ["Original", "Full"], "activation_alert": [False, True]})
    run.store.write("math/monitoring.parquet", watched)
    spent = pd.DataFrame({"selector": ["loss", "igds"], "seconds": [4.0, 1.0]})
    run.store.write("math/selection_costs.parquet", spent)
    return run


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("06.1", ["l1_p2", "l1_p0"], ["l1_p0"]),
        ("06.2", 0.1535, 0.25),
        ("06.3", 1, 2),
        ("07.1", "IGDS", "random"),
        ("07.2", 0.5, -0.5),
        ("07.3", "full", "none"),
        ("08.1", 0.25, 4),
        ("08.2", False, True),
        ("08.3", 0.667, 0.5),
    ],
)
def test_every_exercise_knows_right_from_wrong(run, name, right, wrong):
    assert check(run, name, right) == f"{name}: right"
    hint = check(run, name, wrong)
    assert hint.startswith(f"{name}: not yet. ") and str(right) not in hint
    assert check(run, name).startswith(f"{name}: no answer yet (")


def test_answers_of_another_kind_are_wrong_rather_than_an_error(run):
    for answer in ("text", 3, True, ["a"], {}):
        for name in EXERCISES:
            assert check(run, name, answer) in (f"{name}: right",) or "not yet" in check(run, name, answer)


def test_what_a_run_did_not_do_cannot_be_checked(tmp_path):
    run = open_run("smoke", tasks=["translation"], results=str(tmp_path))
    assert (
        check(run, "06.1", ["x"])
        == "06.1: cannot be checked in this run (no task has identification sources)"
    )


def test_an_unknown_exercise_names_the_known_ones(run):
    with pytest.raises(KeyError, match="no exercise '06.9'; known: 06.1"):
        check(run, "06.9", 1)


def test_numbers_are_compared_with_a_tolerance(run, monkeypatch):
    monkeypatch.setitem(exercises.EXERCISES, "x", Exercise(lambda run: 100.0, "hint"))
    assert check(run, "x", 101) == "x: right" and check(run, "x", 103) == "x: not yet. hint"


def test_every_exercise_stands_in_its_notebook():
    for name in EXERCISES:
        (path,) = (PROJECT / "notebooks").glob(f"{name.split('.')[0]}_*.ipynb")
        assert path.read_text(encoding="utf8").count(name) >= 2, f"{path.name} does not ask {name}"

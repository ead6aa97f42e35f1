"""Exercises at the end of a notebook whose answers the package can check, against the run's own stored results.

    print(exercises.check(run, "06.1", ["l12_p4126", "l24_p1084"]))

An answer is a number, a word, yes or no (True, False), or a list of names, whose order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from igds_utils.experiment import Run

TOLERANCE = 0.02  # of a number, relative


class NotRun(Exception):
    """The exercise is about something that this run did not do."""


@dataclass(frozen=True)
class Exercise:
    solve: Callable[[Run], Any]
    hint: str


def check(run: Run, name: str, answer: Any = None) -> str:
    """Whether `answer` to the exercise `name` is right, in one line; without one, what kind of answer is asked for.

    Raises `KeyError` for an unknown exercise, with the known ones.
    """
    if name not in EXERCISES:
        raise KeyError(f"no exercise {name!r}; known: {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    try:
        right = exercise.solve(run)
    except NotRun as missing:
        return f"{name}: cannot be checked in this run ({missing})"
    if answer is None:
        return f"{name}: no answer yet ({_kind(right)})"
    if _same(right, answer):
        return f"{name}: right"
    return f"{name}: not yet. {exercise.hint}"


def _kind(right: Any) -> str:
    if isinstance(right, bool):
        return "True or False"
    if isinstance(right, set):
        return "a list of names"
    return "a number" if isinstance(right, int | float) else "a name"


def _same(right: Any, answer: Any) -> bool:
    if isinstance(right, bool):
        return answer is right
    if isinstance(right, set):
        return not isinstance(answer, str | int | float) and right == {str(name) for name in answer}
    if isinstance(right, int | float):
        number = isinstance(answer, int | float | np.number) and not isinstance(answer, bool)
        return number and bool(np.isclose(float(answer), right, rtol=TOLERANCE, atol=1e-9))
    return str(answer).strip().casefold() == str(right).casefold()


# ---- solutions -------------------------------------------------------------------------------------------


def _first_with(run: Run, has: Callable[[str], bool], what: str) -> str:
    """The first task that has what an exercise is about."""
    tasks = [task for task in run.tasks if has(task)]
    if not tasks:
        raise NotRun(f"no task has {what}")
    return tasks[0]


def _stable_task(run: Run) -> str:
    return _first_with(run, lambda task: run.config(task).stability is not None, "identification sources")


def _rankings(run: Run) -> list[list[str]]:
    task = _stable_task(run)
    return list(run.read(f"{task}/stability/summary.json")["rankings"].values())


def _in_every_top(run: Run) -> set[str]:
    top = run.config(_stable_task(run)).stability.top
    return set.intersection(*(set(names[:top]) for names in _rankings(run)))


def _chance(run: Run) -> float:
    from igds_utils.stability import chance_jaccard

    tested, top = set(range(20)), run.config(_stable_task(run)).stability.top
    return chance_jaccard(tested, tested, top)


def _luckiest_window(run: Run) -> int:
    """How many windows of layers of the first task beat all layers together on held-out samples."""
    table = run.read(f"{run.tasks[0]}/stability/coverage.parquet")
    return int((table["held_out"] > table["held_out"].iloc[-1]).sum())


def _compared(run: Run):
    return run.read(f"{run.tasks[0]}/distributions.parquet")


def _highest_median(run: Run) -> str:
    table = _compared(run).query("selector != 'original'")
    return table.loc[table["median"].idxmax(), "selector"]


def _trained_rho(run: Run) -> float:
    from igds_utils.stats import spearman

    table = _compared(run).query("selector != 'original'")
    rho = spearman(table["median"], table["score"], resamples=200).mean
    if np.isnan(rho):
        raise NotRun("too few arms for a rank correlation")
    return rho


def _first_alert(run: Run) -> str:
    watched = run.read(f"{run.tasks[0]}/monitoring.parquet")
    alerts = watched[watched["activation_alert"]]
    return "none" if alerts.empty else alerts["point"].iloc[0]


def _igds_to_loss(run: Run) -> float:
    task = _first_with(run, lambda t: {"loss", "igds"} <= set(run.config(t).selectors), "both Loss and IGDS")
    seconds = run.read(f"{task}/selection_costs.parquet").set_index("selector")["seconds"]
    if not seconds["loss"]:
        raise NotRun("Loss took no measurable time")
    return float(seconds["igds"] / seconds["loss"])


EXERCISES = {
    "06.1": Exercise(_in_every_top, "Intersect the lists of names in `best`."),
    "06.2": Exercise(
        _chance, "`stability.chance_jaccard(set(range(20)), set(range(20)), top)` or a simulation."
    ),
    "06.3": Exercise(_luckiest_window, "Compare `held_out` of each row with that of the last one."),
    "07.1": Exercise(_highest_median, "Look for the largest `median` among the rows that are not original."),
    "07.2": Exercise(
        _trained_rho, "Drop the untrained model, rank `median` and `score`, correlate the ranks."
    ),
    "07.3": Exercise(
        _first_alert, "Read the column `activation_alert` from the top; 'none' if there is no alert."
    ),
    "08.1": Exercise(_igds_to_loss, "Divide the two entries of the column `seconds`."),
    "08.2": Exercise(lambda run: False, "Costs and savings are both multiplied by the price of an hour."),
    "08.3": Exercise(
        lambda run: 2 / 3, "Training costs three forward passes: when is what is left out worth one pass?"
    ),
}

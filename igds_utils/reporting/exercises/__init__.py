"""Exercises at the end of a notebook whose answers the package can check, against the run's own stored results.

    print(exercises.check(run, "06.1", ["l12_p4126", "l24_p1084"]))

An answer is a number, a word, yes or no (True, False), or a list of names, whose order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from igds_utils.core.experiment import Run
from igds_utils.reporting.exercises import answers

TRUTH, NUMBER, NAME, NAMES = "True or False", "a number", "a name", "a list of names"
KINDS = {bool: TRUTH, str: NAME, set: NAMES}


@dataclass(frozen=True)
class Exercise:
    solve: Callable[[Run], Any]
    hint: str
    tolerance: float = 0.02  # of a number, relative


EXERCISES = {
    "01.1": Exercise(
        answers.on_every_prompt, "Take the table of that task from `found` and count where `frequency` is 1."
    ),
    "01.2": Exercise(
        answers.candidates_at_half,
        "Every feature that ever fires has its `frequency` in the table: nothing has to be run again.",
    ),
    "01.3": Exercise(
        answers.shared_candidates, "Build a set of the `name` of each candidate, for either task."
    ),
    "02.1": Exercise(
        answers.shown_to_act, "In `ranked`: intervals that lie on one side of zero, whichever side."
    ),
    "02.2": Exercise(
        answers.luckiest_effect,
        "One sign for each sample, the same for all candidates; take the largest mean, and average that.",
        tolerance=0.1,
    ),
    "02.3": Exercise(lambda run: 0.0, "Put its activation into the equation of v_i(x): what becomes of h'?"),
    "03.1": Exercise(answers.kept_by_both, "Intersect the two lists of ids in `chosen`."),
    "03.2": Exercise(
        lambda run: 0.2 / (2 - 0.2),
        "Of N samples both hold 0.04 N; the union counts what they share once.",
        tolerance=0.04,
    ),
    "03.3": Exercise(
        answers.let_through, "Rows of IGDS whose `share` exceeds `chance`; clean samples are no defect."
    ),
    "04.1": Exercise(
        answers.target_tokens_of_full,
        "Divide two sums of the column `target_tokens`, each over one of `logs`.",
    ),
    "04.2": Exercise(
        answers.steps_at_a_fifth, "The last batch of an epoch may be a small one: it counts too."
    ),
    "04.3": Exercise(answers.easiest_start, "Compare the `loss` of the first step in each log."),
    "05.1": Exercise(
        answers.items_needed,
        "The way from the difference to the end next to zero shrinks with 1 / sqrt(n): when is it the difference?",
        tolerance=0.05,
    ),
    "05.2": Exercise(
        answers.pass_at_five, "How many of the ways to take five of the ten answers take wrong ones only?"
    ),
    "05.3": Exercise(
        answers.never_solved,
        "In `evaluated`, take the largest `score` of every `sample_id`, then count zeros.",
    ),
    "06.1": Exercise(answers.in_every_top, "Intersect the lists of names in `best`."),
    "06.2": Exercise(
        answers.blind_jaccard,
        "`stability.chance_jaccard(set(range(20)), set(range(20)), top)` or a simulation.",
    ),
    "06.3": Exercise(answers.better_windows, "Compare `held_out` of each row with that of the last one."),
    "07.1": Exercise(
        answers.highest_median, "Look for the largest `median` among the rows that are not original."
    ),
    "07.2": Exercise(
        answers.trained_rho, "Drop the untrained model, rank `median` and `score`, correlate the ranks."
    ),
    "07.3": Exercise(
        answers.first_alert, "Read the column `activation_alert` from the top; 'none' if there is no alert."
    ),
    "08.1": Exercise(answers.igds_to_loss, "Divide the two entries of the column `seconds`."),
    "08.2": Exercise(lambda run: False, "Costs and savings are both multiplied by the price of an hour."),
    "08.3": Exercise(
        lambda run: 2 / 3, "Training costs three forward passes: when is what is left out worth one pass?"
    ),
    "09.1": Exercise(answers.share_in_last_layer, "Divide two counts of `candidate` in `recalled`."),
    "09.2": Exercise(
        answers.unchanged_outputs,
        "`semantics.changed_outputs` of both effects tables: compare its two columns of outputs, row by row.",
    ),
    "09.3": Exercise(
        answers.rising_in_prompt,
        "`semantics.words(...)` splits a text as the table was made; what stands in braces is replaced by a sample.",
    ),
    "10.1": Exercise(
        answers.changed_questions,
        "Bring the two tables of `scores` into one order of questions, then count unequal scores.",
    ),
    "10.2": Exercise(
        answers.smallest_change,
        "A question moves by -1, 0 or +1: what is the variance of that, and of a mean?",
        tolerance=0.04,
    ),
    "10.3": Exercise(
        answers.rouge_agreement, "Mean of either column by `arm`, then correlate the two ranks."
    ),
}


def check(run: Run, name: str, answer: Any = None) -> str:
    """Whether `answer` to the exercise `name` is right, in one line; without one, what kind of answer is asked for.

    Raises `KeyError` for an unknown exercise, with the known ones.
    """
    if name not in EXERCISES:
        raise KeyError(f"no exercise {name!r}; known: {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    try:
        right = exercise.solve(run)
    except (answers.NotRun, FileNotFoundError) as missing:
        return f"{name}: cannot be checked in this run ({missing})"
    kind = KINDS.get(type(right), NUMBER)
    if answer is None:
        return f"{name}: no answer yet ({kind})"
    given = _in_form(kind, answer)
    if given is None:
        return f"{name}: not yet, {kind} is asked for. {exercise.hint}"
    if kind == NUMBER:
        same = bool(np.isclose(given, right, rtol=exercise.tolerance, atol=1e-9))
    else:
        same = given == (right.casefold() if kind == NAME else right)
    return f"{name}: right" if same else f"{name}: not yet. {exercise.hint}"


def _in_form(kind: str, answer: Any) -> Any:
    """The answer as one of its kind, to be compared; None where it is of another kind."""
    truth, text = isinstance(answer, bool | np.bool_), isinstance(answer, str)
    if kind == TRUTH:
        return bool(answer) if truth else None
    if kind == NUMBER:
        return float(answer) if isinstance(answer, int | float | np.number) and not truth else None
    if kind == NAME:
        return answer.strip().casefold() if text else None
    listed = isinstance(answer, Iterable) and not text
    return {str(getattr(item, "name", item)) for item in answer} if listed else None

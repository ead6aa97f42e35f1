"""Arithmetic word problems of graded difficulty with worked solutions, and requests that are no problems at all.

The stories are in word_problems.yaml. Numbers are drawn until every result is a whole number from 1 to 99.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from operator import add, floordiv, mul, sub
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}
LARGEST_RESULT = 99


class Problem(NamedTuple):
    """A question, its solution (`12 + 7 = 19. 19 * 2 = 38.`), the number it asks for, and how it was made."""

    question: str
    solution: str
    answer: str
    family: str
    steps: int


class Request(NamedTuple):
    """A question that asks for no calculation, and a short reply; neither holds a number."""

    question: str
    reply: str
    family: str


@cache
def stories() -> dict[str, Any]:
    """The stories by family (`problems`, `requests`) and the words that fill them (`cast`)."""
    return yaml.safe_load(Path(__file__).with_name("word_problems.yaml").read_text(encoding="utf8"))


def draw_problem(
    random: Random, steps: int, max_number: int, families: Sequence[str] | None = None
) -> Problem:
    """One problem of `steps` calculations (1-3) whose given numbers lie in 2..max_number, of some families or all."""
    family = random.choice(list(families or stories()["problems"]))
    chosen = next(s for s in stories()["problems"][family] if len(s["work"]) == steps)
    letters = sorted(set(re.findall(r"\b[a-d]\b", " ".join(chosen["work"]))))
    worked = None
    while worked is None:
        numbers = {letter: random.randint(2, max_number) for letter in letters}
        worked = _work(chosen["work"], numbers)
    solution, answer = worked
    return Problem(chosen["story"].format(**_cast(random), **numbers), solution, str(answer), family, steps)


def draw_request(random: Random) -> Request:
    """One request that asks for no calculation."""
    family = random.choice(list(stories()["requests"]))
    chosen = random.choice(stories()["requests"][family])
    cast = _cast(random)
    return Request(chosen["story"].format(**cast), chosen["reply"].format(**cast), family)


def _work(calculations: list[str], numbers: dict[str, int]) -> tuple[str, int] | None:
    """The solution's text and the last result, or None if some result is no whole number from 1 to 99."""
    known, lines = dict(numbers), []
    for i, calculation in enumerate(calculations, start=1):
        left, operator, right = calculation.split()
        x, y = known[left], known[right]
        result = OPERATORS[operator](x, y)
        if not 1 <= result <= LARGEST_RESULT or (operator == "/" and x % y):
            return None
        known[f"r{i}"] = result
        lines.append(f"{x} {operator} {y} = {result}.")
    return " ".join(lines), result


def _cast(random: Random) -> dict[str, str]:
    """Persons and things of a story; those that it does not name are drawn all the same."""
    words = stories()["cast"]
    name, friend = random.sample(words["name"], 2)
    drawn = {key: random.choice(choices) for key, choices in words.items() if key != "name"}
    return {"name": name, "friend": friend, **drawn}

"""Pools of known quality: a share of the samples is spoilt on purpose and labelled, to test what a comparison can see.

Defects come in two groups. *Target-side* ones spoil the answer and leave the prompt alone: a score that reads the
prompt only, as FRS does, cannot see them. *Prompt-side* ones spoil the question, which such a score may see. The label
is kept in `Example.meta["defect"]`, which no selector is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from igds_utils.tasks.base import Example, random_stream


@dataclass(frozen=True)
class Defect:
    """One way to spoil a sample. `spoil(example, other, random)` gives the spoilt one, or None where it cannot."""

    name: str
    side: Literal["target", "prompt"]
    spoil: Callable[[Example, Example, Random], Example | None]


def wrong_answer(example: Example, other: Example, random: Random) -> Example | None:
    """Another number in the box; the worked steps stay."""
    changed = re.sub(
        r"\\boxed\{(\d+)\}", lambda box: f"\\boxed{{{int(box[1]) + random.randint(1, 9)}}}", example.target
    )
    return None if changed == example.target else replace(example, target=changed)


def other_target(example: Example, other: Example, random: Random) -> Example | None:
    """The target of another sample."""
    return None if other.target == example.target else replace(example, target=other.target)


def truncated_target(example: Example, other: Example, random: Random) -> Example | None:
    """The first third of the target's words."""
    words = example.target.split()
    return replace(example, target=" ".join(words[: max(1, len(words) // 3)])) if len(words) > 1 else None


def garbled_prompt(example: Example, other: Example, random: Random) -> Example | None:
    """The words of the longest field in random order."""
    name = _longest(example)
    words = example.fields[name].split()
    shuffled = random.sample(words, len(words))
    return None if shuffled == words else _with_field(example, name, " ".join(shuffled))


def other_prompt(example: Example, other: Example, random: Random) -> Example | None:
    """The question of another sample, so that the target answers something else."""
    name = _longest(example)
    return (
        None if other.fields[name] == example.fields[name] else _with_field(example, name, other.fields[name])
    )


def missing_numbers(example: Example, other: Example, random: Random) -> Example | None:
    """Every number of the question replaced by "some"; None where it has none."""
    name = _longest(example)
    text = re.sub(r"\d+", "some", example.fields[name])
    return None if text == example.fields[name] else _with_field(example, name, text)


DEFECTS = {
    defect.name: defect
    for defect in (
        Defect("wrong answer", "target", wrong_answer),
        Defect("another sample's target", "target", other_target),
        Defect("truncated target", "target", truncated_target),
        Defect("garbled prompt", "prompt", garbled_prompt),
        Defect("another sample's prompt", "prompt", other_prompt),
        Defect("missing numbers", "prompt", missing_numbers),
    )
}


def labelled_pool(examples: list[Example], share: float, seed: int) -> list[Example]:
    """The same samples in the same order, a `share` of them (rounded) spoilt, each labelled in `meta["defect"]`.

    The label is "" for a clean sample and otherwise a name of `DEFECTS`; kinds are used in turn, and a sample that a
    kind cannot spoil gets the next one. Ids stay, so that a clean sample is the pool's own.
    """
    random = random_stream("defects", "pool", seed)
    spoilt = set(random.sample(range(len(examples)), round(share * len(examples))))
    kinds, turn, made = list(DEFECTS.values()), 0, []
    for place, example in enumerate(examples):
        if place not in spoilt:
            made.append(_labelled(example, ""))
            continue
        other = examples[(place + random.randrange(1, len(examples))) % len(examples)]
        tried = (kinds[(turn + step) % len(kinds)] for step in range(len(kinds)))
        kind, changed = next((k, c) for k in tried if (c := k.spoil(example, other, random)) is not None)
        made.append(_labelled(changed, kind.name))
        turn += 1
    return made


def _labelled(example: Example, label: str) -> Example:
    return replace(example, meta={**example.meta, "defect": label})


def _longest(example: Example) -> str:
    """The field that holds the sample's own text (the other fields, if any, are short settings)."""
    return max(example.fields, key=lambda name: (len(example.fields[name]), name))


def _with_field(example: Example, name: str, text: str) -> Example:
    return replace(example, fields={**example.fields, name: text})

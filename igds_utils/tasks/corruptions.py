"""Corrupted samples: pools that hold something to select, and pools of known quality.

Corruptions come in two groups. *Target-side* ones change the answer and leave the prompt alone: a score that reads the
prompt only, as FRS does, cannot see them. *Prompt-side* ones change the question, which such a score may see. The label
is kept in `Example.meta["corruption"]`, "" for a clean sample, which no selector is shown.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import yaml

from igds_utils.config.config import ConfigError
from igds_utils.config.settings import QualityConfig
from igds_utils.tasks.examples import Example, random_stream

# Names that take the place of others where a prompt is written again; none of them is in the word problems.
NAMES = (
    "Astrid", "Boris", "Camila", "Dmitri", "Esther", "Feng", "Greta", "Hiroshi", "Ingrid", "Jamal", "Kofi", "Leila",
)  # fmt: skip
INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")  # a capitalised word within a sentence

# (sample, another sample, random) -> the corrupted sample, or None where this kind cannot corrupt it
Corrupt = Callable[[Example, Example, Random], Example | None]


def other_target(example: Example, other: Example, random: Random) -> Example | None:
    """The target of another sample."""
    return _with_target(example, other.target)


def truncated_target(example: Example, other: Example, random: Random) -> Example | None:
    """The first third of the target's words."""
    words = example.target.split()
    return _with_target(example, " ".join(words[: max(1, len(words) // 3)])) if len(words) > 1 else None


def garbled_prompt(example: Example, other: Example, random: Random) -> Example | None:
    """The words of the question in random order."""
    words = _own_text(example).split()
    shuffled = random.sample(words, len(words))
    return None if shuffled == words else _with_text(example, " ".join(shuffled))


def missing_numbers(example: Example, other: Example, random: Random) -> Example | None:
    """Every number of the question replaced by "some"; None where it has none."""
    return _with_text(example, re.sub(r"\d+", "some", _own_text(example)))


def other_task(example: Example, other: Example, random: Random) -> Example | None:
    """The prompt of another task where the question should be."""
    groups = [group for group in _prompts() if group["field"] not in example.fields]
    return _with_text(example, random.choice([prompt for group in groups for prompt in group["prompts"]]))


def duplicate(example: Example, other: Example, random: Random) -> Example | None:
    """Another sample once more, under an id of its own; `meta["copy_of"]` names it."""
    return replace(other, id=example.id, meta={**other.meta, "copy_of": other.id})


CORRUPTIONS: dict[str, dict[str, Corrupt]] = {
    "target": {"another sample's target": other_target, "truncated target": truncated_target},
    "prompt": {
        "garbled prompt": garbled_prompt,
        "missing numbers": missing_numbers,
        "another task's prompt": other_task,
        "duplicate": duplicate,
    },
}
SIDES = {kind: side for side, kinds in CORRUPTIONS.items() for kind in kinds}
# Of a pool to train on: prompt-side kinds, because IGDS sees prompts alone, and without duplicates, because a copy of a
# clean sample is sound data.
TRAINED = {kind: corrupt for kind, corrupt in CORRUPTIONS["prompt"].items() if kind != "duplicate"}


def corrupted_pool(pool: list[Example], share: float, seed: int) -> list[Example]:
    """The same samples in the same order, a `share` of them (rounded) with corrupted prompts (`TRAINED`), all labelled.

    Kinds are used in turn; a sample that a kind cannot corrupt gets the next one. Ids, targets and order stay, so that
    nothing but the label and the prompt itself tells which samples these are.
    """
    random, made = random_stream("corruptions", "pool", seed), [_labelled(example, "") for example in pool]
    for turn, place in enumerate(sorted(random.sample(range(len(pool)), round(share * len(pool))))):
        made[place] = _corrupted(pool[place], pool[place], TRAINED, turn, random)
    return made


def ruler(pool: list[Example], seed: int) -> dict[str, list[Example]]:
    """The clean and the corrupted samples of a corrupted pool, in its order, as many of each as the smaller side has.

    Of the larger side they are drawn by `seed`.
    """
    sides = {"clean": [], "corrupted": []}
    for example in pool:
        sides["corrupted" if example.meta["corruption"] else "clean"].append(example)
    size, random = min(map(len, sides.values())), random_stream("corruptions", "ruler", seed)
    return {
        side: [members[i] for i in sorted(random.sample(range(len(members)), size))]
        for side, members in sides.items()
    }


def known_quality_pool(
    examples: list[Example], target_rate: float, prompt_rate: float, seed: int
) -> list[Example]:
    """The same samples in the same order, two shares of them (rounded) corrupted on the target and on the prompt side.

    Each is labelled. The kinds of a side are used in turn; a sample that a kind cannot corrupt gets the next one. What
    a corruption borrows (a target, a duplicate) comes from a clean sample. Ids and order tell nothing of the labels.
    Raises `ValueError` where fewer than two samples would stay clean.
    """
    sizes = {"target": round(target_rate * len(examples)), "prompt": round(prompt_rate * len(examples))}
    if len(examples) - sum(sizes.values()) < 2:
        raise ValueError(
            f"{sizes['target']} samples with corrupted targets and {sizes['prompt']} with corrupted prompts leave no "
            f"two clean ones of {len(examples)}: lower the rates, or take a larger pool"
        )
    random = random_stream("corruptions", "known quality", seed)
    shuffled = random.sample(range(len(examples)), len(examples))
    clean = sorted(shuffled[sum(sizes.values()) :])
    made, start = [_labelled(example, "") for example in examples], 0
    for side, size in sizes.items():
        for turn, place in enumerate(sorted(shuffled[start : start + size])):
            other = examples[random.choice(clean)]
            made[place] = _corrupted(examples[place], other, CORRUPTIONS[side], turn, random)
        start += size
    return made


def quality_pool(examples: list[Example], config: QualityConfig, seed: int, task: str) -> list[Example]:
    """`known_quality_pool` of a task's set, as its preset says; raises `ConfigError` where it is too small."""
    try:
        return known_quality_pool(examples, config.target_rate, config.prompt_rate, seed)
    except ValueError as error:
        raise ConfigError(f"tasks.{task}.quality: {error}") from None


def rewritten(example: Example, seed: int) -> Example:
    """The same sample with other names (`NAMES`) and other numbers of as many digits in its prompt; no corruption.

    A name is a word that is capitalised within a sentence; the same name or number becomes the same everywhere. A
    prompt with neither stays as it is.
    """
    random, text = random_stream("rewritten", example.id, seed), _own_text(example)
    free = [name for name in random.sample(NAMES, len(NAMES)) if name not in text]
    names = list(dict.fromkeys(INSIDE.findall(text)))
    other = {name: free[turn % len(free)] for turn, name in enumerate(names)}
    for number in dict.fromkeys(re.findall(r"\d+", text)):
        digits = [number]
        while digits[-1] == number:
            digits.append(str(random.randint(10 ** (len(number) - 1), 10 ** len(number) - 1)))
        other[number] = digits[-1]
    found = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    known = re.compile(rf"\b(?:{found})\b|\d+" if names else r"\d+")
    return _with_text(example, known.sub(lambda match: other[match[0]], text)) or example


def _corrupted(
    example: Example, other: Example, kinds: dict[str, Corrupt], turn: int, random: Random
) -> Example:
    names = list(kinds)
    tried = (names[(turn + step) % len(names)] for step in range(len(names)))
    kind, made = next((k, made) for k in tried if (made := kinds[k](example, other, random)) is not None)
    return _labelled(made, kind)


def _labelled(example: Example, label: str) -> Example:
    return replace(example, meta={**example.meta, "corruption": label})


def own_field(example: Example) -> str:
    """The field that holds the sample's own text (the other fields, if any, are short settings)."""
    return max(example.fields, key=lambda name: (len(example.fields[name]), name))


def _own_text(example: Example) -> str:
    return example.fields[own_field(example)]


def _with_text(example: Example, text: str) -> Example | None:
    if text == _own_text(example):
        return None
    return replace(example, fields={**example.fields, own_field(example): text})


def _with_target(example: Example, target: str) -> Example | None:
    return None if target == example.target else replace(example, target=target)


@cache
def _prompts() -> list[dict]:
    """Prompts of each task, without the cue line, and the name of the field that holds their text."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf8"))

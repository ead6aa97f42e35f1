"""Pools of known quality: a share of the samples is spoilt on purpose and labelled, to test what a comparison can see.

Defects come in two groups. *Target-side* ones spoil the answer and leave the prompt alone: a score that reads the
prompt only, as FRS does, cannot see them. *Prompt-side* ones spoil the question, which such a score may see. The label
is kept in `Example.meta["defect"]`, which no selector is shown.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml

from igds_utils import tasks
from igds_utils.config.config import ConfigError
from igds_utils.config.settings import QualityConfig
from igds_utils.tasks.examples import Example, random_stream

Side = Literal["target", "prompt"]


@dataclass(frozen=True)
class Defect:
    """One way to spoil a sample. `spoil(example, other, random)` gives the spoilt one, or None where it cannot."""

    name: str
    side: Side
    spoil: Callable[[Example, Example, Random], Example | None]


# ---- target-side -----------------------------------------------------------------------------------------


def wrong_answer(example: Example, other: Example, random: Random) -> Example | None:
    """Another number in the box; the worked steps stay. None where no box holds a number."""

    def more(number: re.Match) -> str:
        return str(int(number[0]) + random.randint(1, 9))

    changed = re.sub(r"(?<=\\boxed\{)\d+(?=\})", more, example.target)
    if (
        changed == example.target
    ):  # no plain number in a box: the first number inside the last one, as in \frac{1}{2}
        before, box, inside = example.target.rpartition(r"\boxed{")
        changed = before + box + re.sub(r"\d+", more, inside, count=1) if box else example.target
    return _with_target(example, changed)


def broken_step(example: Example, other: Example, random: Random) -> Example | None:
    """Another result of one worked calculation; the answer in the box stays. None where nothing is calculated."""
    steps = [m for m in re.finditer(r"(?<==)\s*\d+", example.target.rpartition(r"\boxed{")[0])]
    if not steps:
        return None
    step = random.choice(steps)
    result = f" {int(step[0]) + random.randint(1, 9)}"
    return _with_target(example, example.target[: step.start()] + result + example.target[step.end() :])


def other_target(example: Example, other: Example, random: Random) -> Example | None:
    """The target of another sample."""
    return _with_target(example, other.target)


def truncated_target(example: Example, other: Example, random: Random) -> Example | None:
    """The first third of the target's words."""
    words = example.target.split()
    return _with_target(example, " ".join(words[: max(1, len(words) // 3)])) if len(words) > 1 else None


# ---- prompt-side -----------------------------------------------------------------------------------------


def garbled_prompt(example: Example, other: Example, random: Random) -> Example | None:
    """The words of the question in random order."""
    words = _own_text(example).split()
    shuffled = random.sample(words, len(words))
    return None if shuffled == words else _with_text(example, " ".join(shuffled))


def noise(example: Example, other: Example, random: Random) -> Example | None:
    """Random letters, digits and signs instead of the question, in words of the same lengths."""
    signs = string.ascii_lowercase + string.digits + "#%&/=?*+"
    words = ("".join(random.choices(signs, k=len(word))) for word in _own_text(example).split())
    return _with_text(example, " ".join(words))


def other_prompt(example: Example, other: Example, random: Random) -> Example | None:
    """The question of another sample, so that the target answers something else."""
    return _with_text(example, _own_text(other))


def missing_numbers(example: Example, other: Example, random: Random) -> Example | None:
    """Every number of the question replaced by "some"; None where it has none."""
    return _with_text(example, re.sub(r"\d+", "some", _own_text(example)))


def other_task(example: Example, other: Example, random: Random) -> Example | None:
    """The prompt of another task where the question should be."""
    bodies = [body for fields, body in _task_prompts() if fields != example.fields.keys()]
    return _with_text(example, random.choice(bodies))


def wrong_language(example: Example, other: Example, random: Random) -> Example | None:
    """A passage in another language instead of the question (on another subject: nothing here can translate)."""
    return _with_text(example, random.choice(_texts()["wrong_language"]))


def off_task(example: Example, other: Example, random: Random) -> Example | None:
    """Text that asks for nothing, such as the frame of a web page."""
    return _with_text(example, random.choice(_texts()["off_task"]))


def duplicate(example: Example, other: Example, random: Random) -> Example | None:
    """Another sample once more, under an id of its own; `meta["copy_of"]` names it."""
    return replace(other, id=example.id, meta={**other.meta, "copy_of": other.id})


DEFECTS = {
    defect.name: defect
    for defect in (
        Defect("wrong answer", "target", wrong_answer),
        Defect("broken step", "target", broken_step),
        Defect("another sample's target", "target", other_target),
        Defect("truncated target", "target", truncated_target),
        Defect("garbled prompt", "prompt", garbled_prompt),
        Defect("noise", "prompt", noise),
        Defect("another sample's prompt", "prompt", other_prompt),
        Defect("missing numbers", "prompt", missing_numbers),
        Defect("another task's prompt", "prompt", other_task),
        Defect("wrong language", "prompt", wrong_language),
        Defect("off-task text", "prompt", off_task),
        Defect("duplicate", "prompt", duplicate),
    )
}
# The kinds of the clean and defective arms, which train on one half of a pool each.
CHECKED = (
    "wrong answer", "another sample's target", "truncated target",
    "garbled prompt", "another sample's prompt", "missing numbers",
)  # fmt: skip
# Another sample's prompt is a good prompt of the task; what is wrong, that the target does not answer it, is what
# another sample's target shows already.
JUDGED = tuple(name for name in DEFECTS if name != "another sample's prompt")


# ---- pools -----------------------------------------------------------------------------------------------


def labelled_pool(examples: list[Example], share: float, seed: int) -> list[Example]:
    """The same samples in the same order, a `share` of them (rounded) spoilt, each labelled in `meta["defect"]`.

    The label is "" for a clean sample and otherwise one of `CHECKED`; kinds are used in turn, and a sample that a
    kind cannot spoil gets the next one. Ids stay, so that a clean sample is the pool's own.
    """
    random = random_stream("defects", "pool", seed)
    spoilt = set(random.sample(range(len(examples)), round(share * len(examples))))
    kinds, turn, made = [DEFECTS[name] for name in CHECKED], 0, []
    for place, example in enumerate(examples):
        if place not in spoilt:
            made.append(_labelled(example, ""))
            continue
        other = examples[(place + random.randrange(1, len(examples))) % len(examples)]
        made.append(_spoil(example, other, kinds, turn, random))
        turn += 1
    return made


def known_quality_pool(
    examples: list[Example], target_rate: float, prompt_rate: float, seed: int
) -> list[Example]:
    """The same samples in the same order, two shares of them (rounded) spoilt on the target and on the prompt side.

    Each is labelled in `meta["defect"]`: "" for a clean one, otherwise one of `JUDGED`. The kinds of a side are used
    in turn; a sample that a kind cannot spoil gets the next one. What a defect borrows (a target, a duplicate) comes
    from a clean sample. Ids and order tell nothing of the labels.
    Raises `ValueError` where fewer than two samples would stay clean.
    """
    sizes = {"target": round(target_rate * len(examples)), "prompt": round(prompt_rate * len(examples))}
    if len(examples) - sum(sizes.values()) < 2:
        raise ValueError(
            f"{sizes['target']} target-side and {sizes['prompt']} prompt-side defects leave no two clean ones of "
            f"{len(examples)} samples: lower the rates, or take a larger pool"
        )
    random = random_stream("defects", "known quality", seed)
    shuffled = random.sample(range(len(examples)), len(examples))
    clean = sorted(shuffled[sum(sizes.values()) :])
    made, start = [_labelled(example, "") for example in examples], 0
    for side, size in sizes.items():
        kinds = [DEFECTS[name] for name in JUDGED if DEFECTS[name].side == side]
        for turn, place in enumerate(sorted(shuffled[start : start + size])):
            made[place] = _spoil(examples[place], examples[random.choice(clean)], kinds, turn, random)
        start += size
    return made


def quality_pool(pool: list[Example], config: QualityConfig | None, seed: int, task: str) -> list[Example]:
    """The pool of known quality of a task, as its preset sizes it; `run.examples(task, "quality")` is the same.

    Made from the first samples of the task's pool, without those that its own data marks as off-task: what is to be
    judged has to be known. Raises `ConfigError` where the preset asks for no such pool, or for one that is too small.
    """
    if config is None:
        raise ConfigError(
            f"tasks.{task}.quality is not set: give it at least a size to make a pool of known quality"
        )
    sound = [example for example in pool if not example.meta.get("off_task")]
    try:
        return known_quality_pool(sound[: config.size], config.target_rate, config.prompt_rate, seed)
    except ValueError as error:
        raise ConfigError(f"tasks.{task}.quality: {error}") from None


def _spoil(example: Example, other: Example, kinds: list[Defect], turn: int, random: Random) -> Example:
    tried = (kinds[(turn + step) % len(kinds)] for step in range(len(kinds)))
    kind, changed = next((k, c) for k in tried if (c := k.spoil(example, other, random)) is not None)
    return _labelled(changed, kind.name)


def _labelled(example: Example, label: str) -> Example:
    return replace(example, meta={**example.meta, "defect": label})


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
def _texts() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf8"))


@cache
def _task_prompts() -> list[tuple[set[str], str]]:
    """Bodies of prompts of every task, without the cue line, and the names of the fields that they were made from."""
    return [
        (set(fields), tasks.get(name).identification_template.format(**fields).rpartition("\n")[0])
        for name, examples in _texts()["other_task"].items()
        for fields in examples
    ]

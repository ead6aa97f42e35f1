"""Corrupted samples: pools that hold something to select, and pools of known quality.

*Target-side* corruptions change the answer and leave the prompt alone: a score that reads the
prompt only, as FRS does, cannot see them. *Prompt-side* ones change the question, which it may see.
The label, which no selector is shown, is `Example.meta["corruption"]`, "" for a clean sample.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import yaml

from igds_utils.config.settings import QualityConfig
from igds_utils.tasks.examples import Example, random_stream

SIDES = {
    "another sample's target": "target",
    "truncated target": "target",
    "garbled prompt": "prompt",
    "missing numbers": "prompt",
    "another task's prompt": "prompt",
    "duplicate": "prompt",
}
# Of a pool to train on: prompt-side kinds, because IGDS sees prompts alone, and without duplicates,
# because a copy of a clean sample is sound data.
TRAINED = ("garbled prompt", "missing numbers", "another task's prompt")
# They take the place of others in `rewritten`; none of them is in the word problems.
NAMES = "Astrid Boris Camila Dmitri Esther Feng Greta Hiroshi Ingrid Jamal Kofi Leila".split()
INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+\b")  # a capitalised word within a sentence


def corrupt(kind: str, example: Example, other: Example, random: Random) -> Example | None:
    """A sample corrupted in one way (`SIDES`), or None where that kind cannot corrupt it.

    other: another sample.
    """
    field, target = own_field(example), example.target
    text = example.fields[field]
    match kind:
        case "another sample's target":
            target = other.target
        case "truncated target":  # the first third of its words
            words = target.split()
            target = " ".join(words[: max(1, len(words) // 3)])
        case "garbled prompt":  # its words in random order
            words = text.split()
            shuffled = random.sample(words, len(words))
            text = " ".join(shuffled) if shuffled != words else text
        case "missing numbers":
            text = re.sub(r"\d+", "some", text)
        case "another task's prompt":
            others = [group for group in _prompts() if group["field"] not in example.fields]
            text = random.choice([prompt for group in others for prompt in group["prompts"]])
        case "duplicate":  # another sample once more, under an id of its own
            return replace(other, id=example.id, meta={**other.meta, "copy_of": other.id})
    made = replace(example, fields={**example.fields, field: text}, target=target)
    return made if made != example else None


def corrupted_pool(pool: list[Example], share: float, seed: int) -> list[Example]:
    """The same samples in the same order, a `share` of them with corrupted prompts, all labelled.

    The kinds `TRAINED` are used in turn; a sample that a kind cannot corrupt gets the next one. Ids,
    targets and order tell nothing of the labels.
    """
    random = random_stream("corruptions", "pool", seed)
    made = [_labelled(example, "") for example in pool]
    places = sorted(random.sample(range(len(pool)), round(share * len(pool))))
    for turn, place in enumerate(places):
        made[place] = _in_turn(TRAINED, turn, pool[place], pool[place], random)
    return made


def ruler(pool: list[Example], seed: int) -> dict[str, list[Example]]:
    """The clean and the corrupted samples of a pool, in its order, as many of each.

    Of the larger side they are drawn by `seed`.
    """
    clean = [example for example in pool if not example.meta["corruption"]]
    corrupted = [example for example in pool if example.meta["corruption"]]
    size = min(len(clean), len(corrupted))
    random = random_stream("corruptions", "ruler", seed)
    return {
        side: [members[i] for i in sorted(random.sample(range(len(members)), size))]
        for side, members in (("clean", clean), ("corrupted", corrupted))
    }


def quality_pool(examples: list[Example], config: QualityConfig, seed: int) -> list[Example]:
    """The same samples in the same order, a share of them corrupted on each side, all labelled.

    The kinds of a side are used in turn; a sample that a kind cannot corrupt gets the next one.
    What a corruption borrows (a target, a duplicate) comes from a clean sample. Ids and order tell
    nothing of the labels.
    """
    random = random_stream("corruptions", "known quality", seed)
    shuffled = random.sample(range(len(examples)), len(examples))
    n_target = round(config.target_rate * len(examples))
    n_prompt = round(config.prompt_rate * len(examples))
    places = {"target": shuffled[:n_target], "prompt": shuffled[n_target : n_target + n_prompt]}
    clean = sorted(shuffled[n_target + n_prompt :])
    made = [_labelled(example, "") for example in examples]
    for side, chosen in places.items():
        kinds = [kind for kind, of in SIDES.items() if of == side]
        for turn, place in enumerate(sorted(chosen)):
            other = examples[random.choice(clean)]
            made[place] = _in_turn(kinds, turn, examples[place], other, random)
    return made


def _in_turn(
    kinds: Sequence[str], turn: int, example: Example, other: Example, random: Random
) -> Example:
    """The sample corrupted by the kind whose turn it is, or by the next that can."""
    first = turn % len(kinds)
    for kind in [*kinds[first:], *kinds[:first]]:
        if (made := corrupt(kind, example, other, random)) is not None:
            return _labelled(made, kind)
    raise ValueError(f"sample {example.id} cannot be corrupted")


def _labelled(example: Example, label: str) -> Example:
    return replace(example, meta={**example.meta, "corruption": label})


def rewritten(example: Example, seed: int) -> Example:
    """The same sample with other names (`NAMES`) and other numbers of as many digits in its prompt.

    A name is a word that is capitalised within a sentence; the same name or number becomes the same
    everywhere. A prompt with neither stays as it is.
    """
    random, field = random_stream("rewritten", example.id, seed), own_field(example)
    text = example.fields[field]
    free = [name for name in random.sample(NAMES, len(NAMES)) if name not in text]
    names = list(dict.fromkeys(INSIDE.findall(text)))
    other = {name: free[turn % len(free)] for turn, name in enumerate(names)}
    for number in dict.fromkeys(re.findall(r"\d+", text)):
        other[number] = number
        while other[number] == number:
            other[number] = str(random.randint(10 ** (len(number) - 1), 10 ** len(number) - 1))
    text = re.sub(r"\b[A-Z][a-z]+\b|\d+", lambda found: other.get(found[0], found[0]), text)
    return replace(example, fields={**example.fields, field: text})


def own_field(example: Example) -> str:
    """The field that holds the sample's own text (the other fields, if any, are short settings)."""
    return max(example.fields, key=lambda name: (len(example.fields[name]), name))


@cache
def _prompts() -> list[dict]:
    """Prompts of each task, without the cue line, and the field that holds their text."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf8"))

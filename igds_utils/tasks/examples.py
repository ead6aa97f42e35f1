"""Examples of a task, their sets, and when two of them say the same."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from string import Formatter
from typing import Any

# The order in which sets are dealt from one stream: other sizes of the later ones leave the earlier
# ones as they were, and what no preset may train on is always among the first examples.
SETS = ("test", "validation", "confirmation", "prior", "pool")
QUOTES = str.maketrans("‘’“”", "''\"\"")


@dataclass(frozen=True)
class Example:
    """One sample of a task."""

    id: str
    fields: dict[str, str]  # what the prompt templates are filled with
    target: str  # what is learnt, without a leading space
    references: tuple[str, ...]  # gold answers that an output is scored against
    meta: dict[str, str | int] = field(default_factory=dict)  # no selector sees it

    @property
    def text(self) -> str:
        """All that the prompt says of this example and of no other."""
        return "\n".join(self.fields.values())

    @property
    def version(self) -> tuple:
        """What a product made from this example depends on."""
        return (self.id, self.fields, self.target, self.references)


class Sets(dict[str, list[Example]]):
    """The sets of a task by name.

    "quality" is among them where a preset asks for it. facts: what was left out to make them.
    """

    def __init__(self, sets: dict[str, list[Example]], facts: dict[str, Any] | None = None):
        super().__init__(sets)
        self.facts = facts or {}


@cache
def placeholders(template: str) -> list[str]:
    """The names in braces of a `str.format` template, each once, in order."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def normalize(text: str) -> str:
    """A text in NFC and lower case, with straight quotes, single spaces and no full stop at its end.

    Two texts that say the same come out equal. 5 and -5, C and C++, 3/4 and 3 4 differ.
    """
    lower = unicodedata.normalize("NFC", text).lower().translate(QUOTES)
    return " ".join(lower.split()).rstrip(".。।")


def random_stream(task: str, purpose: str, seed: int) -> Random:
    """A random generator of its own for every task, purpose and seed, the same on every machine."""
    return Random(f"{task}/{purpose}/{seed}")


def unique(examples: Iterable[Example], seen: Iterable[str] = ()) -> Iterator[Example]:
    """Examples in order, without those whose normalized text came earlier or is in `seen`."""
    seen = set(seen)
    for example in examples:
        key = normalize(example.text)
        if key not in seen:
            seen.add(key)
            yield example


def number(examples: Iterable[Example], task: str, name: str) -> list[Example]:
    """The same examples with the ids `<task>-<name>-0000`, `-0001`, ..."""
    return [replace(example, id=f"{task}-{name}-{i:04d}") for i, example in enumerate(examples)]

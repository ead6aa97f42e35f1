"""What a task is: its data, its prompts (Table 9) and its metric, behind one small interface.

A task is one subclass of `Task` in a file of its own, listed in `igds_utils.tasks.TASKS`. Everything that is the same
for all tasks (prompts, scoring, training, evaluation) lives elsewhere and reads only what is declared here.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from string import Formatter
from typing import Any, TypeVar

from pydantic import ValidationError

from igds_utils.config import ConfigError
from igds_utils.refs import Strict
from igds_utils.settings import Sizes, TaskConfig
from igds_utils.taskspec import Metric

# The order in which sets are dealt from one stream: other sizes of the later ones leave the earlier ones as they were,
# and what no preset may train on is always among the stream's first examples.
SETS = ("test", "validation", "confirmation", "prior", "pool")
HELD_OUT = ("test", "validation", "confirmation")

Data = TypeVar("Data", bound=Strict)


@dataclass(frozen=True)
class Example:
    """One sample of a task."""

    id: str
    fields: dict[str, str]  # what the prompt templates are filled with
    target: str  # what is learnt, without a leading space
    references: tuple[str, ...]  # gold answers that an output is scored against
    meta: dict[str, str | int] = field(default_factory=dict)  # for the reader's analyses; no selector sees it

    @property
    def text(self) -> str:
        """All that the prompt says of this example and of no other."""
        return "\n".join(self.fields.values())


class Sets(dict[str, list[Example]]):
    """The sets of a task by name; `facts` tells what was left out when they were made."""

    def __init__(self, sets: dict[str, list[Example]], facts: dict[str, Any] | None = None):
        super().__init__(sets)
        self.facts = facts or {}


class Task(ABC):
    """Data, prompts and metric of one task.

    Templates are `str.format` strings over `Example.fields`; `records_output` also knows `target`. The
    identification and the few-shot template end in a cue line of its own, whose colon is the critical position p.
    Where the `data` section of a preset has `sources`, their rows fill `row_fields`.
    """

    name: str
    title: str
    scoring: Metric  # how outputs are scored
    identification_template: str
    records_instruction: str
    records_input: str
    records_output: str
    target_template: str  # over the fields of a row
    reference: str  # the field of a row that outputs are scored against
    few_shot_template: str = ""  # knows `shots` besides the fields
    shot_template: str = ""  # how one worked example is written, over its fields
    shots: tuple[dict[str, str], ...] = ()
    stops: tuple[str, ...] = ()  # an output ends before the first of these

    # ---- data ----

    def sets(self, config: TaskConfig, seed: int) -> Sets:
        """The sets prior, validation, confirmation, pool and test, in the preset's sizes.

        No example of one set says the same (`normalize`) as one of another. The same seed gives the same sets.
        Raises `ConfigError` for unusable `data` parameters or too little data.
        """
        if "sources" in config.data:
            from igds_utils.tasks.sourced import sourced_sets

            return sourced_sets(self, config, seed)
        return Sets(self.own_sets(config, seed))

    def extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        """At most `n` distinct examples for training SAEs, none of them in test, validation or confirmation."""
        if "sources" in config.data:
            sets = self.sets(config, seed)
            examples = list(unique([*sets["prior"], *sets["pool"]]))
            random_stream(self.name, "extra", seed).shuffle(examples)
            return number(examples[:n], self.name, "extra")
        return self.own_extra(config, seed, n)

    def own_sets(self, config: TaskConfig, seed: int) -> dict[str, list[Example]]:
        """The sets where a preset names no `sources`: data that the task finds or makes itself."""
        raise ConfigError(
            f"task {self.name} has no data of its own: name `sources` in tasks.{self.name}.data"
        )

    def own_extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        """Like `extra`, of the task's own data."""
        raise ConfigError(
            f"task {self.name} has no data of its own: name `sources` in tasks.{self.name}.data"
        )

    @property
    def row_fields(self) -> list[str]:
        """What is read from every row of a source."""
        names = [
            *placeholders(self.identification_template),
            *placeholders(self.target_template),
            self.reference,
        ]
        return list(dict.fromkeys(names))

    def example(self, record: dict[str, str]) -> Example:
        """The example, without id, that the fields of a row make."""
        return Example(
            id="",
            fields={name: record[name] for name in placeholders(self.identification_template)},
            target=self.target_template.format(**record),
            references=(record[self.reference],),
        )

    # ---- metric ----

    @property
    def metric(self) -> str:
        """First key of what `score` returns: the task's own P of the paper."""
        return self.scoring.name

    @property
    def metric_label(self) -> str:
        """The metric as axes and tables name it, with its unit."""
        from igds_utils.tasks.scorers import SCORERS

        return SCORERS[self.scoring.name].label

    @property
    def scale(self) -> float:
        """Turns a score into the unit of `metric_label`."""
        from igds_utils.tasks.scorers import SCORERS

        return SCORERS[self.scoring.name].scale

    def scored_by(self, metric: Metric | None) -> Task:
        """This task under another metric; itself for None."""
        if metric is None:
            return self
        changed = copy.copy(self)
        changed.scoring = metric
        return changed

    def score(self, output: str, example: Example) -> dict[str, float]:
        """Metrics of one generated output."""
        return self.score_all([output], [example])[0]

    def score_all(self, outputs: Sequence[str], examples: Sequence[Example]) -> list[dict[str, float]]:
        """Metrics of outputs, each of the example at its place; a metric that is a model scores them in batches."""
        from igds_utils.tasks.scorers import SCORERS

        return SCORERS[self.scoring.name].score(
            self.scoring, [self.cut(output) for output in outputs], examples
        )

    def cut(self, output: str) -> str:
        """The part of an output before the first of `stops`, without surrounding space."""
        for stop in self.stops:
            output = output.partition(stop)[0]
        return output.strip()


class CorpusTask(Task):
    """A task over a fixed body of data: its sets are a seeded shuffle of what `load` finds."""

    @abstractmethod
    def load(self, config: TaskConfig) -> list[Example]:
        """Every usable example, without id, in the order of the source and each saying something else."""

    def own_sets(self, config: TaskConfig, seed: int) -> dict[str, list[Example]]:
        examples = self.load(config)
        random_stream(self.name, "sets", seed).shuffle(examples)
        return split(examples, config.sizes, self.name)

    def own_extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        examples = list(unique(self.load(config), held_out_texts(self.own_sets(config, seed))))
        random_stream(self.name, "extra", seed).shuffle(examples)
        return number(examples[:n], self.name, "extra")


def placeholders(template: str) -> list[str]:
    """The names in braces of a `str.format` template, each once, in order."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def normalize(text: str) -> str:
    """Lower-case words and numbers, one space apart: two texts that say the same come out equal."""
    return " ".join(re.findall(r"\w+", text.lower()))


def data_parameters(schema: type[Data], config: TaskConfig, task: str) -> Data:
    """Read a task's `data` section into its record; raises `ConfigError` naming the key and what is known."""
    try:
        return schema.model_validate(config.data)
    except ValidationError as error:
        lines = [f"tasks.{task}.data.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        known = ", ".join(schema.model_fields)
        raise ConfigError("\n".join(lines) + f"\nknown keys of tasks.{task}.data: {known}") from None


def random_stream(task: str, purpose: str, seed: int) -> Random:
    """A random generator of its own for every task, purpose and seed, the same on every machine."""
    return Random(f"{task}/{purpose}/{seed}")


def unique(examples: Iterable[Example], seen: set[str] | None = None) -> Iterator[Example]:
    """Examples in order, without those whose normalized text was seen before (in `seen` or earlier)."""
    seen = set() if seen is None else set(seen)
    for example in examples:
        key = normalize(example.text)
        if key not in seen:
            seen.add(key)
            yield example


def split(examples: list[Example], sizes: Sizes, task: str) -> dict[str, list[Example]]:
    """Deal examples, in the order given, into the sets of a preset, and name each `<task>-<set>-<number>`.

    Raises `ConfigError` if there are too few, `ValueError` if two say the same.
    """
    needed = sum(getattr(sizes, name) for name in SETS)
    if len(examples) < needed:
        asked = ", ".join(f"{name} {getattr(sizes, name)}" for name in SETS)
        raise ConfigError(
            f"task {task}: the preset asks for {needed} examples ({asked}), the data holds {len(examples)}: "
            f"lower tasks.{task}.sizes"
        )
    stream = iter(examples)
    sets = {name: [next(stream) for _ in range(getattr(sizes, name))] for name in SETS}
    assert_disjoint(sets)
    return {name: number(members, task, name) for name, members in sets.items()}


def number(examples: list[Example], task: str, name: str) -> list[Example]:
    """The same examples with the ids `<task>-<name>-0000`, `-0001`, ..."""
    return [replace(example, id=f"{task}-{name}-{i:04d}") for i, example in enumerate(examples)]


def assert_disjoint(sets: dict[str, list[Example]]) -> None:
    """Raise `ValueError` if two examples, of one set or of two, have the same normalized text."""
    seen: dict[str, str] = {}
    for name, examples in sets.items():
        for i, example in enumerate(examples):
            place = f"{name} example {i}"
            if (other := seen.setdefault(normalize(example.text), place)) != place:
                raise ValueError(f"{place} says the same as {other}: {example.text!r}; drop one of them")


def held_out_texts(sets: dict[str, list[Example]]) -> set[str]:
    """Normalized texts of the sets that nothing may be trained on."""
    return {normalize(example.text) for name in HELD_OUT for example in sets[name]}

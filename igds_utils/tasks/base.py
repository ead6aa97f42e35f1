"""What a task is: its data, its prompts (Table 9) and its metric, behind one small interface.

A task is one subclass of `Task` in a file of its own, listed in `igds_utils.tasks.TASKS`. Everything that is the same
for all tasks (prompts, scoring, training, evaluation) lives elsewhere and reads only what is declared here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import Metric
from igds_utils.config.settings import TaskConfig
from igds_utils.tasks.examples import (
    Example,
    Sets,
    held_out_texts,
    number,
    placeholders,
    random_stream,
    split,
    unique,
)


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
    optional: tuple[str, ...] = ()  # fields that a row may leave empty, but not all of the prompt's or the target's
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

    def own_data(self, config: TaskConfig) -> str:
        """What `own_sets` reads or makes, in a few words."""
        return "data of its own"

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

    def example(self, record: dict[str, str], sample_id: str = "") -> Example:
        """The example that the fields of a row make; a `target` that is no field of the template is taken as it is."""
        own = "target" in record and "target" not in placeholders(self.target_template)
        return Example(
            id=sample_id,
            fields={name: record[name] for name in placeholders(self.identification_template)},
            target=record["target"] if own else self.target_template.format(**record).strip(),
            references=(record[self.reference],) if self.reference in record else (),
        )

    # ---- what a model is told, and its metric ----

    @property
    def wording(self) -> dict[str, Any]:
        """What the task itself puts before a model and where it ends an answer: products of a model depend on it."""
        kinds = ("identification", "target", "few_shot", "shot")
        names = [f"{kind}_template" for kind in kinds] + [
            f"records_{part}" for part in ("instruction", "input", "output")
        ]
        return {name: getattr(self, name) for name in (*names, "shots", "stops")}

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

    def score_corpus(self, outputs: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Metrics of all outputs as one corpus, where the field reports them so (chrF and BLEU); else none."""
        from igds_utils.tasks.scorers import SCORERS

        return SCORERS[self.scoring.name].corpus([self.cut(output) for output in outputs], examples)

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

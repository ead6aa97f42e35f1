"""What a task is: its data, its prompts (Table 9) and its metric. A YAML file in presets/tasks/ describes one.

Everything that is the same for all tasks (prompts, training, evaluation) lives elsewhere and reads what is declared
here. The formulas of the metrics are in `data.metrics`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import (
    AccuracyMetric,
    ChrfMetric,
    CometMetric,
    ExactMetric,
    Metric,
    RougeMetric,
    TaskSpec,
)
from igds_utils.config.settings import TaskConfig
from igds_utils.data import metrics
from igds_utils.tasks import own_data
from igds_utils.tasks.corruptions import corrupted_pool, quality_pool
from igds_utils.tasks.examples import (
    HELD_OUT,
    Example,
    Sets,
    data_parameters,
    held_out_texts,
    normalize,
    number,
    placeholders,
    random_stream,
    unique,
)
from igds_utils.tasks.sourced import deal_sets

Scores = dict[str, float]


class Task:
    """Data, prompts and metric of one task.

    Templates are `str.format` strings over `Example.fields`; `records_output` also knows `target`, `few_shot_template`
    knows `shots`. The identification and the few-shot template end in a cue line of its own, whose colon is the
    critical position p. A task's SFT record, unless its spec has another, asks with the prompt before the cue and
    answers with the cue and the target, as the paper's math records do.
    """

    def __init__(self, name: str, spec: TaskSpec):
        body, cue = spec.prompt.rsplit("\n", 1)
        self.name, self.title, self.scoring = name, spec.title, spec.metric
        self.identification_template, self.target_template = spec.prompt, spec.target
        self.records_instruction = body if spec.instruction is None else spec.instruction
        self.records_input = spec.input
        self.records_output = f"{cue} {{target}}" if spec.output is None else spec.output
        self.few_shot_template, self.shot_template, self.shots = spec.few_shot, spec.shot, tuple(spec.shots)
        self.reference, self.stops = spec.reference, tuple(spec.stops)
        every = placeholders(spec.prompt + spec.target)
        self.optional = tuple(every if spec.optional is None else spec.optional)
        self._own = own_data.KINDS.get(spec.data)

    # ---- data ----

    def sets(self, config: TaskConfig, seed: int) -> Sets:
        """The sets prior, validation, confirmation, pool and test, and quality where asked for, in the preset's sizes.

        No example of one set says the same (`normalize`) as one of another. The same seed gives the same sets. The
        preset's shares of pool and quality are corrupted (`corruptions`). Raises `ConfigError` for unusable `data`
        parameters or too little data.
        """
        sets = deal_sets(self, config, seed)
        if config.corrupted:
            sets["pool"] = corrupted_pool(sets["pool"], config.corrupted, seed)
        if config.quality:
            sets["quality"] = quality_pool(sets["quality"], config.quality, seed, self.name)
        return sets

    def extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        """At most `n` distinct examples for training SAEs, none of them in test, validation or confirmation."""
        sets, random = deal_sets(self, config, seed), random_stream(self.name, "extra", seed)
        if config.data.get("sources"):
            examples = list(unique([*sets["prior"], *sets["pool"]]))
            random.shuffle(examples)
        else:
            examples = self._data(config).extra(n, random, held_out_texts(sets))
        return number(examples[:n], self.name, "extra")

    def english(self, config: TaskConfig, seed: int) -> list[str]:
        """Whole leads of articles as general English text, shuffled, also those that are no use to the task; without
        the articles of test, validation and confirmation. Of a task whose data are `article_leads`."""
        config = config.model_copy(update={"data": own_section(config)})
        sets = deal_sets(self, config, seed)
        held_out = {example.meta["title"] for name in HELD_OUT for example in sets[name]}
        texts = [a["extract"] for a in self._data(config).articles() if a["title"] not in held_out]
        random_stream(self.name, "english", seed).shuffle(texts)
        return texts

    def own_examples(self, config: TaskConfig, sizes: dict[str, int | None], seed: int) -> list[Example]:
        """Examples of the task's own data, without id, in the order in which sets of these sizes are dealt."""
        return self._data(config).examples(sizes, random_stream(self.name, "sets", seed))

    def own_data(self, config: TaskConfig) -> str:
        """What the task reads or makes where a preset names no `sources`, in a few words."""
        return self._own.title(config.data) if self._own else "data of its own"

    def _data(self, config: TaskConfig) -> own_data.OwnData:
        if self._own is None:
            raise ConfigError(
                f"task {self.name} has no data of its own: name `sources` in tasks.{self.name}.data"
            )
        return data_parameters(self._own, own_section(config), self.name)

    @property
    def row_fields(self) -> list[str]:
        """What is read from every row of a source."""
        return [*dict.fromkeys([*placeholders(self.identification_template + self.target_template), self.reference])]

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
        names = [f"{kind}_template" for kind in kinds]
        names += [f"records_{part}" for part in ("instruction", "input", "output")]
        return {name: getattr(self, name) for name in (*names, "shots", "stops")}

    @property
    def metric(self) -> str:
        """First key of what `score` returns: the task's own P of the paper."""
        return self.scoring.name

    @property
    def metric_label(self) -> str:
        """The metric as axes and tables name it, with its unit."""
        return SCORERS[self.metric].label

    @property
    def scale(self) -> float:
        """Turns a score into the unit of `metric_label`."""
        return SCORERS[self.metric].scale

    def scored_by(self, metric: Metric | None) -> Task:
        """This task under another metric; itself for None."""
        if metric is None:
            return self
        changed = copy.copy(self)
        changed.scoring = metric
        return changed

    def score(self, output: str, example: Example) -> Scores:
        """Metrics of one generated output."""
        return self.score_all([output], [example])[0]

    def score_all(self, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
        """Metrics of outputs, each of the example at its place; a metric that is a model scores them in batches."""
        return SCORERS[self.metric].score(self.scoring, list(map(self.cut, outputs)), examples)

    def score_corpus(self, outputs: Sequence[str], examples: Sequence[Example]) -> Scores:
        """Metrics of all outputs as one corpus, where the field reports them so (chrF and BLEU); else none."""
        return SCORERS[self.metric].corpus(list(map(self.cut, outputs)), examples)

    def cut(self, output: str) -> str:
        """The part of an output before the first of `stops`, without surrounding space."""
        for stop in self.stops:
            output = output.partition(stop)[0]
        return output.strip()


def own_section(config: TaskConfig) -> dict[str, Any]:
    """A preset's parameters of a task's own data, beside its `sources`."""
    return {key: value for key, value in config.data.items() if key != "sources"}


# ---- what outputs are scored by --------------------------------------------------------------------------
#
# An example with several references gets the mean over them of ROUGE, chrF and COMET: on DialogSum's 500 test dialogues
# that is what averaging over the 1,500 (dialogue, summary) pairs gives. Answers are right if any reference matches.


@dataclass(frozen=True)
class Scorer:
    """How a metric is shown, and `score(its parameters, outputs, examples)`, whose first key is the metric."""

    label: str  # as axes and tables name it, with its unit
    scale: float  # turns a score into that unit
    score: Callable[[Metric, Sequence[str], Sequence[Example]], list[Scores]]
    corpus: Callable[[Sequence[str], Sequence[Example]], Scores] = lambda outputs, examples: {}


def _accuracy(metric: AccuracyMetric, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
    """accuracy 0 or 1, and boxed 0 or 1: whether the answer stood in a box."""
    found = []
    for output, example in zip(outputs, examples, strict=True):
        boxed = metrics.boxed_answer(output) is not None
        right = (boxed or metric.answer == "box_else_number") and any(
            metrics.math_correct(output, reference, metric.timeout) for reference in example.references
        )
        found.append({"accuracy": float(right), "boxed": float(boxed)})
    return found


def _rouge(metric: RougeMetric, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
    return _over_references(lambda o, r, _: metrics.rouge(o, r, metric.stemming), outputs, examples)


def _chrf(
    metric: ChrfMetric | CometMetric, outputs: Sequence[str], examples: Sequence[Example]
) -> list[Scores]:
    """Sentence chrf and bleu, both 0 to 100; BLEU splits Chinese into characters."""

    def score(output: str, reference: str, example: Example) -> Scores:
        bleu = metrics.bleu(output, reference, _is_chinese(example))
        return {"chrf": metrics.chrf(output, reference), "bleu": bleu}

    return _over_references(score, outputs, examples)


def _corpus(outputs: Sequence[str], examples: Sequence[Example]) -> Scores:
    """chrf and bleu of all outputs as one corpus, both 0 to 100, which the means over sentences are not."""
    references = [example.references for example in examples]
    bleu = metrics.corpus_bleu(outputs, references, _is_chinese(examples[0]))
    return {"chrf": metrics.corpus_chrf(outputs, references), "bleu": bleu}


def _is_chinese(example: Example) -> bool:
    return "Chinese" in example.fields.get("target_language", "")


def _comet(metric: CometMetric, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
    """comet, chrf and bleu, all 0 to 100 (COMET may leave that range a little)."""
    triples = [
        (example.fields["source_text"], output, reference)
        for output, example in zip(outputs, examples, strict=True)
        for reference in example.references
    ]
    values = iter(metrics.comet(triples, metric.checkpoint, metric.batch))
    means = [{"comet": _mean([next(values) for _ in example.references])} for example in examples]
    return [mean | others for mean, others in zip(means, _chrf(metric, outputs, examples), strict=True)]


def _exact_match(metric: ExactMetric, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
    return [
        {"exact_match": float(normalize(output) in map(normalize, example.references))}
        for output, example in zip(outputs, examples, strict=True)
    ]


SCORERS = {
    "accuracy": Scorer("accuracy (%)", 100.0, _accuracy),
    "rouge1": Scorer("ROUGE-1", 1.0, _rouge),
    "chrf": Scorer("chrF, mean of sentences", 1.0, _chrf, _corpus),
    "comet": Scorer("COMET", 1.0, _comet, _corpus),
    "exact_match": Scorer("exact match (%)", 100.0, _exact_match),
}


def _over_references(
    score: Callable[[str, str, Example], Scores], outputs: Sequence[str], examples: Sequence[Example]
) -> list[Scores]:
    found = []
    for output, example in zip(outputs, examples, strict=True):
        each = [score(output, reference, example) for reference in example.references]
        found.append({name: _mean([scores[name] for scores in each]) for name in each[0]})
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""What a task is: its data, its prompts (Table 9) and its metric. A YAML file in presets/tasks/ describes one.

What is the same for all tasks (prompts, training, evaluation) lives elsewhere and reads what is declared here.
"""

from collections.abc import Sequence
from typing import Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import Metric, TaskSpec
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

# metric -> as axes and tables name it, with its unit; what turns a score into that unit
METRICS = {
    "accuracy": ("accuracy (%)", 100.0),
    "rouge1": ("ROUGE-1", 1.0),
    "chrf": ("chrF, mean of sentences", 1.0),
    "comet": ("COMET", 1.0),
    "exact_match": ("exact match (%)", 100.0),
}
WORDING = (
    "identification_template", "target_template", "few_shot_template", "shot_template",
    "records_instruction", "records_input", "records_output", "shots", "stops",
)  # fmt: skip


class Task:
    """Data, prompts and metric of one task.

    Templates are `str.format` strings over `Example.fields`; `records_output` also knows `target`, `few_shot_template`
    knows `shots`. The identification and the few-shot template end in a cue line of its own, whose colon is the
    critical position p. A task's SFT record, unless its spec has another, asks with the prompt before the cue and
    answers with the cue and the target, as the paper's math records do. `metric`, the first key of what `score_all`
    returns, is the task's own P of the paper.
    """

    def __init__(self, name: str, spec: TaskSpec):
        body, cue = spec.prompt.rsplit("\n", 1)
        self.name, self.title, self.scoring, self.metric = name, spec.title, spec.metric, spec.metric.name
        self.metric_label, self.scale = METRICS[self.metric]
        self.identification_template, self.target_template = spec.prompt, spec.target
        self.records_instruction = body if spec.instruction is None else spec.instruction
        self.records_input = spec.input
        self.records_output = f"{cue} {{target}}" if spec.output is None else spec.output
        self.few_shot_template, self.shot_template, self.shots = spec.few_shot, spec.shot, tuple(spec.shots)
        self.reference, self.stops, self._own = spec.reference, tuple(spec.stops), spec.data
        every = placeholders(spec.prompt + spec.target)
        self.optional = tuple(every if spec.optional is None else spec.optional)
        self.row_fields = list(dict.fromkeys([*every, spec.reference]))  # what is read from every row of a source

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
            examples = self._own_data(config).extra(n, random, held_out_texts(sets))
        return number(examples[:n], self.name, "extra")

    def english(self, config: TaskConfig, seed: int) -> list[str]:
        """Whole leads of articles as general English text, shuffled, also those that are no use to the task; without
        the articles of test, validation and confirmation. Of a task whose data are `article_leads`."""
        config = config.model_copy(update={"data": _without_sources(config)})
        sets = deal_sets(self, config, seed)
        held_out = {example.meta["title"] for name in HELD_OUT for example in sets[name]}
        texts = [a["extract"] for a in self._own_data(config).articles() if a["title"] not in held_out]
        random_stream(self.name, "english", seed).shuffle(texts)
        return texts

    def own_examples(self, config: TaskConfig, sizes: dict[str, int | None], seed: int) -> list[Example]:
        """Examples of the task's own data, without id, in the order in which sets of these sizes are dealt."""
        return self._own_data(config).examples(sizes, random_stream(self.name, "sets", seed))

    def _own_data(self, config: TaskConfig) -> own_data.OwnData:
        if self._own is None:
            raise ConfigError(
                f"task {self.name} has no data of its own: name `sources` in tasks.{self.name}.data"
            )
        return data_parameters(own_data.KINDS[self._own], _without_sources(config), self.name)

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
        return {name: getattr(self, name) for name in WORDING}

    def score_all(self, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
        """Metrics of outputs, each of the example at its place.

        accuracy: 0 or 1, with boxed, whether the answer stood in a box. rouge1: 0 to 1, with rouge2 and rougeL. chrf
        (of the sentence) and bleu: 0 to 100. comet: x 100, with chrf and bleu. exact_match: 0 or 1. Answers are right
        if any reference matches; ROUGE, chrF and COMET are means over the references, which on DialogSum's 500 test
        dialogues gives the mean over the 1,500 (dialogue, summary) pairs.
        """
        outputs = list(map(self.cut, outputs))
        pairs = zip(outputs, examples, strict=True)
        scores = [_score(self.scoring, output, example) for output, example in pairs]
        if self.metric == "comet":
            means = _comet(self.scoring, outputs, examples)
            scores = [{"comet": mean} | others for mean, others in zip(means, scores, strict=True)]
        return scores

    def score_corpus(self, outputs: Sequence[str], examples: Sequence[Example]) -> Scores:
        """chrf and bleu of all outputs as one corpus, 0 to 100, which the means over sentences are not; of a metric
        that has no such form, none."""
        if self.metric not in ("chrf", "comet"):
            return {}
        outputs, references = list(map(self.cut, outputs)), [example.references for example in examples]
        return metrics.corpus_chrf_and_bleu(outputs, references, _is_chinese(examples[0]))

    def cut(self, output: str) -> str:
        """The part of an output before the first of `stops`, without surrounding space."""
        for stop in self.stops:
            output = output.partition(stop)[0]
        return output.strip()


def _without_sources(config: TaskConfig) -> dict[str, Any]:
    return {key: value for key, value in config.data.items() if key != "sources"}


def _score(metric: Metric, output: str, example: Example) -> Scores:
    references = example.references
    match metric.name:
        case "accuracy":
            boxed = metrics.boxed_answer(output) is not None
            asked = references if boxed or metric.answer == "box_else_number" else ()
            right = any(metrics.math_correct(output, reference) for reference in asked)
            return {"accuracy": float(right), "boxed": float(boxed)}
        case "exact_match":
            return {"exact_match": float(normalize(output) in map(normalize, references))}
        case "rouge1":
            return _mean([metrics.rouge(output, reference) for reference in references])
        case "chrf" | "comet":
            chinese = _is_chinese(example)
            return _mean([
                {"chrf": metrics.chrf(output, reference), "bleu": metrics.bleu(output, reference, chinese)}
                for reference in references
            ])  # fmt: skip


def _comet(metric: Metric, outputs: Sequence[str], examples: Sequence[Example]) -> list[float]:
    triples = [
        (example.fields["source_text"], output, reference)
        for output, example in zip(outputs, examples, strict=True)
        for reference in example.references
    ]
    values = iter(metrics.comet(triples, metric.checkpoint))
    return [_mean([{"comet": next(values)} for _ in example.references])["comet"] for example in examples]


def _is_chinese(example: Example) -> bool:
    return "Chinese" in example.fields.get("target_language", "")


def _mean(scores: Sequence[Scores]) -> Scores:
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}

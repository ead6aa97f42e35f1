"""What a task is: its data, its prompts (Table 9) and its metric, as a YAML file describes them.

What is the same for all tasks (prompts, training, evaluation) lives elsewhere and reads this.
"""

from collections.abc import Sequence
from typing import Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import Metric, TaskSpec
from igds_utils.config.settings import TaskConfig
from igds_utils.data import metrics
from igds_utils.tasks import own_data
from igds_utils.tasks.corruptions import corrupted_pool, quality_pool
from igds_utils.tasks.examples import Example, Sets, normalize, placeholders, random_stream
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
TEMPLATES = ("identification_template", "target_template", "few_shot_template", "shot_template")
WORDING = (*TEMPLATES, "records_instruction", "records_input", "records_output", "shots", "stops")


class Task:
    """Data, prompts and metric of one task.

    Templates are `str.format` strings over `Example.fields`; `records_output` also knows `target`,
    `few_shot_template` knows `shots`. The identification and the few-shot template end in a cue
    line of its own, whose colon is the critical position p. A task's SFT record, unless its spec has
    another, asks with the prompt before the cue and answers with the cue and the target, as the
    paper's math records do. `metric`, the first key of what `score_all` returns, is the paper's P.
    """

    def __init__(self, name: str, spec: TaskSpec):
        _check_templates(name, spec)
        body, cue = spec.prompt.rsplit("\n", 1)
        self.name, self.title = name, spec.title
        self.scoring, self.metric = spec.metric, spec.metric.name
        self.metric_label, self.scale = METRICS[self.metric]
        self.identification_template, self.target_template = spec.prompt, spec.target
        self.records_instruction = body if spec.instruction is None else spec.instruction
        self.records_input = spec.input
        self.records_output = f"{cue} {{target}}" if spec.output is None else spec.output
        self.few_shot_template, self.shot_template = spec.few_shot, spec.shot
        self.shots, self.stops = tuple(spec.shots), tuple(spec.stops)
        self.reference, self._own = spec.reference, spec.data
        every = placeholders(spec.prompt + spec.target)
        self.optional = tuple(every if spec.optional is None else spec.optional)
        self.row_fields = list(dict.fromkeys([*every, spec.reference]))  # of a source

    def sets(self, config: TaskConfig, seed: int) -> Sets:
        """The sets prior, validation, confirmation, pool and test, and quality if it is asked for.

        No example of one set says the same (`normalize`) as one of another. The same seed gives the
        same sets. The preset's shares of pool and quality are corrupted. Raises `ConfigError` for
        unusable `data` parameters or too little data.
        """
        sets = deal_sets(self, config, seed)
        if config.corrupted:
            sets["pool"] = corrupted_pool(sets["pool"], config.corrupted, seed)
        if config.quality:
            sets["quality"] = quality_pool(sets["quality"], config.quality, seed)
        return sets

    def extra(self, config: TaskConfig, seed: int, n: int) -> list[Example]:
        """At most `n` examples to train SAEs on, none of them in the other sets of `config`."""
        sizes = config.sizes.model_copy(update={"pool": n})
        return deal_sets(self, config.model_copy(update={"sizes": sizes}), seed)["pool"]

    def english(self, config: TaskConfig, seed: int) -> list[str]:
        """Whole leads of articles as general English text, shuffled, without those of the test set.

        Of a task whose data are `article_leads`.
        """
        config = config.model_copy(update={"data": config.data | {"sources": {}}})
        held_out = {example.meta["title"] for example in deal_sets(self, config, seed)["test"]}
        articles = self.own_data(config).articles()
        texts = [article["extract"] for article in articles if article["title"] not in held_out]
        random_stream(self.name, "english", seed).shuffle(texts)
        return texts

    def own_data(self, config: TaskConfig) -> own_data.OwnData:
        """The task's data without `sources`, as its `data` section describes them."""
        place = ("tasks", self.name, "data")
        if self._own is None:
            where = ".".join(place)
            raise ConfigError(f"task {self.name} has no data of its own: name `sources` in {where}")
        data = {key: value for key, value in config.data.items() if key != "sources"}
        return own_data.KINDS[self._own].read(data, place=place)

    def example(self, record: dict[str, str], sample_id: str = "") -> Example:
        """The example of a row's fields; a `target` that the template lacks is taken as it is."""
        own = "target" in record and "target" not in placeholders(self.target_template)
        return Example(
            id=sample_id,
            fields={name: record[name] for name in placeholders(self.identification_template)},
            target=record["target"] if own else self.target_template.format(**record).strip(),
            references=(record[self.reference],) if self.reference in record else (),
        )

    @property
    def wording(self) -> dict[str, Any]:
        """What the task itself puts before a model and where it ends an answer.

        Products of a model depend on it.
        """
        return {name: getattr(self, name) for name in WORDING}

    def score_all(self, outputs: Sequence[str], examples: Sequence[Example]) -> list[Scores]:
        """Metrics of outputs, which end before `stops`, each of the example at its place.

        accuracy: 0 or 1, with boxed, whether the answer stood in a box. rouge1: 0 to 1, with rouge2
        and rougeL. chrf (of the sentence) and bleu: 0 to 100. comet: x 100, with chrf and bleu.
        exact_match: 0 or 1. Answers are right if any reference matches; ROUGE, chrF and COMET are
        means over the references.
        """
        pairs = list(zip(outputs, examples, strict=True))
        scores = [_score(self.scoring, output, example) for output, example in pairs]
        if self.metric == "comet":
            asked = [(e.fields["source_text"], output, e.references) for output, e in pairs]
            triples = [(source, output, r) for source, output, known in asked for r in known]
            values = iter(metrics.comet(triples, self.scoring.checkpoint))
            means = [_mean([{"comet": next(values)} for _ in e.references]) for e in examples]
            scores = [mean | others for mean, others in zip(means, scores, strict=True)]
        return scores

    def score_corpus(self, outputs: Sequence[str], examples: Sequence[Example]) -> Scores:
        """chrf and bleu of all outputs as one corpus, 0 to 100; none of another metric."""
        if self.metric not in ("chrf", "comet"):
            return {}
        references = [example.references for example in examples]
        return metrics.corpus_chrf_and_bleu(outputs, references, _is_chinese(examples[0]))


def _check_templates(name: str, spec: TaskSpec) -> None:
    """Raise `ConfigError` for a template with a brace too many, or a name that nothing fills."""
    for part in ("prompt", "target", "instruction", "input", "output", "few_shot", "shot"):
        try:
            fields = placeholders(spec.target if part == "target" else spec.prompt)
            known = [*fields, "target", "shots", *(spec.shots or [{}])[0]]
            (getattr(spec, part) or "").format(**dict.fromkeys(known, ""))
        except (ValueError, LookupError, AttributeError) as error:
            mend = "write a field as {name}, and a brace itself twice"
            raise ConfigError(f"task {name}: {part} cannot be filled ({error!r}): {mend}") from None
    if not fields or (spec.metric.name == "comet" and "source_text" not in fields):
        raise ConfigError(f"task {name}: prompt must hold a field; COMET needs source_text")


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
    chinese = _is_chinese(example)
    return _mean([
        {"chrf": metrics.chrf(output, reference), "bleu": metrics.bleu(output, reference, chinese)}
        for reference in references
    ])  # fmt: skip


def _is_chinese(example: Example) -> bool:
    return "Chinese" in example.fields.get("target_language", "")


def _mean(scores: Sequence[Scores]) -> Scores:
    return {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}

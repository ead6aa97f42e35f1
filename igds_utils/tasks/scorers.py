"""What outputs are scored by: one entry a metric, named as presets name it; the formulas are in `metrics`.

An example with several references gets the mean over them of ROUGE, chrF and COMET: on DialogSum's 500 test dialogues
that is what scoring each of the 1,500 (dialogue, summary) pairs and averaging gives. Answers are right if any matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from igds_utils.config.refs import (
    AccuracyMetric,
    ChrfMetric,
    CometMetric,
    ExactMetric,
    Metric,
    RougeMetric,
)
from igds_utils.data import metrics
from igds_utils.tasks.examples import Example, normalize

Scores = dict[str, float]


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

"""Evaluation of an arm: its outputs on the test set and their scores. `summaries.summarise` compares the arms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.settings import TaskConfig
from igds_utils.core.store import content_hash
from igds_utils.data.metrics import pass_at_k
from igds_utils.engine import distributed
from igds_utils.engine.prompts import encode, encode_all, evaluation_prompt
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from igds_utils.engine.lm import LM

Question = tuple[Example, str]  # a test example and its rendered prompt


def questions(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], config: TaskConfig
) -> list[Question]:
    """The test examples with their prompts, the longest first."""
    texts = [
        evaluation_prompt(task, example, tokenizer, config.rendering, config.shots, config.max_prompt_tokens)
        for example in examples
    ]
    lengths = [len(ids) for ids in encode_all(tokenizer, texts)]
    order = sorted(range(len(texts)), key=lambda i: (-lengths[i], i))
    return [(examples[i], texts[i]) for i in order]


def rows_that_fit(lm: LM, asked: Sequence[Question], config: TaskConfig, cache_gb: float) -> int:
    """How many answers to `questions` may decode together, as in the causal filter (`intervention.cache_gb`)."""
    from igds_utils.engine import generation

    return generation.rows_that_fit(lm, len(encode(lm.tokenizer, asked[0][1])) + config.max_new_tokens, cache_gb)


def batches(asked: Sequence[Question], config: TaskConfig, rows: int) -> Iterator[Sequence[Question]]:
    """Questions whose answers decode together, at least one batch for each process that shares the work."""
    from igds_utils.engine.batching import even_chunks

    share = math.ceil(len(asked) / distributed.processes())
    return even_chunks(asked, max(1, min(share, rows // config.samples)))


def answer(
    lm: LM, task: Task, asked: Sequence[Question], config: TaskConfig, rows: int, seed: int, arm: str
) -> list[pd.DataFrame]:
    """`config.samples` outputs for each question, in a table of its own: (sample_id, k, output), k from 0.

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, each from a random stream
    of its own for (seed, arm, example, k): which answers decode together changes none of them.
    """
    from igds_utils.engine.generation import Sampling, generate

    sampling = None
    if config.samples > 1:
        seeds = [f"{task.name}/{arm}/{seed}/{example.id}" for example, _ in asked]
        sampling = Sampling(config.temperature, config.top_p, seeds)
    texts = [text for _, text in asked]
    outputs = generate(lm, texts, config.max_new_tokens, task.stops, rows, sampling, config.samples)
    return [
        pd.DataFrame({"sample_id": example.id, "k": range(len(drawn)), "output": drawn})
        for (example, _), drawn in zip(asked, outputs, strict=True)
    ]


def in_order(outputs: pd.DataFrame) -> pd.DataFrame:
    """Outputs as they are stored: by sample id, then by k."""
    return outputs.sort_values(["sample_id", "k"], kind="stable", ignore_index=True)


def decoding(task: Task, config: TaskConfig) -> dict[str, Any]:
    """What stored outputs depend on beside the model and the test set."""
    names = ("rendering", "shots", "max_prompt_tokens", "max_new_tokens", "samples", "temperature", "top_p")
    draws = {"draws": "one stream a sample and k"} if config.samples > 1 else {}
    return {"wording": content_hash(task.wording), **{name: getattr(config, name) for name in names}} | draws


def score_outputs(task: Task, examples: Sequence[Example], outputs: pd.DataFrame) -> pd.DataFrame:
    """Scores of every example: sample_id, output (its first), one column a metric (mean over its outputs), score.

    outputs: as `answer` gives them. `score` is the task's own metric; for accuracy with n > 1 outputs an
    example it is pass@n (unbiased estimator). Raises `ValueError` if an example has no output, another number of
    outputs than the first, or if an output belongs to no example.
    """
    drawn: dict[str, list[str]] = {example.id: [] for example in examples}
    for row in outputs.sort_values("k").itertuples():
        if row.sample_id not in drawn:
            raise ValueError(
                f"outputs of {row.sample_id!r}, which is none of the {len(examples)} examples: they are of another set"
            )
        drawn[row.sample_id].append(row.output)
    expected = max(1, len(drawn[examples[0].id]))
    for name, texts in drawn.items():
        if len(texts) != expected:
            raise ValueError(
                f"{name} has {len(texts)} outputs, the first example {expected}: generate them again"
            )
    flat = [(text, example) for example in examples for text in drawn[example.id]]
    scored = pd.DataFrame(task.score_all([text for text, _ in flat], [example for _, example in flat]))
    metrics = scored.groupby([example.id for _, example in flat], sort=False)
    n, main = expected, metrics[task.metric]
    score = main.sum().map(lambda c: pass_at_k(n, int(c), n)) if task.metric == "accuracy" else main.mean()
    table = metrics.mean().assign(score=score).rename_axis("sample_id").reset_index()
    table.insert(1, "output", [drawn[name][0] for name in table["sample_id"]])
    return table


def corpus_scores(
    task: Task, examples: Sequence[Example], scored: pd.DataFrame
) -> dict[str, dict[str, float]]:
    """Arm -> metrics of its first outputs as one corpus (chrF, BLEU); none where the task's metric has no such form.

    scored: rows of `score_outputs` for all examples of several arms, with a column arm.
    """
    found = {}
    for arm, rows in scored.groupby("arm", sort=False):
        outputs = rows.set_index("sample_id")["output"].loc[[example.id for example in examples]]
        if made := task.score_corpus(outputs.tolist(), examples):
            found[arm] = made
    return found

"""Evaluation of an arm: its outputs on the test set and their scores. `summaries.summarise` compares the arms."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.settings import TaskConfig
from igds_utils.core.store import fingerprint
from igds_utils.data.metrics import pass_at_k
from igds_utils.engine import shards
from igds_utils.engine.prompts import encode, evaluation_prompt
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from igds_utils.engine.lm import LM

ROWS = 64  # outputs decoded together


@dataclass(frozen=True)
class Batch:
    """Test examples that are answered together."""

    number: int
    examples: tuple[Example, ...]
    prompts: tuple[str, ...]


def batches(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Example],
    config: TaskConfig,
    rows: int = ROWS,
) -> list[Batch]:
    """The test set in batches of at most `rows` outputs, fixed by the prompts alone; long prompts come first."""
    from igds_utils.engine.batching import even_chunks

    texts = [
        evaluation_prompt(task, example, tokenizer, config.rendering, config.shots, config.max_prompt_tokens)
        for example in examples
    ]
    lengths = [len(encode(tokenizer, text)) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (-lengths[i], i))
    return [
        Batch(number, tuple(examples[i] for i in chosen), tuple(texts[i] for i in chosen))
        for number, chosen in enumerate(even_chunks(order, max(1, rows // config.samples)))
    ]


def answer(lm: LM, task: Task, batch: Batch, config: TaskConfig, seed: int, arm: str) -> pd.DataFrame:
    """`config.samples` outputs for each example of a batch: (sample_id, k, output), k counting from 0.

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, from a random stream of
    their own for every seed, arm and batch: a batch that is answered again gets the same answers.
    """
    from igds_utils.engine.generation import Sampling, generate

    sampling = None
    if config.samples > 1:
        stream = zlib.crc32(f"{task.name}/{arm}/{seed}".encode()) + batch.number
        sampling = Sampling(config.temperature, config.top_p, stream)
    outputs = generate(
        lm,
        batch.prompts,
        config.max_new_tokens,
        stop=task.stops,
        rows=len(batch.prompts) * config.samples,
        sampling=sampling,
        samples=config.samples,
    )
    return pd.DataFrame(
        [
            (example.id, k, text)
            for example, drawn in zip(batch.examples, outputs, strict=True)
            for k, text in enumerate(drawn)
        ],
        columns=["sample_id", "k", "output"],
    )


def in_order(outputs: pd.DataFrame) -> pd.DataFrame:
    """Outputs of all batches as they are stored: by sample id, then by k."""
    return outputs.sort_values(["sample_id", "k"], kind="stable", ignore_index=True)


def generate_outputs(
    lm: LM,
    task: Task,
    examples: Sequence[Example],
    config: TaskConfig,
    seed: int,
    arm: str = "original",
    rows: int = ROWS,
) -> pd.DataFrame:
    """Outputs for all examples, in their order: (sample_id, k, output), as `answer` gives them.

    Where several processes work together, each answers its share of the batches; the table is the same.
    """
    tables = shards.map_in_order(
        lambda batch: answer(lm, task, batch, config, seed, arm),
        batches(lm.tokenizer, task, examples, config, rows),
        desc="answer",
        unit="batch",
        leave=False,
        delay=2,
    )
    by_sample = pd.concat(tables).set_index("sample_id")
    return by_sample.loc[[example.id for example in examples]].reset_index()


def decoding(task: Task, config: TaskConfig) -> dict[str, Any]:
    """What stored outputs depend on beside the model and the test set."""
    names = ("rendering", "shots", "max_prompt_tokens", "max_new_tokens", "samples", "temperature", "top_p")
    return {"wording": fingerprint(task.wording), **{name: getattr(config, name) for name in names}}


def score_outputs(task: Task, examples: Sequence[Example], outputs: pd.DataFrame) -> pd.DataFrame:
    """Scores of every example: sample_id, output (its first), one column a metric (mean over its outputs), score.

    outputs: as `generate_outputs` gives them. `score` is the task's own metric; for accuracy with n > 1 outputs an
    example it is pass@n (unbiased estimator). Raises `ValueError` if an example has no output, another number of
    outputs than the first, or if an output belongs to no example.
    """
    by_sample = dict(list(outputs.sort_values("k").groupby("sample_id", sort=False)["output"]))
    if unknown := sorted(set(by_sample) - {example.id for example in examples}):
        raise ValueError(
            f"outputs of {unknown[0]!r}, which is none of the {len(examples)} examples: they are of another set"
        )
    drawn = {example.id: list(by_sample.get(example.id, [])) for example in examples}
    expected = len(drawn[examples[0].id])
    for name, texts in drawn.items():
        if not texts or len(texts) != expected:
            raise ValueError(
                f"{name} has {len(texts)} outputs, the first example {expected}: generate them again"
            )
    flat = [(text, example) for example in examples for text in drawn[example.id]]
    scored = iter(task.score_all([text for text, _ in flat], [example for _, example in flat]))
    rows = []
    for example in examples:
        metrics = pd.DataFrame([next(scored) for _ in drawn[example.id]])
        row = {"sample_id": example.id, "output": drawn[example.id][0], **metrics.mean()}
        rows.append(row | {"score": _main_score(task, metrics[task.metric])})
    return pd.DataFrame(rows)


def _main_score(task: Task, values: pd.Series) -> float:
    if task.metric == "accuracy":
        return pass_at_k(n=len(values), c=int(values.sum()), k=len(values))
    return float(values.mean())

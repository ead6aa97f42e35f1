"""Evaluation of an arm: its outputs on the test set and their scores. `stats.summarise` compares the arms."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pandas as pd
from tqdm import tqdm

from igds_utils.generation import Sampling, generate
from igds_utils.lm import LM
from igds_utils.metrics import pass_at_k
from igds_utils.prompts import evaluation_prompt
from igds_utils.settings import TaskConfig
from igds_utils.tasks.base import Example, Task


def generate_outputs(
    lm: LM,
    task: Task,
    examples: Sequence[Example],
    config: TaskConfig,
    seed: int,
    arm: str = "original",
    rows: int = 64,
) -> pd.DataFrame:
    """`config.samples` outputs for each example: (sample_id, k, output), k counting from 0.

    One sample is decoded greedily; more are drawn with the preset's temperature and top-p, from a random stream of
    their own for every seed, arm and batch. rows: how many are decoded together.
    """
    texts = [
        evaluation_prompt(task, example, lm.tokenizer, config.rendering, config.shots) for example in examples
    ]
    sampling = None
    if config.samples > 1:
        sampling = Sampling(
            config.temperature, config.top_p, zlib.crc32(f"{task.name}/{arm}/{seed}".encode())
        )
    outputs = generate(
        lm,
        texts,
        config.max_new_tokens,
        stop=task.stops,
        rows=rows,
        sampling=sampling,
        samples=config.samples,
    )
    return pd.DataFrame(
        [
            (example.id, k, text)
            for example, drawn in zip(examples, outputs, strict=True)
            for k, text in enumerate(drawn)
        ],
        columns=["sample_id", "k", "output"],
    )


def decoding(config: TaskConfig) -> dict[str, int | float]:
    """What stored outputs depend on beside the model and the test set."""
    names = ("rendering", "shots", "max_new_tokens", "samples", "temperature", "top_p")
    return {name: getattr(config, name) for name in names}


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
    rows = []
    for example in tqdm(examples, desc="score", unit="sample", leave=False, delay=2):
        drawn = by_sample.get(example.id, [])
        expected = len(by_sample.get(examples[0].id, []))
        if len(drawn) == 0 or len(drawn) != expected:
            raise ValueError(
                f"{example.id} has {len(drawn)} outputs, the first example {expected}: generate them again"
            )
        metrics = pd.DataFrame([task.score(output, example) for output in drawn])
        row = {"sample_id": example.id, "output": drawn.iloc[0], **metrics.mean()}
        rows.append(row | {"score": _main_score(task, metrics[task.metric])})
    return pd.DataFrame(rows)


def _main_score(task: Task, values: pd.Series) -> float:
    if task.metric == "accuracy":
        return pass_at_k(n=len(values), c=int(values.sum()), k=len(values))
    return float(values.mean())

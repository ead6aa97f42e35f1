"""A model under training, measured: its task features on fixed pool prompts and its score on fixed test items.

The same measure serves the arms while they are trained (`TrainedArm`) and any other series of models or checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from igds_utils.config.stages import SeriesConfig
from igds_utils.engine.features import Feature, features_of
from igds_utils.training import evaluation

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run
    from igds_utils.engine.lm import LM

SCORE = "score"


def measure(run: Run, task: str, lm: LM, features: list[Feature], config: SeriesConfig) -> pd.DataFrame:
    """One point of a series, one row a sample and quantity: (measure, sample_id, value).

    measure: the name of a task feature, with a_i(x, p) on the first `config.prompts` pool prompts, or "score", the
    task's metric on the first `config.test` test items, answered as the arms answer them.
    """
    found = feature_activations(run, task, lm, features, config.prompts)
    names = [feature.name for feature in features_of(found)]
    read = pd.DataFrame({"measure": names, "sample_id": found["sample_id"], "value": found["activation"]})
    examples, own = run.examples(task, "test")[: config.test], run.task(task)
    seed, memory = run.preset.seed, run.preset.intervention.cache_gb
    outputs = evaluation.generate_outputs(lm, own, examples, run.config(task), seed, "series", memory)
    scored = evaluation.score_outputs(own, examples, outputs)[["sample_id", "score"]]
    answered = scored.rename(columns={"score": "value"}).assign(measure=SCORE)
    return pd.concat([read, answered[read.columns]], ignore_index=True)


def feature_activations(run: Run, task: str, lm: LM, features: list[Feature], n: int) -> pd.DataFrame:
    """a_i(x, p) in a model on the first n pool prompts: (sample_id, layer, feature, activation)."""
    from igds_utils.engine import activations
    from igds_utils.engine.sae import Saes

    examples = run.examples(task, "pool")[:n]
    prompts = [run.prompt(task, example) for example in examples]
    layers = sorted({feature.layer for feature in features})
    residual = activations.critical_residuals(lm, prompts, layers, run.preset.batch_tokens)
    saes = Saes(run.preset.chosen.saes, lm.n_layers, lm.width, lm.device)
    found = activations.feature_activations(residual, saes, features)  # (N, k)
    return pd.DataFrame(
        [
            (example.id, feature.layer, feature.index, float(found[row, column]))
            for row, example in enumerate(examples)
            for column, feature in enumerate(features)
        ],
        columns=["sample_id", "layer", "feature", "activation"],
    )


def steps_of(config: SeriesConfig, steps: int) -> dict[int, float]:
    """The optimizer step after which each share of a training is measured: {step: share}, at least one step each."""
    return {max(1, round(share * steps)): share for share in sorted(config.shares)}

"""What selectors ask of a pool, each measured once and stored: every selector shares it, and so does a second run."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from igds_utils import activations, losses, selectors
from igds_utils.experiment import Run
from igds_utils.sae import FeatureSet


def context(run: Run, task: str, seed: int = 0) -> selectors.Context:
    """What the selectors of a task may know of its pool; labels of the samples are not part of it."""
    samples = [
        selectors.PoolSample(example.id, prompt, example.target)
        for example, prompt in zip(run.examples(task, "pool"), run.prompts(task, "pool"), strict=True)
    ]
    return selectors.Context(
        samples,
        seed=seed,
        feature_norms=feature_norms(run, task) if run.preset.scoring.units == "residual" else None,
        **{need: partial(measure, run, task) for need, measure in MEASUREMENTS.items()},
    )


def target_loss(run: Run, task: str) -> np.ndarray:
    """Mean cross-entropy of each target under the model to be trained, in the SFT rendering: (N,)."""

    def build() -> pd.DataFrame:
        same = run.preset.chosen.identify == run.preset.chosen.train
        lm = run.lm if same else run.trainable_lm()
        records = run.training_records(task, run.examples(task, "pool"))
        found = losses.target_losses(lm, run.training_pairs(records), run.preset.batch_tokens)
        return pd.DataFrame({"sample_id": [record["id"] for record in records], "target_loss": found})

    made = run.make(f"{task}/needs/target_loss.parquet", build, **run.training_inputs(task))
    return made["target_loss"].to_numpy()


def task_feature_activations(run: Run, task: str) -> np.ndarray:
    """a_i(x, p) of the task features under the identification model, prompt only: (N, k)."""
    features = run.task_features(task)
    names = [feature.name for feature in features]

    def build() -> pd.DataFrame:
        layers = sorted({feature.layer for feature in features})
        prompts = run.prompts(task, "pool")
        residual = activations.critical_residuals(run.lm, prompts, layers, run.preset.batch_tokens)
        found = activations.feature_activations(residual, run.saes, features)
        return pd.DataFrame(found.numpy(), columns=names)

    made = run.make(
        f"{task}/needs/task_feature_activations.parquet", build, features=names, **run.inputs(task, "pool")
    )
    return made.to_numpy()


def feature_norms(run: Run, task: str) -> np.ndarray:
    """||d_i|| of the task features, in residual units: (k,)."""
    sets = [FeatureSet(run.saes[feature.layer], [feature.index]) for feature in run.task_features(task)]
    return np.array([float(one.directions.norm()) for one in sets])


MEASUREMENTS = {"target_loss": target_loss, "task_feature_activations": task_feature_activations}


def version(run: Run, task: str, need: str) -> str:
    """What identifies one measurement of a pool, made first if it is not stored; part of a ranking's inputs."""
    MEASUREMENTS[need](run, task)
    return run.store.version(f"{task}/needs/{need}.parquet")

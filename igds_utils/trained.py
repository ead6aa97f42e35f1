"""A trained arm: trained when its model is first asked for, so that an arm whose products are there costs nothing."""

from __future__ import annotations

import shutil
from functools import cached_property
from typing import Any

import pandas as pd

from igds_utils import activations, sft
from igds_utils.arms import Arm
from igds_utils.experiment import Run
from igds_utils.lm import LM, load_lm
from igds_utils.refs import FolderRef
from igds_utils.sae import Feature

FIXED_PROMPTS = 256  # pool prompts on which every arm's task-feature activations are stored (Figure 3)


class TrainedArm:
    """One arm of a task, with the model that it trained; `original` is the untrained model."""

    def __init__(self, run: Run, task: str, arm: Arm):
        self.run, self.task, self.arm = run, task, arm
        self.folder = f"{task}/arms/{arm.name}"

    @property
    def inputs(self) -> dict[str, Any]:
        """What the arm's weights depend on."""
        chosen, inputs = self.run.preset.chosen, {"arm": self.arm.name}
        if not self.arm.trained:
            return inputs | {"model": chosen.train, "dtype": chosen.dtype}
        selection = self.run.store.version(f"{self.task}/selected/{self.arm.name}.jsonl")
        recipe = self.run.config(self.task).sft.model_dump(exclude={"keep_weights", "checkpoint_steps"})
        return inputs | {"model": chosen.train, "selection": selection, "sft": recipe, "seed": self.arm.seed}

    def log(self) -> pd.DataFrame:
        """Training log, one row an optimizer step (`sft.train`)."""
        return self._trained[1]

    @property
    def lm(self) -> LM:
        return self._trained[0]

    @cached_property
    def _trained(self) -> tuple[LM, pd.DataFrame | None]:
        store, weights = self.run.store, self.run.store.root / self.folder / "weights"
        if not self.arm.trained:
            return self.run.trainable_lm(), None
        if store.fresh(f"{self.folder}/weights.json", **self.inputs) and store.has(
            f"{self.folder}/log.parquet"
        ):
            return load_lm(FolderRef(folder=str(weights))), store.read(f"{self.folder}/log.parquet")
        lm, config = self.run.trainable_lm(), self.run.config(self.task).sft
        pairs = self.run.training_pairs(store.read(f"{self.task}/selected/{self.arm.name}.jsonl"))
        log = sft.train(lm, pairs, config, self.arm.seed, store.root / self.folder / "checkpoints")
        shutil.rmtree(store.root / self.folder / "checkpoints", ignore_errors=True)
        if config.keep_weights:
            store.make(f"{self.folder}/weights.json", lambda: self._save(lm, weights), **self.inputs)
        return lm, log

    @staticmethod
    def _save(lm: LM, folder) -> dict[str, Any]:
        new = folder.with_name(".weights.new")
        shutil.rmtree(new, ignore_errors=True)
        lm.model.save_pretrained(new, safe_serialization=True)
        lm.tokenizer.save_pretrained(new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
        return {"folder": folder.name, "bytes": sum(file.stat().st_size for file in folder.iterdir())}

    def feature_activations(self, features: list[Feature]) -> pd.DataFrame:
        """a_i(x, p) in this arm's model, on pool prompts that are the same for every arm.

        Columns: sample_id, layer, feature, activation.
        """
        examples = self.run.examples(self.task, "pool")[:FIXED_PROMPTS]
        prompts = self.run.prompts(self.task, "pool")[:FIXED_PROMPTS]
        layers = sorted({feature.layer for feature in features})
        residual = activations.critical_residuals(self.lm, prompts, layers, self.run.preset.batch_tokens)
        found = activations.feature_activations(residual, self.run.saes, features)  # (N, k)
        return pd.DataFrame(
            [
                (example.id, feature.layer, feature.index, float(found[row, column]))
                for row, example in enumerate(examples)
                for column, feature in enumerate(features)
            ],
            columns=["sample_id", "layer", "feature", "activation"],
        )

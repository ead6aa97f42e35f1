"""A trained arm: trained when its model is first asked for, so that an arm whose products are there costs nothing."""

from __future__ import annotations

import shutil
from functools import cached_property
from typing import Any

import pandas as pd

from igds_utils.config.refs import FolderRef
from igds_utils.config.settings import SftConfig
from igds_utils.core import arms, launch
from igds_utils.core.arms import Arm
from igds_utils.core.experiment import Run, stamped
from igds_utils.engine import activations, distributed
from igds_utils.engine.features import Feature
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import target_losses
from igds_utils.training import capabilities, evaluation, sft

FIXED_PROMPTS = 256  # pool prompts on which every arm's task-feature activations are stored (Figure 3)


class TrainedArm:
    """One arm of a task, with the model that it trained; `original` is the untrained model."""

    def __init__(self, run: Run, task: str, arm: Arm):
        self.run, self.task, self.arm = run, task, arm
        self.config = run.config(task)
        self.folder = f"{task}/arms/{arm.name}"
        self._weights = run.store.root / self.folder / "weights"

    # ---- what is stored of an arm ----

    @property
    def products(self) -> list[str]:
        """Names of the tables that later notebooks need of this arm, in the order in which they are made."""
        general = ["capabilities"] if self.arm in arms.asked_in_general(self.config) else []
        return [*(["log"] if self.arm.trained else []), "outputs", "likelihoods", "activations", *general]

    def make_all(self) -> dict[str, pd.DataFrame]:
        """All products by name, made where they are not fresh: by this process, or by those that the preset asks for.

        log: one row an optimizer step (`sft.train`). outputs: (sample_id, k, output) on the test set. likelihoods:
        (sample_id, loglik) of the references of the test set, the mean log-probability of a token in nats. activations:
        (sample_id, layer, feature, activation) of the task features on pool prompts that are the same for every arm.
        capabilities: (benchmark, subject, item, score) on general questions (`capabilities.score`).
        """
        if self.run.preset.launch.processes > 1 and not all(map(self._fresh, self.products)):
            if self.arm.trained:
                launch.call(
                    self.run, "igds_utils.training.trained:train", self.task, self.arm.name, training=True
                )
            launch.call(self.run, "igds_utils.training.trained:read", self.task, self.arm.name)
        made = {name: self.make(name) for name in self.products}
        if not self.config.sft.keep_weights:
            shutil.rmtree(self._weights, ignore_errors=True)
        return made

    def make(self, product: str) -> pd.DataFrame:
        """One product, read from disk if it is fresh; else the model is trained, unless its weights were kept."""
        path, inputs = self._path(product), self._inputs_of(product)
        if product == "outputs":
            return self._outputs(path, inputs)
        build = {
            "log": lambda: self._loaded[1],
            "likelihoods": self._likelihoods,
            "activations": self._activations,
            "capabilities": self._capabilities,
        }
        return self.run.make(path, build[product], **inputs)

    def _path(self, product: str) -> str:
        return f"{self.folder}/{product}.parquet"

    def _fresh(self, product: str) -> bool:
        return self.run.store.fresh(self._path(product), **self._inputs_of(product))

    def _inputs_of(self, product: str) -> dict[str, Any]:
        run, arm = self.run, {"arm": self.inputs}
        match product:
            case "outputs":
                decoding = evaluation.decoding(run.task(self.task), self.config)
                return arm | {"decoding": decoding, "test": run.data_version(self.task, "test")}
            case "likelihoods":
                return arm | run.training_inputs(self.task) | {"test": run.data_version(self.task, "test")}
            case "activations":
                features = [feature.name for feature in self.features]
                return arm | {"features": features} | run.inputs(self.task, "pool")
            case "capabilities":
                return arm | {"asked": self.config.capabilities.model_dump(mode="json", exclude={"arms"})}
        return self.inputs

    @property
    def inputs(self) -> dict[str, Any]:
        """What the arm's weights depend on."""
        chosen, inputs = self.run.preset.chosen, {"arm": self.arm.name}
        if not self.arm.trained:
            return inputs | {"model": stamped(chosen.train), "dtype": chosen.dtype}
        selection = self.run.store.version(f"{self.task}/selected/{self.arm.name}.jsonl")
        recipe = self.recipe.model_dump(exclude=sft.NOT_LEARNT_FROM)
        if chosen.dtype != "float32":  # trained in fp32, an arm answers in it
            inputs["dtype"] = chosen.dtype
        return inputs | {
            "model": stamped(chosen.train),
            "selection": selection,
            "sft": recipe,
            "seed": self.arm.seed,
        }

    @property
    def recipe(self) -> SftConfig:
        """How the arm is trained; `full_steps` takes batches as much larger as its pool is than a selection."""
        recipe = self.config.sft
        if self.arm.selector != "full_steps":
            return recipe
        return recipe.model_copy(update={"global_batch": round(recipe.global_batch / self.config.ratio)})

    @cached_property
    def features(self) -> list[Feature]:
        return self.run.task_features(self.task)

    # ---- the model ----

    @property
    def lm(self) -> LM:
        """The arm's model, trained or read from its kept weights."""
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[LM, pd.DataFrame | None]:
        """The arm's model, and the log of a training that was just done."""
        run = self.run
        if not self.arm.trained:
            return run.train_lm, None
        stored = self._weights.is_dir() and run.store.fresh(f"{self.folder}/weights.json", **self.inputs)
        if stored and self._fresh("log"):
            return run.load(FolderRef(folder=str(self._weights))), None
        lm = run.load(run.preset.chosen.train)
        return lm, self._train(lm)

    def _train(self, lm: LM) -> pd.DataFrame:
        run, config = self.run, self.recipe
        checkpoints = run.store.root / self.folder / "checkpoints"
        pairs = run.training_pairs(run.read(f"{self.task}/selected/{self.arm.name}.jsonl"))
        # several processes hand the model on to others
        weights = self._weights if config.keep_weights or distributed.processes() > 1 else None
        log = sft.train(lm, pairs, config, self.arm.seed, checkpoints, weights, self.inputs)
        distributed.on_main_process(lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        if weights:
            size = sum(file.stat().st_size for file in weights.iterdir())
            about = {"folder": weights.name, "bytes": size}
            run.make(f"{self.folder}/weights.json", lambda: about, **self.inputs)
        return log

    # ---- what is made of it ----

    def _outputs(self, path: str, inputs: dict[str, Any]) -> pd.DataFrame:
        run, task, config = self.run, self.run.task(self.task), self.config
        examples = run.examples(self.task, "test")
        asked = evaluation.questions(run.train_tokenizer, task, examples, config)

        def rows() -> int:
            return evaluation.rows_that_fit(self.lm, asked, config, run.preset.intervention.cache_gb)

        return run.make_in_parts(
            path,
            asked,
            lambda some: evaluation.answer(self.lm, task, some, config, rows(), self.arm.seed, self.arm.name),
            label=f"{self.arm.name}: answer",
            together=lambda missing: evaluation.batches(missing, config, rows()) if missing else (),
            finish=evaluation.in_order,
            **inputs,
        )

    def _likelihoods(self) -> pd.DataFrame:
        run, examples = self.run, self.run.examples(self.task, "test")
        pairs = run.training_pairs(run.training_records(self.task, examples))
        losses = target_losses(self.lm, pairs, run.preset.batch_tokens)
        return pd.DataFrame({"sample_id": [example.id for example in examples], "loglik": -losses})

    def _capabilities(self) -> pd.DataFrame:
        asked = self.config.capabilities
        return capabilities.score(self.lm, asked.benchmarks, asked.limit, self.run.preset.batch_tokens)

    def _activations(self) -> pd.DataFrame:
        run, features = self.run, self.features
        examples = run.examples(self.task, "pool")[:FIXED_PROMPTS]
        prompts = [run.prompt(self.task, example) for example in examples]
        layers = sorted({feature.layer for feature in features})
        residual = activations.critical_residuals(self.lm, prompts, layers, run.preset.batch_tokens)
        found = activations.feature_activations(residual, run.saes, features)  # (N, k)
        return pd.DataFrame(
            [
                (example.id, feature.layer, feature.index, float(found[row, column]))
                for row, example in enumerate(examples)
                for column, feature in enumerate(features)
            ],
            columns=["sample_id", "layer", "feature", "activation"],
        )


# ---- what `launch.call` calls ----------------------------------------------------------------------------


def train(run: Run, task: str, arm: str) -> None:
    """Train an arm in all processes, and store its weights and its log."""
    trained = TrainedArm(run, task, arms.arm_of(arm, arms.arms(run.config(task))))
    _ = trained.lm
    trained.make("log")


def read(run: Run, task: str, arm: str) -> None:
    """Answer the test set and read the task features with the weights that `train` stored."""
    trained = TrainedArm(run, task, arms.arm_of(arm, arms.arms(run.config(task))))
    for product in trained.products:
        trained.make(product)

"""A trained arm; it is trained when its model is first asked for, or not at all."""

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
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import target_losses
from igds_utils.engine.prompts import evaluation_prompt
from igds_utils.training import capabilities, evaluation, sft

FIXED_PROMPTS = 64  # of the pool, on which every arm's task features are read (Figure 3)


class TrainedArm:
    """One arm of a task, with the model that it trained; `original` is the untrained model.

    Its products, each a table in the arm's folder:
    log: a row an optimizer step (`sft.train`).
    outputs: (sample_id, k, output) on the test set.
    likelihoods: (sample_id, loglik) of the test references, mean log-probability of a token (nats).
    activations: (sample_id, layer, feature, activation) at p, on the same pool prompts in each arm.
    capabilities: (benchmark, subject, item, score) on general questions (`capabilities.score`).
    """

    def __init__(self, run: Run, task: str, arm: Arm):
        self.run, self.task, self.arm = run, task, arm
        self.config = run.config(task)
        self.folder = f"{task}/arms/{arm.name}"
        self._selected = f"{task}/selected/{arm.name}.jsonl"
        self._weights = run.store.root / self.folder / "weights"

    @property
    def products(self) -> list[str]:
        """Names of the products that later notebooks need, in the order in which they are made."""
        log = ["log"] * self.arm.trained
        general = ["capabilities"] * (self.arm in arms.asked_in_general(self.config))
        return [*log, "outputs", "likelihoods", "activations", *general]

    def make_all(self) -> dict[str, pd.DataFrame]:
        """All products by name, made where not fresh, in the processes that the preset asks for."""
        if self.run.preset.launch.processes > 1 and not all(map(self._fresh, self.products)):
            asked = self.run, f"{__name__}:make_products", self.task, self.arm.name
            if self.arm.trained:
                launch.call(*asked, "log", training=True)
            launch.call(*asked, *self.products)
        made = {product: self.make(product) for product in self.products}
        if not self.config.sft.keep_weights:
            shutil.rmtree(self._weights, ignore_errors=True)
        return made

    def make(self, product: str) -> pd.DataFrame:
        """One product, read from disk if fresh; else the model is trained, or read if kept."""
        if product == "outputs":
            return self._outputs()
        build = getattr(self, f"_{product}")
        return self.run.make(self._path(product), build, **self.inputs_of(product))

    def _path(self, product: str) -> str:
        return f"{self.folder}/{product}.parquet"

    def _fresh(self, product: str) -> bool:
        return self.run.store.fresh(self._path(product), **self.inputs_of(product))

    def inputs_of(self, product: str) -> dict[str, Any]:
        """What a product of the arm depends on."""
        run, task, arm = self.run, self.task, {"arm": self.inputs}
        match product:
            case "outputs":
                arm["decoding"] = evaluation.decoding(run.task(task), self.config)
                return arm | {"test": run.data_version(task, "test")}
            case "likelihoods":
                return arm | run.training_inputs(task) | {"test": run.data_version(task, "test")}
            case "activations":
                arm["features"] = [feature.name for feature in run.task_features(task)]
                return arm | run.inputs(task, "pool")
            case "capabilities":
                asked = self.config.capabilities.model_dump(mode="json", exclude={"arms"})
                return arm | {"asked": asked}
        return self.inputs

    @property
    def inputs(self) -> dict[str, Any]:
        """What the arm's weights depend on."""
        chosen = self.run.preset.chosen
        inputs = {"arm": self.arm.name, "model": stamped(chosen.train)}
        # trained in fp32, an arm answers in the preset's precision
        if not self.arm.trained or chosen.dtype != "float32":
            inputs["dtype"] = chosen.dtype
        if self.arm.trained:
            inputs["selection"] = self.run.store.version(self._selected)
            inputs["sft"] = self.recipe.model_dump(exclude=sft.NOT_LEARNT_FROM)
            inputs["seed"] = self.arm.seed
        return inputs

    @property
    def recipe(self) -> SftConfig:
        """How the arm is trained; batches of `full_steps` are larger, as its pool is."""
        recipe, share = self.config.sft, self.config.ratio
        larger = {"global_batch": round(recipe.global_batch / share)}
        return recipe.model_copy(update=larger if self.arm.selector == "full_steps" else {})

    @cached_property
    def lm(self) -> LM:
        """The arm's model, trained or read from its kept weights."""
        run, record = self.run, f"{self.folder}/weights/arm.json"
        if not self.arm.trained:
            return run.train_lm
        if run.store.fresh(record, **self.inputs) and self._fresh("log"):
            return run.load(FolderRef(folder=str(self._weights)))
        lm = run.load(run.preset.chosen.train)
        checkpoints = run.store.root / self.folder / "checkpoints"
        pairs = run.training_pairs(run.read(self._selected))
        # an arm that is killed while it answers is not trained again
        told = self.recipe, self.arm.seed, checkpoints, self._weights
        self._of_training = sft.train(lm, pairs, *told, self.inputs)
        distributed.on_main_process(lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        run.make(record, lambda: {"arm": self.arm.name}, **self.inputs)
        return lm

    def _log(self) -> pd.DataFrame:
        _ = self.lm  # trains it: weights are read only where the log is fresh
        return self._of_training

    def _outputs(self) -> pd.DataFrame:
        run, config, arm, task = self.run, self.config, self.arm, self.run.task(self.task)
        test, memory = run.examples(self.task, "test"), run.preset.intervention.cache_gb
        options = run.train_tokenizer, config.rendering, config.shots, config.max_prompt_tokens
        return run.make_in_parts(
            self._path("outputs"),
            [(example, evaluation_prompt(task, example, *options)) for example in test],
            lambda some: evaluation.answer(self.lm, task, some, config, arm.seed, arm.name),
            label=f"{arm.name}: answer",
            together=lambda left: evaluation.batches(self.lm, left, config, memory) if left else (),
            finish=lambda found: found.sort_values(["sample_id", "k"], ignore_index=True),
            **self.inputs_of("outputs"),
        )

    def _likelihoods(self) -> pd.DataFrame:
        run, examples = self.run, self.run.examples(self.task, "test")
        pairs = run.training_pairs(run.training_records(self.task, examples))
        losses = target_losses(self.lm, pairs, run.preset.batch_tokens)
        return pd.DataFrame({"sample_id": [one.id for one in examples], "loglik": -losses})

    def _capabilities(self) -> pd.DataFrame:
        asked = self.config.capabilities
        return capabilities.score(self.lm, asked.benchmarks, asked.limit)

    def _activations(self) -> pd.DataFrame:
        run, features = self.run, self.run.task_features(self.task)
        examples = run.examples(self.task, "pool")[:FIXED_PROMPTS]
        prompts = [run.prompt(self.task, example) for example in examples]
        layers, most = sorted({one.layer for one in features}), run.preset.batch_tokens
        residual = activations.critical_residuals(self.lm, prompts, layers, most)
        found = activations.feature_activations(residual, run.saes, features)  # (N, k)
        rows = [
            (example.id, feature.layer, feature.index, float(value))
            for example, values in zip(examples, found, strict=True)
            for feature, value in zip(features, values, strict=True)
        ]
        return pd.DataFrame(rows, columns=["sample_id", "layer", "feature", "activation"])


def make_products(run: Run, task: str, arm: str, *products: str) -> None:
    """Train an arm or read its weights, then make products, in the processes of `launch.call`."""
    trained = TrainedArm(run, task, arms.arm_of(arm, arms.arms(run.config(task))))
    _ = trained.lm
    for product in products:
        trained.make(product)

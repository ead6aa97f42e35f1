"""A trained arm: trained when its model is first asked for, so that an arm whose products are there costs nothing."""

from __future__ import annotations

import shutil
from functools import cached_property, partial
from typing import Any, NamedTuple

import pandas as pd

from igds_utils.config.refs import FolderRef
from igds_utils.core import arms, launch
from igds_utils.core.arms import Arm
from igds_utils.core.experiment import Run, stamped
from igds_utils.engine import shards
from igds_utils.engine.lm import LM
from igds_utils.engine.loading import load_lm
from igds_utils.engine.sae import Feature
from igds_utils.training import capabilities, evaluation, series, sft

FIXED_PROMPTS = 256  # pool prompts on which every arm's task-feature activations are stored (Figure 3)
IN_TRAINING = ("log", "series")  # products that are written down while an arm is trained


class _Loaded(NamedTuple):
    lm: LM
    log: pd.DataFrame | None = None  # of a training that was just done
    loan: int | None = None  # which loan of the run's one model `lm` is; none for a model of its own


class TrainedArm:
    """One arm of a task, with the model that it trained; `original` is the untrained model.

    Arms of one run share one model in memory: `lm` is this arm's until the next arm is trained.
    """

    def __init__(self, run: Run, task: str, arm: Arm):
        self.run, self.task, self.arm = run, task, arm
        self.config = run.config(task)
        self.folder = f"{task}/arms/{arm.name}"
        self._weights = run.store.root / self.folder / "weights"
        self._points = run.store.root / self.folder / "series.parts"

    # ---- what is stored of an arm ----

    @property
    def products(self) -> list[str]:
        """Names of the tables that later notebooks need of this arm, in the order in which they are made."""
        written = IN_TRAINING if self.arm in arms.in_series(self.config) else IN_TRAINING[:1]
        general = ["capabilities"] if self.arm in arms.asked_in_general(self.config) else []
        return [*(written if self.arm.trained else ()), "outputs", "activations", *general]

    def make_all(self) -> dict[str, pd.DataFrame]:
        """All products by name, made where they are not fresh: by this process, or by those that the preset asks for.

        log: one row an optimizer step (`sft.train`). series: (share, step, measure, sample_id, value), measured
        during the training. outputs: (sample_id, k, output) on the test set. activations: (sample_id, layer,
        feature, activation) of the task features on pool prompts that are the same for every arm. capabilities:
        (benchmark, subject, item, score) on general questions (`capabilities.score`).
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
            "log": lambda: self._loaded.log,
            "series": self._series,
            "activations": self._activations,
            "capabilities": self._capabilities,
        }
        made = self.run.make(path, build[product], **inputs)
        if product == "series":
            shards.from_first(lambda: shutil.rmtree(self._points, ignore_errors=True))
        return made

    def _path(self, product: str) -> str:
        return f"{self.folder}/{product}.parquet"

    def _fresh(self, product: str) -> bool:
        return self.run.store.fresh(self._path(product), **self._inputs_of(product))

    def _inputs_of(self, product: str) -> dict[str, Any]:
        test = self.run.data_version(self.task, "test")
        features = [feature.name for feature in self.features]
        read = {"features": features, **self.run.inputs(self.task, "pool")}
        task = self.run.task(self.task)
        decoding = evaluation.decoding(task, self.config)
        match product:
            case "log":
                return self.inputs
            case "outputs":
                return {"arm": self.inputs, "decoding": decoding, "test": test}
            case "activations":
                return {"arm": self.inputs, **read}
            case "capabilities":
                asked = self.config.capabilities.model_dump(mode="json", exclude={"arms"})
                return {"arm": self.inputs, "asked": asked}
        answered = {"decoding": decoding, "metric": task.scoring, "test": test}
        return {"arm": self.inputs, "series": self.config.series, **answered, **read}

    @property
    def inputs(self) -> dict[str, Any]:
        """What the arm's weights depend on."""
        chosen, inputs = self.run.preset.chosen, {"arm": self.arm.name}
        if not self.arm.trained:
            return inputs | {"model": stamped(chosen.train), "dtype": chosen.dtype}
        selection = self.run.store.version(f"{self.task}/selected/{self.arm.name}.jsonl")
        recipe = self.config.sft.model_dump(exclude=sft.NOT_LEARNT_FROM)
        if chosen.dtype != "float32":  # trained in fp32, an arm answers in it
            inputs["dtype"] = chosen.dtype
        return inputs | {
            "model": stamped(chosen.train),
            "selection": selection,
            "sft": recipe,
            "seed": self.arm.seed,
        }

    @cached_property
    def features(self) -> list[Feature]:
        return self.run.task_features(self.task)

    # ---- the model ----

    @property
    def lm(self) -> LM:
        """The arm's model, trained or read from its kept weights; raises `RuntimeError` after another arm took it."""
        if self._loaded.loan not in (None, self.run.loans):
            raise RuntimeError(
                f"{self.folder}: its model was handed to another arm; make a new TrainedArm, which trains again"
            )
        return self._loaded.lm

    @cached_property
    def _loaded(self) -> _Loaded:
        if self.arm.trained and self._kept():
            return _Loaded(load_lm(FolderRef(folder=str(self._weights)), self.run.preset.chosen.dtype))
        lm = self.run.trainable_lm()
        return _Loaded(lm, self._train(lm) if self.arm.trained else None, self.run.loans)

    def _kept(self) -> bool:
        """Whether this arm's weights, and what was written down while it was trained, lie on disk."""
        stored = self._weights.is_dir() and self.run.store.fresh(self.folder + "/weights.json", **self.inputs)
        return stored and all(self._fresh(name) for name in self.products if name in IN_TRAINING)

    def _train(self, lm: LM) -> pd.DataFrame:
        run, config = self.run, self.config.sft
        checkpoints = run.store.root / self.folder / "checkpoints"
        pairs = run.training_pairs(run.read(f"{self.task}/selected/{self.arm.name}.jsonl"))
        # several processes hand the model on to others
        weights = self._weights if config.keep_weights or shards.processes() > 1 else None
        wanted = "series" in self.products and not self._fresh("series")
        watch = partial(self._watch, lm) if wanted else None
        log = sft.train(lm, pairs, config, self.arm.seed, checkpoints, weights, watch, self.inputs)
        shards.from_first(lambda: shutil.rmtree(checkpoints, ignore_errors=True))
        if weights:
            size = sum(file.stat().st_size for file in weights.iterdir())
            about = {"folder": weights.name, "bytes": size}
            run.make(f"{self.folder}/weights.json", lambda: about, **self.inputs)
        return log

    # ---- what is made of it ----

    def _watch(self, lm: LM, step: int, steps: int) -> None:
        """Measure the model where the series wants it; stored at once, for a training that is killed and continued."""
        asked = self.config.series
        if (share := series.steps_of(asked, steps).get(step)) is not None:
            self.run.make(
                self._point(share),
                lambda: series.measure(self.run, self.task, lm, self.features, asked).assign(
                    share=share, step=step
                ),
                **self._inputs_of("series"),
            )

    def _series(self) -> pd.DataFrame:
        shares = series.steps_of(self.config.series, len(self._loaded.log)).values()
        return pd.concat([self.run.read(self._point(share)) for share in shares], ignore_index=True)

    def _point(self, share: float) -> str:
        return f"{self.folder}/series.parts/{share:g}.parquet"

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

    def _capabilities(self) -> pd.DataFrame:
        asked = self.config.capabilities
        return capabilities.score(self.lm, asked.benchmarks, asked.limit, self.run.preset.batch_tokens)

    def _activations(self) -> pd.DataFrame:
        return series.feature_activations(self.run, self.task, self.lm, self.features, FIXED_PROMPTS)


# ---- what `launch.call` calls ----------------------------------------------------------------------------


def train(run: Run, task: str, arm: str) -> None:
    """Train an arm in all processes, and store its weights and what is written down on the way."""
    trained = TrainedArm(run, task, arms.arm_of(arm, arms.arms(run.config(task))))
    _ = trained.lm
    for product in trained.products:
        if product in IN_TRAINING:
            trained.make(product)


def read(run: Run, task: str, arm: str) -> None:
    """Answer the test set and read the task features with the weights that `train` stored."""
    trained = TrainedArm(run, task, arms.arm_of(arm, arms.arms(run.config(task))))
    for product in trained.products:
        trained.make(product)

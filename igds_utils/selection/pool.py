"""A pool as selectors see it: samples as models read them, and what is measured on them.

pool = open_pool(run, "math", name="quality")
pool.target_loss  # (N,), of `measurements`
ranking = selectors.rank_pool("igds", pool, size=48)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.core.store import content_hash
from igds_utils.engine import activations, prompts
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import Feature
from igds_utils.engine.losses import Pair, cut_pairs
from igds_utils.selection import features, gradients  # noqa: F401  (importing registers)
from igds_utils.selection.measurements import MEASUREMENTS, Measured
from igds_utils.tasks.examples import Example

PART = 256  # samples of one part: what a killed measurement loses at most


class Samples:
    """Samples in the renderings that models read."""

    def __init__(self, run: Run, task: str, samples: Sequence[Example]):
        self.run, self.task, self.samples = run, task, samples

    @cached_property
    def prompts(self) -> list[str]:
        """Identification prompts, each ending in its critical colon."""
        return [self.run.prompt(self.task, sample) for sample in self.samples]

    def residuals(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Residual stream at p after some layers, {layer: (N, d)}, from one pass."""
        read = activations.critical_residuals
        return read(self.run.lm, self.prompts, layers, self.run.preset.batch_tokens)

    @cached_property
    def pairs(self) -> list[Pair]:
        """Tokens of identification prompt and target, cut as for training.

        A pair is the tokens of both, and how many of them are the prompt's.
        """
        targets = [f" {sample.target}" for sample in self.samples]
        tokenizer = self.run.tokenizer
        return self._cut(prompts.encode_pairs(tokenizer, self.prompts, targets, eos=False))

    @cached_property
    def uncut_training_pairs(self) -> list[Pair]:
        """Tokens of prompt, target and end in the SFT rendering."""
        records = self.run.training_records(self.task, list(self.samples))
        return self.run.training_pairs(records)

    @cached_property
    def training_pairs(self) -> list[Pair]:
        """The same, cut where training cuts them."""
        return self._cut(self.uncut_training_pairs)

    @property
    def max_length(self) -> int:
        return self.run.config(self.task).sft.max_length

    def _cut(self, pairs: Sequence[Pair]) -> list[Pair]:
        return cut_pairs(pairs, self.max_length, [sample.id for sample in self.samples])


class Pool(Samples):
    """Samples without labels and references, and what is measured on them, as attributes."""

    def __init__(
        self,
        run: Run,
        task: str,
        samples: Sequence[Example],
        folder: str,
        seed: int = 0,
        selectors: Sequence[str] = (),
        one_pass: bool = False,
    ):
        """folder: of its measurements, in the run's store.

        seed: of the random features that controls read. selectors: those that the pool is for.
        one_pass: all that is read at p comes from one pass (`at_p`); of a pool that is trained
        on, each selector makes its own, so that its cost is known.
        """
        # a label, or a reference that the target was made to differ from, tells all
        known = [Example(one.id, one.fields, one.target, ()) for one in samples]
        super().__init__(run, task, known)
        self.folder, self.seed, self.selectors, self.one_pass = folder, seed, selectors, one_pass
        self._measured: dict[str, Measured] = {}
        self.ids = [sample.id for sample in known]

    def __getattr__(self, name: str) -> Any:
        """The values of a measurement, by its name."""
        if name not in MEASUREMENTS:
            raise AttributeError(f"a pool has no {name!r}; measured are {', '.join(MEASUREMENTS)}")
        return self.measured(name).values

    @cached_property
    def task_features(self) -> list[Feature]:
        """Those that the causal filter chose; others can be set."""
        return self.run.task_features(self.task)

    @cached_property
    def prior(self) -> Pool:
        """D_prior. Give one pool's to another of the same task, and it is read once for both."""
        prior = self.run.examples(self.task, "prior")
        return Pool(self.run, self.task, prior, "", one_pass=self.one_pass)

    @cached_property
    def examples(self) -> Pool:
        """The first samples of D_prior: what the target task looks like."""
        first = self.run.examples(self.task, "prior")[: self.run.preset.selection.examples]
        return Pool(self.run, self.task, first, f"{self.task}/measurements/examples")

    def measured(self, name: str) -> Measured:
        """A measurement by name, read from disk or made; `examples.` stands before theirs."""
        of, _, own = name.rpartition(".")
        if of:
            return getattr(self, of).measured(own)
        if name not in self._measured:
            self._measured[name] = MEASUREMENTS[name][0](self)
        return self._measured[name]

    def measure_all(self) -> None:
        """Make all that its selectors ask for, in the order of definition."""
        asked = {name for own in self.selectors for name in selectors.get(own).measurements}
        for name in MEASUREMENTS:
            for one in sorted(asked & {name, f"examples.{name}"}):
                with self.run.until_part():
                    self.measured(one)

    def version(self, name: str) -> str:
        """What identifies a measurement; part of a ranking's inputs."""
        made = self.measured(name)
        content = self.run.store.version(made.product) if made.product else ""
        return content_hash([content, made.about])

    @cached_property
    def data_version(self) -> str:
        return content_hash([sample.version for sample in self.samples])

    @property
    def identified_from(self) -> dict[str, Any]:
        """What a measurement by the identification model depends on."""
        return self.run.inputs(self.task) | {"data": self.data_version}

    @property
    def trained_from(self) -> dict[str, Any]:
        """What a measurement by the model to be trained depends on."""
        return self.run.training_inputs(self.task) | {"data": self.data_version}

    @cached_property
    def at_p(self) -> dict[int, Tensor]:
        """Residual stream at p after every layer with an SAE, {layer: (N, d)}: one timed pass."""
        self.run.lm  # noqa: B018  (loaded before the clock starts)
        start = time.perf_counter()
        found = super().residuals(self.run.saes.layers)
        self.pass_seconds = time.perf_counter() - start
        return found

    def residuals(self, layers: Sequence[int]) -> dict[int, Tensor]:
        if not self.one_pass:
            return super().residuals(layers)
        return {layer: self.at_p[layer] for layer in layers}

    def at(self, part: Sequence[int]) -> Samples:
        """The samples of one part, neighbours."""
        own = slice(part[0], part[-1] + 1)
        some = Samples(self.run, self.task, self.samples[own])
        if self.one_pass:
            some.residuals = lambda layers: {layer: self.at_p[layer][own] for layer in layers}
        return some

    def stored(
        self,
        name: str,
        build: Callable[[Samples], pd.DataFrame | np.ndarray],
        inputs: dict[str, Any],
        about: dict[str, Any] | None = None,
        size: int = PART,
        values: Callable[[pd.DataFrame], Any] | None = None,
    ) -> Measured:
        """A measurement that is kept on disk part by part, one row a sample in their order.

        build: makes a table of `size` samples, or an array, (n,) or (n, length). inputs: what it
        depends on. about: what to know of it. values: makes its values of the whole table; by
        default those of its one column.
        """

        def rows(part: Sequence[int]) -> pd.DataFrame:
            made = build(self.at(part))
            return pd.DataFrame({"vector": list(made)}) if isinstance(made, np.ndarray) else made

        path, parts = self.path(name), [*even_chunks(range(len(self.ids)), size)]
        label = f"{self.task} {name}"
        table = self.run.make_in_parts(path, parts, rows, label, part=size, **inputs)
        found = values(table) if values else np.stack(table.iloc[:, 0].to_list())
        return Measured(found, path, about or {})

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}.parquet"


def open_pool(run: Run, task: str, seed: int = 0, name: str = "pool") -> Pool:
    """The pool that a task trains on, or its pool of known quality ("quality"); measured apart.

    Raises `ConfigError` where the preset is strict and the task feature is not established.
    """
    config, members = run.config(task), run.examples(task, name)
    if name == "quality":
        asked = config.quality.selectors
        asked = selectors.names() if asked == "all" else asked
        folder = f"{task}/quality/measurements"
        return Pool(run, task, members, folder, seed, asked, one_pass=True)
    igds = any(one.startswith("igds") for one in config.selectors)
    if igds and run.preset.intervention.strict:
        found = run.read(f"{task}/task_features.json")
        if not found["established"]:
            raise ConfigError(
                f"{task}: the effect of {', '.join(found['selected'])} is not established, and "
                f"intervention.strict asks for no IGDS arm then: leave it out of "
                f"tasks.{task}.selectors and .curve, or set strict to false"
            )
    return Pool(run, task, members, f"{task}/measurements", seed, config.selectors)

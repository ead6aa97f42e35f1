"""Samples of a task as the models read them, and measurements of them, each made once and stored."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from igds_utils.core import store
from igds_utils.core.experiment import Run
from igds_utils.engine import activations, prompts
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.losses import Pair
from igds_utils.tasks.examples import Example

PART = 256  # samples of one part: what a killed measurement loses at most


class Samples:
    """Samples in the renderings that models read. All of these are in memory: a pool is read part by part."""

    def __init__(
        self, run: Run, task: str, samples: Sequence[Example], read: dict[int, Tensor] | None = None
    ):
        """read: the residual stream at p after some layers, {layer: (N, d)}, where it was read before."""
        self.run, self.task, self.samples, self._read_before = run, task, samples, read

    @cached_property
    def prompts(self) -> list[str]:
        """Identification prompts, each ending in its critical colon."""
        return [self.run.prompt(self.task, sample) for sample in self.samples]

    def residuals(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """Residual stream at p after some layers, {layer: (N, d)}: one pass, which stops after the highest."""
        if self._read_before is not None:
            return {layer: self._read_before[layer] for layer in layers}
        return activations.critical_residuals(self.run.lm, self.prompts, layers, self.run.preset.batch_tokens)

    @cached_property
    def uncut_pairs(self) -> list[Pair]:
        """Tokens of identification prompt and target, and how many of them are the prompt's."""
        both = zip(self.prompts, self.samples, strict=True)
        encode = partial(prompts.encode_pair, self.run.tokenizer, eos=False)
        return [encode(prompt, f" {sample.target}") for prompt, sample in both]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The same, cut as for training."""
        return self._cut(self.uncut_pairs)

    @cached_property
    def training_records(self) -> list[dict[str, str]]:
        """id, prompt and completion in the SFT rendering."""
        return self.run.training_records(self.task, list(self.samples))

    @cached_property
    def uncut_training_pairs(self) -> list[Pair]:
        """Tokens of prompt, target and end in the SFT rendering, and how many of them are the prompt's."""
        return self.run.training_pairs(self.training_records)

    @cached_property
    def training_pairs(self) -> list[Pair]:
        """The same, cut where training cuts them; `ValueError` where that leaves no target."""
        return self._cut(self.uncut_training_pairs)

    def _cut(self, pairs: Iterable[Pair]) -> list[Pair]:
        longest, made = self.run.config(self.task).sft.max_length, []
        for sample, (ids, n_prompt) in zip(self.samples, pairs, strict=True):
            if n_prompt >= longest:
                raise ValueError(
                    f"sample {sample.id}: its prompt alone has {n_prompt} tokens, sft.max_length is {longest}: raise "
                    "it, or shorten the prompt"
                )
            made.append((ids[:longest], n_prompt))
        return made


class Measured(NamedTuple):
    """One measurement: its values (array or CSR matrix), the stored product behind it, and what to know of it."""

    values: Any
    product: str
    about: dict[str, Any]


# name -> how it is measured, and the rendering of a sample that a model reads for it, in the order of their definition
MEASUREMENTS: dict[str, tuple[Callable[[Any], Measured], str]] = {}


def measurement(reads: str = "") -> Callable[[Callable[[Any], Measured]], property]:
    """Decorator of a property that is measured, or read from disk, when it is first asked for.

    reads: `prompts`, `pairs` or `training_pairs` of `Samples`; nothing where no model of the run reads a sample.
    """

    def add(measure: Callable[[Any], Measured]) -> property:
        name = measure.__name__
        MEASUREMENTS[name] = measure, reads
        return property(lambda samples: samples.measured(name).values, doc=measure.__doc__)

    return add


class StoredSamples(Samples):
    """Samples on which something is measured part by part. folder: where it is stored, below the run's products.

    Raises `ValueError` without a sample and if two have one id.
    """

    def __init__(self, run: Run, task: str, samples: Sequence[Example], folder: str):
        super().__init__(run, task, samples)
        self.folder, self._measured = folder, {}
        self.ids: list[str] = getattr(samples, "ids", None) or [sample.id for sample in samples]
        if not self.ids:
            raise ValueError("the pool is empty: nothing can be selected from it")
        if (again := pd.Index(self.ids).duplicated()).any():
            doubled = self.ids[int(again.argmax())]
            raise ValueError(f"the pool holds sample {doubled!r} twice: every sample needs an id of its own")

    def measured(self, name: str) -> Measured:
        """A measurement by name, read from disk or made; `examples.` stands before those of the target examples."""
        of, _, own = name.rpartition(".")
        if of:
            return getattr(self, of).measured(own)
        if name not in self._measured:
            self._measured[name] = MEASUREMENTS[name][0](self)
        return self._measured[name]

    def measure(self, *names: str) -> None:
        """Make some measurements, in the order of their definition."""
        order = list(MEASUREMENTS)
        for name in sorted({*names}, key=lambda name: (order.index(name.rpartition(".")[2]), name)):
            with self.run.until_part():
                self.measured(name)

    def version(self, name: str) -> str:
        """What identifies a measurement, made first if it is not stored; part of a ranking's inputs."""
        made = self.measured(name)
        content = self.run.store.version(made.product) if made.product else ""
        return store.content_hash([content, made.about])

    @cached_property
    def data_version(self) -> str:
        return store.content_hash(sample.version for sample in self.samples)

    @property
    def identified_from(self) -> dict[str, Any]:
        """What a measurement by the identification model depends on."""
        return self.run.inputs(self.task) | {"data": self.data_version}

    @property
    def trained_from(self) -> dict[str, Any]:
        """What a measurement by the model to be trained depends on."""
        return self.run.training_inputs(self.task) | {"data": self.data_version}

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}.parquet"

    def at(self, part: Sequence[int]) -> Samples:
        """Those of one part, neighbours: no other sample is read, rendered and tokenized."""
        return Samples(self.run, self.task, self.samples[part[0] : part[-1] + 1])

    @cached_property
    def at_p(self) -> dict[int, Tensor]:
        """Residual stream at p after every layer with an SAE, {layer: (N, d)}: one pass, kept in memory and timed."""
        self.run.lm  # noqa: B018  (loaded before the clock starts)
        start = time.perf_counter()
        found = self.residuals(self.run.saes.layers)
        self.pass_seconds = time.perf_counter() - start
        return found

    def in_parts(
        self, name: str, build: Callable[[Samples], pd.DataFrame], size: int = PART, **inputs: Any
    ) -> pd.DataFrame:
        """A stored table, one row a sample in their order; `build` makes the rows of `size` samples."""
        parts, label = list(even_chunks(range(len(self.ids)), size)), f"{self.task} {name}"
        own = lambda part: build(self.at(part))  # noqa: E731
        return self.run.make_in_parts(self.path(name), parts, own, label, part=size, **inputs)

    def vectors(
        self, name: str, build: Callable[[Samples], np.ndarray], size: int = PART, **inputs: Any
    ) -> np.ndarray:
        """`in_parts` of one vector a sample: (N, length)."""
        table = self.in_parts(name, lambda part: pd.DataFrame({"vector": [*build(part)]}), size, **inputs)
        return np.stack(table["vector"].to_list())

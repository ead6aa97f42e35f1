"""Samples of a task as the models read them, and the pool whose measurements selectors share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from igds_utils import selectors
from igds_utils.core import store
from igds_utils.core.experiment import Run
from igds_utils.engine import prompts
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.losses import Pair
from igds_utils.tasks.examples import Example

PART = 256  # samples of one part: what a killed measurement loses at most


class Measured(NamedTuple):
    """One measurement: its values (array or CSR matrix), the stored product behind it, and what to know of it."""

    values: Any
    product: str
    about: dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Samples in the renderings that models read. stem: how the paths of what is measured on them begin.

    examples: a list, or a pool that stays in its file (`user_pool.UserPool`). What holds a text of every sample is for
    few of them; a pool is measured part by part (`at`).
    """

    run: Run
    task: str
    examples: Sequence[Example]
    stem: str

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    def at(self, part: Sequence[int]) -> Samples:
        """Those of one part, neighbours: no other sample is read, rendered and tokenized."""
        return replace(self, examples=self.examples[part[0] : part[-1] + 1])

    @cached_property
    def prompts(self) -> list[str]:
        """Identification prompts, each ending in its critical colon."""
        return [self.run.prompt(self.task, example) for example in self.examples]

    @cached_property
    def uncut_pairs(self) -> list[Pair]:
        """Tokens of identification prompt and target, and how many of them are the prompt's."""
        both = zip(self.prompts, self.examples, strict=True)
        encode = partial(prompts.encode_pair, self.run.tokenizer, eos=False)
        return [encode(prompt, f" {example.target}") for prompt, example in both]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The same, cut as for training."""
        return self._cut(self.uncut_pairs)

    @cached_property
    def training_records(self) -> list[dict[str, str]]:
        """id, prompt and completion in the SFT rendering."""
        return self.run.training_records(self.task, list(self.examples))

    @cached_property
    def uncut_training_pairs(self) -> list[Pair]:
        """Tokens of prompt, target and end in the SFT rendering, and how many of them are the prompt's."""
        return self.run.training_pairs(self.training_records)

    @cached_property
    def training_pairs(self) -> list[Pair]:
        """The same, cut where training cuts them; `ValueError` where that leaves no target."""
        return self._cut(self.uncut_training_pairs)

    def lengths(self, what: str) -> list[int]:
        """Tokens that a model reads of each sample; what: `prompts`, `pairs` or `training_pairs`.

        `ValueError` for one that it cannot read so.
        """
        if what == "prompts":
            return [len(prompts.encode(self.run.tokenizer, prompt)) for prompt in self.prompts]
        return [len(ids) for ids, _ in getattr(self, what)]

    def cut(self, what: str) -> set[str]:
        """Which of `prompts` and `targets` are not read to their end, of any sample."""
        training = what == "training_pairs"
        texts = [record["prompt"] for record in self.training_records] if training else self.prompts
        whole = what == "prompts" or getattr(self, what) == getattr(self, f"uncut_{what}")
        both = zip(self.examples, texts, strict=True) if self.run.config(self.task).max_prompt_tokens else ()
        as_read = partial(
            prompts.as_text, tokenizer=self.run.train_tokenizer if training else self.run.tokenizer
        )
        shown = all(as_read(max(example.fields.values(), key=len)) in text for example, text in both)
        return {kind for kind, read in (("prompts", shown), ("targets", whole)) if not read}

    def _cut(self, pairs: Iterable[Pair]) -> list[Pair]:
        longest, made = self.run.config(self.task).sft.max_length, []
        for example, (ids, n_prompt) in zip(self.examples, pairs, strict=True):
            if n_prompt >= longest:
                raise ValueError(
                    f"sample {example.id}: its prompt alone has {n_prompt} tokens, sft.max_length is {longest}: raise "
                    "it, or shorten the prompt"
                )
            made.append((ids[:longest], n_prompt))
        return made

    @cached_property
    def data_version(self) -> str:
        return store.content_hash(example.version for example in self.examples)

    def identified_from(self, **more: Any) -> dict[str, Any]:
        """What a measurement by the identification model depends on."""
        return self.run.inputs(self.task) | {"data": self.data_version} | more

    def trained_from(self, **more: Any) -> dict[str, Any]:
        """What a measurement by the model to be trained depends on."""
        return self.run.training_inputs(self.task) | {"data": self.data_version} | more

    def in_parts(
        self, name: str, build: Callable[[Sequence[int]], pd.DataFrame], size: int = PART, **inputs: Any
    ) -> pd.DataFrame:
        """A stored table, one row a sample in their order; `build` gets the indices of one part's samples."""
        parts = list(even_chunks(range(len(self.examples)), size))
        return self.run.make_in_parts(
            self.path(name), parts, build, f"{self.task} {name}", part=size, **inputs
        )

    def path(self, name: str) -> str:
        return f"{self.stem}{name}.parquet"


@dataclass(frozen=True)
class Pool:
    """A pool of a task: what is measured on it is stored in `folder`, below the folder of the run's products.

    seed: of the random features that controls read. selectors: those that the pool is for.
    """

    run: Run
    task: str
    examples: Sequence[Example]
    folder: str
    seed: int = 0
    selectors: Sequence[str] = ()
    _measured: dict[str, Measured] = field(default_factory=dict, repr=False)

    @cached_property
    def samples(self) -> Samples:
        return Samples(self.run, self.task, self.examples, f"{self.folder}/")

    @cached_property
    def target_examples(self) -> list[Example]:
        """The first samples of D_prior: what the target task looks like."""
        return self.run.examples(self.task, "prior")[: self.run.preset.selection.examples]

    @cached_property
    def target_samples(self) -> Samples:
        """They are the same for every pool of a task, and measured once for all of them."""
        return Samples(self.run, self.task, self.target_examples, f"{self.task}/needs/example_")

    def measured(self, need: str) -> Measured:
        """A measurement by name, read from disk or made; see `needs.MEASUREMENTS`."""
        from igds_utils.selection.needs import MEASUREMENTS

        if need not in self._measured:
            self._measured[need] = MEASUREMENTS[need](self)
        return self._measured[need]

    def measure_all(self) -> None:
        """Measure all that its selectors need, in the order of `needs.MEASUREMENTS`: one model after the other."""
        from igds_utils.selection.needs import MEASUREMENTS

        wanted = {need for name in self.selectors for need in selectors.get(name).needs}
        for need in MEASUREMENTS:
            if need in wanted:
                with self.run.until_part():
                    self.measured(need)

    def version(self, need: str) -> str:
        """What identifies a measurement, made first if it is not stored; part of a ranking's inputs."""
        if need == "examples":
            return self.target_samples.data_version
        made = self.measured(need)
        return store.content_hash([self.run.store.version(made.product), made.about])


def column(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column of vectors of one length as an array: (N, length)."""
    return np.stack(table[name].to_list())

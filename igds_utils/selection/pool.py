"""A pool of a task as selectors see it, with everything that is measured on it.

pool = open_pool(run, "math", name="quality")
pool.target_loss  # (N,)
ranking = selectors.rank_pool("igds", pool, size=48)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run, stamped
from igds_utils.engine import activations, losses, prompts
from igds_utils.engine.features import Feature
from igds_utils.engine.lm import LM
from igds_utils.selection import features, gradients, texts, tokens
from igds_utils.selection.samples import Measured, Samples, StoredSamples, measurement
from igds_utils.selectors.base import document
from igds_utils.tasks.examples import Example

PROMPTS = 2048  # samples of one part where only prompts are read, which are short
CONTROL_PROMPTS = 8192  # some SAEs are read anew for every part, and controls read those of all layers
DEPTH = 0.6  # of the model, where `prior_cosines` reads

Name = Literal["pool", "quality"]


class Pool(StoredSamples):
    """A pool of a task: its samples, without labels and references, and what is measured on them.

    The measurements stand in the order in which `measure_all` makes them, so that no model is loaded twice: what takes
    a model of its own, what the model to be trained reads, and last what the one with the SAEs reads.
    """

    def __init__(
        self,
        run: Run,
        task: str,
        samples: Sequence[Example],
        folder: str,
        seed: int = 0,
        selectors: Sequence[str] = (),
        task_features: list[Feature] | None = None,
        one_pass: bool = False,
    ):
        """samples: a list, or a pool that stays in its file (`tool.UserPool`). folder: as for `StoredSamples`.

        seed: of the random features that controls read. selectors: those that the pool is for. task_features: by
        default those that the causal filter chose. one_pass: all that is read at p comes from one pass (`at_p`);
        of a pool that is trained on, each selector makes its own, so that its cost is known.
        """
        if isinstance(
            samples, list
        ):  # a label, or a reference that the target was made to differ from, tells all
            samples = [Example(one.id, one.fields, one.target, ()) for one in samples]
        super().__init__(run, task, samples, folder)
        self.seed, self.selectors, self._task_features = seed, selectors, task_features
        self.one_pass = one_pass

    @property
    def task_features(self) -> list[Feature]:
        return self.run.task_features(self.task) if self._task_features is None else self._task_features

    @cached_property
    def examples(self) -> Pool:
        """The first samples of D_prior: what the target task looks like. Measured once for all pools of a task."""
        prior = self.run.examples(self.task, "prior")[: self.run.preset.selection.examples]
        return Pool(self.run, self.task, prior, f"{self.task}/measurements/examples")

    def at(self, part: Sequence[int]) -> Samples:
        own = super().at(part)
        if self.one_pass:
            kept = slice(part[0], part[-1] + 1)
            return Samples(self.run, self.task, own.samples, {layer: h[kept] for layer, h in self.at_p.items()})
        return own

    def measure_all(self) -> None:
        """Measure all that its selectors ask for, one model after the other."""
        self.measure(*(name for own in self.selectors for name in selectors.get(own).measurements))

    # ---- texts ----

    @measurement()
    def target_examples(self) -> Measured:
        """The examples of the target task themselves."""
        return Measured(self.examples.samples, "", {"data": self.examples.data_version})

    @measurement()
    def embeddings(self) -> Measured:
        """Sentence embedding of every sample, instruction and target, by the preset's encoder: (N, d)."""
        ref = self.run.preset.selection.encoder
        encoder = cache(lambda: texts.load_encoder(ref))

        def build(part: Samples) -> np.ndarray:
            return texts.embed(encoder(), [document(sample) for sample in part.samples])

        values = self.vectors("embeddings", build, encoder=stamped(ref), data=self.data_version)
        return Measured(values, self.path("embeddings"), {"encoder": ref.model_dump()})

    @measurement()
    def tags(self) -> Measured:
        """Which tag each sample's instruction has: CSR (N, tags) of 0 and 1. Without a tagger: its word n-grams."""
        ref = self.run.preset.selection.tagger
        lm = cache(lambda: self.run.load(ref))

        def build(part: Samples) -> pd.DataFrame:
            asked = [sample.text for sample in part.samples]
            found = texts.model_tags(lm(), asked) if ref else map(texts.word_ngrams, asked)
            return pd.DataFrame({"tags": list(found)})

        inputs = dict(tagger=stamped(ref), dtype=self.run.preset.chosen.dtype if ref else None)
        table = self.in_parts("tags", build, data=self.data_version, **inputs)
        stand_in = {"tagger": "word n-grams, a stand-in", "ngrams": texts.NGRAMS}
        about = {"tagger": ref.model_dump()} if ref else stand_in
        return Measured(texts.tag_matrix(table["tags"])[0], self.path("tags"), about)

    # ---- the model to be trained, in the SFT rendering ----

    @measurement("training_pairs")
    def gradients(self) -> Measured:
        """Projected Adam steps after a LoRA warm-up: (N, checkpoints, dimensions).

        Each vector is as long as its checkpoint's learning rate, as a share of the sum of all of them.
        """
        values, rates = gradients.measure(self, self, adam=True)
        shares = (rates / rates.sum()).astype(values.dtype)
        less = {"less": self.run.preset.selection.less.model_dump()}
        return Measured(values * shares[:, None], self.path("gradients"), less)

    @measurement()
    def example_gradients(self) -> Measured:
        """Projected gradients of the target examples under the pool's own warm-up: (examples, ...) of length 1."""
        own = Pool(self.run, self.task, self.examples.samples, f"{self.folder}/examples")
        values, _ = gradients.measure(self, own, adam=False)
        return Measured(values, own.path("gradients"), {"less": self.run.preset.selection.less.model_dump()})

    @cached_property
    def _target_losses(self) -> pd.DataFrame:
        def build(part: Samples) -> pd.DataFrame:
            pairs, uncut = part.training_pairs, part.uncut_training_pairs
            cut = [len(kept) < len(whole) for (kept, _), (whole, _) in zip(pairs, uncut, strict=True)]
            return pd.DataFrame({"target_loss": self._losses(pairs), "cut": cut})

        return self.in_parts("target_loss", build, **self.trained_from)

    def _losses(self, pairs: list[losses.Pair]) -> np.ndarray:
        return losses.target_losses(self.run.train_lm, pairs, self.run.preset.batch_tokens)

    @measurement("training_pairs")
    def target_loss(self) -> Measured:
        """Mean cross-entropy of each target given its prompt, in nats a token: (N,). Loss and IFD share it."""
        return Measured(self._target_losses["target_loss"].to_numpy(), self.path("target_loss"), {})

    @measurement("training_pairs")
    def target_cut(self) -> Measured:
        """Whether the target reaches beyond `sft.max_length`, where training cuts it: (N,) bool."""
        return Measured(self._target_losses["cut"].to_numpy(), self.path("target_loss"), {})

    @measurement("training_pairs")
    def bare_target_loss(self) -> Measured:
        """Mean cross-entropy of the same target tokens given only a bare header (`prompts.bare_header`): (N,).

        The tokens are those of the conditioned pass, so that a ratio of the two compares like with like.
        """
        tokenizer = self.run.train_tokenizer
        header = prompts.bare_header(self.run.task(self.task), tokenizer, self.run.config(self.task))

        def build(part: Samples) -> pd.DataFrame:
            start = prompts.encode(tokenizer, header)
            pairs = [(start + ids[n_prompt:], len(start)) for ids, n_prompt in part.training_pairs]
            return pd.DataFrame({"bare_target_loss": self._losses(pairs)})

        table = self.in_parts("bare_target_loss", build, header=header, **self.trained_from)
        values = table["bare_target_loss"].to_numpy()
        return Measured(values, self.path("bare_target_loss"), {"header": header})

    @measurement("training_pairs")
    def hidden_states(self) -> Measured:
        """Position-weighted mean of the last hidden states, over prompt, target and end: (N, d), of length 1."""

        def build(part: Samples) -> np.ndarray:
            sequences = [ids for ids, _ in part.training_pairs]
            batch_tokens = self.run.preset.batch_tokens
            return tokens.weighted_hidden_states(self.run.train_lm, sequences, batch_tokens).numpy()

        values = self.vectors("hidden_states", build, **self.trained_from)
        return Measured(values, self.path("hidden_states"), {})

    # ---- the identification model, at the critical position ----

    @measurement("prompts")
    def task_feature_activations(self) -> Measured:
        """a_i(x, p) of the task features, in a pass by itself, so that its cost is known: (N, k)."""
        return self._activations("task_feature_activations", self.task_features)

    @measurement("prompts")
    def unrecalled_activations(self) -> Measured:
        """a_i(x, p) of the features that the causal filter keeps of random ones, without recall: (N, k).

        A feature that is kept may be silent at p: then it gives every sample the score 0.
        """
        found = features.unrecalled(self.run, self.task, self.seed)
        return self._activations(f"unrecalled_activations-s{self.seed}", found)

    @measurement("prompts")
    def prior_cosines(self) -> Measured:
        """Cosine of each sample's residual stream at p to the mean of D_prior's, (N, 1), at one layer."""
        run, layer = self.run, fixed_layer(self.run)
        prior = Samples(run, self.task, run.examples(self.task, "prior"))
        mean = cache(lambda: prior.residuals([layer])[layer].mean(dim=0))  # (d,)

        def build(part: Samples) -> pd.DataFrame:
            h = part.residuals([layer])[layer]
            return pd.DataFrame({"cosine": torch.cosine_similarity(h, mean()[None])})

        inputs = self.identified_from | {"layer": layer, "prior": run.data_version(self.task, "prior")}
        table = self.in_parts("prior_cosines", build, PROMPTS, **inputs)
        return Measured(table.to_numpy(), self.path("prior_cosines"), {"layer": layer})

    @measurement("prompts")
    def matched_activations(self) -> Measured:
        """a_i(x, p) of random features that fire as often on D_prior, in the layers of the task features: (N, k)."""
        return self._activations("critical_reads", self._matched(self.seed))

    @measurement("prompts")
    def ranked_activations(self) -> Measured:
        """a_i(x, p) of the candidates with the largest causal effects, best first: (N, at most 5)."""
        return self._activations("critical_reads", features.ranked(self.run, self.task))

    @measurement("prompts")
    def recalled_activations(self) -> Measured:
        """a_i(x, p) of all features that frequency recall found: (N, |F_cand|)."""
        return self._activations("critical_reads", features.recalled(self.run, self.task))

    def _activations(self, name: str, found: list[Feature]) -> Measured:
        """a_i(x, p) of some features, in the units in which the preset counts them: (N, features)."""
        table = self.critical_reads if name == "critical_reads" else self._read(name, found, PROMPTS)
        names = [feature.name for feature in found]
        values = features.in_units(self.run, table[names].to_numpy(), found)
        return Measured(values, self.path(name), {"features": names, "units": self.run.preset.scoring.units})

    @cached_property
    def critical_reads(self) -> pd.DataFrame:
        """What the matched, ranked and recalled read at p, for all seeds of the task: one pass, a column a feature."""
        seeds = sorted({*self.run.config(self.task).seeds, self.seed})
        every = {*self.task_features, *(one for seed in seeds for one in self._matched(seed))}
        every |= {*features.ranked(self.run, self.task), *features.recalled(self.run, self.task)}
        return self._read("critical_reads", sorted(every), CONTROL_PROMPTS)

    def _matched(self, seed: int) -> list[Feature]:
        return features.matched(self.run, self.task, self.task_features, seed)

    def _read(self, name: str, found: list[Feature], size: int) -> pd.DataFrame:
        """a_i(x, p) of some features, a column each."""
        names, layers = [feature.name for feature in found], sorted({feature.layer for feature in found})
        kept: dict = {}  # what is read of the SAEs

        def build(part: Samples) -> pd.DataFrame:
            residual = part.residuals(layers)
            values = activations.feature_activations(residual, self.run.saes, found, kept)
            return pd.DataFrame(values.numpy(), columns=names)

        return self.in_parts(name, build, size, features=names, **self.identified_from)

    # ---- the identification model, at all tokens of prompt and target, in the deepest layer that has an SAE ----

    @measurement("pairs")
    def sae_mean(self) -> Measured:
        """Mean activation of every feature over all tokens: CSR (N, M)."""
        return self._sae_tokens("mean")

    @measurement("pairs")
    def sae_max(self) -> Measured:
        """Largest activation of every feature on any token: CSR (N, M)."""
        return self._sae_tokens("max")

    @measurement("pairs")
    def neuron_mean(self) -> Measured:
        """Mean positive part of every MLP neuron over all tokens: (N, m)."""
        table = self._tokens("neuron_means", tokens.neuron_means)
        values = np.stack(table["neurons"].to_list())
        return Measured(values, self.path("neuron_means"), {"layer": table.attrs["layer"]})

    def _sae_tokens(self, name: str) -> Measured:
        def read(lm: LM, layer: int, *what: Any) -> pd.DataFrame:
            return tokens.token_activations(lm, self.run.saes[layer], layer, *what)

        table = self._tokens("token_activations", read)
        ends = np.cumsum([0, *map(len, table["features"])])
        parts = (np.concatenate(table[name].to_list()), np.concatenate(table["features"].to_list()), ends)
        values = csr_matrix(parts, shape=(len(table), table.attrs["d_sae"]))
        return Measured(values, self.path("token_activations"), {"layer": table.attrs["layer"]})

    def _tokens(self, name: str, read: Callable[..., pd.DataFrame]) -> pd.DataFrame:
        """What `read` gives; the table's attrs say which layer, so that a stored one needs no model."""
        run = self.run

        def build(part: Samples) -> pd.DataFrame:
            layer = run.saes.layers[-1]
            table = read(run.lm, layer, [ids for ids, _ in part.pairs], run.preset.batch_tokens)
            table.attrs = {"layer": layer, "d_sae": run.saes.d_sae}
            return table

        inputs = self.identified_from | {"max_length": run.config(self.task).sft.max_length}
        return self.in_parts(name, build, **inputs)


def fixed_layer(run: Run) -> int:
    """The layer with an SAE nearest to 60 % of the depth, where what reads one layer reads."""
    depth = DEPTH * run.lm_config.num_hidden_layers
    return min(run.saes.layers, key=lambda layer: abs(layer + 1 - depth))


def open_pool(run: Run, task: str, seed: int = 0, name: Name = "pool") -> Pool:
    """The pool that a task trains on, or its pool of known quality; measurements are stored apart.

    Raises `ConfigError` where the preset is strict (`intervention.strict`) and the task feature is not established.
    """
    config = run.config(task)
    if name == "quality":
        asked = config.quality.selectors if config.quality else "all"
        asked = selectors.names() if asked == "all" else asked
        folder = f"{task}/quality/measurements"
        return Pool(run, task, run.examples(task, name), folder, seed, asked, one_pass=True)
    if run.preset.intervention.strict and any(one.startswith("igds") for one in config.selectors):
        found = run.read(f"{task}/task_features.json")
        if not found["established"]:
            others = ",".join(one for one in config.selectors if not one.startswith("igds"))
            change = f"tasks.{task}.selectors=[{others}]" + f" tasks.{task}.curve=null" * bool(config.curve)
            raise ConfigError(
                f"{task}: the effect of {', '.join(found['selected'])} is not established on the confirmation set, "
                f'and intervention.strict asks for no IGDS arm then: leave it out (SET="{change}"), or set strict to '
                "false"
            )
    return Pool(run, task, run.examples(task, name), f"{task}/measurements", seed, config.selectors)

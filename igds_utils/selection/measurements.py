"""What can be measured on a pool: functions of it by name; their values are stored, and made once.

A pool makes them in the order of their definition, so that no model is loaded twice: what takes a
model of its own, what the model to be trained reads, and what the one with the SAEs reads. More
stand in `features`; `gradients`, which changes a copy of the model to be trained, comes last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import regex
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from igds_utils.core.experiment import Run, stamped
from igds_utils.data.hub import SourceError
from igds_utils.engine import losses, prompts
from igds_utils.engine.batching import padded_batches
from igds_utils.engine.generation import generate
from igds_utils.engine.lm import LM, last_hidden, residuals
from igds_utils.engine.loading import model_folder
from igds_utils.selectors.base import document
from igds_utils.selectors.similarity import words

if TYPE_CHECKING:
    from igds_utils.selection.pool import Pool, Samples

PROMPTS = 2048  # samples of one part where only prompts are read, which are short
MAX_NEW_TOKENS = 256  # about a dozen tags with their explanations
NGRAMS = (1, 2)
# The words that InsTagger was trained on; other models understand them too.
INSTRUCTION = (
    "You are a helpful assistant. Please identify tags of user intentions in the following user "
    "query and provide an explanation for each tag. Please respond in the JSON format "
    '{{"tag": str, "explanation": str}}.\nQuery: {text}'
)


class Measured(NamedTuple):
    """One measurement."""

    values: Any  # array or CSR matrix
    product: str  # where it is stored
    about: dict[str, Any]  # what to know of it


# name -> how it is measured, and the rendering of a sample that a model reads for it
MEASUREMENTS: dict[str, tuple[Callable[[Pool], Measured], str]] = {}


def measurement(reads: str = "") -> Callable[[Callable], Callable]:
    """Decorator: make a function known as a measurement; `pool.<name>` gives its values.

    reads: `prompts`, `pairs` or `training_pairs` of `Samples`, where a model of the run reads it.
    """

    def add(measure: Callable[[Pool], Measured]) -> Callable[[Pool], Measured]:
        MEASUREMENTS[measure.__name__] = measure, reads
        return measure

    return add


@measurement()
def target_examples(pool: Pool) -> Measured:
    """The examples of the target task themselves."""
    return Measured(pool.examples.samples, "", {"data": pool.examples.data_version})


@measurement()
def embeddings(pool: Pool) -> Measured:
    """Sentence embedding of instruction and target by the preset's encoder: (N, d), of length 1."""
    ref = pool.run.preset.selection.encoder

    @cache
    def encoder():
        from sentence_transformers import SentenceTransformer

        # no code of a repository is run: LLM2Vec is read without its own two-way attention
        folder = model_folder(ref)
        if code := next(folder.rglob("*.py"), None):
            raise SourceError(f"the encoder's {code} would be run: read it, then remove it")
        return SentenceTransformer(str(folder), model_kwargs={"use_safetensors": True})

    def build(part: Samples) -> np.ndarray:
        texts = [document(sample) for sample in part.samples]
        return encoder().encode(texts, normalize_embeddings=True, show_progress_bar=False)

    inputs = {"encoder": stamped(ref), "data": pool.data_version}
    return pool.stored("embeddings", build, inputs, {"encoder": ref.model_dump()})


@measurement()
def tags(pool: Pool) -> Measured:
    """The tags of each sample's instruction, as lists of texts; without a tagger its n-grams."""
    ref, dtype = pool.run.preset.selection.tagger, pool.run.preset.chosen.dtype
    lm = cache(lambda: pool.run.load(ref))

    def build(part: Samples) -> pd.DataFrame:
        texts = [sample.text for sample in part.samples]
        found = model_tags(lm(), texts) if ref else [word_ngrams(text) for text in texts]
        return pd.DataFrame({"tags": found})

    about = {"tagger": "word n-grams, a stand-in", "ngrams": NGRAMS}
    about = {"tagger": ref.model_dump()} if ref else about
    inputs = {"tagger": stamped(ref), "dtype": dtype if ref else None, "data": pool.data_version}
    return pool.stored("tags", build, inputs, about, values=lambda table: table["tags"].to_list())


def model_tags(lm: LM, texts: Sequence[str], rows: int = 16) -> list[list[str]]:
    """Tags of each text as a tagging model writes them, greedily decoded, `rows` together."""
    asked = [INSTRUCTION.format(text=prompts.as_text(text, lm.tokenizer)) for text in texts]
    if lm.tokenizer.chat_template:
        turns = [[{"role": "user", "content": text}] for text in asked]
        render = lm.tokenizer.apply_chat_template
        asked = render(turns, tokenize=False, add_generation_prompt=True)
    else:
        asked = [f"{text}\nAssistant:" for text in asked]
    return [parse_tags(outputs[0]) for outputs in generate(lm, asked, MAX_NEW_TOKENS, rows=rows)]


def parse_tags(output: str) -> list[str]:
    """Every value of "tag" in what a model wrote, also where its JSON breaks off."""
    return re.findall(r'"tag"\s*:\s*"([^"]+)"', output)


def word_ngrams(text: str) -> list[str]:
    """Distinct runs of one and two words of a text; punctuation ends a run."""
    from nltk.util import everygrams

    found: dict[str, None] = {}
    for run in regex.split(r"[^\w\s\p{M}]+", text):
        found |= dict.fromkeys(map(" ".join, everygrams(words(run), *NGRAMS)))
    return list(found)


@measurement("training_pairs")
def target_loss(pool: Pool) -> Measured:
    """Mean cross-entropy of each target given its prompt, in nats a token: (N,)."""
    return _target(pool, "target_loss")


@measurement("training_pairs")
def target_cut(pool: Pool) -> Measured:
    """Whether the target reaches beyond `sft.max_length`, where training cuts it: (N,) bool."""
    return _target(pool, "cut")


def _target(pool: Pool, column: str) -> Measured:
    def build(part: Samples) -> pd.DataFrame:
        cut = [len(ids) > part.max_length for ids, _ in part.uncut_training_pairs]
        return pd.DataFrame({"target_loss": _losses(pool.run, part.training_pairs), "cut": cut})

    inputs = pool.trained_from
    return pool.stored("target_loss", build, inputs, values=lambda table: table[column].to_numpy())


@measurement("training_pairs")
def bare_target_loss(pool: Pool) -> Measured:
    """Mean cross-entropy of the same target tokens given `prompts.bare_header` alone: (N,)."""
    run = pool.run
    header = prompts.bare_header(run.task(pool.task), run.train_tokenizer, run.config(pool.task))

    def build(part: Samples) -> np.ndarray:
        start, pairs = prompts.encode(run.train_tokenizer, header), part.training_pairs
        return _losses(run, [(start + ids[n_prompt:], len(start)) for ids, n_prompt in pairs])

    inputs = {"header": header} | pool.trained_from
    return pool.stored("bare_target_loss", build, inputs, {"header": header})


def _losses(run: Run, pairs: list[losses.Pair]) -> np.ndarray:
    return losses.target_losses(run.train_lm, pairs, run.preset.batch_tokens)


@measurement("training_pairs")
def hidden_states(pool: Pool) -> Measured:
    """Mean of the last hidden states over prompt, target and end: (N, d), of length 1.

    They are read after the final norm; token t of T has the weight t.
    """
    return pool.stored("hidden_states", weighted_hidden_states, pool.trained_from)


def weighted_hidden_states(part: Samples) -> np.ndarray:
    lm = part.run.train_lm
    found = np.empty((len(part.samples), lm.width), dtype=np.float32)
    for batch, inputs in _batches(part, lm, part.training_pairs):
        with torch.inference_mode():
            h = last_hidden(lm, **inputs, use_cache=False).float()  # (B, T, d)
            mask = inputs["attention_mask"]
            weights = (mask * mask.cumsum(-1)).float()  # (B, T)
            mean = torch.einsum("bt,btd->bd", weights / weights.sum(-1, keepdim=True), h)
            found[batch] = normalize(mean, dim=-1).cpu()
    return found


def _batches(part: Samples, lm: LM, pairs: list[losses.Pair]) -> Iterator[tuple[list[int], dict]]:
    sequences = [ids for ids, _ in pairs]
    return padded_batches(lm, sequences, part.run.preset.batch_tokens, "read tokens")


@measurement("prompts")
def prior_cosines(pool: Pool) -> Measured:
    """Cosine of the residual stream at p to the mean of D_prior's, at one layer: (N,)."""
    layer = fixed_layer(pool.run)
    mean = cache(lambda: pool.prior.residuals([layer])[layer].mean(dim=0))  # (d,)

    def build(part: Samples) -> np.ndarray:
        return torch.cosine_similarity(part.residuals([layer])[layer], mean()[None]).numpy()

    prior = pool.run.data_version(pool.task, "prior")
    inputs = pool.identified_from | {"layer": layer, "prior": prior}
    return pool.stored("prior_cosines", build, inputs, {"layer": layer}, size=PROMPTS)


def fixed_layer(run: Run) -> int:
    """The layer with an SAE nearest to 60 % of the depth, where what reads one layer reads."""
    depth = 0.6 * run.lm_config.num_hidden_layers
    return min(run.saes.layers, key=lambda layer: abs(layer + 1 - depth))


@measurement("pairs")
def sae_mean(pool: Pool) -> Measured:
    """Mean activation of every feature over all tokens: CSR (N, M)."""
    return _of_tokens(pool, "token_activations", token_activations, "mean")


@measurement("pairs")
def sae_max(pool: Pool) -> Measured:
    """Largest activation of every feature on any token: CSR (N, M)."""
    return _of_tokens(pool, "token_activations", token_activations, "max")


@measurement("pairs")
def neuron_mean(pool: Pool) -> Measured:
    """Mean positive part of what the MLP's down projection reads, over all tokens: (N, m)."""
    return _of_tokens(pool, "neuron_means", neuron_means)


def _of_tokens(pool: Pool, name: str, read: Callable, column: str = "") -> Measured:
    """column: the one of a table of activations whose CSR matrix is asked for."""

    def matrix(table: pd.DataFrame) -> csr_matrix:
        data, indices = (np.concatenate(table[name].to_list()) for name in (column, "features"))
        ends = np.cumsum([0, *map(len, table["features"])])
        return csr_matrix((data, indices, ends), (len(table), table.attrs["d_sae"]))

    inputs = pool.identified_from | {"max_length": pool.max_length}
    about = {"layer": pool.run.saes.layers[-1]}
    return pool.stored(name, read, inputs, about, values=matrix if column else None)


def token_activations(part: Samples) -> pd.DataFrame:
    """features (indices of those that fire on a sample), mean and max over its tokens."""
    sae = part.run.saes[part.run.saes.layers[-1]]

    def row(h: Tensor, _neurons: Tensor) -> list[np.ndarray]:
        acts = sae.encode(h)  # (tokens, M)
        peak = acts.max(0).values
        fires = peak.nonzero()[:, 0]
        return [one.cpu().numpy() for one in (fires.int(), acts.mean(0)[fires], peak[fires])]

    table = pd.DataFrame(_rows(part, row), columns=["features", "mean", "max"])
    table.attrs = {"d_sae": part.run.saes.d_sae}
    return table


def neuron_means(part: Samples) -> np.ndarray:
    rows = _rows(part, lambda _h, neurons: neurons.clamp(min=0).mean(0).cpu().numpy())
    return np.stack(rows)


def _rows(part: Samples, row: Callable[[Tensor, Tensor], Any]) -> list[Any]:
    """`row` of every sample's residual stream (tokens, d) and MLP's neurons (tokens, m).

    All tokens but the first, an attention sink. Passes stop at the deepest layer with an SAE.
    """
    lm, layer, caught, found = part.run.lm, part.run.saes.layers[-1], [], {}
    down = lm.blocks[layer].mlp.down_proj
    with down.register_forward_pre_hook(lambda _module, args: caught.append(args[0])):
        for batch, inputs in _batches(part, lm, part.pairs):
            h = residuals(lm, [layer], **inputs)[layer]
            neurons, read = caught.pop(), inputs["attention_mask"].bool()
            read[:, 0] = False
            with torch.inference_mode():
                for i, own, *both in zip(batch, read, h, neurons, strict=True):
                    found[i] = row(*(one[own].float() for one in both))
    return [found[i] for i in range(len(found))]

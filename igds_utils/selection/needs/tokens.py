"""What fires on the tokens of a sample, prompt and target, at the deepest layer that has an SAE: features and neurons.

The identification model reads it, for MONA and the coverage selectors. Most features are silent on a sample: the means
and maxima of those that are not are kept, as a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from tqdm import tqdm

from igds_utils.engine.batching import pad, token_batches
from igds_utils.engine.lm import LM, residuals
from igds_utils.selection.needs.samples import Measured, Pool, Samples, column


def token_activations(
    lm: LM, sae, layer: int, sequences: Sequence[Sequence[int]], batch_tokens: int = 2048
) -> pd.DataFrame:
    """Which SAE features of a layer fire on each token sequence, one row a sequence.

    sequences: token ids; the first token of each, an attention sink, is not read. Columns: features (indices of those
    that fire anywhere), mean (of each over all tokens read), max (over them).
    Raises `ValueError` for a sequence of one token.
    """
    rows: list[dict] = [{}] * len(sequences)
    for i, h, _ in _read(lm, layer, sequences, batch_tokens):
        with torch.inference_mode():
            acts = sae.encode(h)  # (tokens, M)
            peak = acts.max(0).values
            fires = peak.nonzero()[:, 0]
            rows[i] = {
                "features": fires.cpu().numpy().astype(np.int32),
                "mean": acts.mean(0)[fires].cpu().numpy(),
                "max": peak[fires].cpu().numpy(),
            }
    return pd.DataFrame(rows)


def neuron_means(
    lm: LM, layer: int, sequences: Sequence[Sequence[int]], batch_tokens: int = 2048
) -> pd.DataFrame:
    """The mean positive part of every neuron of a layer's MLP (what enters its down projection), one row a sequence.

    sequences: as for `token_activations`. Column: neurons, (m,) each.
    """
    rows: list[np.ndarray] = [np.empty(0)] * len(sequences)
    for i, _, neurons in _read(lm, layer, sequences, batch_tokens):
        rows[i] = neurons.clamp(min=0).mean(0).cpu().numpy()
    return pd.DataFrame({"neurons": rows})


def _read(
    lm: LM, layer: int, sequences: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of a sequence, its residual stream after a layer (tokens, d), the neurons of its MLP (tokens, m)).

    All tokens but the first of each; passes stop at that layer.
    """
    if short := [number for number, ids in enumerate(sequences) if len(ids) < 2]:
        raise ValueError(f"sample {short[0]} has no token but its first, which is not read: give it a text")
    down = lm.blocks[layer].mlp.down_proj
    with tqdm(total=len(sequences), desc="read tokens", unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids in sequences], batch_tokens):
            inputs = pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            caught = []
            handle = down.register_forward_pre_hook(
                lambda _module, args, caught=caught: caught.append(args[0])
            )
            try:
                h = residuals(lm, [layer], **inputs)[layer]
            finally:
                handle.remove()
            neurons, read = caught[0].to(h.device), inputs["attention_mask"].bool()
            read[:, 0] = False
            for row, i in enumerate(batch):
                yield i, h[row, read[row]].float(), neurons[row, read[row]].float()
            bar.update(len(batch))


def sae_mean(pool: Pool) -> Measured:
    """Mean activation of every feature over all tokens: CSR (N, M)."""
    return _features(pool, pool.samples, "mean")


def sae_max(pool: Pool) -> Measured:
    """Largest activation of every feature on any token: CSR (N, M)."""
    return _features(pool, pool.samples, "max")


def example_sae_mean(pool: Pool) -> Measured:
    """`sae_mean` of the target examples: CSR (examples, M)."""
    return _features(pool, pool.target_samples, "mean")


def neuron_mean(pool: Pool) -> Measured:
    """Mean positive part of every MLP neuron over all tokens: (N, m)."""
    return _neurons(pool, pool.samples)


def example_neuron_mean(pool: Pool) -> Measured:
    """`neuron_mean` of the target examples: (examples, m)."""
    return _neurons(pool, pool.target_samples)


def _features(pool: Pool, samples: Samples, name: str) -> Measured:
    run = pool.run
    table = _measure(
        samples,
        "token_activations",
        lambda layer, sequences: token_activations(
            run.lm, run.saes[layer], layer, sequences, run.preset.batch_tokens
        ),
    )
    ends = np.cumsum([0, *map(len, table["features"])])
    parts = (np.concatenate(table[name].to_list()), np.concatenate(table["features"].to_list()), ends)
    values = csr_matrix(parts, shape=(len(table), table.attrs["d_sae"]))
    return Measured(values, samples.path("token_activations"), {"layer": table.attrs["layer"]})


def _neurons(pool: Pool, samples: Samples) -> Measured:
    run = pool.run
    table = _measure(
        samples,
        "neuron_means",
        lambda layer, sequences: neuron_means(run.lm, layer, sequences, run.preset.batch_tokens),
    )
    return Measured(column(table, "neurons"), samples.path("neuron_means"), {"layer": table.attrs["layer"]})


def _measure(
    samples: Samples, name: str, read: Callable[[int, Sequence[Sequence[int]]], pd.DataFrame]
) -> pd.DataFrame:
    """What `read` gives at the deepest layer that has an SAE; the table's attrs say which, and the size of its SAE.

    So a stored table is used without loading the model and its SAEs.
    """
    run = samples.run

    def build(part: Sequence[int]) -> pd.DataFrame:
        layer = run.saes.layers[-1]
        table = read(layer, [ids for ids, _ in samples.at(part).pairs])
        table.attrs = {"layer": layer, "d_sae": run.saes.d_sae}
        return table

    inputs = samples.identified_from(max_length=run.config(samples.task).sft.max_length)
    return samples.in_parts(name, build, **inputs)

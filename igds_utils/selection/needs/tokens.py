"""What fires on the tokens of a sample, prompt and target, at the deepest layer that has an SAE: features and neurons.

The identification model reads it, for MONA and the coverage selectors. Most features are silent on a sample: the means
and maxima of those that are not are kept, as a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Which SAE features and MLP neurons of a layer are active on each token sequence, one row a sequence.

    sequences: token ids; the first token of each, an attention sink, is not read. Columns: features (indices of those
    that fire anywhere), mean (of each over all tokens read), max (over them), neurons (mean of the positive part of
    every neuron: what enters the MLP's down projection).
    Raises `ValueError` for a sequence of one token.
    """
    if short := [number for number, ids in enumerate(sequences) if len(ids) < 2]:
        raise ValueError(f"sample {short[0]} has no token but its first, which is not read: give it a text")
    rows: list[dict] = [{}] * len(sequences)
    with tqdm(total=len(sequences), desc="read tokens", unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids in sequences], batch_tokens):
            inputs = pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            h, neurons = _read(lm, layer, inputs)
            read = inputs["attention_mask"].bool()
            read[:, 0] = False
            with torch.inference_mode():
                for row, i in enumerate(batch):
                    rows[i] = _summary(sae.encode(h[row, read[row]].float()), neurons[row, read[row]].float())
            bar.update(len(batch))
    return pd.DataFrame(rows)


def _read(lm: LM, layer: int, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Residual stream after a layer (B, T, d) and the neurons of its MLP (B, T, m), in one pass that stops there."""
    caught = []
    down = lm.blocks[layer].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        h = residuals(lm, [layer], **inputs)[layer]
    finally:
        handle.remove()
    return h, caught[0].to(h.device)


def _summary(acts: Tensor, neurons: Tensor) -> dict[str, np.ndarray]:
    """acts (tokens, M), neurons (tokens, m) of one sample."""
    peak = acts.max(0).values
    fires = peak.nonzero()[:, 0]
    return {
        "features": fires.cpu().numpy().astype(np.int32),
        "mean": acts.mean(0)[fires].cpu().numpy(),
        "max": peak[fires].cpu().numpy(),
        "neurons": neurons.clamp(min=0).mean(0).cpu().numpy(),
    }


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
    table = _table(samples)
    ends = np.cumsum([0, *map(len, table["features"])])
    parts = (np.concatenate(table[name].to_list()), np.concatenate(table["features"].to_list()), ends)
    values = csr_matrix(parts, shape=(len(table), pool.run.saes.d_sae))
    return Measured(values, samples.path("token_activations"), {"layer": pool.run.saes.layers[-1]})


def _neurons(pool: Pool, samples: Samples) -> Measured:
    values = column(_table(samples), "neurons")
    return Measured(values, samples.path("token_activations"), {"layer": pool.run.saes.layers[-1]})


def _table(samples: Samples) -> pd.DataFrame:
    run = samples.run
    layer = run.saes.layers[-1]

    def build(part: Sequence[int]) -> pd.DataFrame:
        sequences = [ids for ids, _ in samples.at(part).pairs]
        return token_activations(run.lm, run.saes[layer], layer, sequences, run.preset.batch_tokens)

    inputs = samples.identified_from(layer=layer, max_length=run.config(samples.task).sft.max_length)
    return samples.in_parts("token_activations", build, **inputs)

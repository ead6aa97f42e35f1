"""What is read of all tokens of a sample: SAE features and MLP neurons of one layer, and the last hidden states."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.engine.batching import pad, token_batches
from igds_utils.engine.lm import LM, last_hidden, residuals

Sequences = Sequence[Sequence[int]]  # token ids


def token_activations(
    lm: LM, sae, layer: int, sequences: Sequences, batch_tokens: int = 2048
) -> pd.DataFrame:
    """Which SAE features of a layer fire on each token sequence, one row a sequence.

    The first token of each, an attention sink, is not read. Most features are silent on a sample, so only the others
    are kept. Columns: features (indices of those that fire anywhere), mean (of each over all tokens read), max (over
    them). Raises `ValueError` for a sequence of one token.
    """
    rows: list[dict] = [{}] * len(sequences)
    for i, h, _ in _layer(lm, layer, sequences, batch_tokens):
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


def neuron_means(lm: LM, layer: int, sequences: Sequences, batch_tokens: int = 2048) -> pd.DataFrame:
    """The mean positive part of every neuron of a layer's MLP (what enters its down projection), one row a sequence.

    The first token is not read. Column: neurons, (m,) each.
    """
    rows: list[np.ndarray] = [np.empty(0)] * len(sequences)
    for i, _, neurons in _layer(lm, layer, sequences, batch_tokens):
        rows[i] = neurons.clamp(min=0).mean(0).cpu().numpy()
    return pd.DataFrame({"neurons": rows})


def _layer(
    lm: LM, layer: int, sequences: Sequences, batch_tokens: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number of a sequence, its residual stream after a layer (tokens, d), the neurons of its MLP (tokens, m)).

    All tokens but the first of each; passes stop at that layer.
    """
    if short := [number for number, ids in enumerate(sequences) if len(ids) < 2]:
        raise ValueError(f"sample {short[0]} has no token but its first, which is not read: give it a text")
    caught = []
    down = lm.blocks[layer].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        for batch, inputs in _batches(lm, sequences, batch_tokens, "read tokens"):
            h = residuals(lm, [layer], **inputs)[layer]
            neurons, read = caught.pop().to(h.device), inputs["attention_mask"].bool()
            read[:, 0] = False
            for row, i in enumerate(batch):
                yield i, h[row, read[row]].float(), neurons[row, read[row]].float()
    finally:
        handle.remove()


def weighted_hidden_states(lm: LM, sequences: Sequences, batch_tokens: int = 2048) -> Tensor:
    """Mean of a sequence's last hidden states (after the final norm), token t of T weighted by t: (N, d), length 1."""
    found = torch.empty(len(sequences), lm.width)
    for batch, inputs in _batches(lm, sequences, batch_tokens, "hidden states"):
        with torch.inference_mode():
            h = last_hidden(lm, **inputs, use_cache=False).float()  # (B, T, d)
            mask = inputs["attention_mask"]
            weights = (mask * mask.cumsum(-1)).float()  # (B, T)
            mean = torch.einsum("bt,btd->bd", weights / weights.sum(-1, keepdim=True), h)
            found[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu()
    return found


def _batches(
    lm: LM, sequences: Sequences, batch_tokens: int, what: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Numbers of the sequences of a batch, and a model's inputs, padded on the right."""
    with tqdm(total=len(sequences), desc=what, unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids in sequences], batch_tokens):
            yield batch, pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            bar.update(len(batch))

"""Position-weighted last hidden states of the model to be trained, for RDS+."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.engine.batching import pad, token_batches
from igds_utils.engine.lm import LM, last_hidden
from igds_utils.selection.needs.samples import Measured, Pool, Samples, column


def weighted_hidden_states(lm: LM, sequences: Sequence[Sequence[int]], batch_tokens: int = 2048) -> Tensor:
    """Mean of a sequence's last hidden states (after the final norm), token t of T weighted by t: (N, d), length 1."""
    found = torch.empty(len(sequences), lm.width)
    with tqdm(total=len(sequences), desc="hidden states", unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids in sequences], batch_tokens):
            inputs = pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            with torch.inference_mode():
                h = last_hidden(lm, **inputs, use_cache=False).float()  # (B, T, d)
                mask = inputs["attention_mask"]
                weights = (mask * mask.cumsum(-1)).float()  # (B, T)
                mean = torch.einsum("bt,btd->bd", weights / weights.sum(-1, keepdim=True), h)
                found[batch] = torch.nn.functional.normalize(mean, dim=-1).cpu()
            bar.update(len(batch))
    return found


def hidden_states(pool: Pool) -> Measured:
    """One vector of length 1 a sample, over prompt, target and end in the SFT rendering: (N, d)."""
    return _measure(pool.samples)


def example_hidden_states(pool: Pool) -> Measured:
    """The same of the target examples: (examples, d)."""
    return _measure(pool.target_samples)


def _measure(samples: Samples) -> Measured:
    run = samples.run

    def build(part: Sequence[int]) -> pd.DataFrame:
        sequences = [ids for ids, _ in samples.at(part).training_pairs]
        found = weighted_hidden_states(run.train_lm, sequences, run.preset.batch_tokens)
        return pd.DataFrame({"hidden": list(found.numpy())})

    table = samples.in_parts("hidden_states", build, **samples.trained_from())
    return Measured(column(table, "hidden"), samples.path("hidden_states"), {})

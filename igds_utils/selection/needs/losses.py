"""Losses of the targets under the model to be trained, given their prompts and given a bare header."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from igds_utils.engine import losses, prompts
from igds_utils.selection.needs.samples import Measured, Pool


def target_loss(pool: Pool) -> Measured:
    """Mean cross-entropy of each target given its prompt, in the SFT rendering: (N,). Loss and IFD share it."""
    return Measured(_conditioned(pool)["target_loss"].to_numpy(), pool.samples.path("target_loss"), {})


def target_cut(pool: Pool) -> Measured:
    """Whether the target reaches beyond `sft.max_length`, where training cuts it: (N,) bool."""
    return Measured(_conditioned(pool)["cut"].to_numpy(), pool.samples.path("target_loss"), {})


def _conditioned(pool: Pool) -> pd.DataFrame:
    samples, run = pool.samples, pool.run

    def build(part: Sequence[int]) -> pd.DataFrame:
        own = samples.at(part)
        pairs, uncut = own.training_pairs, own.uncut_training_pairs
        found = losses.target_losses(run.train_lm, pairs, run.preset.batch_tokens)
        cut = [len(kept) < len(whole) for (kept, _), (whole, _) in zip(pairs, uncut, strict=True)]
        return pd.DataFrame({"sample_id": own.ids, "target_loss": found, "cut": cut})

    return samples.in_parts("target_loss", build, **samples.trained_from())


def bare_target_loss(pool: Pool) -> Measured:
    """Mean cross-entropy of the same target tokens given only a bare header (`prompts.bare_header`): (N,).

    The tokens are those of the conditioned pass, so that a ratio of the two compares like with like.
    """
    samples, run = pool.samples, pool.run
    header = prompts.bare_header(run.task(pool.task), run.train_tokenizer, run.config(pool.task))

    def build(part: Sequence[int]) -> pd.DataFrame:
        start, own = prompts.encode(run.train_tokenizer, header), samples.at(part)
        pairs = [(start + ids[n_prompt:], len(start)) for ids, n_prompt in own.training_pairs]
        found = losses.target_losses(run.train_lm, pairs, run.preset.batch_tokens)
        return pd.DataFrame({"sample_id": own.ids, "bare_target_loss": found})

    table = samples.in_parts("bare_target_loss", build, header=header, **samples.trained_from())
    values: np.ndarray = table["bare_target_loss"].to_numpy()
    return Measured(values, samples.path("bare_target_loss"), {"header": header})

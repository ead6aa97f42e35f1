"""Rows of the benchmark that measure a pool: FRS, Loss and IFD."""

from __future__ import annotations

import torch
from common import BATCH, LAYER, medians, model, packed, pool, size

from igds_utils.engine import activations, losses, prompts
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import Feature

POOL = 128  # samples of about 140 tokens; the batches of fewer would be a tenth padding


def frs(texts: list[str], batch_tokens: int = BATCH) -> torch.Tensor:
    lm, saes = model()
    residual = activations.critical_residuals(lm, texts, [LAYER], batch_tokens)
    return activations.feature_activations(residual, saes, [Feature(LAYER, 7)])


def frs_against_loss(prompt: int, target: int) -> dict:
    texts, pairs = pool(size(48, 6), prompt, target)
    lm, _ = model()
    frs(texts[:2])  # reads the SAE
    seconds = medians(3, frs=lambda: frs(texts), loss=lambda: losses.target_losses(lm, pairs, BATCH))
    share = sum(n for _, n in pairs) / sum(len(ids) for ids, _ in pairs)
    return {"value": seconds["frs"] / seconds["loss"], "prompt_share": share, "seconds": seconds}


def frs_math() -> dict:
    return frs_against_loss(70, 140)


def frs_summarization() -> dict:
    return frs_against_loss(200, 28)


def frs_against_forward() -> dict:
    texts, _ = pool(size(96, 12), 125, 5)
    tokens = sum(len(prompts.encode(model()[0].tokenizer, text)) for text in texts)
    frs(texts[:2])
    whole = round(tokens / BATCH) * BATCH or BATCH  # the bare pass reads whole batches: compare a token
    seconds = medians(5, frs=lambda: frs(texts), bare=lambda: packed(tokens, LAYER + 1))
    return {
        "value": (seconds["frs"] / tokens) / (seconds["bare"] / whole),
        "tokens": tokens,
        "seconds": seconds,
    }


def loss_against_forward() -> dict:
    lm, (_, pairs) = model()[0], pool(size(POOL, 6), 70, 70)
    return _losses(lm, [pairs])


def ifd_against_forward() -> dict:
    lm, (_, pairs) = model()[0], pool(size(POOL, 6), 70, 70)
    bare = [([lm.tokenizer.bos_token_id, *ids[n:]], 1) for ids, n in pairs]
    return _losses(lm, [pairs, bare])


def _losses(lm: LM, passes: list[list[losses.Pair]]) -> dict:
    tokens = sum(len(ids) for pairs in passes for ids, _ in pairs)
    head = sum(len(ids) - n for pairs in passes for ids, n in pairs)
    whole = round(tokens / BATCH) * BATCH or BATCH
    run = lambda batch: [losses.target_losses(lm, pairs, batch) for pairs in passes]  # noqa: E731
    seconds = medians(3, ours=lambda: run(BATCH), bare=lambda: packed(tokens, lm.n_layers, head))
    seconds |= medians(1, one=lambda: run(1))
    together, alone = run(BATCH), run(1)
    ratios = [a[0] / a[-1] for a in (together, alone)] if len(passes) > 1 else [together[0], alone[0]]
    return {
        "value": (seconds["ours"] / tokens) / (seconds["bare"] / whole),
        "difference_from_batch_1": float(abs(ratios[0] / ratios[1] - 1).max()),
        "times_faster_than_batch_1": seconds["one"] / seconds["ours"],
        "seconds": seconds,
    }

"""Rows of the benchmark about the causal filter: against public scripts, and against the forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from common import BATCH, LAYER, medians, model, packed, size

from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, generation, prompts
from igds_utils.engine.lm import edited
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.engine.steering import Steering


@cache
def filter_setup() -> tuple[list[list[int]], list[Feature], int]:
    """Prompts of 70 tokens, features that fire at their critical position, and how many tokens are generated."""
    lm, saes = model()
    run = open_run("quick", tasks=["math"])
    texts = run.prompts("math", "validation")[: size(16, 2)]
    a = saes[LAYER].encode(activations.critical_residuals(lm, texts, [LAYER])[LAYER])
    best = ((a > 0).float().mean(0) * 1e6 + a.mean(0)).topk(size(16, 2)).indices.tolist()
    return (
        [prompts.encode(lm.tokenizer, text) for text in texts],
        [Feature(LAYER, i) for i in best],
        size(32, 6),
    )


def ours() -> list[list[int]]:
    """All features and samples in one batch, as the causal filter decodes them on a CPU: rows feature by feature."""
    lm, saes = model()
    ids, features, new = filter_setup()
    rows = [(s, feature) for feature in features for s in range(len(ids))]
    return generation.decode(lm, ids, rows, new, Steering(saes, features))


@contextmanager
def as_installed() -> Iterator[None]:
    """The model as transformers loads it, without this package's attention and matrix product settings."""
    lm, _ = model()
    kind, precision = lm.model.config._attn_implementation, torch.get_float32_matmul_precision()
    lm.model.set_attn_implementation("sdpa")
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        lm.model.set_attn_implementation(kind)
        torch.set_float32_matmul_precision(precision)


@torch.inference_mode()
def public(feature: Feature, batch: list[list[int]]) -> list[list[int]]:
    """transformers' `generate` with a hook, as public steering scripts do it: one feature, all samples in a batch."""
    lm, saes = model()
    known, new = FeatureSet(saes[LAYER], [feature.index]), filter_setup()[2]

    def amplify(h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        h[:, -1] += known.encode(h[:, -1]) * known.directions[0]  # p at first, then every new token
        return h

    inputs = lm.tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt")
    with as_installed(), edited(lm, {feature.layer: amplify}):
        found = lm.model.generate(**inputs, do_sample=False, max_new_tokens=new)
    answers, end = found[:, inputs["input_ids"].shape[1] :].tolist(), lm.tokenizer.eos_token_id
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]


def causal_filter(batch_1: bool) -> dict:
    """The public script's time is that of some features or rows, scaled to all; the outputs of those are compared."""
    ids, features, _ = filter_setup()
    n, start = len(ids), time.perf_counter()
    merged = ours()
    seconds = {"ours": time.perf_counter() - start}
    if batch_1:
        tried = [
            (features[f], s) for f, s in ((0, 0), (5, 3), (10, 7), (15, 11)) if f < len(features) and s < n
        ]
        share = len(tried) / len(merged)
        chosen = [merged[features.index(feature) * n + s] for feature, s in tried]
        calls = [lambda f=feature, s=s: public(f, [ids[s]]) for feature, s in tried]
    else:
        tried = features[:: max(1, len(features) // 4)][:4]
        share = len(tried) / len(features)
        chosen = [merged[features.index(feature) * n + s] for feature in tried for s in range(n)]
        calls = [lambda f=feature: public(f, ids) for feature in tried]
    start = time.perf_counter()
    theirs = [answer for call in calls for answer in call()]
    seconds["public"] = (time.perf_counter() - start) / share
    return {
        "value": seconds["public"] / seconds["ours"],
        "same_outputs": sum(a == b for a, b in zip(chosen, theirs, strict=True)) / len(theirs),
        "compared": len(theirs),
        "seconds": seconds,
    }


def filter_against_batch() -> dict:
    return causal_filter(batch_1=False)


def filter_against_batch_1() -> dict:
    return causal_filter(batch_1=True)


def decoding_share() -> dict:
    """Tokens a second of merged decoding, every row to its end, over those of a forward pass with the LM head."""
    lm, saes = model()
    ids, features, new = filter_setup()
    rows = [(s, feature) for s in range(len(ids)) for feature in features]
    steering, made = Steering(saes, features), []
    seconds = medians(
        1,
        decode=lambda: made.append(sum(map(len, generation.decode(lm, ids, rows, new, steering)))),
        forward=lambda: packed(2 * BATCH, lm.n_layers, 2 * BATCH),
    )
    speed = {"decode": made[0] / seconds["decode"], "forward": 2 * BATCH / seconds["forward"]}
    return {"value": speed["decode"] / speed["forward"], "tokens_a_second": speed, "seconds": seconds}

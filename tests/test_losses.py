"""Losses of targets: against the plain forward pass, and as training computes them."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from igds_utils.engine import batching, losses
from igds_utils.engine.batching import pad, padded_batches, token_batches

PAIRS = [([5, 6, 7, 8, 9, 10, 11], 2), ([12, 13, 14, 15], 1), ([16, 17, 18], 2)]  # 5 + 3 + 1 targets


def make_pairs(n, longest=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(n):
        length = int(torch.randint(4, longest, (1,), generator=generator))
        n_prompt = int(torch.randint(1, length, (1,), generator=generator))
        pairs.append((torch.randint(2, 300, (length,), generator=generator).tolist(), n_prompt))
    return pairs


def plain_loss(model, ids, n_prompt, reduction="mean"):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return cross_entropy(logits[n_prompt - 1 : -1], torch.tensor(ids[n_prompt:]), reduction=reduction)


def test_batches_by_hand():
    assert token_batches([2, 5, 3, 5], 10) == [[1, 3], [2, 0]]
    assert token_batches([20, 1, 1], 10) == [[0], [1, 2]]
    assert token_batches([4, 4, 4], 8) == [[0, 1], [2]]
    assert token_batches([], 10) == []


def test_padding_does_not_move_a_sample():
    batch = pad([[5, 6, 7], [8]], 9, "left", torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_what_is_done_foretells_the_end(monkeypatch):
    """From the first tenth on within 30 %, where a batch takes as long as its tokens are many."""
    bars = []

    class Bar(batching.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(batching, "tqdm", Bar)
    draw = random.Random(0)
    sequences = [[5] * round(8 * 64 ** draw.random()) for _ in range(2000)]  # 8 to 512 tokens
    lm = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), device=torch.device("cpu"))
    spent, foretold = 0, []
    for _, inputs in padded_batches(lm, sequences, 2048, "read"):
        if bars[0].n >= bars[0].total / 10:
            foretold.append(spent / bars[0].n * bars[0].total)
        spent += inputs["input_ids"].numel()
    assert len(foretold) > 50
    assert all(abs(end - spent) < 0.3 * spent for end in foretold)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_target_losses_equal_the_plain_forward_pass(lm, batch_tokens, monkeypatch):
    pairs, caps = make_pairs(9), (30.0, 1.0) if lm.name == "gemma2" else (None,)
    for cap in caps:
        monkeypatch.setattr(lm.model.config, "final_logit_softcapping", cap, raising=False)
        with torch.no_grad():
            plain = [plain_loss(lm.model, *pair).item() for pair in pairs]
        np.testing.assert_allclose(losses.target_losses(lm, pairs, batch_tokens), plain, atol=1e-5)
        assert np.ptp(plain) > 0.1, "all losses are alike, so their order is not tested"


def test_training_computes_the_same_losses(lm):
    batch = pad([ids for ids, _ in PAIRS], lm.tokenizer.pad_token_id, "right", lm.device)
    with torch.no_grad():
        labels = pad([[losses.IGNORED] * n + ids[n:] for ids, n in PAIRS], losses.IGNORED, "right", lm.device)
        found = losses.token_losses(lm.model, labels["input_ids"], **batch)
    means = [part.double().mean() for part in found.split([5, 3, 1])]
    np.testing.assert_allclose(losses.target_losses(lm, PAIRS), means, rtol=1e-12)
    assert not lm.model.get_output_embeddings()._forward_pre_hooks


def test_the_head_meets_few_positions_at_once(lm, monkeypatch):
    whole, met = losses.target_losses(lm, PAIRS), []
    head, four_positions = lm.model.get_output_embeddings(), 4 * 4 * lm.model.config.vocab_size
    monkeypatch.setattr(losses, "LOGIT_BYTES", four_positions + 1)
    handle = head.register_forward_pre_hook(lambda _head, args: met.append(len(args[0])))
    found = losses.target_losses(lm, PAIRS)
    handle.remove()
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    assert met == [4, 4, 1]

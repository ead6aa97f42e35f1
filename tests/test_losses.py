"""Losses of targets: against the plain forward pass, and the same numbers as the path that is trained through."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from igds_utils import tiny
from igds_utils.engine import losses
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM

PAIRS = [([5, 6, 7, 8, 9, 10, 11], 2), ([12, 13, 14, 15], 1), ([16, 17, 18], 2)]  # 5 + 3 + 1 targets


@pytest.fixture(params=["llama", "gemma2", "qwen3"])
def lm(request):
    return LM(tiny.model(request.param), tiny.tokenizer(), request.param)


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


def inputs(lm):
    batch = pad([ids for ids, _ in PAIRS], lm.tokenizer.pad_token_id, "right", lm.device)
    return losses.target_labels(batch["input_ids"], PAIRS), batch


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_target_losses_equal_the_plain_forward_at_any_batch_size(lm, batch_tokens):
    pairs = make_pairs(9)
    with torch.no_grad():
        plain = [plain_loss(lm.model, *pair).item() for pair in pairs]
    np.testing.assert_allclose(losses.target_losses(lm, pairs, batch_tokens), plain, atol=1e-5)
    assert np.ptp(plain) > 0.1, "all losses are alike, so their order is not tested"
    if lm.name == "gemma2":  # the logit cap counts
        lm.model.config.final_logit_softcapping = 1.0
        assert np.abs(losses.target_losses(lm, pairs) - plain).max() > 0.1


def test_one_part_gives_what_training_computes_and_leaves_the_head_as_it_was(lm):
    labels, batch = inputs(lm)
    with torch.no_grad():
        found, rows = losses.token_losses(lm.model, labels, **batch)
    assert rows.tolist() == [0] * 5 + [1] * 3 + [2]
    means = torch.stack([found[rows == row].double().mean() for row in range(3)])
    torch.testing.assert_close(losses.mean_losses(lm, labels, **batch), means, rtol=1e-12, atol=0)
    assert not lm.model.get_output_embeddings()._forward_pre_hooks


def test_the_head_meets_no_more_positions_than_its_logits_may_take(lm, monkeypatch):
    labels, batch = inputs(lm)
    whole, met = losses.mean_losses(lm, labels, **batch), []
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: met.append(len(args[0])))
    four_positions = 4 * 4 * lm.model.config.vocab_size
    monkeypatch.setattr(losses, "LOGIT_BYTES", four_positions + 1)
    torch.testing.assert_close(losses.mean_losses(lm, labels, **batch), whole)
    assert met == [4, 4, 1]

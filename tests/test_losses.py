"""Losses of targets: the logits that exist at once, and the same numbers as the path that is trained through."""

import pytest
import torch

from igds_utils import tiny
from igds_utils.engine import losses
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM

PAIRS = [([5, 6, 7, 8, 9, 10, 11], 2), ([12, 13, 14, 15], 1), ([16, 17, 18], 2)]  # 5 + 3 + 1 targets


@pytest.fixture(params=["llama", "gemma2", "qwen3"])
def lm(request):
    return LM(tiny.model(request.param), tiny.tokenizer(), request.param)


def inputs(lm):
    batch = pad([ids for ids, _ in PAIRS], lm.tokenizer.pad_token_id, "right", lm.device)
    return losses.target_labels(batch["input_ids"], PAIRS), batch


def test_one_part_gives_what_training_computes(lm):
    labels, batch = inputs(lm)
    with torch.no_grad():
        found, rows = losses.token_losses(lm.model, labels, **batch)
    assert rows.tolist() == [0] * 5 + [1] * 3 + [2]
    means = torch.stack([found[rows == row].double().mean() for row in range(3)])
    torch.testing.assert_close(losses.mean_losses(lm, labels, **batch), means, rtol=1e-12, atol=0)


def test_the_head_meets_no_more_positions_than_its_logits_may_take(lm, monkeypatch):
    labels, batch = inputs(lm)
    whole, met = losses.mean_losses(lm, labels, **batch), []
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda _head, args: met.append(len(args[0])))
    four_positions = 4 * 4 * lm.model.config.vocab_size
    monkeypatch.setattr(losses, "LOGIT_BYTES", four_positions + 1)
    torch.testing.assert_close(losses.mean_losses(lm, labels, **batch), whole)
    assert met == [4, 4, 1]

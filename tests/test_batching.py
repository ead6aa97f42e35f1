"""Batches by tokens, and padding on either side."""

import random
from types import SimpleNamespace

import pytest
import torch

from igds_utils.engine import batching
from igds_utils.engine.batching import pad, padded_batches, token_batches

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch_tokens", [1, 30, 64, 1000])
def test_every_sample_is_in_one_batch_and_no_batch_is_too_large(seed, batch_tokens):
    lengths = [random.Random(seed).randint(1, 40) for _ in range(50)]
    batches = token_batches(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= batch_tokens
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)


def test_batches_by_hand():
    assert token_batches([2, 5, 3, 5], 10) == [[1, 3], [2, 0]]
    assert token_batches([20, 1, 1], 10) == [[0], [1, 2]]
    assert token_batches([4, 4, 4], 8) == [[0, 1], [2]]
    assert token_batches([], 10) == []


@pytest.mark.parametrize(
    ("side", "ids", "mask", "position"),
    [
        ("right", [[5, 6, 7], [8, 9, 9]], [[1, 1, 1], [1, 0, 0]], [[0, 1, 2], [0, 0, 0]]),
        ("left", [[5, 6, 7], [9, 9, 8]], [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]]),
    ],
)
def test_padding(side, ids, mask, position):
    batch = pad([[5, 6, 7], [8]], 9, side, CPU)
    assert batch["input_ids"].tolist() == ids
    assert batch["attention_mask"].tolist() == mask
    assert batch["position_ids"].tolist() == position
    assert all(tensor.dtype == torch.long for tensor in batch.values())


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
    lm = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), device=CPU)
    spent, foretold = 0, []
    for _, inputs in padded_batches(lm, sequences, 2048, "read"):
        if bars[0].n >= bars[0].total / 10:
            foretold.append(spent / bars[0].n * bars[0].total)
        spent += inputs["input_ids"].numel()
    assert len(foretold) > 50
    assert all(abs(end - spent) < 0.3 * spent for end in foretold)

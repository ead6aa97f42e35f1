"""Batches by tokens, and padding on either side."""

import random

import pytest
import torch

from igds_utils.engine.batching import pad, token_batches

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

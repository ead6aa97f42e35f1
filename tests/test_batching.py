"""Batches by tokens, and padding on either side."""

import pytest
import torch

from igds_utils.engine.batching import pad, token_batches

CPU = torch.device("cpu")


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

"""Batches by tokens."""

from igds_utils.engine.batching import token_batches


def test_batches_by_hand():
    assert token_batches([2, 5, 3, 5], 10) == [[1, 3], [2, 0]]
    assert token_batches([20, 1, 1], 10) == [[0], [1, 2]]
    assert token_batches([4, 4, 4], 8) == [[0, 1], [2]]
    assert token_batches([], 10) == []

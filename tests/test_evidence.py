"""Reliability, permutation, placebos and doses by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from igds_utils.identification import evidence

NAN = float("nan")


def rows(*features):
    """Effects of features on samples s0, s1, ...: (change of loglik, change of score)."""
    return pd.DataFrame(
        {"layer": 0, "feature": i, "sample_id": f"s{j}", "loglik_original": -2.0, "loglik_amplified": -2.0 + told,
         "score_original": 0.5, "score_amplified": 0.5 + said}
        for i, feature in enumerate(features)
        for j, (told, said) in enumerate(feature)
    )  # fmt: skip


def test_split_half_is_the_mean_over_all_halvings():
    same = np.array([[1, 1], [2, 2], [3, 3], [4, 4], [5, 5.0]])
    assert evidence.split_half(same) == pytest.approx(1)
    luck = np.array([[0, 1], [1, 0], [0, 0], [1, 1], [0.5, 0.5]])
    assert evidence.split_half(luck) == pytest.approx(0)
    x = np.random.default_rng(0).normal(size=(7, 6)) + np.arange(7)[:, None] / 3
    halves = []
    for half in combinations(range(6), 3):
        a, b = x[:, half].sum(1), x[:, [j for j in range(6) if j not in half]].sum(1)
        halves.append(2 * (1 - (a.var() + b.var()) / (a + b).var()))  # Rulon's formula
    assert evidence.split_half(x) == pytest.approx(np.mean(halves))


def test_where_the_reliability_is_not_defined():
    few, contradict = [[1, 1], [2, 2], [3, 3], [4, 4]], [[1, 9.5], [2, 9], [3, 8.5], [4, 8], [5, 7.5]]
    for x in (few, contradict, [[1], [2], [3], [4], [5]], np.ones((5, 4))):
        assert np.isnan(evidence.split_half(np.array(x, dtype=float)))


def test_equal_candidates_are_called_so():
    rng = np.random.default_rng(1)
    p = [evidence.differ(rng.normal(size=(8, 12)) + rng.normal(size=12), 200, 0) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1
    assert evidence.differ(rng.normal(size=(8, 12)) + np.arange(8)[:, None], 200, 0) == pytest.approx(1 / 201)
    assert evidence.differ(np.zeros((3, 4)), 100, 0) == 1


def test_exact_permutation_of_two_candidates():
    # of the four arrangements two have the observed distance of the means, the others none
    assert evidence.differ(np.array([[1.0, 1.0], [0.0, 0.0]]), 4000, 0) == pytest.approx(0.5, abs=0.03)


def test_the_place_among_placebos_gives_a_rank_p():
    cases = [([-1.0, 0.0, 1.0, 4.0], 1, 2 / 5), ([], 0, 1.0), ([0.0] * 20, 0, 1 / 21)]
    for placebos, larger, p in [*cases, ([3.0, 0.0], 1, 2 / 3)]:  # as large counts
        expected = {"n": len(placebos), "larger": larger, "p": pytest.approx(p)}
        assert evidence.beyond_placebos(3.0, placebos) == expected


def test_evidence_goes_by_what_ranked_the_feature():
    loglik = [(1.0, 1.1), (0.1, 0.0), (0.5, 0.6), (0.4, 0.4), (0.2, 0.3)]
    said = [(0.1, -0.1)] + [(NAN, NAN)] * 4
    table = rows(*(list(zip(*both, strict=True)) for both in zip(loglik, said, strict=True)))
    placebos = pd.DataFrame({"kind": ["a", "a", "a"], "effect": [0.0, 0.1, 0.2]})
    summary = {"features": [{"delta_loglik": 9.0, "confirmation_loglik": 1.05}], "ranked_by": "loglik"}
    found = evidence.of_filter(table, summary, placebos, 200, 0)
    assert found["tested"] == {"score": 1, "loglik": 5} and found["reliability"]["score"] is None
    assert found["reliability"]["loglik"] > 0.9
    expected = evidence.beyond_placebos(1.05, [0.0, 0.1, 0.2]) | {"effects": [0.0, 0.1, 0.2]}
    assert found["placebos"] == {"a": expected}


def test_repetition_counts_sequences_of_four_words():
    assert evidence.repetition("a b c d e f g") == evidence.repetition("a b") == 0
    assert evidence.repetition("a b c d a b c d") == pytest.approx(1 / 5)


def test_every_dose_has_its_effects_and_its_text():
    one = rows([(0.5, 0.25), (0.1, 0.25)]).assign(
        tokens_original=4, output_original="a", output_amplified=["a", "a b c d a b c d"], tokens_amplified=[4, 8],
        influence=[0.1, 0.3], scale=2.0, clamped=False,
    )  # fmt: skip
    table = evidence.dose_response(one, 0.95, 100, 0)
    assert table["scale"].tolist() == [0, 2] and table["tokens"].tolist() == [4, 6]
    assert table["delta_loglik"].tolist() == pytest.approx([0, 0.3]) and table["delta"].tolist() == [0, 0.25]
    assert table["repetition"].tolist() == pytest.approx([0, 0.1])
    assert table["influence"].tolist() == pytest.approx([0, 0.2])

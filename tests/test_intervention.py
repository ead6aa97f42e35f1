"""Causal effects by hand; the steered outputs themselves are tested in test_generation."""

import numpy as np
import pandas as pd
import pytest

from igds_utils.engine.features import Feature, features_of
from igds_utils.identification import intervention


def effects(rows):
    sides = [f"{name}_{side}" for name in ("score", "loglik") for side in ("original", "amplified")]
    table = pd.DataFrame(rows, columns=["layer", "feature", "sample_id", *sides])
    return table.assign(output_original="a", output_amplified="b")


def recalled(table, frequency=1.0):
    return table[["layer", "feature"]].assign(frequency=frequency, mean_activation=1.0)


TWO = effects([
    (3, 1, "x", 0.0, 1.0, -2.0, -1.0), (3, 1, "y", 1.0, 1.0, -2.0, -2.5), (3, 1, "z", 0.0, 0.0, -1.0, -1.0),
    (5, 9, "x", 0.0, 0.0, -2.0, -1.9), (5, 9, "y", 1.0, 0.0, -2.0, -2.0), (5, 9, "z", 0.0, 0.0, -1.0, -1.0),
])  # fmt: skip


def test_delta_is_the_mean_change_of_the_score():
    table = intervention.causal_effects(TWO, 0.95, 500, 0).set_index("feature")
    assert table.loc[1, "delta"] == pytest.approx(1 / 3)
    assert table.loc[9, "delta"] == pytest.approx(-1 / 3)
    assert table.loc[1, "delta_loglik"] == pytest.approx(0.5 / 3)
    assert table.loc[1, "delta_low"] <= table.loc[1, "delta"] <= table.loc[1, "delta_high"]
    assert table.loc[1, "score_original"] == pytest.approx(1 / 3)
    assert table.loc[1, "changed"] == 1.0


def test_ties_fall_by_loglik_then_frequency_then_place():
    names = ["layer", "feature", "delta", "delta_loglik"]
    deltas = pd.DataFrame(
        [(4, 2, 0.3, 0.0), (1, 7, 0.3, 0.3), (1, 3, 0.1 + 0.2, 0.0), (9, 9, 0.4, -5.0)], columns=names
    ).assign(n=20)
    ranked = intervention.rank_features(deltas, recalled(deltas, [0.9, 0.8, 0.9, 0.8]))
    assert ranked["name"].tolist() == ["l9_p9", "l1_p7", "l1_p3", "l4_p2"]
    assert features_of(ranked.head(2)) == [Feature(9, 9), Feature(1, 7)]


GAINS, NOISE, LOSSES = [0.2, 0.3, 0.1, 0.4], [0.6, -0.3, 0.5, -0.2], [-0.1, -0.2, -0.1, -0.3]


@pytest.mark.parametrize(
    ("score", "loglik", "by_score", "by_loglik"),
    [
        (GAINS, LOSSES, True, False),
        (LOSSES, GAINS, False, True),
        (NOISE, NOISE, False, False),  # above zero on average, as the best of many is
        ([0.0] * 4, [1e-17] * 4, False, False),
        ([0.5], [0.5], False, False),  # one sample: no interval
    ],
)
def test_a_feature_is_established_by_its_interval(score, loglik, by_score, by_loglik):
    changes = enumerate(zip(score, loglik, strict=True))
    fresh = effects([(5, 9, f"s{i}", 0.25, 0.25 + a, -2.0, -2.0 + b) for i, (a, b) in changes])
    again = intervention.causal_effects(fresh, 0.95, 500, 0)
    ranked = intervention.rank_features(again, recalled(again))
    for quantity, expected in (("score", by_score), ("loglik", by_loglik)):
        found = intervention.task_features(ranked, again, k=1, quantity=quantity)
        assert found["established"] == found["features"][0]["established"] == expected
    assert found["features"][0]["confirmation_delta"] == pytest.approx(sum(score) / len(score))


def test_all_chosen_features_must_be_established():
    sure = effects([(3, 1, f"s{i}", 0.25, 0.25 + change, -2.0, -2.0) for i, change in enumerate(GAINS)])
    unsure = sure.assign(layer=5, score_amplified=0.25 + np.array([0.1, -0.1, 0.0, 0.1]))
    deltas = intervention.causal_effects(pd.concat([sure, unsure]), 0.95, 500, 0)
    ranked = intervention.rank_features(deltas, recalled(deltas))
    for k, expected in ((1, True), (2, False)):
        chosen = deltas[deltas["layer"].isin(ranked["layer"].head(k))]
        found = intervention.task_features(ranked, chosen, k)
        assert found["established"] == expected
    assert [row["established"] for row in found["features"]] == [True, False]


def test_the_ranking_follows_the_quantity():
    rows = [(1, 0, 0.1, 0.5), (1, 1, 0.2, 0.1), (1, 2, float("nan"), 0.9), (1, 3, float("nan"), 0.0)]
    effects = pd.DataFrame(rows, columns=["layer", "feature", "delta", "delta_loglik"])
    for by, order in (("score", [1, 0, 2, 3]), ("loglik", [2, 0, 1, 3])):
        assert intervention.rank_features(effects, recalled(effects), by)["feature"].tolist() == order


def test_the_contrast_by_hand():
    rows = effects([(1, 0, f"s{i}", 0.0, 0.0, -2.0, -2.0 + change) for i, change in enumerate([0.4, 0.1])])
    rows = rows.assign(change=[0.4, 0.1], foreign=[0.1, 0.3])
    found = intervention.causal_effects(rows, 0.95, 100, 0).iloc[0]
    assert found["delta_loglik"] == pytest.approx(0.25) and found["contrast"] == pytest.approx(0.05)
    assert pd.isna(intervention.causal_effects(TWO, 0.95, 100, 0)["contrast"]).all()
    forced = intervention.causal_effects(rows.filter(regex="layer|feature|sample_id|loglik"), 0.95, 100, 0).iloc[0]
    assert forced["delta_loglik"] == pytest.approx(0.25) and pd.isna(forced["delta"]) and pd.isna(forced["changed"])

"""Racing by hand, and its replay against racing for real."""

import numpy as np
import pandas as pd
import pytest

from igds_utils.engine.sae import Feature
from igds_utils.identification import racing

FEATURES = [Feature(3, i) for i in range(4)]
IDS = [f"s{i}" for i in range(8)]


def table(change, tokens=10):
    """Effects with the given change of score, (samples, features); log-likelihoods do not change."""
    rows = [
        (feature.layer, feature.index, sample, 0.0, change[s][f], 0.0, 0.0, tokens)
        for f, feature in enumerate(FEATURES)
        for s, sample in enumerate(IDS)
    ]
    names = ["layer", "feature", "sample_id", "score_original", "score_amplified"]
    return pd.DataFrame(rows, columns=[*names, "loglik_original", "loglik_amplified", "tokens_amplified"])


def test_the_better_half_by_delta_then_loglik_then_order():
    score = np.array([[0.0, 1.0, 1.0, 0.0, 0.0]])
    assert racing.better_half(score, np.zeros((1, 5))) == [0, 1, 2]
    assert racing.better_half(score, np.array([[0.0, 0.0, 0.0, 0.1, 0.2]])) == [1, 2, 4]


def test_stages_cut_the_samples_where_the_shares_say():
    assert [(s.start, s.stop) for s in racing.stages([0.25, 0.5], 8)] == [(0, 2), (2, 4), (4, 8)]
    assert [(s.start, s.stop) for s in racing.stages([0.01, 0.5], 4)] == [(0, 2), (2, 4)]
    assert [(s.start, s.stop) for s in racing.stages([], 4)] == [(0, 4)]


def test_a_race_measures_fewer_candidates_from_stage_to_stage():
    effects, asked = table([[0, 1, 2, 3]] * 8), []

    def measure(ids, features):
        asked.append((len(ids), [feature.index for feature in features]))
        return effects[effects["sample_id"].isin(ids) & effects["feature"].isin(asked[-1][1])]

    assert racing.race(measure, FEATURES, IDS, [0.25, 0.5]) == [FEATURES[3]]
    assert asked == [(2, [0, 1, 2, 3]), (2, [2, 3]), (4, [3])]


def test_replay_of_a_clear_winner():
    would = racing.replay(table([[0, 1, 2, 3]] * 8), [0.25, 0.5], orders=20)
    assert would["same_best"] == 1.0 and would["regret"] == 0.0
    assert would["saved"] == pytest.approx(1 - (2 * 4 + 2 * 2 + 4 * 1) / 32)


def test_replay_tells_when_the_best_is_lost():
    # the best feature wins on one sample alone, and loses a little on all others
    change = [[5.0, 0, 0, 0]] + [[-0.1, 0, 0, 0]] * 7
    would = racing.replay(table(change), [0.5], orders=400)
    assert 0.3 < would["same_best"] < 0.7  # it survives where that sample is in the first half
    assert would["regret"] == pytest.approx((1 - would["same_best"]) * (5 - 0.7) / 8)


def test_no_shares_replay_the_full_evaluation():
    draw = np.random.default_rng(0).normal(size=(8, 4))
    would = racing.replay(table(draw.tolist()), [], orders=5)
    assert would == {"same_best": 1.0, "saved": 0.0, "regret": 0.0}

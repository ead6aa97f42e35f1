"""SAE-GreedSelect and SAE-SimScale: the fast search against the plain one, and covers that can be followed by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from igds_utils.selectors import Context, PoolSample, rank_pool
from igds_utils.selectors.coverage import feature_sets, lazy_greedy, walk


def plain_greedy(sets, ids, size):
    """Look at everything that is left at every step."""
    order, covered = [], set()
    while len(order) < size:
        left = [i for i in range(len(sets)) if i not in order]
        best = min(left, key=lambda i: (-len(set(sets[i]) - covered), ids[i]))
        if not set(sets[best]) - covered and covered:
            covered = set()
            continue
        covered |= set(sets[best])
        order.append(best)
    return order


@pytest.mark.parametrize("seed", range(12))
def test_lazy_greedy_is_plain_greedy(seed):
    random = np.random.default_rng(seed)
    sets = [np.flatnonzero(random.random(30) < random.choice([0.0, 0.05, 0.3])) for _ in range(40)]
    ids = random.permutation(40)
    for size in (1, 13, 40):
        assert lazy_greedy(sets, ids, size)[0].tolist() == plain_greedy(sets, ids, size)


def test_a_new_cover_starts_when_nothing_adds_a_feature():
    sets = [np.array(one, dtype=int) for one in ([0, 1, 2], [0, 1], [2], [3], [], [0])]
    order, covers = lazy_greedy(sets, np.arange(6), 6)
    assert order.tolist() == [0, 3, 1, 2, 5, 4]  # covers {0, 3}, {1, 2}, {5}; then the one without features
    assert covers == 3


def test_simscale_keeps_what_the_cover_holds_less_than_the_limit_of():
    sets = [np.array(one, dtype=int) for one in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 9], [0, 1, 2, 5], [7], [], [])]
    order, covers = walk(sets, np.arange(6), 6, overlap=0.8)
    # sample 1 is held to 4/5 and left for the second cover, sample 2 to 3/4 and kept
    assert order.tolist() == [0, 2, 3, 1, 4, 5]
    assert covers == 2
    assert walk(sets, np.arange(6), 2, overlap=0.7)[0].tolist() == [0, 3]


def test_the_threshold_is_a_quantile_of_what_is_not_zero():
    largest = csr_matrix(np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 5.0, 0.0]]))
    sets, threshold = feature_sets(largest, 0.5)
    assert threshold == 3.0
    assert [one.tolist() for one in sets] == [[2], [], [], [1]]
    assert feature_sets(csr_matrix((2, 3)), 0.5)[1] == 0.0


@pytest.mark.parametrize("name", ["greedselect", "simscale"])
def test_a_ranking_has_every_sample_and_says_what_it_covers(name):
    random = np.random.default_rng(0)
    largest = csr_matrix(random.random((10, 40)) * (random.random((10, 40)) < 0.3))
    samples = [PoolSample(f"s{i}", "t") for i in range(10)]
    ranking = rank_pool(name, Context(samples, sae_max=lambda: largest), size=4)
    assert sorted(ranking["sample_id"]) == [sample.id for sample in samples]
    assert not ranking["filled"].any()
    facts = ranking.attrs["selector"]["facts"]
    assert facts["chosen"] == 4 and 0 < facts["features_covered"] <= facts["features_of_pool"]
    assert ranking["score"].iloc[4:].is_monotonic_decreasing
    mirrored = Context(samples[::-1], sae_max=lambda: largest[::-1])
    assert rank_pool(name, mirrored, size=4)["sample_id"].tolist() == ranking["sample_id"].tolist()

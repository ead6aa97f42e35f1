"""Selectors, rankings and selections against cases that can be checked by hand."""

import numpy as np
import pytest

from igds_utils import selectors
from igds_utils.selectors import Context, PoolSample, rank, rank_pool, select

POOL = [PoolSample(f"s{i}", f"prompt {i}:", f"target {i}") for i in range(5)]


def ids(ranking):
    return ranking["sample_id"].tolist()


def test_rank_orders_by_score_then_id():
    scores = [2.0, 1.0, 2.0, 3.0]
    highest = rank(scores, ["b", "c", "a", "d"], "highest")
    assert ids(highest) == ["d", "a", "b", "c"]
    assert highest["rank"].tolist() == [1, 2, 3, 4]
    assert highest["score"].tolist() == [3.0, 2.0, 2.0, 1.0]
    assert ids(rank(scores, ["b", "c", "a", "d"], "lowest")) == ["c", "a", "b", "d"]


def test_rank_refuses_nan_by_name_and_wrong_shapes():
    with pytest.raises(ValueError, match=r"1 samples have no score \(NaN\): b"):
        rank([1.0, np.nan], ["a", "b"], "highest")
    with pytest.raises(ValueError, match="pool has 2 samples"):
        rank([1.0], ["a", "b"], "highest")
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        rank(np.ones((2, 1)), ["a", "b"], "highest")


@pytest.mark.parametrize(
    ("n", "ratio", "size"), [(10, 0.5, 5), (5, 0.5, 2), (7, 0.5, 4), (10, 0.01, 1), (3, 1.0, 3)]
)
def test_select_takes_exactly_the_rounded_share(n, ratio, size):
    ranking = rank(np.arange(n), [f"s{i:02d}" for i in range(n)], "lowest")
    shuffled = ranking.sample(frac=1, random_state=0)
    assert select(shuffled, ratio) == [f"s{i:02d}" for i in range(size)]


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01])
def test_select_refuses_a_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        select(rank([1.0], ["a"], "lowest"), ratio)


def test_unknown_selector_lists_the_known_ones():
    with pytest.raises(ValueError, match="igds, loss, random"):
        selectors.get("los")


def test_registering_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="registered twice"):
        selectors.register("random")(type(selectors.get("loss")))
    assert selectors.get("loss").name == "loss"


def test_random_depends_on_the_seed_and_not_on_the_pool_order():
    one = rank_pool("random", Context(POOL, seed=1))
    assert ids(one) == ids(rank_pool("random", Context(POOL[::-1], seed=1)))
    orders = {tuple(ids(rank_pool("random", Context(POOL, seed=seed)))) for seed in range(20)}
    assert len(orders) > 10
    assert sorted(ids(one)) == [sample.id for sample in POOL]


def test_random_takes_every_sample_about_equally_often():
    taken = [i for seed in range(400) for i in select(rank_pool("random", Context(POOL, seed=seed)), 0.4)]
    shares = np.array([taken.count(sample.id) for sample in POOL]) / 400
    assert np.abs(shares - 0.4).max() < 0.1


def test_loss_takes_the_lowest_and_igds_the_highest_sum():
    losses = np.array([0.3, 0.1, 0.5, 0.2, 0.4])
    activations = np.array([[0, 1], [2, 0], [0, 0], [1, 5], [3, 0]], dtype=float)
    context = Context(POOL, target_loss=lambda: losses, task_feature_activations=lambda: activations)
    assert ids(rank_pool("loss", context)) == ["s1", "s3", "s0", "s4", "s2"]
    frs = rank_pool("igds", context)
    assert ids(frs) == ["s3", "s4", "s1", "s0", "s2"]
    assert frs["score"].tolist() == [6.0, 3.0, 2.0, 1.0, 0.0]


def test_igds_in_residual_units_weights_each_feature_by_its_decoder_norm():
    activations = np.array([[0, 1], [2, 0], [0, 0], [1, 5], [3, 0]], dtype=float)
    context = Context(POOL, feature_norms=np.array([10.0, 1.0]), task_feature_activations=lambda: activations)
    assert ids(rank_pool("igds", context)) == ["s4", "s1", "s3", "s0", "s2"]


def test_measurements_are_made_once_and_only_when_needed():
    calls = []

    def losses():
        calls.append("losses")
        return np.arange(5.0)

    context = Context(POOL, target_loss=losses)
    rank_pool("random", context)
    assert calls == []
    rank_pool("loss", context)
    rank_pool("loss", context)
    assert calls == ["losses"]


def test_what_the_context_lacks_is_named():
    with pytest.raises(ValueError, match="'igds' needs task_feature_activations"):
        rank_pool("igds", Context(POOL))
    with pytest.raises(ValueError, match="4 rows for a pool of 5"):
        rank_pool("loss", Context(POOL, target_loss=lambda: np.arange(4.0)))
    with pytest.raises(ValueError, match="'s0' twice"):
        Context([POOL[0], POOL[0]])


def test_declared_needs_are_what_a_selector_reads():
    """A context that offers exactly the declared needs must be enough for every selector."""
    offers = {"target_loss": lambda: np.arange(5.0), "task_feature_activations": lambda: np.ones((5, 2))}
    for name in selectors.names():
        needs = selectors.get(name).needs
        assert len(rank_pool(name, Context(POOL, **{need: offers[need] for need in needs}))) == 5

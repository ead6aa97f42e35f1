"""Selectors, rankings and selections against cases that can be checked by hand."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from igds_utils import selectors
from igds_utils.selectors import Context, PoolSample, rank, rank_pool, select

POOL = [PoolSample(f"s{i}", f"target {i}") for i in range(5)]


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
    with pytest.raises(ValueError, match="igds, .*loss, .*random"):
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


def made_up(need, samples):
    """Any measurement, drawn from each sample's id alone."""
    rows = [np.random.default_rng(list(f"{need}{sample.id}".encode())) for sample in samples]
    match need.removeprefix("example_"):
        case "target_loss" | "bare_target_loss":
            return np.array([row.random() + 0.5 for row in rows])
        case "target_cut":
            return np.array([row.random() < 0.1 for row in rows])
        case "sae_mean" | "sae_max" | "tags":
            return csr_matrix([row.random(30) * (row.random(30) < 0.3) for row in rows])
        case "gradients":
            return np.array([row.normal(size=(2, 6)) for row in rows])
    return np.array([row.random(6) for row in rows])


def made_up_context(name, pool):
    """A context that offers exactly what a selector declares to need."""
    needs, examples = selectors.get(name).needs, [PoolSample("e0", "tell 3", "ask what 3"), POOL[0]]
    sources = {
        need: partial(made_up, need, examples if need.startswith("example_") else pool)
        for need in needs
        if need != "examples"
    }
    return Context(
        pool, seed=1, examples=examples if any("example" in need for need in needs) else (), **sources
    )


WORDS = [PoolSample(f"s{i:02d}", "so " * (i % 5 + 1) + f"{i}", f"how many {i % 4} + {i}?") for i in range(12)]


@pytest.mark.parametrize("name", selectors.names())
def test_every_selector_keeps_the_contract(name):
    ranking = rank_pool(name, made_up_context(name, WORDS), size=5)
    assert sorted(ids(ranking)) == [sample.id for sample in WORDS]
    assert ranking["rank"].tolist() == list(range(1, 13))
    assert len(select(ranking, 5 / 12)) == len(set(select(ranking, 5 / 12))) == 5
    other_order = rank_pool(name, made_up_context(name, WORDS[::-1]), size=5)
    assert ids(other_order) == ids(ranking)
    alone = rank_pool(name, made_up_context(name, WORDS[:1]))
    assert ids(alone) == ["s00"]
    json.dumps(ranking.attrs["selector"], allow_nan=False)


class Half(selectors.Procedure):
    """Takes the first samples but one, of which the last only fills."""

    direction = "lowest"

    def choose(self, context, size):
        order = np.arange(size)[::-1][:-1]
        return selectors.Choice(order, np.arange(len(context.pool)), {"seen": len(context.pool)}, filled=1)


@pytest.fixture
def half(monkeypatch):
    monkeypatch.setitem(selectors.base._REGISTRY, "half", Half("half"))


def test_a_choice_comes_first_and_what_fills_the_budget_is_marked(half):
    ranking = rank_pool("half", Context(POOL), size=4)
    assert ids(ranking) == ["s3", "s2", "s1", "s0", "s4"]
    assert ranking["filled"].tolist() == [False, False, True, True, False]
    assert ranking["rank"].tolist() == [1, 2, 3, 4, 5]
    said = ranking.attrs["selector"]
    assert said["facts"] == {"seen": 5, "chosen": 2, "filled": 2, "distinct_scores": 5}
    assert said["size"] == 4 and said["name"] == "half"


@pytest.mark.parametrize("order", [[0, 0], [0, 1, 2]])
def test_a_choice_that_repeats_or_overspends_is_refused(half, monkeypatch, order):
    choice = selectors.Choice(np.array(order), np.arange(5))
    monkeypatch.setattr(Half, "choose", lambda *_: choice)
    with pytest.raises(ValueError, match="for a budget of 2"):
        rank_pool("half", Context(POOL), size=2)


@pytest.mark.parametrize("size", [0, 6])
def test_a_budget_outside_the_pool_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} samples cannot be selected from a pool of 5"):
        rank_pool("random", Context(POOL), size=size)


def test_what_made_a_ranking_is_read_back_with_it(tmp_path):
    ranking = rank_pool("random", Context(POOL, seed=3))
    ranking.to_parquet(tmp_path / "ranking.parquet")
    said = pd.read_parquet(tmp_path / "ranking.parquet").attrs["selector"]
    assert said == ranking.attrs["selector"] and said["seed"] == 3


def test_an_unknown_parameter_of_a_variant_is_refused():
    with pytest.raises(ValueError, match="no parameter 'depth'; known: k"):
        selectors.register("igds_deep", depth=3)(type(selectors.get("igds")))


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="the pool is empty"):
        Context([])


def test_loss_highest_is_the_other_end_of_loss():
    context = Context(POOL, target_loss=lambda: np.array([0.3, 0.1, 0.5, 0.2, 0.4]))
    assert ids(rank_pool("loss_highest", context)) == ids(rank_pool("loss", context))[::-1]

"""Rankings, selections, baselines and IGDS against cases that can be checked by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from pools import ids, made_pool, sample
from scipy.sparse import csr_matrix

from igds_utils import selectors
from igds_utils.selectors import rank, rank_pool, select

POOL = [sample(f"s{i}", f"target {i}") for i in range(5)]


def test_rank_orders_by_score_then_id():
    scores = [2.0, 1.0, 2.0, 3.0]
    highest = rank(scores, ["b", "c", "a", "d"], "highest")
    assert ids(highest) == ["d", "a", "b", "c"]
    assert highest["rank"].tolist() == [1, 2, 3, 4]
    assert highest["score"].tolist() == [3.0, 2.0, 2.0, 1.0]
    assert ids(rank(scores, ["b", "c", "a", "d"], "lowest")) == ["c", "a", "b", "d"]


def test_what_has_no_score_or_no_name_is_refused():
    with pytest.raises(ValueError, match=r"1 samples have no score \(NaN\): b"):
        rank([1.0, np.nan], ["a", "b"], "highest")
    with pytest.raises(ValueError, match="igds, .*loss, .*random"):
        selectors.get("los")


SHARES = [(10, 0.5, 5), (5, 0.5, 2), (7, 0.5, 4), (10, 0.01, 1), (3, 1.0, 3)]


@pytest.mark.parametrize(("n", "ratio", "size"), SHARES)
def test_select_takes_exactly_the_rounded_share(n, ratio, size):
    ranking = rank(np.arange(n), [f"s{i:02d}" for i in range(n)], "lowest")
    shuffled = ranking.sample(frac=1, random_state=0)
    assert select(shuffled, ratio) == [f"s{i:02d}" for i in range(size)]
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        select(ranking, ratio + 1)


def made_up(name, members):
    """Any measurement, drawn from each sample's id alone."""
    rows = [np.random.default_rng(list(f"{name}{one.id}".encode())) for one in members]
    match name.removeprefix("examples."):
        case "target_loss" | "bare_target_loss":
            return np.array([row.random() + 0.5 for row in rows])
        case "target_cut":
            return np.array([row.random() < 0.1 for row in rows])
        case "prior_cosines":
            return np.array([row.random() for row in rows])
        case "tags":
            return [[f"tag {i}" for i in range(9) if row.random() < 0.3] for row in rows]
        case "sae_mean" | "sae_max":
            return csr_matrix([row.random(30) * (row.random(30) < 0.3) for row in rows])
        case "gradients" | "example_gradients":
            return np.array([row.normal(size=(2, 6)) for row in rows])
    return np.array([row.random(6) for row in rows])


def made_up_pool(name, members):
    """A pool that offers exactly the measurements that a selector names."""
    examples, own, of_examples = [sample("e0", "tell 3", "ask what 3"), POOL[0]], {}, {}
    for one in selectors.get(name).measurements:
        if one.startswith("examples."):
            of_examples[one.removeprefix("examples.")] = made_up(one, examples)
        elif one != "target_examples":
            own[one] = made_up(one, examples if one.startswith("example_") else members)
    return made_pool(members, seed=1, examples=examples, of_examples=of_examples, **own)


WORDS = [sample(f"s{i:02d}", "so " * (i % 5 + 1) + f"{i}", f"how many {i % 4} + {i}?") for i in range(12)]


@pytest.mark.parametrize("name", selectors.names())
def test_every_selector_keeps_the_contract(name):
    ranking = rank_pool(name, made_up_pool(name, WORDS), size=5)
    assert sorted(ids(ranking)) == [one.id for one in WORDS]
    assert ranking["rank"].tolist() == list(range(1, 13))
    assert len(select(ranking, 5 / 12)) == len(set(select(ranking, 5 / 12))) == 5
    in_reverse = rank_pool(name, made_up_pool(name, WORDS[::-1]), size=5)
    assert ids(in_reverse) == ids(ranking)
    assert ids(rank_pool(name, made_up_pool(name, WORDS[:1]))) == ["s00"]
    json.dumps(ranking.attrs["selector"], allow_nan=False)


def test_a_choice_comes_first_and_what_fills_the_budget_is_marked(monkeypatch, tmp_path):
    """Takes the first samples but one, of which the last only fills."""
    monkeypatch.setattr(selectors.base, "_REGISTRY", {})

    @selectors.register("half", "lowest", seeded=True, k=2)
    def choose(pool, size, k=1):
        return selectors.Choice(np.arange(size)[::-1][:-1], np.arange(5), {"seen": k}, filled=1)

    rank_pool("half", made_pool(POOL, seed=3), size=4).to_parquet(tmp_path / "half.parquet")
    ranking = pd.read_parquet(tmp_path / "half.parquet")
    assert ids(ranking) == ["s3", "s2", "s1", "s0", "s4"]
    assert ranking["filled"].tolist() == [False, False, True, True, False]
    assert ranking["rank"].tolist() == [1, 2, 3, 4, 5]
    said = {"name": "half", "parameters": {"k": 2}, "direction": "lowest", "seed": 3}
    assert ranking.attrs["selector"] == said | {"facts": {"seen": 2, "filled": 2}, "measured": {}}


def test_random_depends_on_the_seed_alone_and_takes_all_equally_often():
    one = rank_pool("random", made_pool(POOL, seed=1))
    assert ids(one) == ids(rank_pool("random", made_pool(POOL[::-1], seed=1)))
    rankings = [rank_pool("random", made_pool(POOL, seed=seed)) for seed in range(150)]
    taken = [i for ranking in rankings for i in select(ranking, 0.4)]
    shares = np.array([taken.count(one.id) for one in POOL]) / 150
    assert np.abs(shares - 0.4).max() < 0.1


def test_loss_takes_the_lowest_and_igds_the_highest_sum():
    activations = np.array([[0, 1], [2, 0], [0, 0], [1, 5], [3, 0]], dtype=float)
    pool = made_pool(POOL, target_loss=[0.3, 0.1, 0.5, 0.2, 0.4], task_feature_activations=activations)
    assert ids(rank_pool("loss", pool)) == ["s1", "s3", "s0", "s4", "s2"]
    assert ids(rank_pool("loss_highest", pool)) == ["s2", "s4", "s0", "s3", "s1"]
    frs = rank_pool("igds", pool)
    assert ids(frs) == ["s3", "s4", "s1", "s0", "s2"]
    assert frs["score"].tolist() == [6.0, 3.0, 2.0, 1.0, 0.0]


CONDITIONED = [1.0, 1.0, 1.8, 2.0, 3.0, 0.5, 1.5, 0.9]
BARE = [2.0, 1.25, 2.0, 1.0, 2.0, 4.0, 2.0, 1.0]  # ratios .5 .8 .9 2. 1.5 .125 .75 .9
CUT = [False, False, False, False, False, True, False, False]


def ifd(name="ifd", size=None):
    members = [sample(f"s{i}", " \n" if i == 6 else "t") for i in range(8)]
    measured = dict(target_loss=CONDITIONED, bare_target_loss=BARE, target_cut=CUT)
    about = {"bare_target_loss": {"header": "Answer:"}}
    return rank_pool(name, made_pool(members, about=about, **measured), size)


def test_ifd_takes_the_highest_ratios_of_the_survivors():
    ranking = ifd(size=3)
    assert ids(ranking, 3) == ["s2", "s7", "s1"]  # s2 and s7 tie: by id
    assert ranking["score"].tolist()[:3] == [0.9, 0.9, 0.8]
    assert not ranking["filled"].any()
    made = ranking.attrs["selector"]
    assert made["facts"]["dropped_ratio_above_1"] == 2
    assert made["facts"]["dropped_empty_target"] == made["facts"]["dropped_cut_target"] == 1
    assert made["facts"]["filled"] == 0
    assert made["measured"]["bare_target_loss"] == {"header": "Answer:"}


def test_ifd_fills_with_the_next_ratios_above_one_and_counts_them():
    ranking = ifd(size=6)
    assert ids(ranking, 6) == ["s2", "s7", "s1", "s0", "s4", "s3"]  # then 1.5, 2.0
    assert ranking["filled"].tolist()[:6] == [False] * 4 + [True] * 2
    assert ranking.attrs["selector"]["facts"]["filled"] == 2
    assert ids(ifd(), 8)[6:] == ["s6", "s5"]  # what has no usable target comes last


def test_ifd_perplexity_is_the_exponential_of_the_difference():
    ranking = ifd("ifd_perplexity").set_index("sample_id")["score"]
    assert ranking["s0"] == pytest.approx(math.exp(1.0) / math.exp(2.0))
    assert ids(ifd("ifd_perplexity", 4), 4) == ["s7", "s2", "s1", "s0"]  # differences -.1 -.2 -.25 -1

"""ZIP against what its description says, word by word, and against full compression."""

import random
import zlib

import numpy as np
import pytest

from igds_utils.selectors import Context, PoolSample, get, rank_pool
from igds_utils.selectors.zip import Bundle, Zip, least_redundant

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "elu", "in", "ort", "ush")]
SMALL = {"k1": 20, "k2": 8, "k3": 4}


def make_pool(n, seed=0, longest=25):
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices(WORDS, k=draw.randint(3, longest)))  # noqa: E731
    return [PoolSample(f"s{i:03d}", text(), text()) for i in range(n)]


def ratio(*texts):
    whole = b"".join(texts)
    return len(whole) / len(zlib.compress(whole, 9))


def as_bytes(pool):
    return [f"{sample.instruction}\n{sample.target}\n".encode() for sample in pool]


def lowest(values, among, k):
    return sorted(among, key=lambda i: (values[i], i))[:k]


def local_set(texts, among, k3):
    """Third step: grown from empty by the smallest joint ratio; ties fall to the first of `among`."""
    local = []
    for _ in range(k3):
        values = {i: ratio(*[texts[j] for j in local], texts[i]) for i in among if i not in local}
        local.append(min(values, key=values.get))
    return local


def official(texts, size, k1, k2, k3):
    """The authors' program, from its description: what it selects, in its order, with whatever repeats."""
    state, selected = [ratio(text) for text in texts], []
    while len(selected) < size:
        before = [texts[i] for i in selected]
        first = lowest(state, range(len(texts)), k1)
        for i in first:
            state[i] = ratio(*before, texts[i])
        second = lowest(state, first, k2)
        for i in second:
            state[i] = 1e6
        selected += local_set(texts, second, k3)
    return selected


def no_replacement(texts, size, k1, k2, k3):
    state, selected = [ratio(text) for text in texts], []
    while len(selected) < size:
        before, left = [texts[i] for i in selected], [i for i in range(len(texts)) if i not in selected]
        first = lowest(state, left, k1)
        for i in first:
            state[i] = ratio(*before, texts[i])
        second = lowest(state, first, k2)
        selected += local_set(texts, sorted(second), min(k3, size - len(selected), len(second)))
    return selected


@pytest.mark.parametrize(("n", "size", "seed"), [(60, 17, 0), (60, 30, 1), (24, 24, 2), (10, 7, 3)])
def test_no_replacement_equals_brute_force(n, size, seed):
    pool = make_pool(n, seed)
    found = Zip("z", **SMALL).choose(Context(pool), size)
    assert found.order.tolist() == no_replacement(as_bytes(pool), size, **SMALL)
    assert len(set(found.order.tolist())) == size and found.facts == {}


@pytest.mark.parametrize(
    ("k1", "size", "seed", "longest"),
    [(20, 4, 0, 25), (20, 44, 1, 25), (40, 44, 2, 25), (60, 30, 4, 25), (40, 28, 5, 3), (60, 24, 6, 3)],
)
def test_official_equals_its_description_with_its_duplicates(k1, size, seed, longest):
    pool, numbers = make_pool(60, seed, longest), SMALL | {"k1": k1}  # short texts: many of equal g
    program = official(as_bytes(pool), size, **numbers)
    found = Zip("z", mode="official", **numbers).choose(Context(pool), size)
    distinct = list(dict.fromkeys(program))
    assert found.order.tolist() == distinct[:size]
    assert found.facts == {"taken": len(program), "distinct": len(distinct)}
    assert len(program) % SMALL["k3"] == 0  # it ends with a whole round


def test_official_selects_twice_late_and_the_rest_is_filled(monkeypatch):
    monkeypatch.setattr(get("zip_official"), "parameters", {"mode": "official", **SMALL})
    ranking = rank_pool("zip_official", Context(make_pool(60, 1)), 44)
    facts = ranking.attrs["selector"]["facts"]
    assert facts["taken"] == 44 and facts["distinct"] < 40
    assert facts["chosen"] == facts["distinct"] and facts["chosen"] + facts["filled"] == 44
    assert ranking["filled"].sum() == facts["filled"] > 0
    assert ranking["sample_id"].is_unique


@pytest.mark.parametrize("name", ["zip", "zip_official"])
def test_a_pool_below_the_defaults_is_no_error(name):
    ranking = rank_pool(name, Context(make_pool(12)), 5)
    assert len(ranking) == 12 and not ranking["filled"].any()
    assert len(rank_pool(name, Context(make_pool(1)))) == 1


def test_equal_texts_fall_to_the_smaller_id():
    one = PoolSample("x", "same", "same")
    pool = [PoolSample(name, one.target, one.instruction) for name in "cab"]
    for name in ("zip", "zip_official"):
        assert rank_pool(name, Context(pool), 2)["sample_id"].tolist()[0] == "a"


def test_a_bundle_knows_the_ratio_of_the_whole_far_beyond_the_window():
    """zlib looks back 32 KiB; the state that is kept must give what compressing everything again gives."""
    texts, bundle = as_bytes(make_pool(400, 5, longest=60)), Bundle()
    for number, text in enumerate(texts):
        if number % 40 == 0:
            assert bundle.ratio_with(text) == ratio(*texts[: number + 1])
        bundle.add(text)
    assert sum(map(len, texts)) > 3 * 32768


def test_the_local_set_is_grown_from_empty_by_the_smallest_joint_ratio():
    texts = as_bytes(make_pool(9, 3))
    assert least_redundant(texts, 4) == local_set(texts, range(9), 4)


def test_zip_leaves_out_what_repeats_the_others():
    pool = make_pool(30, 4)
    doubled = pool + [PoolSample(f"t{i}", one.target, one.instruction) for i, one in enumerate(pool)]
    taken = rank_pool("zip", Context(doubled), 30)["sample_id"].tolist()[:30]
    texts = {sample.id: sample.document for sample in doubled}
    repeats = 30 - len({texts[i] for i in taken})
    chance = np.mean(
        [30 - len({texts[i] for i in random.Random(s).sample(sorted(texts), 30)}) for s in range(50)]
    )
    assert repeats < chance / 3

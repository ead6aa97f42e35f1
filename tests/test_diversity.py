"""Coverage, #InsTag and ZIP: fast searches against plain ones, and by hand."""

import random
import zlib

import numpy as np
import pytest
from pools import ids, made_pool, sample, samples
from scipy.sparse import csr_matrix

from igds_utils.selection.measurements import parse_tags
from igds_utils.selectors import rank_pool
from igds_utils.selectors.base import document
from igds_utils.selectors.diversity import Bundle, entropy_law, instag, lazy_greedy, normalised_tag, walk


def plain_greedy(sets, ties, size):
    """Look at everything that is left at every step."""
    order, covered = [], set()
    while left := [i for i in range(len(sets)) if i not in order and len(sets[i])]:
        best = min(left, key=lambda i: (-len(set(sets[i]) - covered), ties[i]))
        if not set(sets[best]) - covered and covered:
            covered = set()
            continue
        covered |= set(sets[best])
        order.append(best)
    return order[:size]


@pytest.mark.parametrize("seed", range(4))
def test_lazy_greedy_is_plain_greedy(seed):
    draw = np.random.default_rng(seed)
    sets = [np.flatnonzero(draw.random(30) < draw.choice([0.0, 0.05, 0.3])) for _ in range(40)]
    ties = draw.permutation(40)
    for size in (1, 13, 40):
        assert lazy_greedy(sets, ties, size).tolist() == plain_greedy(sets, ties, size)


def arrays(*sets):
    return [np.array(one, dtype=int) for one in sets]


def test_simscale_by_hand():
    sets = arrays([0, 1, 2, 3, 4], [0, 1, 2, 3, 9], [0, 1, 2, 5], [7], [], [])
    order = walk(sets, np.arange(6), 6, overlap=0.8)
    # sample 1 is held to 4/5 and left for the second cover, sample 2 to 3/4 and kept
    assert order.tolist() == [0, 2, 3, 1]
    assert walk(sets, np.arange(6), 2, overlap=0.7).tolist() == [0, 3]


@pytest.mark.parametrize("name", ["greedselect", "simscale"])
def test_features_are_above_a_quantile(name):
    largest = csr_matrix(np.array([[0.0, 1.0, 4.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 5.0, 0.0]]))
    ranking = rank_pool(name, made_pool(samples(*"abcd"), sae_max=largest), 4)  # above 3
    assert ids(ranking) == ["s0", "s3", "s1", "s2"] and ranking["score"].tolist() == [1, 1, 0, 0]
    assert ranking["filled"].tolist() == [False, False, True, True]
    silent = made_pool(samples(*"ab"), sae_max=csr_matrix((2, 3)))
    assert rank_pool(name, silent, 1)["filled"].tolist() == [True, False]


def test_instag_walks_by_number_of_tags():
    tags = [["a", "b"], ["a", "b", "c"], ["c"], ["d"], ["a", "b"], []]
    chosen = lambda names, size: instag(made_pool([sample(name) for name in names]), size, tags, rare=1)  # noqa: E731
    # first cover: s1 (three tags), s3 (brings the fourth); second: s0, s2; third: s4. s5 has no tag.
    assert chosen("abcdef", 6).order.tolist() == [1, 3, 0, 2, 4]
    assert chosen("abcdef", 3).order.tolist() == [1, 3, 0]
    assert chosen("fedcba", 3).order.tolist() == [1, 3, 4]  # ties by id


def test_instag_drops_rare_tags_and_counts_what_has_none():
    tags = [["a", "b", "d"], ["a", "b"], ["c"]]
    pool = made_pool(samples(*"abc"), tags=tags)
    ranking = rank_pool("instag", pool, 3)
    assert ranking["score"].tolist() == [2, 2, 0]
    assert ranking["filled"].tolist() == [False, False, True]
    assert ranking.attrs["selector"]["facts"] == {"dropped_rare_tags": 2, "filled": 1}
    assert instag(pool, 2, tags, rare=1).order.tolist() == [0, 2]  # now s2 brings a tag of its own


def test_tags_are_read_and_normalised():
    whole = '[{"tag": "math problem", "explanation": "a \\"sum\\""}, {"tag":"fractions", "expl'
    assert parse_tags(whole) == ["math problem", "fractions"] and parse_tags("no tags") == []
    tags = ["Solving Equations", "solve equation!", "math.", "..."]
    assert [normalised_tag(tag) for tag in tags] == ["solv equat", "solv equat", "math", ""]


WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "elu", "in", "ort", "ush")]
SMALL = {"k1": 20, "k2": 8, "k3": 4}


def problems(n, seed=0, longest=25):
    draw = random.Random(seed)
    text = lambda: " ".join(draw.choices(WORDS, k=draw.randint(3, longest)))  # noqa: E731
    return [sample(f"s{i:03d}", text(), text()) for i in range(n)]


def ratio(*some):
    whole = b"".join(some)
    return len(whole) / len(zlib.compress(whole, 9))


def as_bytes(members):
    return [f"{document(one)}\n".encode() for one in members]


def lowest(values, among, k):
    return sorted(among, key=lambda i: (values[i], i))[:k]


def local_set(packed, among, k3):
    """Third step: grown by the smallest joint ratio, ties to the first."""
    local = []
    for _ in range(k3):
        values = {i: ratio(*[packed[j] for j in local], packed[i]) for i in among if i not in local}
        local.append(min(values, key=values.get))
    return local


def literal(packed, size, official, k1, k2, k3):
    """The authors' program from its description, or without replacement."""
    state, selected = [ratio(text) for text in packed], []
    while len(selected) < size:
        before = [packed[i] for i in selected]
        first = lowest(state, [i for i in range(len(packed)) if official or i not in selected], k1)
        for i in first:
            state[i] = ratio(*before, packed[i])
        second = lowest(state, first, k2)
        if official:
            for i in second:
                state[i] = 1e6
            selected += local_set(packed, second, k3)
        else:
            selected += local_set(packed, sorted(second), min(k3, size - len(selected), len(second)))
    return selected


@pytest.mark.parametrize(("n", "size", "seed"), [(60, 17, 0), (60, 30, 1), (24, 24, 2), (10, 7, 3)])
def test_zip_equals_brute_force(n, size, seed):
    members = problems(n, seed)
    found = entropy_law(made_pool(members), size, **SMALL)
    assert found.order.tolist() == literal(as_bytes(members), size, False, **SMALL)
    assert len(set(found.order.tolist())) == size and found.facts == {}


@pytest.mark.parametrize(
    ("k1", "size", "seed", "longest"),
    [(20, 44, 1, 25), (60, 30, 4, 25), (40, 28, 5, 3)],
)
def test_official_zip_equals_its_description(k1, size, seed, longest):
    members, numbers = problems(60, seed, longest), SMALL | {"k1": k1}  # short texts: many of equal g
    program = literal(as_bytes(members), size, True, **numbers)
    found = entropy_law(made_pool(members), size, mode="official", **numbers)
    distinct = list(dict.fromkeys(program))
    assert found.order.tolist() == distinct[:size]
    assert found.facts == {"taken": len(program), "distinct": len(distinct)}
    assert len(program) % SMALL["k3"] == 0  # it ends with a whole round
    assert size != 44 or len(distinct) < 40  # it selects twice, late


@pytest.mark.parametrize("name", ["zip", "zip_official"])
def test_a_small_pool_and_equal_texts(name):
    ranking = rank_pool(name, made_pool(problems(12)), 5)
    assert len(ranking) == 12 and not ranking["filled"].any()
    alike = made_pool([sample(one, "same", "same") for one in "cab"])
    assert rank_pool(name, alike, 2)["sample_id"][0] == "a"


def test_a_bundle_knows_the_ratio_beyond_the_window():
    """zlib looks back 32 KiB: the state must give what compressing all again gives."""
    packed, bundle = as_bytes(problems(400, 5, longest=60)), Bundle()
    for number, text in enumerate(packed):
        if number % 40 == 0:
            assert bundle.ratio_with(text) == ratio(*packed[: number + 1])
        bundle.add(text)
    assert sum(map(len, packed)) > 3 * 32768

"""Corrupted samples of a pool to train on and of pools of known quality."""

from dataclasses import replace

import pytest

from igds_utils.config.config import load_preset
from igds_utils.config.settings import QualityConfig
from igds_utils.tasks import corruptions, get
from igds_utils.tasks.corruptions import SIDES, TRAINED
from igds_utils.tasks.examples import Example, random_stream

ONE = Example("a", {"question": "Ann has 3 apples and 4 pears."}, "3 + 4 = 7. So \\boxed{7}.", ("7",))
TWO = Example("b", {"question": "Bob has 5 figs."}, "The final answer is \\boxed{5}.", ("5",))
LINE = Example("c", {"source_text": "Save the file now", "target_language": "French"}, "Enregistrer", ())
HAND = [
    Example(f"s{i}", {"question": f"Ann has {i} figs and {i + 1} pears, how many?"}, f"{2 * i + 1}.", ())
    for i in range(20)
]


@pytest.fixture(scope="module")
def large():
    """80 math samples, none of them off-task."""
    config = load_preset("smoke").tasks["math"]
    sizes = config.sizes.model_copy(update={"pool": 80})
    changed = {"sizes": sizes, "data": config.data | {"off_task": 0.0}, "corrupted": 0.0}
    return get("math").sets(config.model_copy(update=changed), seed=0)["pool"]


def corrupt(name, example=ONE, other=TWO, seed=0):
    return corruptions.corrupt(name, example, other, random_stream("t", "t", seed))


def known_quality(samples, target_rate, prompt_rate, seed):
    rates = QualityConfig(target_rate=target_rate, prompt_rate=prompt_rate)
    return corruptions.quality_pool(samples, rates, seed)


def labels(pool):
    return [example.meta["corruption"] for example in pool]


@pytest.mark.parametrize(("share", "n"), [(0.5, 10), (0.35, 7)])
def test_exactly_a_share_of_a_pool_is_corrupted(share, n):
    made = corruptions.corrupted_pool(HAND, share, seed=0)
    assert sum(map(bool, labels(made))) == n and set(labels(made)) == {"", *TRAINED}
    for before, after in zip(HAND, made, strict=True):
        assert (before.id, before.target) == (after.id, after.target)
        assert (before.fields == after.fields) == (after.meta["corruption"] == "")
    assert made == corruptions.corrupted_pool(HAND, share, 0) != corruptions.corrupted_pool(HAND, share, 1)


@pytest.mark.parametrize(("share", "smaller"), [(0.5, 10), (0.25, 5), (0.7, 6)])
def test_the_rulers_ends(share, smaller):
    pool = corruptions.corrupted_pool(HAND, share, seed=0)
    ends = corruptions.ruler(pool, seed=0)
    assert {side: len(members) for side, members in ends.items()} == {"clean": smaller, "corrupted": smaller}
    assert not any(labels(ends["clean"])) and all(labels(ends["corrupted"]))
    assert all(example in HAND for example in map(unlabelled, ends["clean"]))
    places = {side: [pool.index(example) for example in members] for side, members in ends.items()}
    assert all(found == sorted(set(found)) for found in places.values())
    assert ends == corruptions.ruler(pool, seed=0)
    assert (ends == corruptions.ruler(pool, seed=1)) == (share == 0.5)  # the whole of both sides


def unlabelled(example):
    return replace(example, meta={k: v for k, v in example.meta.items() if k != "corruption"})


def test_only_the_labels_tell_what_is_corrupted(open_smoke):
    none, some = (open_smoke(**{"tasks.math.corrupted": share}) for share in (0, 0.5))
    clean, half = none.sets("math"), some.sets("math")
    assert [name for name in clean if half[name] != clean[name]] == ["pool"]
    pool, before = half["pool"], clean["pool"]
    assert sum(map(bool, labels(pool))) == len(pool) // 2
    assert none.data_version("math", "pool") != some.data_version("math", "pool")
    for example in pool:  # what products depend on, ids and targets say nothing of a label
        assert example.version == unlabelled(example).version
    assert [(e.id, e.target) for e in pool] == [(e.id, e.target) for e in before]


def test_both_sides_are_corrupted_at_their_rates(large):
    made = known_quality(large, 0.25, 0.25, seed=0)
    assert [e.id for e in made] == [e.id for e in large]
    found = [label for label in labels(made) if label]
    sides, quarter = [SIDES[label] for label in found], round(0.25 * len(large))
    assert (sides.count("target"), sides.count("prompt")) == (quarter, quarter) and len(large) > 70
    assert {kind: found.count(kind) >= quarter // 4 for kind in found} == dict.fromkeys(SIDES, True)
    again, other = (known_quality(large, 0.25, 0.25, seed) for seed in (0, 1))
    assert made == again != other
    assert min(sum(map(bool, labels(half))) for half in (made[:48], made[48:])) > 10  # not told by the place


def test_each_side_leaves_the_other(large):
    made = {e.id: e for e in known_quality(large, 0.4, 0.4, seed=1)}
    for before in large:
        after = made[before.id]
        if after.meta["corruption"] == "duplicate":
            origin = made[after.meta["copy_of"]]
            assert origin.id != after.id and origin.meta["corruption"] == ""
            assert (after.fields, after.target) == (origin.fields, origin.target)
            continue
        side = SIDES.get(after.meta["corruption"])
        assert (before.fields == after.fields) == (side != "prompt")
        assert (before.target == after.target) == (side != "target")
    assert "duplicate" in labels(made.values())


def test_kinds_by_hand():
    assert corrupt("another sample's target") == replace(ONE, target=TWO.target)
    assert corrupt("truncated target") == replace(ONE, target="3 +")
    garbled = corrupt("garbled prompt").fields["question"]
    assert garbled != ONE.text and sorted(garbled.split()) == sorted(ONE.text.split())
    numberless = {"question": "Ann has some apples and some pears."}
    assert corrupt("missing numbers") == replace(ONE, fields=numberless)
    assert corrupt("duplicate") == Example("a", TWO.fields, TWO.target, TWO.references, {"copy_of": "b"})


def test_another_tasks_prompt():
    texts = {corrupt("another task's prompt", seed=seed).fields["question"] for seed in range(30)}
    assert all(text.startswith(("Use a sentence to summarize", "Please translate")) for text in texts)
    changed = [corrupt("another task's prompt", LINE, seed=seed).fields for seed in range(30)]
    assert any("put your final answer" in fields["source_text"] for fields in changed)
    assert not any(fields["source_text"].startswith("Please translate") for fields in changed)
    assert {fields["target_language"] for fields in changed} == {"French"}


def test_what_a_kind_cannot_corrupt_is_left_to_the_next():
    plain = Example("d", {"question": "word"}, "same", ())
    for name in ("another sample's target", "truncated target", "garbled prompt", "missing numbers"):
        assert corrupt(name, plain, plain) is None, name
    assert set(labels(corruptions.corrupted_pool([plain] * 6, 1 - 1e-9, 0))) == {"another task's prompt"}

"""Pools of known quality."""

import pytest

from igds_utils import defects
from igds_utils.config import load_preset
from igds_utils.tasks import get
from igds_utils.tasks.base import Example


@pytest.fixture(scope="module")
def pool():
    return get("math").sets(load_preset("smoke").tasks["math"], seed=0)["pool"]


def test_a_share_is_spoilt_and_labelled_and_the_rest_is_untouched(pool):
    made = defects.labelled_pool(pool, share=0.5, seed=0)
    assert [e.id for e in made] == [e.id for e in pool]
    spoilt = [e for e in made if e.meta["defect"]]
    assert len(spoilt) == round(0.5 * len(pool))
    for before, after in zip(pool, made, strict=True):
        same = (before.fields, before.target) == (after.fields, after.target)
        assert same == (after.meta["defect"] == "")


def test_target_side_defects_leave_the_prompt_and_prompt_side_ones_the_target(pool):
    for before, after in zip(pool, defects.labelled_pool(pool, 1.0, seed=1), strict=True):
        side = defects.DEFECTS[after.meta["defect"]].side
        assert (before.fields == after.fields) == (side == "target")
        assert (before.target == after.target) == (side == "prompt")


def test_every_kind_occurs_and_the_same_seed_gives_the_same_pool(pool):
    made = defects.labelled_pool(pool, 1.0, seed=2)
    assert {e.meta["defect"] for e in made} == set(defects.DEFECTS)
    assert made == defects.labelled_pool(pool, 1.0, seed=2) != defects.labelled_pool(pool, 1.0, seed=3)


def test_each_defect_by_hand():
    one = Example(
        "a",
        {"question": "Ann has 3 apples and 4 pears."},
        "3 + 4 = 7.\nThe final answer is \\boxed{7}.",
        ("7",),
    )
    two = Example("b", {"question": "Bob has 5 figs."}, "The final answer is \\boxed{5}.", ("5",))
    draw = defects.random_stream("t", "t", 0)
    spoil = {name: defect.spoil(one, two, draw) for name, defect in defects.DEFECTS.items()}
    assert (
        spoil["wrong answer"].target.startswith("3 + 4 = 7.")
        and "\\boxed{7}" not in spoil["wrong answer"].target
    )
    assert spoil["another sample's target"].target == two.target
    assert spoil["truncated target"].target == "3 + 4"
    assert sorted(spoil["garbled prompt"].fields["question"].split()) == sorted(
        one.fields["question"].split()
    )
    assert spoil["another sample's prompt"].fields == two.fields
    assert spoil["missing numbers"].fields["question"] == "Ann has some apples and some pears."
    assert defects.missing_numbers(Example("c", {"text": "no number"}, "x", ()), two, draw) is None

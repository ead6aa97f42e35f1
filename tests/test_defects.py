"""Pools of known quality."""

import pytest

from igds_utils.config.config import load_preset
from igds_utils.core.store import content_hash
from igds_utils.tasks import defects, get
from igds_utils.tasks.examples import Example

ONE = Example(
    "a", {"question": "Ann has 3 apples and 4 pears."}, "3 + 4 = 7.\nThe final answer is \\boxed{7}.", ("7",)
)
TWO = Example("b", {"question": "Bob has 5 figs."}, "The final answer is \\boxed{5}.", ("5",))
LINE = Example("c", {"source_text": "Save the file now", "target_language": "French"}, "Enregistrer", ())


@pytest.fixture(scope="module")
def pool():
    return get("math").sets(load_preset("smoke").tasks["math"], seed=0)["pool"]


@pytest.fixture(scope="module")
def large():
    config = load_preset("quick").tasks["math"]
    return [e for e in get("math").sets(config, seed=0)["pool"] if not e.meta["off_task"]]


def spoil(name, example=ONE, other=TWO, seed=0):
    return defects.DEFECTS[name].spoil(example, other, defects.random_stream("t", "t", seed))


# ---- the pools of the clean and defective arms ----


def test_a_share_is_spoilt_and_labelled_and_the_rest_is_untouched(pool):
    made = defects.labelled_pool(pool, share=0.5, seed=0)
    assert [e.id for e in made] == [e.id for e in pool]
    spoilt = [e for e in made if e.meta["defect"]]
    assert len(spoilt) == round(0.5 * len(pool))
    for before, after in zip(pool, made, strict=True):
        same = (before.fields, before.target) == (after.fields, after.target)
        assert same == (after.meta["defect"] == "")


def test_every_checked_kind_occurs_and_the_same_seed_gives_the_same_pool(pool):
    made = defects.labelled_pool(pool, 1.0, seed=2)
    assert {e.meta["defect"] for e in made} == set(defects.CHECKED)
    assert made == defects.labelled_pool(pool, 1.0, seed=2) != defects.labelled_pool(pool, 1.0, seed=3)


# ---- known quality ----


def test_both_sides_are_spoilt_at_their_rates_with_every_kind(large):
    made = defects.known_quality_pool(large, target_rate=0.25, prompt_rate=0.25, seed=0)
    assert [e.id for e in made] == [e.id for e in large]
    found = [e.meta["defect"] for e in made if e.meta["defect"]]
    sides = [defects.DEFECTS[name].side for name in found]
    quarter = round(0.25 * len(large))
    assert (sides.count("target"), sides.count("prompt")) == (quarter, quarter) and len(large) > 70
    assert set(found) == set(defects.JUDGED)
    assert max(found.count(name) for name in found) <= 8


def test_each_side_leaves_the_other_as_it_was(large):
    for before, after in zip(large, defects.known_quality_pool(large, 0.4, 0.4, seed=1), strict=True):
        defect = after.meta["defect"]
        if defect == "duplicate":
            continue
        side = defects.DEFECTS[defect].side if defect else ""
        assert (before.fields == after.fields) == (side != "prompt")
        assert (before.target == after.target) == (side != "target")


def test_a_duplicate_is_a_clean_sample_again_under_its_own_id(large):
    made = {e.id: e for e in defects.known_quality_pool(large, 0.2, 0.5, seed=0)}
    copies = [e for e in made.values() if e.meta["defect"] == "duplicate"]
    assert copies
    for copy in copies:
        origin = made[copy.meta["copy_of"]]
        assert origin.id != copy.id and origin.meta["defect"] == ""
        assert (copy.fields, copy.target) == (origin.fields, origin.target)


def test_labels_cannot_be_guessed_from_place_and_the_seed_decides(large):
    made = [defects.known_quality_pool(large, 0.25, 0.25, seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    halves = [sum(bool(e.meta["defect"]) for e in half) for half in (made[0][:48], made[0][48:])]
    assert min(halves) > 10


@pytest.mark.parametrize("task", ["translation", "summarization"])
def test_other_tasks_get_every_kind_that_can_spoil_them(task):
    examples = get(task).sets(load_preset("quick").tasks[task], seed=0)["pool"]
    found = {e.meta["defect"] for e in defects.known_quality_pool(examples, 0.4, 0.5, seed=0)} - {""}
    assert {"another sample's target", "truncated target", "another task's prompt", "noise"} <= found
    assert not {"wrong answer", "broken step"} & found


def test_a_pool_without_clean_samples_is_refused(pool):
    with pytest.raises(
        ValueError, match="8 target-side and 8 prompt-side defects leave no two clean ones of 16"
    ):
        defects.known_quality_pool(pool, 0.5, 0.5, seed=0)


# ---- each kind by hand ----


def test_target_side_defects_by_hand():
    wrong = spoil("wrong answer").target
    assert wrong.startswith("3 + 4 = 7.") and "\\boxed{7}" not in wrong
    broken = spoil("broken step").target
    assert broken.startswith("3 + 4 = ") and not broken.startswith("3 + 4 = 7.") and "\\boxed{7}" in broken
    assert spoil("another sample's target").target == TWO.target
    assert spoil("truncated target").target == "3 + 4"


def test_a_wrong_answer_reaches_into_a_fraction_and_leaves_the_work():
    fraction = Example("f", {"question": "Half of it?"}, r"So 1 / 2.\nThus \boxed{\frac{1}{2}}.", ())
    changed = spoil("wrong answer", fraction).target
    assert changed.startswith(r"So 1 / 2.\nThus \boxed{\frac{") and changed.endswith("}{2}}.")
    assert changed != fraction.target


def test_prompt_side_defects_by_hand():
    question = ONE.fields["question"]
    shown = {name: spoil(name).fields["question"] for name in defects.JUDGED if name != "wrong answer"}
    assert sorted(shown["garbled prompt"].split()) == sorted(question.split())
    assert [len(word) for word in shown["noise"].split()] == [len(word) for word in question.split()]
    assert shown["missing numbers"] == "Ann has some apples and some pears."
    assert spoil("another sample's prompt").fields == TWO.fields
    assert shown["wrong language"] in defects._texts()["wrong_language"]
    assert shown["off-task text"] in defects._texts()["off_task"]
    assert spoil("duplicate") == Example("a", TWO.fields, TWO.target, TWO.references, {"copy_of": "b"})


def test_another_tasks_prompt_is_never_the_samples_own_task():
    of_math = {spoil("another task's prompt", seed=seed).fields["question"] for seed in range(30)}
    assert all(text.startswith(("Use a sentence to summarize", "Please translate")) for text in of_math)
    of_translation = {
        spoil("another task's prompt", LINE, seed=seed).fields["source_text"] for seed in range(30)
    }
    assert any("put your final answer" in text for text in of_translation)
    assert not any(text.startswith("Please translate") for text in of_translation)
    changed = spoil("another task's prompt", LINE)
    assert changed.fields["target_language"] == "French"


def test_what_cannot_spoil_says_none():
    plain = Example("d", {"question": "word"}, "same", ())
    for name in ("wrong answer", "broken step", "truncated target", "garbled prompt", "missing numbers"):
        assert spoil(name, plain) is None, name
    assert spoil("another sample's target", plain, plain) is None
    assert spoil("another sample's prompt", plain, plain) is None


def test_the_pools_of_the_reference_run_have_not_changed():
    """The clean and defective arms of a stored run are comparable only while these stay."""
    pool = [Example(f"s{i}", {"question": f"Ann has {i} figs and {i} pears, how many?"}, f"{i} + {i} = {2 * i}.\n"
                    f"The final answer is \\boxed{{{2 * i}}}.", ()) for i in range(12)]  # fmt: skip
    made = defects.labelled_pool(pool, 0.5, seed=0)
    assert content_hash([(e.fields, e.target, e.meta) for e in made]) == "11ad67b719e9957a"

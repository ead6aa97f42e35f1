"""Names, order and sizes of arms."""

import pytest

from igds_utils.config.settings import TaskConfig
from igds_utils.core.arms import arms, asked_in_general


def task(**fields):
    sizes = {"prior": 1, "validation": 1, "confirmation": 1, "pool": 10, "test": 1}
    fixed = {"max_new_tokens": 1, "prompt_tokens": 1, "target_tokens": 1, "sft": {}, "sizes": sizes}
    return TaskConfig(**fixed, **fields)


def test_every_ratio_and_seed_has_its_arm_and_the_first_seed_goes_unnamed():
    found = arms(task(selectors=["random", "igds"], ratios=[0.2, 0.5], seeds=[7, 8]))
    assert [arm.name for arm in found] == [
        *("original", "full", "random@0.2", "random@0.5", "igds@0.2", "igds@0.5"),
        *("full-s8", "random@0.2-s8", "random@0.5-s8", "igds@0.2-s8", "igds@0.5-s8"),
    ]
    assert [arm.seed for arm in found] == [7] * 6 + [8] * 5
    assert [arm.name for arm in found if not arm.trained] == ["original"]


def test_sizes():
    original, full, half = arms(task(selectors=["igds"]))
    assert (original.size(10), full.size(10), half.size(10), half.size(1)) == (0, 10, 5, 1)


def test_a_job_of_one_arm_sees_that_arm_alone():
    assert [arm.name for arm in arms(task(selectors=["igds"], only_arms=["igds@0.5"]))] == ["igds@0.5"]
    with pytest.raises(ValueError, match="no arm 'igds'; known: original, full, igds@0.5"):
        arms(task(selectors=["igds"], only_arms=["igds"]))


def test_named_arms_and_the_original_are_asked_in_general_or_all_but_the_checks():
    def asked(capabilities, **fields):
        found = asked_in_general(
            task(selectors=["igds"], defect_check=True, capabilities=capabilities, **fields)
        )
        return [arm.name for arm in found]

    assert asked(None) == []
    assert asked({}) == ["original", "full", "igds@0.5"]
    assert asked({"arms": ["igds@0.5"]}) == ["original", "igds@0.5"]
    assert asked({"arms": ["igds@0.5"]}, only_arms=["full"]) == []
    with pytest.raises(ValueError, match="no arm 'igds'; known: original"):
        asked({"arms": ["igds"]})

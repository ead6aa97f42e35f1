"""Names, order and sizes of arms."""

import pytest

from igds_utils.config.config import ConfigError
from igds_utils.config.settings import TaskConfig
from igds_utils.core.arms import arms, asked_in_general, main_arms

CURVE = {"curve": {"ratios": [0.2, 0.8], "selectors": ["igds"]}}
CURVE["selectors"] = ["random", "igds", "igds_k3"]


def task(**fields):
    sizes = {"prior": 1, "validation": 1, "confirmation": 1, "pool": 10, "test": 1}
    fixed = {"max_new_tokens": 1, "prompt_tokens": 1, "target_tokens": 1, "sft": {}, "sizes": sizes}
    return TaskConfig(**fixed, **fields)


def names(found):
    return [arm.name for arm in found]


def test_every_selector_and_seed_has_its_arm():
    found = arms(task(**CURVE, ratio=0.3, seeds=[7, 8]))
    assert names(found) == [
        *("original", "full", "random@0.3", "igds@0.3", "igds_k3@0.3", "igds@0.2", "igds@0.8"),
        *("full-s8", "random@0.3-s8", "igds@0.3-s8", "igds_k3@0.3-s8"),
        *("igds@0.2-s8", "igds@0.8-s8"),
    ]
    assert [arm.seed for arm in found] == [7] * 7 + [8] * 6
    assert [arm.name for arm in found if not arm.trained] == ["original"]
    assert [(arm.selector, arm.ratio) for arm in found[5:7]] == [("igds", 0.2), ("igds", 0.8)]


def test_draws_of_random_and_equal_steps():
    config = task(selectors=["random", "igds"], seeds=[4, 9], random_draws=4, full_steps=True)
    found = arms(config)
    seeds = {name: [arm.seed for arm in found if arm.selector == name] for name in ("random", "igds")}
    assert seeds == {"random": [4, 9, 10, 11], "igds": [4, 9]}
    assert task(seeds=[0, 1], random_draws=1).seeds_of("random") == [0, 1]
    whole = [arm for arm in found if arm.selector == "full_steps"]
    assert names(whole) == ["full_steps", "full_steps-s9"] and whole[0].size(10) == 10
    assert set(whole) <= set(main_arms(config))
    assert not any("random" in arm.name for arm in arms(task(selectors=["igds"], random_draws=3)))


def test_tables_compare_the_arms_of_one_ratio():
    config = task(**CURVE, ratio=0.3, corrupted=0.5)
    assert names(arms(config))[-2:] == ["clean@0.5", "corrupted@0.5"]
    assert names(main_arms(config)) == ["original", "full", "random@0.3", "igds@0.3", "igds_k3@0.3"]
    assert "clean@0.5" not in names(main_arms(task(**CURVE, corrupted=0.5)))


def test_sizes():
    original, full, half = arms(task(selectors=["igds"]))
    assert names(arms(task(selectors=["igds"], only_arms=["igds@0.5"]))) == [half.name]
    assert (original.size(10), full.size(10), half.size(10), half.size(1)) == (0, 10, 5, 1)


@pytest.mark.parametrize(
    ("capabilities", "fields", "asked"),
    [
        (None, {}, []),
        ({}, {}, ["original", "full", "igds@0.5"]),  # all but checks and curve
        ({"arms": ["igds@0.2"]}, {}, ["original", "igds@0.2"]),
        ({"arms": ["igds"]}, {}, ["original", "igds@0.5"]),
        ({"arms": ["igds@0.5"]}, {"only_arms": ["full"]}, []),
    ],
)
def test_which_arms_are_asked_in_general(capabilities, fields, asked):
    curve = {"ratios": [0.2], "selectors": ["igds"]}
    fields = fields | {"selectors": ["igds"], "curve": curve, "corrupted": 0.5}
    config = task(capabilities=capabilities, **fields)
    assert names(asked_in_general(config)) == asked


@pytest.mark.parametrize("asked", [{"only_arms": ["loss"]}, {"capabilities": {"arms": ["loss"]}}])
def test_an_arm_that_there_is_not_is_refused(asked):
    config = task(selectors=["igds"], **asked)
    with pytest.raises(ConfigError, match="no arm 'loss'; known: original"):
        arms(config), asked_in_general(config)

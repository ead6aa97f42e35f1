"""Arms of an evaluation compared, and what a task can tell, against hand-computed cases."""

import json

import pandas as pd
import pytest

from igds_utils.training.evaluation import checks, summarise


@pytest.fixture
def evaluation():
    scores = {
        ("original", 0.0, 0): [0, 0, 0, 0], ("full", 1.0, 0): [1, 1, 0, 0], ("random@0.5", 0.5, 0): [1, 0, 0, 0],
        ("random@0.5-s1", 0.5, 1): [0, 1, 0, 0],
        ("igds@0.5", 0.5, 0): [1, 1, 1, 0], ("igds@0.5-s1", 0.5, 1): [1, 1, 0, 0],
    }  # fmt: skip
    return pd.DataFrame([
        {"arm": arm, "selector": arm.split("@")[0], "ratio": ratio, "seed": seed, "sample_id": f"t{i}", "score": s}
        for (arm, ratio, seed), values in scores.items() for i, s in enumerate(values)
    ])  # fmt: skip


def by_arm(evaluation, n_train=(), logs=(), likelihoods=None):
    records = summarise(evaluation, dict(n_train), 0.5, dict(logs), likelihoods)
    return {record["arm"]: record for record in records}


def test_summarise_pools_seeds_and_compares_with_every_reference(evaluation):
    records = by_arm(evaluation, {"original": 0, "full": 8, "random@0.5": 4, "igds@0.5": 4})
    igds = records["igds@0.5"]
    assert igds["seeds"] == [0, 1] and igds["by_seed"] == [0.75, 0.5]
    assert igds["n"] == igds["n_train"] == 4
    expected = {"score": 0.625, "gain_over_full": 25, "vs_random": 0.375}
    expected |= {"vs_full": 0.125, "vs_original": 0.625}
    assert {name: igds[name] for name in expected} == pytest.approx(expected)
    assert igds["vs_random_low"] <= igds["vs_random"] <= igds["vs_random_high"]
    assert not [key for key in records["random@0.5"] if key.startswith("vs_")]
    assert "vs_random" not in records["full"]  # another size: no random arm to compare with
    json.dumps(list(records.values()), allow_nan=False)


def drawn(evaluation, draws):
    """The same with Random drawn more often; every further draw scores as the first."""
    first = evaluation[evaluation["arm"] == "random@0.5"]
    more = [first.assign(arm=f"random@0.5-s{seed}", seed=seed) for seed in range(2, draws)]
    return pd.concat([evaluation, *more])


def test_nothing_is_judged_after_one_training_or_few_draws_of_random(evaluation):
    records = by_arm(evaluation)
    igds = records["igds@0.5"]
    assert igds["vs_random_judged"] is False and igds["vs_random_p"] is None
    assert igds["vs_random_low"] is not None and igds["vs_full_low"] is not None
    for draws, judged in ((4, False), (5, True)):
        igds = by_arm(drawn(evaluation, draws))["igds@0.5"]
        assert igds["vs_random_judged"] is judged
        assert (igds["vs_random_p"] is not None) is judged


def test_an_arms_place_among_randoms_draws_is_counted(evaluation):
    found = drawn(evaluation, 5)
    found.loc[found["arm"] == "random@0.5-s4", "score"] = 1.0
    records = by_arm(found)
    assert records["igds@0.5"]["above_random"] == 4
    assert not {"above_random"} & {*records["random@0.5"], *records["full"]}


def test_igds_is_held_against_every_other_arm_of_its_ratio(evaluation):
    full = evaluation[evaluation["arm"] == "full"]
    rows = [full.assign(arm=arm, selector=arm.partition("@")[0]) for arm in ("full_steps", "less@0.5")]
    rows[1]["ratio"] = 0.5
    records = by_arm(pd.concat([evaluation, *rows]))
    igds = records["igds@0.5"]
    assert igds["vs_less"] == igds["vs_full_steps"] == pytest.approx(0.125)
    assert "vs_less" not in records["random@0.5"] and records["full_steps"]["ratio"] is None


def test_likelihoods_are_compared_as_the_scores_are(evaluation):
    means = {"original": -3.0, "full": -1.0, "random@0.5": -2.0, "random@0.5-s1": -1.5}
    means |= {"igds@0.5": -1.2, "igds@0.5-s1": -1.4}
    known = {
        arm: pd.DataFrame(
            {"sample_id": [f"t{i}" for i in range(4)], "loglik": [mean, mean, mean - 1, mean + 1]}
        )
        for arm, mean in means.items()
    }
    records = by_arm(evaluation, likelihoods=known)
    igds = records["igds@0.5"]
    assert igds["loglik"] == pytest.approx(-1.3)
    assert igds["loglik_low"] < -1.3 < igds["loglik_high"]
    assert igds["loglik_vs_random"] == pytest.approx(0.45)
    assert igds["loglik_vs_full"] == pytest.approx(-0.3)
    assert igds["loglik_vs_random_judged"] is False
    assert igds["score"] == pytest.approx(0.625)
    json.dumps(list(records.values()), allow_nan=False)
    assert not [key for record in by_arm(evaluation).values() for key in record if "loglik" in key]


def test_summarise_adjusts_the_p_values_of_one_reference(evaluation):
    evaluation = drawn(evaluation, 5)
    more = evaluation[evaluation["selector"] == "igds"].assign(selector="loss")
    more["arm"] = more["arm"].str.replace("igds", "loss")
    both = evaluation, pd.concat([evaluation, more])
    alone, together = (by_arm(rows)["igds@0.5"]["vs_random_p"] for rows in both)
    assert together == pytest.approx(min(1.0, 2 * alone))


def test_a_check_passes_only_when_its_interval_leaves_out_zero_and_two_trainings_were_made(evaluation):
    (made,) = checks(evaluation)  # no clean and corrupted arms: one check
    assert made["name"] == "full - original"
    assert made["gain"] == 0.5 and made["passed"] is None
    json.dumps(made)
    many = pd.concat([evaluation.assign(sample_id=evaluation["sample_id"] + str(i)) for i in range(10)])
    once = checks(many)[0]
    assert once["low"] > 0 and once["passed"] is None
    full = many[many["arm"] == "full"].assign(arm="full-s1", seed=1)
    assert checks(pd.concat([many, full]))[0]["passed"] is True
    unlucky = full.assign(score=0.0)  # one training gains a half, the other nothing
    assert checks(pd.concat([many, unlucky]))[0]["passed"] is False

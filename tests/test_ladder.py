"""The ladder of controls: areas by hand, a planted case, and who sees a label."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pools import found_features
from sklearn.metrics import roc_auc_score

from igds_utils.core.experiment import open_run
from igds_utils.selection import ladder, quality
from igds_utils.selection.measurements import fixed_layer
from igds_utils.selection.pool import Pool, open_pool
from igds_utils.tasks.corruptions import rewritten
from igds_utils.tasks.examples import Example

KINDS = ["", "", "", "garbled prompt", "missing numbers", "duplicate", "truncated target"]
KNOWN = quality.labels([Example(f"s{i}", {}, "t", (), {"corruption": kind}) for i, kind in enumerate(KINDS)])


def test_auc_counts_pairs_and_ties_half():
    clean, corrupted = np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0])
    assert ladder.auc(clean, corrupted) == pytest.approx((2 + 1.5 + 2) / 6)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (4, 30)), rng.integers(0, 5, (4, 20))
    labels = np.repeat([1, 0], [30, 20])
    expected = [roc_auc_score(labels, np.r_[a, b]) for a, b in zip(x, y, strict=True)]
    assert ladder.auc(x, y) == pytest.approx(expected)


def test_a_score_is_judged_by_hand():
    perfect, blind = np.array([9, 8, 7, 1, 2, 0, 0.0]), np.zeros(7)
    draws = np.stack([perfect, -perfect], axis=1)
    found = {
        "rung": ["perfect", "blind", "draws"], "layer": [None, 2, 1], "fixed": [True, False, True],
        "values": [perfect, blind, draws],
    }  # fmt: skip
    table = ladder.judge(pd.DataFrame(found), KNOWN, resamples=50).set_index("rung")
    assert table["auc"].to_dict() == {"perfect": 1.0, "blind": 0.5, "draws": 0.5}
    assert table.loc["perfect", ["low", "high"]].tolist() == [1, 1] and table.loc["perfect", "share"] == 3 / 4
    assert table.loc["draws", "sd"] == pytest.approx(np.std([0, 1], ddof=1))
    assert table["layer"].tolist() == [pd.NA, 2, 1] and table["fixed"].tolist() == [True, False, True]


@pytest.mark.parametrize("l0", [0.0, 1.5, 12.0])
def test_a_random_sae_is_as_sparse(l0):
    h = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) + 3
    encode = ladder.random_sae(h, 64, l0, torch.Generator().manual_seed(1))
    assert (encode(h) != 0).sum(dim=1).double().mean().item() == pytest.approx(l0)
    assert encode(h[:3]).shape == (3, 64)


def test_names_and_numbers_change_and_nothing_else():
    text = "Every day Ann has 12 figs. She gives Bob 12 and Ann keeps 3. What is left?"
    one = Example("a", {"question": text}, "9", ("9",))
    made = rewritten(one, 0)
    words, others = text.split(), made.fields["question"].split()
    changed = {old: new for old, new in zip(words, others, strict=True) if old != new}
    assert set(changed) == {"Ann", "Bob", "12", "3."} and len(set(changed.values())) == 4
    assert [len(changed["12"]), len(changed["3."])] == [2, 2] and made.target == one.target
    assert made == rewritten(one, 0) != rewritten(one, 1)
    plain = Example("b", {"question": "What is left?"}, "9", ())
    assert rewritten(plain, 0) == plain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    overrides = {"tasks.math.quality": {"size": 24, "prompt_rate": 0.5}}
    results = str(tmp_path_factory.mktemp("ladder"))
    made = open_run("smoke", tasks=["math", "translation"], overrides=overrides, results=results)
    return found_features(made)


@pytest.fixture(scope="module")
def pool(run):
    return open_pool(run, "math", name="quality")


@pytest.fixture(scope="module")
def priors(run, pool):
    return {"math": pool.prior, "translation": open_pool(run, "translation").prior}


@pytest.fixture(scope="module")
def made(pool, priors):
    return ladder.report(pool, priors)


def test_all_rungs_are_stored_and_one_of_each_is_judged(run, made):
    table = made["ladder"]
    fixed = table[table["fixed"]]
    assert fixed["rung"].is_unique and set(fixed["rung"]) == set(table["rung"]) and len(fixed) == 8
    assert fixed["auc"].between(0, 1).all() and (table["seconds"] > 0).all()
    assert set(fixed["layer"].dropna()) == {fixed_layer(run)}
    best = table[table["rung"] == "best recalled feature (oracle)"]["auc"]
    assert best.tolist() == pytest.approx([made["features"]["auc"].max()] * 2)
    chosen = made["features"].set_index("selected").loc[True]
    of_chosen = fixed.set_index("rung").loc["task features", "auc"]
    assert chosen["name"] == run.task_features("math")[0].name and chosen["auc"] == pytest.approx(of_chosen)
    for name in ("features", "ladder", "reliability"):
        pd.testing.assert_frame_equal(run.read(f"math/quality/{name}.parquet"), made[name])


def test_scores_are_those_of_selectors_and_arithmetic(run, pool, priors):
    found = ladder.scores(pool, priors).query("fixed").set_index("rung")["values"]
    layer, apart = fixed_layer(run), Pool(run, "math", run.examples("math", "quality"), "apart")
    np.testing.assert_allclose(found["task features"], apart.task_feature_activations.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["all recalled features"], apart.recalled_activations.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found["cosine to the prior's mean"], apart.prior_cosines, rtol=1e-5)
    np.testing.assert_allclose(pool.recalled_activations, apart.recalled_activations, rtol=1e-5)
    means = [priors[task].at_p[layer].mean(0) for task in ("math", "translation")]
    expected = (pool.at_p[layer] @ (means[0] - means[1])).numpy()
    np.testing.assert_allclose(found["mean difference to other tasks"], expected, rtol=1e-4, atol=1e-4)


def test_no_score_sees_a_label(run, priors):
    members = run.examples("math", "quality")
    lies = [replace(one, meta={"corruption": ""}) for one in members]
    own = {"math": priors["math"]}
    truth, lied = (ladder.scores(Pool(run, "math", some, "x"), own) for some in (members, lies))
    assert not truth["rung"].str.contains("other tasks").any()
    for one, other in zip(truth["values"], lied["values"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_planted_feature_is_found(run):
    pool = open_pool(run, "math", name="quality")  # to be changed
    known = quality.labels(run.examples("math", "quality"))
    clean, corrupted = ladder.sides(known)
    found = pool.measured("recalled_activations")
    planted = found.values.copy()
    planted[:, 3] = np.where(clean, 2.0, 1.0)
    pool._measured["recalled_activations"] = found._replace(values=planted)
    table = ladder.feature_table(pool, known).set_index("name")
    best = found.about["features"][3]
    assert table["auc"].idxmax() == best and table.loc[best, "auc"] == 1 and corrupted.sum() > 4
    assert table.loc[best, ["fires", "variation"]].tolist() == [1, 0]


def test_the_quality_set_leaves_the_others_as_they_are(open_smoke):
    sizes = (None, {"size": 12}, {"size": 30})
    none, some, more = (open_smoke(**{"tasks.math.quality": size}).sets("math") for size in sizes)
    assert len(more["quality"]) == 30 and len(some["quality"]) == 12
    assert "quality" not in none and all(some[name] == more[name] == none[name] for name in none)

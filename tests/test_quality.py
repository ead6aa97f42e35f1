"""Precision, recall, kept corruptions, overlap and length against cases counted by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pools import made_pool, samples
from scipy.stats import spearmanr
from test_pool import found_features, open_smoke

from igds_utils import selectors
from igds_utils.selection import quality
from igds_utils.selection.pool import Pool
from igds_utils.tables import selection_table
from igds_utils.tasks import corruptions
from igds_utils.tasks.examples import Example

# a0-a3 clean, t* corrupted on the target side, p* on the prompt side, d a duplicate of a0
KINDS = {
    "a0": "", "a1": "", "a2": "", "a3": "", "t0": "another sample's target", "t1": "truncated target",
    "p0": "garbled prompt", "d": "duplicate",
}  # fmt: skip


@pytest.fixture(scope="module")
def known():
    lengths = {i: 10 * (place + 1) for place, i in enumerate(KINDS)}
    return quality.labels([
        Example(i, {}, "x" * lengths[i], (), {"corruption": kind} | ({"copy_of": "a0"} if i == "d" else {}))
        for i, kind in KINDS.items()
    ])  # fmt: skip


def ranking(*ids):
    rest = [i for i in KINDS if i not in ids]
    return pd.DataFrame({"sample_id": [*ids, *rest], "rank": range(1, len(KINDS) + 1)})


def row(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    (found,) = table.to_dict("records")
    return found


def test_precision_and_recall_by_hand(known):
    rankings = {"x": ranking("a1", "t0", "a2", "p0"), "y": ranking("t0", "t1", "p0", "a3")}
    table = quality.precision(rankings, known, 0.5)
    half = {side: row(table, selector="x", side=side) for side in quality.SIDES}
    assert [half[side]["precision"] for side in quality.SIDES] == pytest.approx([2 / 3, 2 / 3, 1 / 2])
    assert {half[side]["recall"] for side in quality.SIDES} == {0.5}
    assert half["target"]["low"] < 2 / 3 < half["target"]["high"]
    assert half["target"]["chance"] == pytest.approx(4 / 6)
    assert half["prompt"]["chance"] == pytest.approx((4 + 1 - 3 / 7) / 6)  # the duplicate, if alone
    quarter = quality.precision(rankings, known, 0.25).query("selector == 'y'")
    assert row(quarter, side="target")["precision"] == 0
    assert np.isnan(row(quarter, side="prompt")["precision"])  # nothing that is judged was selected


def test_a_duplicate_counts_only_beside_its_original(known):
    both, alone = ranking("a0", "d", "a1", "a2"), ranking("d", "a3", "a1", "a2")
    table = quality.precision({"both": both, "alone": alone}, known, 0.5)
    assert row(table, selector="both", side="prompt")["precision"] == 3 / 4
    assert row(table, selector="alone", side="prompt")["precision"] == 1
    kept = quality.kept_by_kind({"both": both, "alone": alone}, known, 0.5)
    assert [row(kept, selector=s, corruption="duplicate")["share"] for s in ("both", "alone")] == [1, 0]
    two = pd.DataFrame({"sample_id": ["d", "e"], "corruption": "duplicate"})
    two = two.assign(side="prompt", origin="a0")
    assert quality.corrupted(two).tolist() == [False, True]


def test_what_is_kept_of_each_kind_by_hand(known):
    table = quality.kept_by_kind({"x": ranking("a1", "t0", "a2", "p0")}, known, 0.5)
    shares = {r["corruption"]: r["share"] for r in table.to_dict("records")}
    assert shares == {
        "clean": 0.5, "another sample's target": 1, "truncated target": 0, "garbled prompt": 1, "duplicate": 0,
    }  # fmt: skip
    assert row(table, corruption="garbled prompt")["chance"] == 0.5
    assert row(table, corruption="duplicate")["chance"] == pytest.approx(0.5 * 3 / 7)


def test_overlap_by_hand():
    ids = list(KINDS)
    rankings = {"x": ranking(*ids), "same": ranking(*ids), "reverse": ranking(*ids[::-1])}
    rankings |= {"shifted": ranking(*ids[2:6])}
    assert quality.overlap(rankings, 0.5).loc["x"].tolist() == pytest.approx([1, 1, 0, 2 / 6])


def test_correlation_with_length_is_positive_where_long_targets_come_first(known):
    ids = list(KINDS)  # in order of length
    rankings = {"longest": ranking(*ids[::-1]), "shortest": ranking(*ids)}
    table = quality.length_correlation(rankings, known, 0.95, 200)
    assert table["rho"].tolist() == pytest.approx([1, -1])


@pytest.fixture(scope="module")
def compared(known):
    chosen = {"loss": "t0 t1 p0 a3", "zip": "a0 a1 a2 a3", "igds": "a1 t0 a2 p0"}
    rankings = {name: ranking(*ids.split()) for name, ids in chosen.items()}
    return rankings, quality.precision(rankings, known, 0.5)


def test_the_table_puts_the_cleanest_first_and_chance_last(known, compared):
    rankings, precision = compared
    length = quality.length_correlation(rankings, known, 0.95, 100)
    records = quality.summary_records(precision, length)
    table = selection_table({"ratio": 0.5, "selectors": records})
    assert table["Selector"].tolist() == ["ZIP", "IGDS", "Loss", "chance"]
    assert table["Clean (%), prompt side"][1].startswith("67 [")
    assert table["Recall (%)"].tolist()[-1] == "50"


def test_the_comparison_on_a_tasks_own_pool_is_stored(tmp_path):
    asked = {"size": 12, "target_rate": 0.25, "prompt_rate": 0.25}
    overrides = {f"tasks.math.quality.{key}": value for key, value in asked.items()}
    run = open_smoke(overrides=overrides, results=str(tmp_path))
    members = run.examples("math", "quality")
    assert [e.id for e in members] == [f"math-quality-{i:04d}" for i in range(12)]
    assert quality.labels(members)["side"].value_counts().to_dict() == {"": 6, "target": 3, "prompt": 3}
    order = pd.DataFrame({"sample_id": [e.id for e in members], "rank": range(1, 13)})
    other = order.assign(rank=order["rank"][::-1].to_numpy())
    made = quality.report(run, "math", {"one": order, "other": other})
    stored = run.read("math/quality/summary.json")
    assert [record["selector"] for record in stored["selectors"]] == ["one", "other"]
    for name in ("precision", "corruptions"):
        pd.testing.assert_frame_equal(run.read(f"math/quality/{name}.parquet"), made[name])
    assert (made["precision"]["ratio"] == run.config("math").ratio).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the tiny model with what the earlier notebooks would have stored."""
    return found_features(open_smoke(results=str(tmp_path_factory.mktemp("results"))))


def ranked(run, examples, folder, names=()):
    """Rankings of a pool by every selector there is, or some of them, all measured now."""
    pool = Pool(run, "math", examples, folder)
    return pool, {name: selectors.rank_pool(name, pool, 6) for name in names or selectors.names()}


@pytest.fixture(scope="module")
def truth(run):
    return ranked(run, run.examples("math", "quality"), "truth")


def test_no_selector_sees_a_label(run, truth):
    """Two pools with the same texts and opposite labels: every selector ranks them alike."""
    members = run.examples("math", "quality")
    other = {True: "", False: "garbled prompt"}
    lies = [replace(e, meta={"corruption": other[bool(e.meta["corruption"])]}) for e in members]
    assert [e.meta for e in lies] != [e.meta for e in members]
    one, by_truth = truth
    two, by_lies = ranked(run, lies, "lies")
    assert one.samples == two.samples
    for name, table in by_truth.items():
        pd.testing.assert_frame_equal(table, by_lies[name], obj=name)


def test_a_changed_text_is_seen(run, truth):
    """The test above could not fail if rankings never changed."""
    members = run.examples("math", "quality")
    noisy, before = list(members), truth[1]
    for i, one in list(enumerate(members))[1::2]:
        random = corruptions.random_stream("t", one.id, 0)
        noisy[i] = corruptions.corrupt("missing numbers", one, one, random) or one
    _, after = ranked(run, noisy, "noisy")
    blind = {name for name in before if before[name]["sample_id"].equals(after[name]["sample_id"])}
    assert {"random", "longest"} <= blind and len(blind) < 12


def test_frs_is_blind_to_the_target_side(run, truth):
    before = truth[1]
    swapped = [replace(e, target="nonsense") for e in run.examples("math", "quality")]
    names = [name for name in before if name.startswith("igds")]
    _, after = ranked(run, swapped, "swapped", [*names, "loss"])
    assert not before["loss"]["score"].equals(after.pop("loss")["score"])
    for name, table in after.items():
        pd.testing.assert_frame_equal(before[name], table, obj=name)


@pytest.mark.parametrize("units", ["activation", "residual"])
def test_units_matter_to_the_ranking_of_several_features_alone(monkeypatch, units):
    lengths, names = np.array([1.0, 9.0, 0.1]), [f"l1_p{i}" for i in range(3)]
    monkeypatch.setattr(quality, "feature_norms", lambda _run, found: lengths[: len(found)])
    raw = np.random.default_rng(0).random((12, 3))
    stored = raw * lengths if units == "residual" else raw
    measured = {"ranked_activations": stored, "task_feature_activations": stored[:, :1]}
    about = {name: {"features": names[: values.shape[1]]} for name, values in measured.items()}
    pool = made_pool(samples(*"abcdefghijkl"), about=about, **measured)
    pool.run = SimpleNamespace(preset=SimpleNamespace(scoring=SimpleNamespace(units=units)))
    expected = spearmanr(raw.sum(axis=1), (raw * lengths).sum(axis=1)).statistic
    assert quality.unit_correlation(pool, "igds_k3") == pytest.approx(expected)
    assert expected < 1
    assert quality.unit_correlation(pool, "igds") == pytest.approx(1)

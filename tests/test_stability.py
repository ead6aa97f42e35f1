"""Stability: sources are independent, and agreement is counted right."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from igds_utils.analysis import stability
from igds_utils.analysis.stability import Source
from igds_utils.core.experiment import open_run
from igds_utils.identification.intervention import causal_effects, rank_features


def source(deltas, n=8, loglik=0.0, by="score"):
    """Features l1_p0, l1_p1, ...: one list of per-sample changes (or a constant) each."""
    changes = np.array([np.broadcast_to(change, n) for change in deltas], float)
    feature, sample = (index.ravel() for index in np.indices(changes.shape))
    table = pd.DataFrame({
        "layer": 1, "feature": feature, "sample_id": [f"s{i}" for i in sample], "score_original": 0.0,
        "score_amplified": changes.ravel(), "loglik_original": -1.0,
        "loglik_amplified": -1.0 + loglik * feature,
        "output_original": "", "output_amplified": "x",
    })  # fmt: skip
    found = {"layer": 1, "feature": range(len(deltas)), "frequency": 1.0, "mean_activation": 1.0}
    found = pd.DataFrame(found).assign(candidate=True)
    ranked = rank_features(causal_effects(table, 0.95, 50, 0), found, by)
    return Source(found, table, ranked, by)


def test_what_blind_draws_share_equals_the_count_over_all_draws():
    tested, top = [set("abcde"), set("cdefg"), set("acdf")], 2
    draws = product(*(list(combinations(sorted(names), top)) for names in tested))
    shared = Counter(len(set.intersection(*map(set, draw))) for draw in draws)
    counted = np.array([shared[k] for k in range(3)]) / shared.total()  # c and d are in all three
    assert stability.chance_shared(tested, top) == pytest.approx(counted)
    eight = stability.chance_shared([range(8)] * 3, 5)
    assert eight @ np.arange(9) == pytest.approx(8 * (5 / 8) ** 3)
    assert stability.chance_shared([range(8)] * 3, 1)[1] == pytest.approx(1 / 64)


def test_what_chance_gives_is_not_beyond_chance():
    for tested, beyond in ((8, set()), (80, {"a0", "a1"})):
        names = [f"a{i}" for i in range(tested)]
        other = sorted(names, key=lambda name: name in ("a2", "a3", "a4"))
        assert stability.beyond_chance([names, other, other], 5) == beyond


def test_agreement_of_pairs_and_of_all():
    falling, rising = [0.5, 0.4, 0.3, 0.1], [0.1, 0.3, 0.4, 0.5]
    records = stability.agreement({"a": source(falling), "b": source(falling), "c": source(rising)}, top=2)
    ab, ac, bc, everything = records
    assert (ab["top_jaccard"], ab["same_top1"], ab["top_shared"]) == (1.0, True, ["l1_p0", "l1_p1"])
    assert (ac["top_jaccard"], ac["same_top1"], ac["top_shared"]) == (0.0, False, [])
    assert bc["sources"] == ["b", "c"] and bc["candidates_jaccard"] == 1.0
    assert everything["sources"] == ["a", "b", "c"]
    assert everything["shared_by_chance"] == pytest.approx(4 / 2**3)  # 2 of 4, three times
    assert everything["same_top1_by_chance"] == pytest.approx(4 / 4**3)
    assert everything["shared_p"] == 1 and ab["shared_p"] == pytest.approx(1 / 6)
    assert len(stability.agreement({"a": source(falling), "b": source(rising)}, 2)) == 1


def test_the_bootstrap_keeps_a_sure_winner_and_doubts_an_unsure_one():
    found = {
        "sure": source([0.5, 0.1, 0.0]),
        "unsure": source([[1, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0], 0.0]),
        "tied": source([0.25, 0.25, 0.25], loglik=0.1),  # with the better ranked, as in the ranking
        "few": source([0.25, 0.5, float("nan")], loglik=0.1),  # the best by loglik did not generate
        "loglik": source([0.25, 0.5, float("nan")], loglik=0.1, by="loglik"),
    }
    records = stability.top1_agreement(found, resamples=400, seed=0)
    kept = {record["source"]: record["kept"] for record in records}
    tops = {record["source"]: record["top"] for record in records}
    assert tops["sure"] == tops["unsure"] == "l1_p0" and tops["few"] == "l1_p1"
    assert tops["tied"] == tops["loglik"] == "l1_p2"
    assert 0.4 < kept.pop("unsure") < 0.95 and set(kept.values()) == {1.0}


def test_identification_runs_on_each_source_with_its_own_samples(tmp_path):
    run = open_run("smoke", tasks=["math"], results=str(tmp_path))
    config, texts = run.config("math").stability, []
    for name, changes in config.sources.items():
        own = stability.source_run(run, "math", name)
        assert {e.meta["family"] for e in own.examples("math", "prior")} <= set(changes["families"])
        texts.append({e.text for part in ("prior", "validation") for e in own.examples("math", part)})
    assert not set.intersection(*texts) and all(texts)
    found = stability.identify(run, "math", name)
    assert len(found.effects) == len(found.ranked) * config.validation
    assert len(found.ranked) == found.recalled["candidate"].sum()
    pd.testing.assert_frame_equal(run.read(f"math/stability/{name}/recall.parquet"), found.recalled)

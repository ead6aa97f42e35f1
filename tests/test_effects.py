"""The causal filter of a run: parts by memory and by layer, originals once, racing; on the tiny model."""

from functools import partial

import pytest

from igds_utils.core.experiment import open_run
from igds_utils.engine import generation, tiny
from igds_utils.engine.caching import cache_bytes
from igds_utils.engine.sae import Feature
from igds_utils.identification import effects, intervention

FEATURES = [Feature(0, 3), Feature(1, 7), Feature(2, 11), Feature(3, 5)]


@pytest.fixture
def open_smoke(tmp_path):
    return lambda **overrides: open_run("smoke", tasks=["math"], overrides=overrides, results=str(tmp_path))


def test_parts_give_what_one_batch_gives_and_are_stored(open_smoke, monkeypatch):
    run = open_smoke()
    samples = run.samples("math", [example.id for example in run.examples("math", "validation")])
    whole = intervention.amplified_scores(
        run.lm, run.saes, FEATURES, samples, run.score("math"), run.config("math").max_new_tokens,
        stop=run.task("math").stops,
    ).reset_index(drop=True)  # fmt: skip
    longest = max(len(s.prompt) for s in samples) + 2 * run.config("math").max_new_tokens
    for rows in (1, 9):
        run = open_smoke(**{"intervention.cache_gb": rows * cache_bytes(run.lm, longest) * 1.01 / 1e9})
        assert effects.rows_that_fit(run, samples, run.config("math").max_new_tokens) == rows
        found = effects.measure(run, "math", "validation", FEATURES)
        exact = ["layer", "feature", "sample_id", "output_amplified", "output_original", "score_amplified"]
        assert found[exact].equals(whole[exact])
        assert found["loglik_amplified"].to_numpy() == pytest.approx(
            whole["loglik_amplified"].to_numpy(), rel=1e-4
        )
    monkeypatch.setattr(generation, "decode", None)  # what is stored is not generated again
    assert effects.measure(run, "math", "validation", FEATURES).equals(found)


def test_parts_hold_no_more_rows_than_fit_and_miss_none():
    ids, mixed = ["x", "y", "z"], [Feature(1, 0), Feature(0, 0), Feature(1, 1), Feature(0, 2), Feature(0, 1)]
    for rows in (1, 2, 7, 100):
        for by_layer in (True, False):
            parts = effects.parts_of(mixed, ids, rows, by_layer)
            assert all(len(some) * len(own) <= rows for some, own in parts)
            found = [(feature, i) for some, own in parts for feature in some for i in own]
            assert sorted(found) == sorted((feature, i) for feature in mixed for i in ids)
    layers = [{feature.layer for feature in some} for some, _ in effects.parts_of(mixed, ids, 6, True)]
    assert layers == [{0}, {0}, {1}]
    assert effects.parts_of(mixed, ids, 100, False) == [(mixed, ids)]


def test_one_encoder_at_a_time_where_a_feature_takes_the_whole_of_it(open_smoke, monkeypatch):
    monkeypatch.setattr(tiny, "sae", partial(tiny.sae, "topk"))
    held = []

    class Watched(intervention.Steering):
        def __init__(self, saes, features, *arguments):
            super().__init__(saes, features, *arguments)
            held.append({feature.layer for feature in features})

    run = open_smoke()
    samples = run.samples("math", [example.id for example in run.examples("math", "validation")])
    whole = intervention.amplified_scores(
        run.lm, run.saes, FEATURES, samples, run.score("math"), run.config("math").max_new_tokens,
        stop=run.task("math").stops,
    ).reset_index(drop=True)  # fmt: skip
    monkeypatch.setattr(intervention, "Steering", Watched)
    found = effects.measure(run, "math", "validation", FEATURES)
    assert held == [{0}, {1}, {2}, {3}]
    exact = ["layer", "feature", "sample_id", "output_amplified", "score_amplified"]
    assert found[exact].equals(whole[exact])


def test_a_race_ends_with_fewer_rows_for_those_that_left(open_smoke):
    full = effects.measure(open_smoke(), "math", "validation", FEATURES)
    run = open_smoke(**{"intervention.racing": [0.5]})
    found = effects.measure(run, "math", "validation", FEATURES)
    counts = sorted(found.groupby(["layer", "feature"]).size())
    assert counts == [2, 2, 4, 4]
    both = found.merge(full, on=["sample_id", "layer", "feature"], suffixes=("", "_full"))
    assert len(both) == len(found) and (both["output_amplified"] == both["output_amplified_full"]).all()


def test_shares_that_do_not_grow_are_refused(open_smoke):
    with pytest.raises(ValueError, match="growing shares"):
        open_smoke(**{"intervention.racing": [0.5, 0.25]})

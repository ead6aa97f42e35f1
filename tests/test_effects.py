"""The causal filter of a run, on the tiny model."""

import shutil
from functools import partial

import pytest

from igds_utils import tiny
from igds_utils.engine import activations, generation, losses
from igds_utils.engine.features import features_of
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.engine.steering import Steering
from igds_utils.identification import effects, intervention, recall

FEATURES = [Feature(0, 3), Feature(1, 7), Feature(2, 11), Feature(3, 5)]


def validation(run):
    return run.samples("math", [example.id for example in run.examples("math", "validation")])


def obvious(run):
    """Both kinds of effects of all features on all samples at once."""
    shared = run.lm, Steering(run.saes, FEATURES), FEATURES, validation(run)
    answered = run.score("math"), run.config("math").max_new_tokens, run.task("math").stops
    said = intervention.generated_effects(*shared, *answered)
    return intervention.forced_effects(*shared).merge(said, on=effects.KEYS)


def test_parts_give_what_one_batch_gives_and_are_stored(open_smoke, monkeypatch):
    whole = obvious(open_smoke())
    monkeypatch.setattr(effects, "ANSWERS", 8)  # two samples a part
    for rows in (3, 9):
        monkeypatch.setattr(generation, "rows_that_fit", lambda *_, rows=rows: rows)
        run = open_smoke()
        shutil.rmtree(run.root, ignore_errors=True)
        found = effects.measure(run, "math", "validation", FEATURES)
        exact = ["layer", "feature", "sample_id", "output_amplified", "score_amplified"]
        assert found[exact].equals(whole[exact])
        told, expected = (table["loglik_amplified"].to_numpy() for table in (found, whole))
        assert told == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(generation, "decode", None)  # what is stored is not generated again
    assert effects.measure(run, "math", "validation", FEATURES).equals(found)


@pytest.mark.parametrize(
    ("kind", "positions"), [("jumprelu", "critical_only"), ("topk", "critical_and_decode")]
)
def test_a_silent_feature_has_the_rows_of_the_slow_way(open_smoke, monkeypatch, kind, positions):
    monkeypatch.setattr(tiny, "sae", partial(tiny.sae, kind))
    asked = {"intervention.positions": positions, "intervention.finalists": None}
    run, decoded, decode = open_smoke(**asked), [], generation.decode
    monkeypatch.setattr(
        generation, "decode", lambda *args, **more: decoded.append(len(args[2])) or decode(*args, **more)
    )
    random = recall.random_features({"layers": [0, 1, 2, 3], "n_features_total": 4 * tiny.D_SAE}, 16, 0)
    run.store.write("math/recall.parquet", recall.measure(run, "math").head(3))  # most are in no table
    fast, ranked = effects.causal_filter(run, "math", random, label="_random-s0")
    assert set(ranked["name"]) == {feature.name for feature in random}
    assert sum(decoded) < 4 + len(random) * 4
    decoded.clear()
    everything = [set(random)] * 4
    monkeypatch.setattr(losses, "firing", lambda *args: everything)
    slow = effects.measure(run, "math", "validation", random, label="_slow")
    assert sum(decoded) == len(random) * 4  # the originals are there already
    assert fast.equals(slow)


def test_the_filter_ranks_all_and_its_finalists_generate(open_smoke):
    run = open_smoke(**{"intervention.finalists": 2})
    features = recall.candidates(recall.measure(run, "math"))[:6]
    rows, ranked = effects.causal_filter(run, "math", features, contrasts=3)
    assert set(ranked["name"]) == {feature.name for feature in features}
    assert ranked["delta_loglik"].is_monotonic_decreasing
    assert ranked["delta"].notna().tolist() == [True] * 2 + [False] * 4
    assert ranked["contrast"].notna().tolist() == [True] * 3 + [False] * 3
    best, own = ranked.iloc[0], validation(run)
    feature = Feature.parse(best["name"])
    swapped = [other.tokens[len(other.prompt) :] for other in [*own[1:], own[0]]]
    foreign = intervention.forced_effects(run.lm, Steering(run.saes, [feature]), [feature], own, targets=swapped)
    change = (foreign["loglik_amplified"] - foreign["loglik_original"]).mean()
    assert best["delta_loglik"] - best["contrast"] == pytest.approx(change, abs=1e-5)
    by_score = open_smoke(**{"intervention.rank_by": "score", "intervention.finalists": None})
    rows, ranked = effects.causal_filter(by_score, "math", features)
    assert rows["score_amplified"].notna().all() and ranked["delta"].is_monotonic_decreasing


def test_placebos_of_both_kinds(open_smoke):
    run = open_smoke()
    table = recall.measure(run, "math")
    features = recall.candidates(table)[:3]
    found = effects.placebos(run, "math", features)
    kinds = {kind: set(features_of(rows)) for kind, rows in found.groupby("kind")}
    assert kinds["random direction"] == set(features)  # four are asked for, three there are
    rare = table[~table["candidate"]].set_index(["layer", "feature"])["frequency"]
    chosen = {(feature.layer, feature.index) for feature in kinds["not recalled"]}
    assert len(chosen) == 4 and chosen <= set(rare.index)
    steering = Steering(run.saes, features, random=run.preset.seed)
    samples = run.samples("math", [example.id for example in run.examples("math", "confirmation")])
    told = intervention.forced_effects(run.lm, steering, features, samples)
    told["change"] = told["loglik_amplified"] - told["loglik_original"]
    expected = told.groupby(["layer", "feature"])["change"].mean()
    placebo = found[found["kind"] == "random direction"].set_index(["layer", "feature"])["effect"]
    assert placebo.sort_index().to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)


def test_doses_are_added_and_clamped(open_smoke):
    run = open_smoke(**{"intervention.doses": [-1, 1]})
    table = recall.measure(run, "math")
    (feature,) = recall.candidates(table)[:1]
    found = effects.doses(run, "math", feature)
    samples = validation(run)[::2]
    assert len(found) == 3 * len(samples)
    plain = effects.measure(run, "math", "validation", [feature])
    plain = plain[plain["sample_id"].isin([sample.id for sample in samples])].reset_index(drop=True)
    once = found[(found["scale"] == 1) & ~found["clamped"]].reset_index(drop=True)
    assert once["output_amplified"].equals(plain["output_amplified"])
    h = activations.critical_residuals(run.lm, run.prompts("math", "validation")[::2], [feature.layer])[feature.layer]
    known = FeatureSet(run.saes[feature.layer], [feature.index])
    share = known.encode(h)[:, 0] * known.directions[0].norm() / h.norm(dim=-1)
    assert once["influence"].to_numpy() == pytest.approx(share.numpy(), rel=1e-4)
    level = table.set_index(["layer", "feature"]).loc[(feature.layer, feature.index), "mean_activation"]
    for scale in (-1, 1):  # -1 is measured added alone, and must be what clamping gives
        steering = Steering(run.saes, [feature], scale, clamp={feature: level})
        clamped = found[(found["scale"] == scale) & (found["clamped"] | (scale == -1))]
        told = intervention.forced_effects(run.lm, steering, [feature], samples)["loglik_amplified"]
        assert clamped["loglik_amplified"].to_numpy() == pytest.approx(told.to_numpy(), abs=1e-6)


def test_in_bf16_the_noise_of_generated_effects_is_told(open_smoke, capsys):
    run = open_smoke(**{"intervention.doses": [1], "models.tiny-llama.dtype": "bfloat16"})
    (feature,) = recall.candidates(recall.measure(run, "math"))[:1]
    assert set(effects.doses(run, "math", feature)["scale"]) == {1}
    assert "math: amplifying by nothing changes 0% of the answers in bfloat16" in capsys.readouterr().out

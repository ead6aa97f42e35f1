"""The planted truth: a model whose every answer is known by arithmetic, through the method."""

from dataclasses import replace

import numpy as np
import pytest
from pools import made_pool

from igds_utils import selectors
from igds_utils.analysis import planted
from igds_utils.analysis.semantics import changed_outputs
from igds_utils.engine.activations import critical_residuals, feature_activations
from igds_utils.engine.features import features_of
from igds_utils.identification import evidence, intervention, recall

ARCHITECTURES = ("llama", "gemma2", "qwen3")
VALIDATION, CONFIRMATION = planted.draw(64, seed=2), planted.draw(64, seed=3)
ROLES = ("confidence", "weak", "twin", "format", "hesitation", "hint")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return planted.build(request.param)


def recalled(model, tau=0.8, n=96):
    texts = [planted.prompt(example) for example in planted.draw(n, seed=1)]
    residual = critical_residuals(model.lm, texts, model.saes.layers)
    return recall.frequency_recall(residual, model.saes, tau)


def activations(model, features, examples):
    residual = critical_residuals(model.lm, [planted.prompt(e) for e in examples], model.saes.layers)
    return feature_activations(residual, model.saes, features).numpy()


@pytest.fixture(scope="module")
def table(model):
    return planted.effects(model, [*model.candidates, model.roles["hint"]], VALIDATION)


def test_recall_finds_what_fires_often_and_misses_what_is_rare(model):
    assert set(recall.candidates(recalled(model))) == set(model.candidates)
    assert len(model.candidates) == planted.CANDIDATES
    assert model.roles["hint"] not in model.candidates
    assert model.roles["hint"] in recall.candidates(recalled(model, tau=0.1))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_every_dose_changes_answers_and_scores_as_arithmetic_says(model, table, scale):
    features = [model.roles[role] for role in ROLES]
    examples = VALIDATION if scale == 1 else VALIDATION[:24]
    found = table if scale == 1 else planted.effects(model, features, examples, scale=scale)
    for role, feature in model.roles.items():
        rows = changed_outputs(found, feature).set_index("sample_id").loc[[e.id for e in examples]]
        changes = (rows["score_amplified"] - rows["score_original"]).to_numpy()
        assert np.array_equal(changes, planted.true_changes(examples, role, scale)), role
        expected = [planted.answer(example.meta, role, scale) for example in examples]
        assert rows["output_amplified"].tolist() == expected, role


def test_the_filter_finds_and_establishes_the_planted_feature(model, table):
    names = {role: feature.name for role, feature in model.roles.items()}
    prior = recalled(model)
    deltas = intervention.causal_effects(table, 0.95, 500, 0)
    ranked = intervention.rank_features(deltas, prior).set_index("name")
    assert ranked.index[0] == names["confidence"]
    assert ranked.index[-1] == names["hesitation"]
    assert planted.choose(table, prior) == model.roles["confidence"]
    many = planted.draw(20_000, seed=9)
    for role in ROLES:
        truth, row = planted.true_changes(many, role).mean(), ranked.loc[names[role]]
        assert row["delta_low"] <= truth <= row["delta_high"], role
    chosen = features_of(ranked.head(1))
    again = intervention.causal_effects(planted.effects(model, chosen, CONFIRMATION), 0.95, 500, 0)
    assert intervention.task_features(ranked.reset_index(), again, 1)["established"]


def test_no_random_direction_does_what_the_planted_feature_does(model, table):
    placebos = planted.effects(model, model.candidates, VALIDATION, random=0)
    deltas, best = (evidence.changes(rows, "score").mean(1) for rows in (placebos, table))
    found = evidence.beyond_placebos(best.max(), deltas)
    assert found["larger"] == 0 and deltas.max() < best.max() / 3
    assert evidence.differ(evidence.changes(table, "score"), resamples=200) < 0.05


def test_by_log_likelihood_wins_what_only_makes_answers_likelier(model, table):
    deltas = intervention.causal_effects(table, 0.95, 200, 0)
    deltas = deltas.sort_values("delta_loglik", ascending=False)
    finalists, (first, *others) = deltas.head(3), features_of(deltas)
    assert first == model.roles["format"]
    assert deltas.iloc[0]["delta"] == deltas.iloc[0]["changed"] == 0
    assert intervention.established(deltas, "loglik").iloc[0]  # not by the score
    best = features_of(finalists.sort_values("delta", ascending=False).head(1))
    assert best == [model.roles["confidence"]]
    by_role = {(f.layer, f.index) for f in model.roles.values()}
    turning = deltas[[(f.layer, f.index) not in by_role for f in [first, *others]]]
    assert turning["delta_loglik"].abs().max() < 0.1


def test_a_twin_reads_what_the_planted_feature_reads(model):
    both = [model.roles["confidence"], model.roles["twin"]]
    found = activations(model, both, VALIDATION)
    assert found[:, 0] == pytest.approx([planted.STRONG * e.meta["sure"] for e in VALIDATION], abs=1e-2)
    assert np.array_equal(found[:, 0], found[:, 1])


def test_the_score_ranks_a_pool_in_its_known_order_whatever_its_targets(model):
    pool = planted.draw(48, seed=4)
    wrong = [replace(e, target="unsure", references=("unsure",)) for e in pool]
    orders = []
    for examples in (pool, wrong):
        values = activations(model, [model.roles["confidence"]], examples).round(2)
        pool_of = made_pool(examples, task_feature_activations=values)
        orders.append(selectors.rank_pool("igds", pool_of)["sample_id"].tolist())
    known = sorted(pool, key=lambda e: (-e.meta["sure"], e.id))
    assert orders[0] == orders[1] == [e.id for e in known]


def test_where_nothing_is_planted_hardly_anything_is_established():
    """False positives over 100 seeds, at most 5 %; without confirmation there would be more."""
    model, examples = planted.build(planted=False), planted.draw(256, seed=5)
    prior, rows = recalled(model), planted.effects(model, model.candidates, examples)
    by_luck, fresh = [], []
    for seed in range(100):
        sets = planted.tossed(rows, examples, 64, seed)
        best = planted.choose(sets[0], prior)
        for found, part in zip((by_luck, fresh), sets, strict=True):
            again = intervention.causal_effects(changed_outputs(part, best), 0.95, 200, 0)
            found.append(bool(intervention.established(again).all()))
    assert sum(fresh) <= 5 and sum(by_luck) > sum(fresh)


def test_prompts_are_balanced_and_no_answer_depends_on_a_coin():
    examples = planted.draw(2000, seed=6)
    assert {len(e.fields["text"].split()) for e in examples} == {planted.WORDS}
    coins = [e for e in examples if e.meta["yes"] * e.meta["no"]]
    right = [e.target == max("yes", "no", key=e.meta.get) for e in coins]
    assert np.mean(right) == pytest.approx(0.5, abs=0.04)
    assert len(coins) / len(examples) == pytest.approx(planted.AMBIGUOUS, abs=0.03)

"""What is measured on a pool: each value against the slow obvious way, on tiny models."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from igds_utils import tiny
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, prompts
from igds_utils.engine.features import features_of
from igds_utils.engine.sae import Feature
from igds_utils.identification import effects, intervention, recall
from igds_utils.selection import measurements
from igds_utils.selection.features import feature_norms
from igds_utils.selection.pool import open_pool
from igds_utils.selectors import rank_pool

SMALL = {"selection.examples": 3}
CONTROLS = ["matched_activations", "ranked_activations", "recalled_activations"]
open_smoke = partial(open_run, "smoke", tasks=["math"])


def found_features(run, task="math"):
    """Recall on D_prior, and a causal order of the candidates made up for the test."""
    layers, tau = run.saes.layers, run.preset.recall.tau
    residual = activations.critical_residuals(run.lm, run.prompts(task, "prior"), layers)
    table = recall.frequency_recall(residual, run.saes, tau)
    run.store.write(f"{task}/recall.parquet", table)
    best = recall.candidates(table)[:5]
    rows = [{"layer": one.layer, "feature": one.index, "name": one.name} for one in best]
    run.store.write(f"{task}/task_features.json", {"features": rows, "selected": [best[0].name]})
    n, counts = run.saes.d_sae * len(layers), {"n_candidates": int(table["candidate"].sum())}
    counts |= {"n_features_total": n, "layers": layers}
    run.store.write(f"{task}/recall.json", counts)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    results = str(tmp_path_factory.mktemp("pools"))
    return found_features(open_smoke(overrides=dict(SMALL), results=results))


def changed_pool(run, changes, folder="", seed=0):
    """The pool under other fields of the preset; in another folder nothing is measured yet."""
    results = str(run.root.parent / folder)
    return open_pool(open_smoke(overrides=SMALL | changes, results=results), "math", seed)


TEXTS = [
    "Solution: 12",
    "how many apples does she have left? 12 + 7 = 19.",
    "Text: a",
    "user 19 * 2 = 38. Translation:",
]


@pytest.fixture
def read(lm):
    """Samples as a model reads them, several to a batch."""
    pairs = [(prompts.encode(lm.tokenizer, text), 1) for text in TEXTS]
    saes = type("Saes", (dict,), {"layers": [0, 2], "d_sae": 256})({2: tiny.sae(seed=2)})
    run = SimpleNamespace(lm=lm, train_lm=lm, saes=saes, preset=SimpleNamespace(batch_tokens=200))
    return SimpleNamespace(run=run, samples=TEXTS, pairs=pairs, training_pairs=pairs)


def test_token_activations_equal_one_sample_at_a_time_without_padding(lm, read):
    sae, layer, table = read.run.saes[2], 2, measurements.token_activations(read)
    neurons, caught = measurements.neuron_means(read), []
    down = lm.blocks[layer].mlp.down_proj
    handle = down.register_forward_hook(lambda _m, args, _o: caught.append(args[0][0, 1:]))
    for (ids, _), row, found in zip(read.pairs, table.itertuples(), neurons, strict=True):
        with torch.inference_mode():
            states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            acts = sae.encode(states[layer + 1][0, 1:]).numpy()  # the first token is not read
        dense = np.zeros((2, acts.shape[1]))
        dense[:, row.features] = row.mean, row.max
        np.testing.assert_allclose(dense, [acts.mean(0), acts.max(0)], atol=1e-4)
        np.testing.assert_allclose(found, caught.pop().clamp(min=0).mean(0).numpy(), atol=1e-4)
        assert (row.max > 0).all()
    handle.remove()


def test_hidden_states_are_position_weighted_means_whatever_the_padding(lm, read):
    means = torch.tensor(measurements.weighted_hidden_states(read))
    for (ids, _), found in zip(read.pairs, means, strict=True):
        with torch.inference_mode():
            h = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        weights = torch.arange(1, len(ids) + 1)
        expected = (weights[:, None] * h).sum(0) / weights.sum()
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-4, rtol=1e-3)


def test_every_measurement_has_a_row_a_sample_and_is_stored_once(run, monkeypatch):
    pool = open_pool(run, "math")
    assert len(pool.examples.ids) == len(pool.target_examples) == 3
    of_examples = [f"examples.{name}" for name in ("sae_mean", "embeddings", "hidden_states")]
    every = [*measurements.MEASUREMENTS, *of_examples]
    of_examples += ["target_examples", "example_gradients"]
    for name in every:
        values = pool.measured(name).values
        n = len(values) if isinstance(values, list) else values.shape[0]
        assert n == (3 if name in of_examples else 16)
    calls = []
    monkeypatch.setattr(run, "_models", None)  # what is stored is read without models and SAEs
    run.saes.drop()
    monkeypatch.setattr(type(run.saes), "_load", None)
    monkeypatch.setattr(run.store, "log", calls.append)
    again = open_pool(run, "math")
    for name in every:
        again.measured(name)
    assert calls and all("up to date" in line for line in calls)


def test_loss_and_ifd_share_the_conditioned_pass_and_the_target_tokens(run, monkeypatch):
    read, pool = [], changed_pool(run, {}, "shared")
    losses = lambda lm, pairs, tokens: read.append(pairs) or np.ones(len(pairs))  # noqa: E731
    monkeypatch.setattr("igds_utils.engine.losses.target_losses", losses)
    for name in ("ifd", "loss", "ifd_perplexity", "loss_highest"):
        rank_pool(name, pool, 8)
    conditioned, bare = read
    assert conditioned == open_pool(run, "math").training_pairs
    for (ids, n_prompt), (alone, n_header) in zip(conditioned, bare, strict=True):
        assert ids[n_prompt:] == alone[n_header:]
    header = run.train_tokenizer.decode(bare[0][0][: bare[0][1]])
    assert header.endswith("assistant\nSolution:")
    assert run.examples("math", "pool")[0].text not in header


def test_targets_beyond_the_training_length_are_cut_and_counted(run):
    pairs = open_pool(run, "math").uncut_training_pairs
    limit = max(n for _, n in pairs) + 2
    short = changed_pool(run, {"sft.max_length": limit}, "short")
    longer = [len(ids) > limit for ids, _ in pairs]
    assert short.target_cut.tolist() == longer and any(longer)
    assert np.isfinite(short.target_loss).all()
    assert not open_pool(run, "math").target_cut.any()
    none = changed_pool(run, {"sft.max_length": limit - 2}, "short")
    with pytest.raises(ValueError, match=r"math-pool-\d+: its prompt alone has \d+ tokens"):
        none.measured("target_loss")


def test_what_a_measurement_was_made_from_decides_whether_it_is_made_again(run):
    pool = open_pool(run, "math")
    shorter = changed_pool(run, {"tasks.math.max_prompt_tokens": 60}, "cut")
    for name in ("target_loss", "bare_target_loss", "hidden_states"):
        changed = not np.allclose(getattr(pool, name), getattr(shorter, name))
        assert changed == (name != "bare_target_loss")  # which no prompt has a part in
    versions = {pool.version(name) for name in CONTROLS}
    assert len(versions) == len(CONTROLS)  # one table, different columns
    assert {open_pool(run, "math").version(name) for name in CONTROLS} == versions


def test_igds_scores_equal_one_prompt_at_a_time_through_the_whole_model(run):
    (feature,) = run.task_features("math")
    stored = rank_pool("igds", open_pool(run, "math")).set_index("sample_id")["score"]
    block, sae = run.lm.blocks[feature.layer], run.saes[feature.layer]
    for example in run.examples("math", "pool"):
        text = run.prompt("math", example)
        caught = []
        handle = block.register_forward_hook(lambda _m, _i, out, caught=caught: caught.append(out))
        with torch.inference_mode():
            whole = f"{text} {example.target}"
            run.lm.model(torch.tensor([prompts.encode(run.lm.tokenizer, whole)]))
            h = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
            p = prompts.critical_position(run.lm.tokenizer, whole, text)
            expected = float(sae.encode(h[0, p])[feature.index])
        handle.remove()
        assert stored[example.id] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_controls_read_the_features_that_they_name(run):
    texts = run.prompts("math", "pool")
    h = activations.critical_residuals(run.lm, texts, run.saes.layers)
    for name in [*CONTROLS, "task_feature_activations", "unrecalled_activations"]:
        measured = open_pool(run, "math").measured(name)
        features = [Feature.parse(one) for one in measured.about["features"]]
        expected = activations.feature_activations(h, run.saes, features).numpy()
        np.testing.assert_allclose(measured.values, expected, atol=1e-4)


def test_the_prior_is_met_by_the_cosine_to_its_mean_residual_at_one_layer(run):
    pool, at = open_pool(run, "math"), 0.6 * run.lm_config.num_hidden_layers
    layer = pool.measured("prior_cosines").about["layer"]
    assert abs(layer + 1 - at) == min(abs(other + 1 - at) for other in run.saes.layers)
    read = activations.critical_residuals
    mean = read(run.lm, run.prompts("math", "prior"), [layer])[layer].numpy().mean(axis=0)
    found = read(run.lm, run.prompts("math", "pool"), [layer])[layer].numpy()
    expected = found @ mean / np.linalg.norm(found, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(pool.prior_cosines, expected, atol=1e-5)
    assert rank_pool("prior_cosine", pool)["sample_id"][0] == pool.ids[int(expected.argmax())]


def test_matched_features_fire_as_often_and_are_others(run):
    table = run.read("math/recall.parquet").set_index(["layer", "feature"])["frequency"]
    (wanted,) = run.task_features("math")
    drawn = set()
    for seed in range(3):
        (name,) = open_pool(run, "math", seed).measured("matched_activations").about["features"]
        found = Feature.parse(name)
        assert found != wanted and found.layer == wanted.layer
        others = table[wanted.layer].drop(wanted.index)
        gap = (others - table[wanted.layer, wanted.index]).abs()
        assert gap[found.index] == gap.min()
        drawn.add(name)
    assert len(drawn) > 1


def test_without_recall_the_best_of_as_many_random_features_are_read(run):
    facts, best = run.read("math/recall.json"), []
    for seed in (0, 1):
        drawn = recall.random_features(facts, facts["n_candidates"], seed)
        label = f"_random-s{seed}"
        rows = effects.measure(run, "math", "validation", drawn, label=label, finalists=3)
        assert set(features_of(rows)) == set(drawn)
        ranked = intervention.causal_effects(rows, 0.95, 50, 0)
        ranked = ranked.sort_values("delta_loglik", ascending=False)
        pool = changed_pool(run, {"intervention.k": 2}, seed=seed)
        names = pool.measured("unrecalled_activations").about["features"]
        assert len(names) == 2
        for name, row in zip(names, ranked.itertuples(), strict=False):
            of_name = ranked[[f.name == name for f in features_of(ranked)]].iloc[0]
            assert of_name["delta_loglik"] == row.delta_loglik
        best.append(names)
    assert best[0] != best[1]


def test_residual_units_weigh_each_feature_by_its_direction(run):
    (feature,) = run.task_features("math")
    norm = float(run.saes[feature.layer].W_dec[feature.index].detach().norm())
    assert feature_norms(run, [feature]) == pytest.approx([norm], rel=1e-5)
    raw = open_pool(run, "math").task_feature_activations
    other = changed_pool(run, {"scoring.units": "residual"})
    assert other.task_feature_activations == pytest.approx(raw * norm, rel=1e-5)


def test_a_pool_has_neither_labels_nor_references(run):
    for name in ("pool", "quality"):
        members, pool = run.examples("math", name), open_pool(run, "math", name=name)
        assert any(one.meta for one in members) and any(one.references for one in members)
        assert [one.id for one in pool.samples] == [one.id for one in members]
        for one in [*pool.samples, *pool.examples.samples]:
            assert one.meta == {} and one.references == ()


def test_a_strict_preset_has_no_igds_arm_without_an_effect(run, tmp_path):
    strict = {"intervention.strict": True}
    others = strict | {"tasks.math.selectors": ["loss"], "tasks.math.curve": None}
    changed = ({}, strict, others)
    loose, strict, other = (open_smoke(overrides=o, results=str(tmp_path)) for o in changed)
    found = run.read("math/task_features.json")
    loose.store.write("math/task_features.json", found | {"established": False})
    open_pool(loose, "math")
    open_pool(other, "math")
    with pytest.raises(ConfigError, match="no IGDS arm then: leave it out of tasks.math.selectors"):
        open_pool(strict, "math")
    loose.store.write("math/task_features.json", found | {"established": True})
    open_pool(strict, "math")

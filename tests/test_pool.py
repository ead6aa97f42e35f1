"""What is measured on a pool: each value against the slow obvious way, on tiny models of three architectures."""

import shutil
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
    residual = activations.critical_residuals(run.lm, run.prompts(task, "prior"), run.saes.layers)
    table = recall.frequency_recall(residual, run.saes, run.preset.recall.tau)
    run.store.write(f"{task}/recall.parquet", table)
    best = recall.candidates(table)[:4]
    rows = [{"layer": one.layer, "feature": one.index, "name": one.name} for one in best]
    run.store.write(f"{task}/task_features.json", {"features": rows, "selected": [best[0].name]})
    counts = {"n_candidates": int(table["candidate"].sum()), "n_features_total": run.saes.d_sae * len(run.saes.layers)}
    run.store.write(f"{task}/recall.json", counts | {"layers": run.saes.layers})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return found_features(open_smoke(overrides=dict(SMALL), results=str(tmp_path_factory.mktemp("pools"))))


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


# ---- what is read of all tokens --------------------------------------------------------------------------


def test_token_activations_equal_one_sample_at_a_time_without_padding(lm, read):
    sae, layer, table = read.run.saes[2], 2, measurements.token_activations(read)
    for (ids, _), row, found in zip(read.pairs, table.itertuples(), measurements.neuron_means(read), strict=True):
        with torch.inference_mode():
            caught = []
            handle = lm.blocks[layer].mlp.down_proj.register_forward_hook(
                lambda _m, args, _o, caught=caught: caught.append(args[0][0, 1:])
            )
            h = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0, 1:]
            handle.remove()
            acts = sae.encode(h).numpy()  # (tokens - 1, M): the first token is not read
        dense = np.zeros((2, acts.shape[1]))
        dense[:, row.features] = row.mean, row.max
        np.testing.assert_allclose(dense, [acts.mean(0), acts.max(0)], atol=1e-4)
        np.testing.assert_allclose(found, caught[0].clamp(min=0).mean(0).numpy(), atol=1e-4)
        assert (row.max > 0).all()


def test_hidden_states_are_position_weighted_means_whatever_the_padding(lm, read):
    for (ids, _), found in zip(read.pairs, torch.tensor(measurements.weighted_hidden_states(read)), strict=True):
        with torch.inference_mode():
            h = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        weights = torch.arange(1, len(ids) + 1)
        expected = (weights[:, None] * h).sum(0) / weights.sum()
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-4, rtol=1e-3)


# ---- measurements of a pool ------------------------------------------------------------------------------


def test_every_measurement_has_a_row_a_sample_and_is_stored_once(run, monkeypatch):
    pool = open_pool(run, "math")
    assert len(pool.examples.ids) == len(pool.target_examples) == 3
    every = [*measurements.MEASUREMENTS, "examples.sae_mean", "examples.embeddings", "examples.hidden_states"]
    for name in every:
        values = pool.measured(name).values
        of_examples = name.startswith("examples.") or name in ("target_examples", "example_gradients")
        assert (len(values) if isinstance(values, list) else values.shape[0]) == (3 if of_examples else 16)
    calls = []
    monkeypatch.setattr(run, "_models", None)  # another pool reads what is stored, without models and SAEs
    run.saes.drop()
    monkeypatch.setattr(type(run.saes), "_load", None)
    monkeypatch.setattr(run.store, "log", calls.append)
    again = open_pool(run, "math")
    for name in every:
        again.measured(name)
    assert calls and all("up to date" in line for line in calls)


def test_loss_and_ifd_share_the_conditioned_pass_and_the_target_tokens(run, monkeypatch):
    read = []
    monkeypatch.setattr(
        "igds_utils.engine.losses.target_losses",
        lambda lm, pairs, tokens: read.append(pairs) or np.ones(len(pairs)),
    )
    fresh = open_smoke(overrides=dict(SMALL), results=str(run.root.parent / "shared"))
    pool = open_pool(fresh, "math")
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
    results = str(run.root.parent / "short")
    short = open_pool(open_smoke(overrides=SMALL | {"sft.max_length": limit}, results=results), "math")
    longer = [len(ids) > limit for ids, _ in pairs]
    assert short.target_cut.tolist() == longer and any(longer)
    assert np.isfinite(short.target_loss).all()
    assert not open_pool(run, "math").target_cut.any()
    none = open_smoke(overrides=SMALL | {"sft.max_length": limit - 2}, results=results)
    with pytest.raises(ValueError, match=r"math-pool-\d+: its prompt alone has \d+ tokens, sft.max_length"):
        open_pool(none, "math").measured("target_loss")


def test_what_a_measurement_was_made_from_decides_whether_it_is_made_again(run):
    pool = open_pool(run, "math")
    cut = open_smoke(
        overrides=SMALL | {"tasks.math.max_prompt_tokens": 60}, results=str(run.root.parent / "cut")
    )
    shorter = open_pool(cut, "math")
    for name in ("target_loss", "bare_target_loss", "hidden_states"):
        changed = not np.allclose(getattr(pool, name), getattr(shorter, name))
        assert changed == (name != "bare_target_loss")  # which no prompt has a part in
    versions = {pool.version(name) for name in CONTROLS}
    assert len(versions) == len(CONTROLS)  # one table, different columns
    assert {open_pool(run, "math").version(name) for name in CONTROLS} == versions


# ---- IGDS and its controls -------------------------------------------------------------------------------


def test_igds_scores_equal_one_prompt_at_a_time_through_the_whole_model(run):
    (feature,) = run.task_features("math")
    stored = rank_pool("igds", open_pool(run, "math")).set_index("sample_id")["score"]
    block, sae = run.lm.blocks[feature.layer], run.saes[feature.layer]
    for example, text in zip(run.examples("math", "pool"), run.prompts("math", "pool"), strict=True):
        caught = []
        handle = block.register_forward_hook(lambda _m, _i, out, caught=caught: caught.append(out))
        with torch.inference_mode():
            run.lm.model(torch.tensor([prompts.encode(run.lm.tokenizer, f"{text} {example.target}")]))
            h = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
            p = prompts.critical_position(run.lm.tokenizer, f"{text} {example.target}", text)
            expected = float(sae.encode(h[0, p])[feature.index])
        handle.remove()
        assert stored[example.id] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_controls_read_the_features_that_they_name(run):
    prompt_residuals = activations.critical_residuals(run.lm, run.prompts("math", "pool"), run.saes.layers)
    for name in [*CONTROLS, "task_feature_activations", "unrecalled_activations"]:
        measured = open_pool(run, "math").measured(name)
        features = [Feature.parse(one) for one in measured.about["features"]]
        expected = activations.feature_activations(prompt_residuals, run.saes, features).numpy()
        np.testing.assert_allclose(measured.values, expected, atol=1e-4)


def test_the_prior_is_met_by_the_cosine_to_its_mean_residual_at_one_layer(run):
    pool, depth = open_pool(run, "math"), run.lm_config.num_hidden_layers
    layer = pool.measured("prior_cosines").about["layer"]
    assert abs(layer + 1 - 0.6 * depth) == min(abs(other + 1 - 0.6 * depth) for other in run.saes.layers)
    sets = [run.prompts("math", name) for name in ("prior", "pool")]
    prior, found = (activations.critical_residuals(run.lm, texts, [layer])[layer].numpy() for texts in sets)
    mean = prior.mean(axis=0)
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


@pytest.mark.parametrize("k", [1, 2])
def test_without_recall_the_best_of_as_many_random_features_is_read(run, k):
    other = open_smoke(overrides=SMALL | {"intervention.k": k}, results=str(run.root.parent))
    facts, best = run.read("math/recall.json"), []
    for seed in (0, 1):
        drawn = recall.random_features(facts, facts["n_candidates"], seed)
        rows = effects.measure(run, "math", "validation", drawn, label=f"_random-s{seed}", finalists=3)
        assert set(features_of(rows)) == set(drawn)
        ranked = intervention.causal_effects(rows, 0.95, 50, 0).sort_values("delta_loglik", ascending=False)
        names = open_pool(other, "math", seed).measured("unrecalled_activations").about["features"]
        assert len(names) == k
        for name, row in zip(names, ranked.itertuples(), strict=False):
            of_name = ranked[[f.name == name for f in features_of(ranked)]].iloc[0]
            assert of_name["delta_loglik"] == row.delta_loglik
        best.append(names)
    assert best[0] != best[1]


def test_residual_units_weigh_each_feature_by_its_direction(run):
    other = open_smoke(overrides=SMALL | {"scoring.units": "residual"}, results=str(run.root.parent))
    (feature,) = run.task_features("math")
    norm = float(run.saes[feature.layer].W_dec[feature.index].detach().norm())
    assert feature_norms(run, [feature]) == pytest.approx([norm], rel=1e-5)
    raw, weighed = (open_pool(one, "math").task_feature_activations for one in (run, other))
    assert weighed == pytest.approx(raw * norm, rel=1e-5)


# ---- what a selector is given ----------------------------------------------------------------------------


def test_a_pool_has_neither_labels_nor_references(run):
    for name in ("pool", "quality"):
        members = run.examples("math", name)
        assert any(example.meta for example in members) and any(example.references for example in members)
        pool = open_pool(run, "math", name=name)
        assert all(one.meta == {} and one.references == () for one in [*pool.samples, *pool.examples.samples])
        assert [one.id for one in pool.samples] == [example.id for example in members]


def test_a_strict_preset_has_no_igds_arm_without_an_effect(run, tmp_path):
    shutil.copytree(run.store.root / "math", tmp_path / "smoke/tiny-llama/math")
    loose = open_smoke(results=str(tmp_path))
    strict = open_smoke(overrides={"intervention.strict": True}, results=str(tmp_path))
    found = loose.read("math/task_features.json")
    loose.store.write("math/task_features.json", found | {"established": False})
    open_pool(loose, "math")
    refused = r"no IGDS arm then: leave it out .*tasks.math.selectors=\[random,loss,ifd,zip"
    with pytest.raises(ConfigError, match=refused):
        open_pool(strict, "math")
    others = {"intervention.strict": True, "tasks.math.selectors": ["loss"], "tasks.math.curve": None}
    open_pool(open_smoke(overrides=others, results=str(tmp_path)), "math")
    loose.store.write("math/task_features.json", found | {"established": True})
    open_pool(strict, "math")

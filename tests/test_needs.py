"""What is measured on a pool: each value against the slow obvious way, on tiny models of three architectures."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from igds_utils import selectors, tiny
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, prompts
from igds_utils.engine.features import features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.identification import effects, intervention, recall
from igds_utils.selection import pool
from igds_utils.selection.needs import MEASUREMENTS, critical
from igds_utils.selection.needs.hidden import weighted_hidden_states
from igds_utils.selection.needs.tokens import neuron_means, token_activations

ARCHITECTURES = ["llama", "gemma2", "qwen3"]
SMALL = {"selection.examples": 3}


def found_features(run, task="math"):
    """Recall on D_prior, and a causal order of the candidates made up for the test."""
    residual = activations.critical_residuals(run.lm, run.prompts(task, "prior"), run.saes.layers)
    table = recall.frequency_recall(residual, run.saes, run.preset.recall.tau)
    run.store.write(f"{task}/recall.parquet", table)
    best = recall.candidates(table)[:4]
    rows = [{"layer": one.layer, "feature": one.index, "name": one.name} for one in best]
    run.store.write(f"{task}/task_features.json", {"features": rows, "selected": [best[0].name]})
    facts = recall.recall_summary(table, run.saes.d_sae * len(run.saes.layers), 8, run.preset.recall.tau)
    run.store.write(f"{task}/recall.json", facts | {"layers": run.saes.layers})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("needs")
    return found_features(open_run("smoke", tasks=["math"], overrides=dict(SMALL), results=str(folder)))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return LM(tiny.model(request.param), tiny.tokenizer(), request.param)


TEXTS = [
    "Solution: 12",
    "how many apples does she have left? 12 + 7 = 19.",
    "Text: a",
    "user 19 * 2 = 38. Translation:",
]


def sequences(lm):
    return [prompts.encode(lm.tokenizer, text) for text in TEXTS]


# ---- measurements of a model ----


def test_token_activations_equal_one_sample_at_a_time_without_padding(lm):
    sae, layer = tiny.sae(seed=2), 2
    table = token_activations(lm, sae, layer, sequences(lm), batch_tokens=200)
    assert list(table) == ["features", "mean", "max"]
    neurons = neuron_means(lm, layer, sequences(lm), batch_tokens=200)["neurons"]
    for ids, row, found in zip(sequences(lm), table.itertuples(), neurons, strict=True):
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


def test_token_activations_refuse_a_lone_first_token(lm):
    with pytest.raises(ValueError, match="sample 1 has no token but its first"):
        token_activations(lm, tiny.sae(), 0, [[0, 5], [0]])


def test_hidden_states_are_position_weighted_means_whatever_the_padding(lm):
    batched = weighted_hidden_states(lm, sequences(lm), batch_tokens=200)
    for ids, found in zip(sequences(lm), batched, strict=True):
        with torch.inference_mode():
            h = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        weights = torch.arange(1, len(ids) + 1)
        expected = (weights[:, None] * h).sum(0) / weights.sum()
        torch.testing.assert_close(found, expected / expected.norm(), atol=1e-4, rtol=1e-3)


# ---- measurements of a pool ----


def test_every_need_has_a_row_a_sample_and_is_stored_once(run, monkeypatch):
    context = pool.context(run, "math")
    assert len(context.examples) == 3
    for need in MEASUREMENTS:
        context.need(need)  # checks the number of rows itself
    calls = []
    monkeypatch.setattr(
        run, "_models", None
    )  # a second context reads what is stored, without models and SAEs
    monkeypatch.setattr(run, "saes", None)
    monkeypatch.setattr(run.store, "log", calls.append)
    again = pool.context(run, "math")
    for need in MEASUREMENTS:
        again.need(need)
    assert calls and all("up to date" in line for line in calls)


def test_features_are_measured_without_neurons_and_neurons_without_features(tmp_path):
    for name, product in (("mona", "token_activations"), ("mona_neurons", "neuron_means")):
        run = open_run("smoke", tasks=["math"], overrides=dict(SMALL), results=str(tmp_path / name))
        selectors.rank_pool(name, pool.context(run, "math"), 4)
        stored = {path.stem for path in run.root.rglob("*.parquet")}
        assert stored == {product, f"example_{product}"}


def test_loss_and_ifd_share_the_conditioned_pass_and_the_target_tokens(run, monkeypatch):
    samples = pool.open_pool(run, "math").samples
    read = []
    monkeypatch.setattr(
        "igds_utils.engine.losses.target_losses",
        lambda lm, pairs, tokens: read.append(pairs) or np.ones(len(pairs)),
    )
    fresh = open_run("smoke", tasks=["math"], overrides=dict(SMALL), results=str(run.root.parent / "shared"))
    context = pool.context(fresh, "math")
    for need in ("target_loss", "target_cut", "bare_target_loss", "target_loss"):
        context.need(need)
    conditioned, bare = read
    assert conditioned == samples.training_pairs
    for (ids, n_prompt), (alone, n_header) in zip(conditioned, bare, strict=True):
        assert ids[n_prompt:] == alone[n_header:]
    header = run.train_tokenizer.decode(bare[0][0][: bare[0][1]])
    assert header.endswith("assistant\nSolution:")
    assert run.examples("math", "pool")[0].text not in header


@pytest.mark.parametrize(
    ("rendering", "sft", "header"),
    [("bare", "evaluation", "Solution:"), ("chat", "records", "\n"), ("bare", "records", "\n")],
)
def test_the_bare_header_of_each_rendering(run, rendering, sft, header):
    config = SimpleNamespace(rendering=rendering, shots=0, sft=SimpleNamespace(rendering=sft))
    assert prompts.bare_header(run.task("math"), run.tokenizer, config) == header


def test_targets_beyond_the_training_length_are_cut_and_counted(run):
    limit = max(n for _, n in pool.open_pool(run, "math").samples.uncut_training_pairs) + 2
    short = open_run(
        "smoke",
        tasks=["math"],
        overrides=SMALL | {"sft.max_length": limit},
        results=str(run.root.parent / "short"),
    )
    context = pool.context(short, "math")
    longer = [len(ids) > limit for ids, _ in pool.open_pool(run, "math").samples.uncut_training_pairs]
    assert context.need("target_cut").tolist() == longer and any(longer)
    assert np.isfinite(context.need("target_loss")).all()
    assert not pool.context(run, "math").need("target_cut").any()
    shorter = SMALL | {"sft.max_length": limit - 2}
    none = open_run("smoke", tasks=["math"], overrides=shorter, results=str(run.root.parent / "none"))
    with pytest.raises(
        ValueError, match=r"sample math-pool-\d+: its prompt alone has \d+ tokens, sft.max_length"
    ):
        pool.context(none, "math").need("target_loss")


def test_a_killed_measurement_goes_on_where_it_stopped(run, monkeypatch):
    fresh = open_run("smoke", tasks=["math"], overrides=dict(SMALL), results=str(run.root.parent / "killed"))
    samples = pool.open_pool(fresh, "math").samples
    done = []

    def build(part):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(list(part))
        return pd.DataFrame({"value": list(part)})

    with pytest.raises(KeyboardInterrupt):
        samples.in_parts("slow", build, 5, version=1)
    done.append("restarted")
    table = samples.in_parts("slow", build, 5, version=1)
    assert table["value"].tolist() == list(range(16))
    assert done[:3] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], "restarted"]
    assert done[3][0] == 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_selector_runs_on_what_is_measured(architecture, tmp_path, capsys):
    model = {
        "models.tiny-llama.identify": {"tiny": architecture},
        "models.tiny-llama.train": {"tiny": architecture},
    }
    fresh = found_features(
        open_run(
            "smoke",
            tasks=["math"],
            overrides=SMALL | model | {"tasks.math.sizes.pool": 8},
            results=str(tmp_path),
        )
    )
    context = pool.context(fresh, "math")
    for name in selectors.names():
        ranking = selectors.rank_pool(name, context, size=4)
        assert sorted(ranking["sample_id"]) == context.ids
    assert capsys.readouterr().out.count("/target_loss.parquet: making it") == 1


# ---- IGDS and its controls ----


def columns(need, run, seed=0):
    return pool.open_pool(run, "math", seed).measured(need)


def test_controls_read_the_features_that_they_name(run):
    prompt_residuals = activations.critical_residuals(run.lm, run.prompts("math", "pool"), run.saes.layers)
    alone = ["task_feature_activations", "unrecalled_activations"]
    for need in sorted(critical.CONTROLS) + alone:
        measured = columns(need, run)
        features = [Feature.parse(name) for name in measured.about["features"]]
        expected = activations.feature_activations(prompt_residuals, run.saes, features).numpy()
        np.testing.assert_allclose(measured.values, expected, atol=1e-4)


def test_the_prior_is_met_by_the_cosine_to_its_mean_residual_at_one_layer(run):
    measured = columns("prior_cosines", run)
    depth = run.lm_config.num_hidden_layers
    layer = measured.about["layer"]
    assert abs(layer + 1 - 0.6 * depth) == min(abs(other + 1 - 0.6 * depth) for other in run.saes.layers)
    sets = [run.prompts("math", name) for name in ("prior", "pool")]
    prior, found = (activations.critical_residuals(run.lm, texts, [layer])[layer].numpy() for texts in sets)
    mean = prior.mean(axis=0)
    expected = found @ mean / np.linalg.norm(found, axis=1) / np.linalg.norm(mean)
    np.testing.assert_allclose(measured.values[:, 0], expected, atol=1e-5)
    ranking = selectors.rank_pool("prior_cosine", pool.context(run, "math"))
    ids = [example.id for example in run.examples("math", "pool")]
    assert ranking["sample_id"][0] == ids[int(expected.argmax())]


def test_matched_features_fire_as_often_and_are_others(run):
    table = run.read("math/recall.parquet").set_index(["layer", "feature"])["frequency"]
    (wanted,) = run.task_features("math")
    drawn = set()
    for seed in range(3):
        (name,) = columns("matched_activations", run, seed).about["features"]
        found = Feature.parse(name)
        assert found != wanted and found.layer == wanted.layer
        others = table[wanted.layer].drop(wanted.index)
        gap = (others - table[wanted.layer, wanted.index]).abs()
        assert gap[found.index] == gap.min()
        drawn.add(name)
    assert len(drawn) > 1


@pytest.mark.parametrize("k", [1, 2])
def test_without_recall_the_best_of_as_many_random_features_is_read(run, k):
    other = open_run(
        "smoke", tasks=["math"], overrides=SMALL | {"intervention.k": k}, results=str(run.root.parent)
    )
    facts, best = run.read("math/recall.json"), []
    for seed in (0, 1):
        drawn = recall.random_features(facts, facts["n_candidates"], seed)
        rows = effects.measure(run, "math", "validation", drawn, label=f"_random-s{seed}", finalists=3)
        assert set(features_of(rows)) == set(drawn)
        ranked = intervention.causal_effects(rows, 0.95, 50, 0).sort_values("delta_loglik", ascending=False)
        names = columns("unrecalled_activations", other, seed).about["features"]
        assert len(names) == k
        for name, row in zip(names, ranked.itertuples(), strict=False):
            of_name = ranked[[f.name == name for f in features_of(ranked)]].iloc[0]
            assert of_name["delta_loglik"] == row.delta_loglik
        best.append(names)
    assert best[0] != best[1]


def test_igds_reads_its_own_layers_and_all_controls_share_one_pass(run, monkeypatch):
    overrides = SMALL | {"tasks.math.selectors": ["igds", "igds_recalled"], "tasks.math.curve": None}
    fresh = found_features(
        open_run("smoke", tasks=["math"], overrides=overrides, results=str(run.root.parent / "controls"))
    )
    passes = []
    one_pass = activations.critical_residuals
    monkeypatch.setattr(
        activations, "critical_residuals", lambda *args: passes.append(args[2]) or one_pass(*args)
    )
    context = pool.context(fresh, "math")
    names = ["igds", *(name for name in selectors.names() if name.startswith("igds_"))]
    rankings = {name: selectors.rank_pool(name, context) for name in names}
    (feature,) = fresh.task_features("math")
    own, of_all, without_recall = passes
    assert own == [feature.layer] and len(of_all) > 1 and len(without_recall) == 1
    alone = selectors.rank_pool("igds", pool.context(run, "math"))
    assert alone["sample_id"].tolist() == rankings["igds"]["sample_id"].tolist()
    assert rankings["igds_bottom"]["sample_id"].tolist() == alone["sample_id"].tolist()[::-1]
    assert rankings["igds_k3"].attrs["selector"]["parameters"] == {"k": 3}


@pytest.mark.parametrize(("kind", "times"), [("jumprelu", 1), ("topk", 4)])
def test_an_sae_of_one_column_a_feature_is_read_once_for_all_parts(kind, times, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "sae", partial(tiny.sae, kind))
    run = found_features(open_run("smoke", tasks=["math"], overrides=dict(SMALL), results=str(tmp_path)))
    whole = pool.open_pool(run, "math").measured("critical_reads")
    (run.store.root / whole.product).unlink()
    monkeypatch.setattr(critical, "CONTROL_PROMPTS", 4)
    made = []

    def counted(sae, indices):
        made.append(len(indices))
        return FeatureSet(sae, indices)

    monkeypatch.setattr(activations, "FeatureSet", counted)
    in_parts = pool.open_pool(run, "math").measured("critical_reads").values
    layers = {Feature.parse(name).layer for name in in_parts}
    assert len(made) == times * len(layers)
    np.testing.assert_allclose(in_parts, whole.values, rtol=1e-4, atol=1e-4)


def test_longer_or_shorter_prompts_are_measured_again(run):
    context = pool.context(run, "math")
    cut = open_run(
        "smoke",
        tasks=["math"],
        overrides=SMALL | {"tasks.math.max_prompt_tokens": 60},
        results=str(run.root.parent),
    )
    for need in ("target_loss", "bare_target_loss", "hidden_states"):
        before = context.need(need)
        after = pool.context(cut, "math").need(need)
        changed = not np.allclose(before, after)
        assert changed == (need != "bare_target_loss")  # which no prompt has a part in


def test_the_version_of_a_measurement_follows_the_features_that_it_is_about(run):
    opened = pool.open_pool(run, "math")
    versions = {need: opened.version(need) for need in sorted(critical.CONTROLS)}
    assert len(set(versions.values())) == len(versions)  # one table, different columns
    assert versions["recalled_activations"] == pool.version(run, "math", "recalled_activations")
    assert opened.version("examples") == pool.version(run, "math", "examples")

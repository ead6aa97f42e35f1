"""One model in memory at a time, where features are read on one and another one is trained."""

import weakref

import numpy as np
import pytest
import torch

from igds_utils import selectors
from igds_utils.config.refs import TinyRef
from igds_utils.core import launch
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, loading, losses
from igds_utils.identification import recall
from igds_utils.selection import tool
from igds_utils.selection.pool import open_pool

READ, TRAINED = TinyRef(tiny="llama"), TinyRef(tiny="llama", seed=1)


@pytest.fixture
def loads(monkeypatch):
    """Every model that was loaded, and how many of those before it were in memory then."""
    found, models, load = [], [], loading.load_lm

    def counted(ref, dtype="float32"):
        found.append((ref, sum(model() is not None for model in models)))
        made = load(ref, dtype)
        models.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(loading, "load_lm", counted)
    return found


@pytest.fixture
def opened(tmp_path):
    def opened(**overrides):
        changed = {"models.tiny-llama.train": TRAINED.model_dump(), "tasks.math.curve": None, **overrides}
        run = open_run("smoke", tasks=["math"], overrides=changed, results=str(tmp_path))
        best = recall.candidates(recall.measure(run, "math"))[:4]
        rows = [{"layer": one.layer, "feature": one.index, "name": one.name} for one in best]
        run.store.write("math/task_features.json", {"features": rows, "selected": [best[0].name]})
        layers = {"layers": run.saes.layers, "n_features_total": run.saes.d_sae * len(run.saes.layers)}
        run.store.write("math/recall.json", {"n_candidates": 4, **layers})
        return run

    return opened


def test_a_pool_is_measured_with_one_model_after_the_other(opened, loads):
    run = opened(**{"tasks.math.selectors": ["igds", "loss", "mona", "ifd", "igds_recalled", "rds"]})
    assert loads == [(READ, 0)]
    open_pool(run, "math").measure_all()
    assert loads[1:] == [(TRAINED, 0), (READ, 0)]
    assert run.lm.n_layers == 4 and len(loads) == 3  # a notebook goes on with it


def test_no_selector_holds_a_second_model(opened, loads):
    tagger = TinyRef(tiny="qwen3")
    run = opened(
        **{"tasks.math.selectors": selectors.names(), "selection.tagger": tagger.model_dump()},
        **{"tasks.math.sizes.pool": 4},
    )
    open_pool(run, "math").measure_all()
    assert {ref for ref, _ in loads} == {READ, TRAINED, tagger}
    assert all(others == 0 for _, others in loads)


def test_each_model_gives_what_it_gives_by_itself(opened):
    run = opened(**{"tasks.math.selectors": ["loss", "igds"]})
    members = open_pool(run, "math")
    members.measure_all()
    (feature,) = run.task_features("math")
    found = [members.target_loss, members.task_feature_activations]
    expected = losses.target_losses(loading.load_lm(TRAINED), members.training_pairs)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    h = activations.critical_residuals(loading.load_lm(READ), run.prompts("math", "pool"), [feature.layer])
    expected = activations.feature_activations(h, run.saes, [feature]).numpy()
    np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_is_changed_is_loaded_anew_and_alone(opened, loads):
    run = opened(**{"models.tiny-llama.train": READ.model_dump()})
    before = run.lm.model.lm_head.weight[0].clone()
    with torch.no_grad():
        run.load(run.preset.chosen.train).model.lm_head.weight.zero_()
    assert torch.equal(run.train_lm.model.lm_head.weight[0], before)
    assert loads == [(READ, 0)] * 3


def test_one_model_that_is_read_and_trained_is_loaded_once_for_a_pool(opened, loads):
    run = opened(**{"models.tiny-llama.train": READ.model_dump(), "tasks.math.selectors": ["loss", "igds"]})
    open_pool(run, "math").measure_all()
    assert run.train_lm is run.lm and loads == [(READ, 0)]


def test_saes_are_opened_without_a_model(tmp_path, loads):
    run = open_run("smoke", tasks=["math"], results=str(tmp_path))
    assert run.saes.layers == [0, 1, 2, 3] and run.saes[3].cfg.d_in == 32
    assert loads == []
    assert (run.lm.n_layers, run.lm.width, run.lm.device) == (4, 32, torch.device(run.saes.device))


def test_a_users_pool_is_measured_with_the_runs_own_model(opened, loads, tmp_path):
    run = opened()
    assert run.lm.n_layers == 4
    file = tmp_path / "pool.jsonl"
    file.write_text('{"question": "1 and 2?", "target": "3"}\n{"question": "2 and 2?", "target": "4"}\n')
    tool.select(run, "math", str(file), tmp_path / "out", selector="igds")
    assert loads == [(READ, 0)]
    tool.select(run, "math", str(file), tmp_path / "out", selector="loss")
    assert loads[1:] == [(TRAINED, 0)]


def test_what_starts_processes_holds_no_model_itself(opened, monkeypatch):
    run = opened(**{"launch.processes": 1})
    model, sae = weakref.ref(run.lm.model), weakref.ref(run.saes[3])
    left = []

    def started(*_, **__):
        left.extend([model(), sae()])
        raise InterruptedError

    monkeypatch.setattr(launch.subprocess, "Popen", started)
    with pytest.raises(InterruptedError):
        launch.call(run, "module:function")
    assert left == [None, None]

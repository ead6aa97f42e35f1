"""One model in memory at a time, where another one is read than is trained."""

import weakref

import numpy as np
import pytest
from pools import found_features

from igds_utils import selectors
from igds_utils.config.refs import TinyRef
from igds_utils.engine import activations, loading, losses
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
def opened(open_smoke):
    fields = {"models.tiny-llama.train": TRAINED.model_dump(), "tasks.math.curve": None}
    return lambda **changes: found_features(open_smoke(**fields | changes))


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

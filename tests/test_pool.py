"""What selectors see of a pool, and the Feature-Resonant Score against the slow obvious way, on the smoke run."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.engine import prompts
from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selection import pool
from igds_utils.selection.needs import critical


@pytest.fixture
def run(smoke_run):
    return open_run("smoke", tasks=["math"], results=str(smoke_run.results))


def score(run):
    """IGDS scores of the run's pool, measured now rather than read from disk."""
    run.make_in_parts = lambda path, parts, build, label, **inputs: build(parts[0])
    return selectors.get("igds").score(pool.context(run, "math"))


def test_frs_is_the_sum_over_task_features():
    activations = np.array([[1.0, 2.0], [0.0, 3.0]])
    assert feature_resonant_score(activations).tolist() == [3.0, 3.0]
    assert feature_resonant_score(activations, norms=np.array([2.0, 0.5])).tolist() == [3.0, 1.5]


def test_stored_igds_scores_equal_one_prompt_at_a_time_through_the_whole_model(run):
    (feature,) = run.task_features("math")
    stored = run.read("math/scores/igds.parquet").set_index("sample_id")["score"]
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


def test_frs_cannot_see_the_target_and_sees_the_prompt(run):
    before, members = score(run), run.sets("math")["pool"]
    run.sets("math")["pool"] = [replace(example, target="nonsense", references=("0",)) for example in members]
    assert np.array_equal(score(run), before)
    run.sets("math")["pool"] = [
        replace(example, fields={"question": example.fields["question"] + " Why?"}) for example in members
    ]
    assert not np.array_equal(score(run), before)


def test_a_strict_preset_has_no_igds_arm_without_an_effect(smoke_run, tmp_path):
    shutil.copytree(smoke_run.root / "tiny-llama/math", tmp_path / "smoke/tiny-llama/math")
    open_smoke = partial(open_run, "smoke", tasks=["math"], results=str(tmp_path))
    loose, strict = open_smoke(), open_smoke(overrides={"intervention.strict": True})
    found = loose.read("math/task_features.json")
    loose.store.write("math/task_features.json", found | {"established": False})
    pool.open_pool(loose, "math")
    with pytest.raises(
        ConfigError, match=r"no IGDS arm then: leave it out .*tasks.math.selectors=\[random,loss,ifd,zip"
    ):
        pool.open_pool(strict, "math")
    others = {"tasks.math.selectors": ["loss"], "tasks.math.curve": None}
    pool.open_pool(open_smoke(overrides={"intervention.strict": True, **others}), "math")
    loose.store.write("math/task_features.json", found | {"established": True})
    pool.open_pool(strict, "math")


def test_no_selector_is_shown_a_label(run):
    shown = list(pool.context(run, "math").pool)
    assert {"id", "target", "instruction"} == set(vars(shown[0]))
    members = run.sets("math")["pool"]
    run.sets("math")["pool"] = [
        replace(example, meta={"off_task": "changed", "corruption": "changed"}) for example in members
    ]
    assert list(pool.context(run, "math").pool) == shown


def test_residual_units_weigh_each_feature_by_its_direction(smoke_run):
    run = open_run(
        "smoke", tasks=["math"], overrides={"scoring.units": "residual"}, results=str(smoke_run.results)
    )
    (feature,) = run.task_features("math")
    norm = float(run.saes[feature.layer].W_dec[feature.index].detach().norm())
    assert critical.feature_norms(run, [feature]) == pytest.approx([norm], rel=1e-5)

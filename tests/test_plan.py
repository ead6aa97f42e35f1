"""The plan's arithmetic, and that of notebook 08's estimate, against numbers worked out by hand."""

import json

import nbformat
import numpy as np
import pandas as pd
import pytest

from igds_utils import plan
from igds_utils.config.config import PROJECT, load_preset
from igds_utils.running.runner import STAGES

PRESET = """
name: sums
description: numbers that are easy to add
model: tiny
models:
  tiny:
    {identify: {tiny: llama}, train: {tiny: llama}, saes: {source: tiny, name: tiny},
     shape: {parameters: 1000000, layers: 2, width: 10, d_sae: 70}}
speeds: {forward: 100, decode: 10, train: 5, notebook: 30}
intervention: {k: 2, cache_gb: 1, finalists: 5, contrasts: 0, doses: []}
sft: {epochs: 2, device_tokens: 406}
tasks:
  math:
    {prompt_tokens: 50, target_tokens: 8, max_new_tokens: 12, selectors: [random, loss, igds],
     samples: 2,
     sizes: {prior: 20, validation: 4, confirmation: 3, pool: 40, test: 6}}
"""


@pytest.fixture
def preset(tmp_path):
    def make(**overrides):
        (tmp_path / "sums.yaml").write_text(PRESET)
        return load_preset(str(tmp_path / "sums.yaml"), overrides=overrides)

    return make


@pytest.mark.parametrize(("change", "stage", "expected"), [
    ({}, "recall", (20 * 50, 0, 0)),
    # prompts and targets once, targets under each of 40 candidates in 0.4 of the blocks
    ({}, "causal filter", (4 * 58 + 40 * 4 * 0.4 * 8, (4 + 5 * 4) * 12, 0)),
    ({}, "confirmation", (round(3 * 58 + 2 * 3 * 0.4 * 8), (3 + 2 * 3) * 12, 0)),
    ({}, "scoring", (40 * 58 + 40 * 50, 0, 0)),  # Loss, IGDS; Random reads none
    ({}, "training", (0, 0, (40 + 3 * 20) * 2 * 58)),
    # the untrained model does not stop
    ({}, "evaluation", (5 * 6 * 50, 6 * 2 * (12 + 4 * 8), 0)),
    ({"max_new_tokens": 3}, "evaluation", (1500, 6 * 2 * (3 + 4 * 3), 0)),
    # with and without its prompt, and once for all that is read at p
    ({"selectors": ["loss", "ifd", "igds", "igds_k3", "igds_recalled", "longest"]},
     "scoring", (40 * (58 + 8 + 50), 0, 0)),
    ({"quality": {"size": 10, "selectors": ["loss", "igds"]}}, "scoring", (50 * 108, 0, 0)),
    # the original, full and three selectors; two questions of each of 57 subjects
    ({"capabilities": {"limit": {"mmlu": 2}}},
     "capabilities", (5 * (114 * 725 + 817 * 1710), 0, 0)),
    ({"stability": {"sources": {"a": {"x": 1}, "b": {"x": 2}, "own": {}}, "prior": 7,
                    "validation": 2, "max_new_tokens": 5}},
     "stability", (round(2 * (350 + 116 + 256)), 2 * 12 * 5, 0)),
])  # fmt: skip
def test_tokens_of_every_stage(preset, change, stage, expected):
    changed = preset(**{f"tasks.math.{name}": value for name, value in change.items()})
    frame = plan.stages(changed).groupby("stage")[plan.TOKENS].sum()
    assert tuple(frame.loc[stage]) == expected


def test_minutes_are_tokens_over_speed_and_processes(preset):
    alone = plan.stages(preset()).set_index("stage")["minutes"]
    assert alone["recall"] == pytest.approx(1000 / 100 / 60)
    assert alone["training"] == pytest.approx(100 * 2 * 58 / 5 / 60)
    assert alone["evaluation"] == pytest.approx((1500 / 100 + 528 / 10) / 60)
    assert alone["starts"] == pytest.approx(len(STAGES) * 30 / 60)
    shares = {"launch.processes": 2, "launch.parts": 4}
    many = plan.stages(preset(**shares)).set_index("stage")["minutes"]
    shared = {"recall": 1, "causal filter": 4, "scoring": 4, "training": 2, "evaluation": 2}
    for stage, share in shared.items():
        assert many[stage] == pytest.approx(alone[stage] / share)


def held(preset):
    parts = plan.memory(preset, preset.chosen.shape)
    return {step: sum(sizes.values()) for step, sizes in parts.items()}


@pytest.mark.parametrize(("changes", "step", "expected"), [
    # weights, SAE, caches
    ({}, "reading", 4e6 + 2 * 4 * 10 * 70 + 1e9),
    ({"models.tiny.dtype": "bfloat16"}, "reading", 2e6 + 2 * 4 * 10 * 70 + 1e9),
    # as many tokens as a device holds, in two blocks of width 10
    ({}, "training", 16e6 + 406 * 10 * 24 * 2 * 4),
    ({"sft.gradient_checkpointing": True}, "training", 16e6 + 406 * 10 * (2 + 24) * 4),
    ({"launch": {"processes": 2, "training": "fsdp"}}, "training", 8e6 + 406 * 10 * 48 * 4),
    # the larger share of three samples, padded to the longest
    ({"sft.global_batch": 5, "launch.processes": 2}, "training", 16e6 + 261 * 10 * 48 * 4),
    ({"sft.global_batch": 3, "sft.max_length": 60}, "training", 16e6 + 180 * 10 * 48 * 4),
])  # fmt: skip
def test_memory_of_every_step(preset, changes, step, expected):
    assert held(preset(**changes))[step] == pytest.approx(expected + 1e9)  # libraries


def test_the_plan_of_quick_comes_near_the_reference_run():
    runs = json.loads((PROJECT / "results/reference/quick/timings.json").read_text())
    largest = max(entry["peak_bytes"] for entry in runs.values())
    assert max(held(load_preset("quick")).values()) == pytest.approx(largest, rel=1 / 3)


def test_disk_counts_what_a_run_keeps_and_what_it_holds_for_a_while(preset):
    def sizes(preset):
        return list(plan.disk(preset, preset.chosen.shape).values())

    assert sizes(preset()) == [4e6, 0, 4 * 4e6, 0]
    asked = {"sft.keep_weights": False, "sft.checkpoint_steps": 5}
    saes = {"models.tiny.saes": {"source": "release", "name": "some"}}
    assert sizes(preset(**asked, **saes)) == [4e6, 2 * 2 * 4 * 10 * 70, 4e6, 2 * 12e6]


def test_the_text_names_what_does_not_fit(preset):
    assert "not fit" not in plan.render(preset())
    small = plan.render(preset(**{"speeds.memory_gb": 2}))
    assert "Reading does not fit" in small and "Training does not fit" not in small


def estimate(**changes):
    """What the parameters and the estimate of notebook 08 compute."""
    cells = {cell.id: cell for cell in nbformat.read(PROJECT / "notebooks/08_robustness.ipynb", 4).cells}
    names = {"np": np, "pd": pd}
    exec(cells["08-01"].source, names)
    names |= changes
    exec(cells["08-14"].source, names)
    return names["estimate"]


SCALE = {"parameters": 1e9, "layers": 20, "feature_layer": 9, "operations": 1e15, "decoded": 1000, "pool_size": 90_000,
         "prompt_tokens": 100, "target_tokens": 300, "prior": 500, "validation": 64, "candidates": 97,
         "new_tokens": 50}  # fmt: skip


def test_the_estimate_of_costs_and_savings():
    found = estimate(**SCALE)
    assert found["scoring"].to_dict() == pytest.approx(
        {"random": 0, "loss": 0.02, "ifd": 0.035, "rds": 0.02, "less": 0.24, "igds": 0.0025}
    )
    assert found["saved"].unique() == pytest.approx([0.03])  # half of three forward passes
    answers = 100 * 64
    seconds = 2e9 * (628 * 100 + answers * 300) / 1e15 + answers * 50 / 1000
    assert found["identification"].to_dict()["igds"] == pytest.approx(seconds / 3600)
    assert found["identification"].astype(bool).sum() == 1
    assert found.loc["less", "net"] < 0 and np.isnan(found.loc["less", "break_even"])
    assert found.loc["random", "break_even"] == 0
    even = estimate(**SCALE | {"pool_size": found.loc["igds", "break_even"]})
    assert even.loc["igds", "net"] == pytest.approx(0, abs=1e-9)

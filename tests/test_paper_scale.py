"""The paper's preset from the hub in a box to the report: its own models, SAEs, data, metrics.

Nothing of it is changed but sizes and processes. `make test` has one pair of model and task.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from box.models import LAYERS
from conftest import execute

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.arms import arms
from igds_utils.engine.loading import load_lm
from igds_utils.running.runner import STAGES
from igds_utils.training import capabilities

MODELS = {"gemma-2-2b": "gemma2", "llama-3.1-8b": "llama", "qwen3-8b": "qwen3"}
METRICS = {"math": "accuracy", "summarization": "rouge1", "translation": "comet"}
SIZES = {"prior": 8, "validation": 4, "confirmation": 4, "pool": 16, "test": 4}


def small(tasks: list[str]) -> dict[str, Any]:
    """Overrides that make the preset's sizes small and start one process."""
    found = {"bootstrap": 50, "launch.processes": 1, "launch.training": None, "sft.global_batch": 8}
    found |= {"intervention.cache_gb": 0.1, "intervention.placebos": 3, "intervention.doses": [2]}
    for name, task in load_preset("paper", "", tasks).tasks.items():
        changed = {"sizes": SIZES, "max_new_tokens": 6, "samples": min(task.samples, 2)}
        if task.stability:
            changed |= {"stability.prior": 4, "stability.validation": 4, "stability.max_new_tokens": 6}
        # MMLU's 57 subjects have a test of their own
        changed |= {"capabilities.benchmarks": ["truthfulqa"], "capabilities.limit": {"truthfulqa": 1}}
        found |= {f"tasks.{name}.{key}": value for key, value in changed.items()}
    return found


def check(folder: Path, model: str, task: str, overrides: dict[str, Any]) -> None:
    """The run of one pair left all layers, all arms, all test items, the task's own metric."""
    config = load_preset("paper", model, [task], overrides).tasks[task]
    recalled = json.loads((folder / task / "recall.json").read_text())
    assert recalled["layers"] == list(range(LAYERS[MODELS[model]]))
    assert recalled["n_candidates"] >= 5
    found = json.loads((folder / task / "task_features.json").read_text())
    assert len(found["selected"]) == 1
    table = pd.read_parquet(folder / task / "evaluation.parquet")
    trained = [arm for arm in arms(config) if arm.trained]
    assert set(table["arm"]) == {"original", *(arm.name for arm in trained)}
    assert (table.groupby("arm")["sample_id"].nunique() == SIZES["test"]).all()
    assert table[METRICS[task]].notna().all()
    for arm in trained:
        log = pd.read_parquet(folder / task / "arms" / arm.name / "log.parquet")
        assert len(log) and log["loss"].gt(0).all()


def test_one_pair_from_the_hub_to_the_report(hub_box, tmp_path, monkeypatch):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(PROJECT / "notebooks")
    model, task = "llama-3.1-8b", "math"
    overrides = small([task]) | {"tasks.math.selectors": ["random", "loss", "igds"]}
    overrides |= {"tasks.math.curve.selectors": ["igds"]}  # two arms more for Figure 4
    parameters = {"preset": "paper", "model": model, "tasks": [task], "overrides": overrides}
    for stage in (stage for stage in STAGES if stage != "12_planted_truth"):  # of no paper's model
        execute(stage, parameters | {"results": str(tmp_path)})
    check(tmp_path / "paper" / model, model, task, overrides)
    chosen = load_preset("paper", model).chosen
    for ref in (chosen.identify, chosen.train):
        asked = [request for request in hub_box.requests if f"/{ref.hub}/" in request]
        assert all(ref.revision in request for request in asked)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_all_pairs_by_the_command_that_a_user_gives(tmp_path, monkeypatch, model):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    overrides = small(list(METRICS)) | {"tasks.math.curve": None}
    command = f"{sys.executable} -m igds_utils.cli run --preset paper --model {model}".split()
    command += ["--results", str(tmp_path)]
    for key, value in overrides.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    for task in METRICS:
        check(tmp_path / "paper" / model, model, task, overrides)
    assert (tmp_path / "paper" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_mmlu_is_read_from_the_hub():
    lm = load_lm(load_preset("paper", "llama-3.1-8b").chosen.train)
    table = capabilities.score(lm, ["mmlu"], limit={"mmlu": 1})
    assert len(table) == 57 == table["subject"].nunique()

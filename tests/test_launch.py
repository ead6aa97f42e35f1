"""Several processes under accelerate (gloo, on the CPU) against one."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from igds_utils.config.config import ConfigError, load_preset
from igds_utils.core import arms, launch
from igds_utils.core.experiment import open_run
from igds_utils.identification import effects, recall
from igds_utils.selection import pool
from igds_utils.training.trained import TrainedArm

# What the processes import: functions of the test, in a module of their own.
STEPS = """
import pandas as pd
from igds_utils.engine import distributed

def table(run, upto):
    by = distributed.process_index()
    build = lambda number: pd.DataFrame({"square": [number**2], "by": [by]})
    squares = run.make_in_parts("table.parquet", range(upto), build, "square")["square"].tolist()
    roots = sorted(distributed.gathered([square**0.5 for square in squares[by::2]]))
    run.make("product.json", lambda: {"processes": distributed.processes(), "roots": roots})

def killed(run, task, arm):
    from igds_utils.training import trained
    from trl import SFTTrainer
    step = SFTTrainer.training_step
    def dies(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)
    SFTTrainer.training_step = dies
    trained.make_products(run, task, arm, "log")
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    (tmp_path / "steps_of_the_test.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return "steps_of_the_test"


def run_with(folder, **overrides):
    """A run before its training; the last global batch is a short one."""
    changes = {"sft.device_tokens": 1, "tasks.math.samples": 32} | overrides
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(folder))
    run.store.write("math/task_features.json", {"selected": ["l2_p2"]})
    chosen = run.examples("math", "pool")[:15]
    run.make("math/selected/full.jsonl", partial(run.training_records, "math", chosen))
    return run


def full(run):
    return TrainedArm(run, "math", arms.arm_of("full", arms.arms(run.config("math"))))


def test_two_processes_make_one_table(tmp_path, steps, capfd):
    run = run_with(tmp_path, **{"launch.processes": 2})
    launch.call(run, f"{steps}:table", 5)
    table = run.read("table.parquet")
    assert table["square"].tolist() == [0, 1, 4, 9, 16]
    assert table["by"].tolist() == [0, 1, 0, 1, 0]
    assert run.read("product.json") == {"processes": 2, "roots": [0, 1, 2, 3, 4]}
    assert capfd.readouterr().out.count("table.parquet: making it") == 1
    assert not list(run.store.root.glob("*.parts-*"))


@pytest.mark.slow
def test_two_processes_train_as_one_and_continue(tmp_path, steps):
    one = run_with(tmp_path / "one")
    alone = full(one).make_all()
    keep = {"launch.processes": 2, "sft.keep_weights": True}
    two = run_with(tmp_path / "two", **keep)
    together = full(two).make_all()
    for column in ("loss", "lr", "grad_norm", "tokens", "target_tokens"):
        np.testing.assert_allclose(together["log"][column], alone["log"][column], rtol=1e-4)
    assert len(alone["log"]) == 4
    pd.testing.assert_frame_equal(together["outputs"], alone["outputs"])
    pd.testing.assert_frame_equal(together["activations"], alone["activations"], rtol=1e-4, atol=1e-4)

    again = run_with(tmp_path / "again", **keep, **{"sft.checkpoint_steps": 1})
    with pytest.raises(RuntimeError, match="killed failed"):
        launch.call(again, f"{steps}:killed", "math", "full", training=True)
    checkpoints = again.store.root / "math/arms/full/checkpoints"
    assert [folder.name for folder in checkpoints.glob("*/checkpoint-*")] == ["checkpoint-2"]
    launch.call(again, "igds_utils.training.trained:make_products", "math", "full", "log", training=True)
    assert not checkpoints.exists()
    losses = again.read("math/arms/full/log.parquet")["loss"]
    assert losses.tolist() == together["log"]["loss"].tolist()
    file = "math/arms/full/weights/model.safetensors"
    undisturbed, continued = (load_file(run.store.root / file) for run in (two, again))
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in continued.items())


def test_jobs_of_a_part_make_what_one_job_does(tmp_path, monkeypatch):
    """Identical tables, whoever made the parts."""
    monkeypatch.setattr(effects, "ANSWERS", 4)  # a sample a part
    changes = {"tasks.math.selectors": ["loss", "igds"], "tasks.math.curve": None}
    changes |= {"tasks.math.sizes.validation": 5, "tasks.math.sizes.pool": 260}
    changes |= {"intervention.cache_gb": 0.0006}

    def work(folder, part):
        run = open_run("smoke", "", ["math"], changes, str(tmp_path / folder), part)
        run.store.write("math/task_features.json", {"selected": ["l2_p2"]})
        with run.until_part():
            features = recall.candidates(recall.measure(run, "math"))[:4]
            effects.measure(run, "math", "validation", features)
        pool.open_pool(run, "math").measure_all()
        return {path.relative_to(run.root): path for path in run.root.rglob("*.parquet")}

    alone = work("one", "")
    for part in ("3/3", "1/3"):
        work("many", part)
    shared = work("many", "")
    assert sorted(alone) == sorted(shared) and len(alone) >= 4
    for path in alone:
        one, many = pd.read_parquet(alone[path]), pd.read_parquet(shared[path])
        pd.testing.assert_frame_equal(one, many, check_exact=True)


@pytest.mark.parametrize(
    ("gpus", "parts", "processes", "few"),
    [(2, 1, 8, "processes"), (2, 8, 2, "parts"), (0, 8, 8, None)],  # 0: all on the processors
)
def test_where_there_are_gpus_each_process_needs_one(gpus, parts, processes, few, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    preset = load_preset("smoke", overrides={"launch.processes": processes})
    mend = f"launch.{few} 8 needs a GPU each, this machine has 2: give SET.*{few}=2"
    with pytest.raises(ConfigError, match=mend) if few else nullcontext():
        launch.check_gpus(preset, parts)


@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_the_configurations_are_accelerates_own(name, open_smoke, monkeypatch):
    commands = []
    done = nullcontext(SimpleNamespace(wait=lambda: None, returncode=0))
    monkeypatch.setattr(launch.subprocess, "Popen", lambda command, **_: commands.append(command) or done)
    file = launch.configuration(name)
    read = load_config_from_file(str(file))  # refuses unknown keys
    assert (read.num_processes, read.num_machines, read.mixed_precision) == (8, 1, "bf16")
    run = open_smoke(launch={"processes": 16, "training": name})
    for training in (True, False):
        launch.call(run, "module:function", training=training)
    assert f"--config_file {file} --num_processes 16" in " ".join(commands[0])
    assert "--config_file" not in commands[1]

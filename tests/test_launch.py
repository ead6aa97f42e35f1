"""Several processes under accelerate (gloo, on the CPU) against one."""

import json
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from igds_utils.analysis import stability
from igds_utils.config.config import ConfigError, load_preset
from igds_utils.config.machines import LaunchConfig
from igds_utils.core import arms, launch
from igds_utils.core.experiment import open_run
from igds_utils.identification import effects, recall
from igds_utils.selection import pool, tool
from igds_utils.training.trained import TrainedArm

# What the processes import: functions of the test, in a module of their own.
STEPS = """
import pandas as pd
from igds_utils.engine import shards

def table(run, upto):
    build = lambda number: pd.DataFrame({"square": [number**2], "by": [int(shards.os.environ["RANK"])]})
    def finish(rows):
        return rows.assign(root=shards.map_in_order(lambda square: square**0.5, rows["square"].tolist()))
    run.make_in_parts("table.parquet", range(upto), build, "square", finish=finish)
    run.make("product.json", lambda: {"processes": shards.processes(), "by": shards.is_first()})

def killed(run, task, arm):
    from igds_utils.training import trained
    from trl import SFTTrainer
    step = SFTTrainer.training_step
    def dies(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)
    SFTTrainer.training_step = dies
    trained.train(run, task, arm)

def identify(run):
    from igds_utils.identification import effects, recall
    features = recall.candidates(recall.measure(run, "math"))[:4]
    effects.measure(run, "math", "validation", features)

def loads(run):
    from transformers.integrations import is_fsdp_enabled
    from igds_utils.engine.loading import load_lm
    weights = load_lm(run.preset.chosen.train).model.lm_head.weight
    norms = shards.map_in_order(lambda _: float(weights.detach().norm()), range(2))
    run.make("loaded.json", lambda: {"dealt out": is_fsdp_enabled(), "norms": norms})

def fails(run):
    raise ValueError("the reason")
"""


@pytest.fixture
def steps(tmp_path, monkeypatch):
    (tmp_path / "steps_of_the_test.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return "steps_of_the_test"


def run_with(folder, **overrides):
    """A run with what the notebooks before training leave. 15 samples: the last global batch is a short one."""
    changes = {"sft.device_tokens": 1, "tasks.math.samples": 32} | overrides
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(folder))
    run.store.write("math/task_features.json", {"selected": ["l2_p2"]})
    chosen = run.examples("math", "pool")[:15]
    run.make("math/selected/full.jsonl", partial(run.training_records, "math", chosen))
    return run


def full(run):
    return TrainedArm(run, "math", arms.arm_of("full", arms.arms(run.config("math"))))


def weights(run):
    return load_file(run.store.root / "math/arms/full/weights/model.safetensors")


def test_two_processes_make_one_table(tmp_path, steps, capfd):
    run = open_run("smoke", tasks=["math"], overrides={"launch.processes": 2}, results=str(tmp_path))
    launch.call(run, f"{steps}:table", 5)
    table = run.read("table.parquet")
    assert table["square"].tolist() == [0, 1, 4, 9, 16]
    assert table["by"].tolist() == [0, 1, 0, 1, 0]
    assert table["root"].tolist() == [0, 1, 2, 3, 4]
    assert run.read("product.json") == {"processes": 2, "by": True}
    assert capfd.readouterr().out.count("table.parquet: making it") == 1
    assert not list(run.store.root.glob("launch-*")) and not list(run.store.root.glob("*.parts-*"))


@pytest.mark.slow
def test_of_a_model_that_is_sharded_one_process_reads_the_weights(tmp_path, steps):
    changes = {"launch.processes": 2, "launch.training": "fsdp"}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    launch.call(run, f"{steps}:loads", training=True)
    found = run.read("loaded.json")
    read, left = found["norms"]
    assert found["dealt out"]
    assert read == pytest.approx(float(run.train_lm.model.lm_head.weight.detach().norm()))
    assert left != pytest.approx(read)  # what happened to be in memory


@pytest.mark.slow
def test_two_processes_train_and_answer_as_one_and_continue_when_killed(tmp_path, steps):
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
    with pytest.raises(launch.LaunchError, match="killed failed"):
        launch.call(again, f"{steps}:killed", "math", "full", training=True)
    checkpoints = again.store.root / "math/arms/full/checkpoints"
    assert [folder.name for folder in checkpoints.glob("*/checkpoint-*")] == ["checkpoint-2"]
    launch.call(again, "igds_utils.training.trained:train", "math", "full", training=True)
    assert not checkpoints.exists()
    assert again.read("math/arms/full/log.parquet")["loss"].tolist() == together["log"]["loss"].tolist()
    undisturbed = weights(two)
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights(again).items())


def test_processes_are_started_for_what_is_not_stored_and_not_by_themselves(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(launch, "call", lambda run, *what: called.append(what))
    asked = dict(preset="smoke", tasks=["math"], results=str(tmp_path))
    run = open_run(**asked, overrides={"launch.processes": 2})
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.share(run, "module:function")
    monkeypatch.delenv("WORLD_SIZE")
    launch.share(open_run(**asked), "module:function")
    assert called == []
    features = recall.candidates(recall.measure(run, "math"))[:2]
    effects.measure(run, "math", "validation", features)
    names = [feature.name for feature in features]
    assert called == [
        ("igds_utils.identification.recall:_counted", "math", "math/recall.parquet", None),
        *(
            ("igds_utils.identification.effects:effects_of", "math", "validation", kind, names, "", None, "", None)
            for kind in ("forced", "generated")
        ),
    ]
    recall.measure(run, "math")
    effects.measure(run, "math", "validation", features)
    assert len(called) == 3


def test_no_process_is_started_for_a_pool_whose_measurements_are_stored(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(launch, "call", lambda run, function, *more: called.append(function))
    changes = {"launch.processes": 2, "tasks.math.selectors": ["loss"], "tasks.math.curve": None}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    pool.measure_ahead(run, "math")
    assert called == ["igds_utils.selection.pool:measure"]
    pool.measure(run, "math")
    pool.measure_ahead(run, "math")
    assert len(called) == 1
    file = tmp_path / "pool.jsonl"
    records = [{"question": f"{i} and {7 * i}?", "target": f"It is {8 * i}."} for i in range(4)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    for _ in range(2):  # what nobody measured in the others is measured here
        tool.select(run, "math", str(file), tmp_path / "out", selector="loss")
    assert called[1:] == ["igds_utils.selection.tool:measure"]


def test_a_filter_that_a_pool_needs_starts_no_processes_of_its_own_where_one_asks(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(launch, "call", lambda run, function, *more: called.append(function))
    changes = {"launch.processes": 2, "tasks.math.selectors": ["igds_unrecalled"], "tasks.math.curve": None}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    facts = {"layers": [0, 1], "n_features_total": 128, "n_candidates": 2}
    run.store.write("math/recall.json", facts)
    pool.measure_ahead(run, "math")
    assert called == ["igds_utils.selection.pool:measure"]


@pytest.mark.slow
def test_two_processes_identify_as_one(tmp_path, steps):
    """Recall, causal filter and a source of the stability notebook, all in several parts."""
    found = []
    many = {"tasks.math.sizes.prior": 130, "tasks.math.sizes.validation": 130}
    for processes in (1, 2):
        changes = {"launch.processes": processes} | many
        run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path / str(processes)))
        launch.share(run, f"{steps}:identify")
        features = recall.candidates(recall.measure(run, "math"))[:4]
        effects.measure(run, "math", "validation", features)
        stability.identify(run, "math", next(iter(run.config("math").stability.sources)))
        found.append({path.relative_to(run.root): path for path in run.root.rglob("*") if path.is_file()})
    assert [*found[0]] and sorted(found[0]) == sorted(found[1])
    tables = [path for path in found[0] if path.suffix == ".parquet"]
    assert len(tables) == 4
    for path in tables:
        one, two = (pd.read_parquet(files[path]) for files in found)
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    for path in (path for path in found[0] if path.suffix == ".jsonl"):
        assert found[0][path].read_text() == found[1][path].read_text()


@pytest.mark.slow
def test_two_processes_score_a_pool_as_one(tmp_path):
    tables = []
    for processes in (1, 2):
        changes = {
            "tasks.math.selectors": ["loss", "igds"],
            "tasks.math.curve": None,
            "launch.processes": processes,
        }
        run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path / str(processes)))
        run.store.write("math/task_features.json", {"selected": ["l2_p2"]})
        if processes > 1:
            pool.measure_ahead(run, "math")
        else:
            pool.measure(run, "math")
        names = ("target_loss", "task_feature_activations")
        tables.append([run.read(f"math/measurements/{name}.parquet") for name in names])
    for one, two in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.slow
def test_two_processes_select_from_a_file_as_one(tmp_path, steps):
    file, found = tmp_path / "pool.jsonl", []
    records = [{"question": f"{i} and {7 * i}?", "target": f"It is {8 * i}."} for i in range(600)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    for processes in (1, 2):
        changes = {"launch.processes": processes}
        run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path / str(processes)))
        made = tool.select(run, "math", str(file), tmp_path / f"out{processes}", selector="loss")
        found.append((made.scores, made.records))
    pd.testing.assert_frame_equal(found[0][0], found[1][0], check_exact=True)
    assert found[0][1] == found[1][1] and len(found[0][1]) == 300


def test_srun_starts_one_task_on_each_machine_beside_the_step_that_calls_it(tmp_path, monkeypatch):
    called = []

    def started(command, **_):
        called.append(command)
        raise InterruptedError

    monkeypatch.setattr(launch.subprocess, "Popen", started)
    run = open_run("smoke", overrides={"launch": {"processes": 16, "machines": 2}}, results=str(tmp_path))
    with pytest.raises(InterruptedError):
        launch.call(run, "module:function")
    srun = " ".join(called[0][: called[0].index(sys.executable)])
    assert srun.startswith("srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1")


@pytest.mark.parametrize(
    ("gpus", "asked", "mend"),
    [
        (
            2,
            {"processes": 8},
            "needs 8 GPUs on this machine, one a process, and it has 2: give SET.*processes=2",
        ),
        (7, {"processes": 8}, "launch.processes=7"),
        (4, {"processes": 16, "machines": 2}, "launch.processes=8"),
        (8, {"processes": 16, "machines": 2}, None),
        (8, {"processes": 8}, None),
        (1, {"processes": 1}, None),
        (0, {"processes": 8}, None),  # all on the processors
    ],
)
def test_a_machine_with_too_few_gpus_is_told_before_anything_starts(gpus, asked, mend, tmp_path, monkeypatch):
    def started(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch.subprocess, "Popen", started)
    changes = {"launch": asked}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    with pytest.raises(ConfigError if mend else InterruptedError, match=mend):
        launch.call(run, "module:function")


@pytest.mark.slow
def test_two_machines_are_started_by_the_presets_command(tmp_path, steps):
    both = 'SLURM_NODEID=0 "$@" & first=$!; SLURM_NODEID=1 "$@" && wait $first'
    asked = {"processes": 2, "machines": 2, "starter": ["bash", "-c", both, "-"]}
    run = open_run("smoke", tasks=["math"], overrides={"launch": asked}, results=str(tmp_path))
    launch.call(run, f"{steps}:table", 3)
    assert run.read("table.parquet")["by"].tolist() == [0, 1, 0]


@pytest.mark.slow
def test_a_process_that_fails_is_told(tmp_path, steps, capfd):
    run = open_run("smoke", tasks=["math"], overrides={"launch.processes": 2}, results=str(tmp_path))
    with pytest.raises(launch.LaunchError, match="fails failed in one of its processes"):
        launch.call(run, f"{steps}:fails")
    assert "ValueError: the reason" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_the_configurations_are_accelerates_own_and_fit_8_gpus(name):
    from accelerate.commands.config.config_args import load_config_from_file

    file = launch.configuration(name)
    read = load_config_from_file(str(file))  # refuses unknown keys
    assert read.num_processes == 8 and read.mixed_precision == "bf16"
    assert yaml.safe_load(file.read_text())["distributed_type"] in ("FSDP", "DEEPSPEED")
    asked = LaunchConfig(processes=16, machines=2, training=name)
    command = launch._accelerate(asked, {"training": True, "address": ["first", 29500]}, file, machine=1)
    text = " ".join(command)
    assert f"--config_file {file}" in text and "--num_processes 16 --num_machines 2 --machine_rank 1" in text
    plain = launch._accelerate(asked, {"training": False, "address": ["first", 29500]}, file, machine=1)
    assert "--config_file" not in plain


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(launch.LaunchError, match="no 'fdsp'; known are fsdp, zero3"):
        launch.configuration("fdsp")
    with pytest.raises(ConfigError, match="launch.processes 3 is no multiple of launch.machines 2"):
        load_preset("smoke", overrides={"launch": {"processes": 3, "machines": 2}})

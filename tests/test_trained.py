"""Arms: trained only when needed, with weights kept only on request."""

import shutil

import pytest

from igds_utils import sft
from igds_utils.arms import arms
from igds_utils.experiment import open_run
from igds_utils.trained import TrainedArm


def arm_of(run, name):
    return TrainedArm(run, "math", next(arm for arm in arms(run.config("math")) if arm.name == name))


def refuse(*args, **kwargs):
    raise AssertionError("trained again")


@pytest.fixture
def results(smoke_run, tmp_path):
    shutil.copytree(smoke_run.root, tmp_path / "smoke")
    return str(tmp_path)


def test_an_arm_whose_products_are_there_is_not_trained(results, monkeypatch):
    monkeypatch.setattr(sft, "train", refuse)
    run = open_run("smoke", tasks=["math"], results=results)
    arm = arm_of(run, "igds@0.5")
    run.make(f"{arm.folder}/log.parquet", arm.log, **arm.inputs)
    with pytest.raises(AssertionError, match="trained again"):
        run.make(f"{arm.folder}/log.parquet", arm.log, **arm.inputs | {"seed": 7})


def test_the_same_arm_trained_again_gives_the_same_log(results):
    run = open_run("smoke", tasks=["math"], results=results)
    arm = arm_of(run, "random@0.5")
    stored = run.read(f"{arm.folder}/log.parquet")
    assert arm.log()["loss"].tolist() == stored["loss"].tolist()


def test_kept_weights_are_read_instead_of_trained_again(results, monkeypatch):
    run = open_run("smoke", tasks=["math"], overrides={"sft.keep_weights": True}, results=results)
    trained = arm_of(run, "igds@0.5")
    weights = trained.lm.model.state_dict()
    folder = run.store.root / trained.folder / "weights"
    assert (folder / "model.safetensors").is_file()
    monkeypatch.setattr(sft, "train", refuse)
    again = arm_of(run, "igds@0.5").lm.model.state_dict()
    assert all((again[name] == tensor).all() for name, tensor in weights.items())


def test_original_is_the_untrained_model(results, monkeypatch):
    monkeypatch.setattr(sft, "train", refuse)
    run = open_run("smoke", tasks=["math"], results=results)
    before, after = run.lm.model.state_dict(), arm_of(run, "original").lm.model.state_dict()
    assert all((after[name] == tensor).all() for name, tensor in before.items())

"""A preset opened as a run: its sets, its samples, and what its products depend on."""

from __future__ import annotations

import operator

import pytest

from igds_utils import tiny
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.config.refs import FolderRef
from igds_utils.core.experiment import Run, open_run, stamped
from igds_utils.core.manifest import manifest
from igds_utils.running import runner
from igds_utils.tasks.examples import SETS
from igds_utils.training import evaluation


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def smoke(results, overrides=None) -> Run:
    return open_run("smoke", tasks=["math"], overrides=overrides, results=str(results))


# field -> another value, and which of `inputs` and `training_inputs` change with it
CHANGES = [
    ("models.tiny-llama.identify", {"tiny": "qwen3"}, "inputs"),
    ("models.tiny-llama.identify.seed", 1, "inputs"),
    ("models.tiny-llama.saes.layers", [1], "inputs"),
    ("models.tiny-llama.saes.name", "other", "inputs"),
    ("seed", 1, "inputs"),
    ("tasks.math.sizes.prior", 9, "inputs"),
    ("tasks.math.data.max_number", 30, "inputs"),
    ("models.tiny-llama.dtype", "bfloat16", "inputs training_inputs"),
    ("tasks.math.rendering", "bare", "inputs training_inputs"),
    ("tasks.math.max_prompt_tokens", 60, "inputs training_inputs"),
    ("models.tiny-llama.train.seed", 1, "training_inputs"),
    ("tasks.math.sft", {"rendering": "records"}, "training_inputs"),
    ("sft.max_length", 100, "training_inputs"),
    ("tasks.math.shots", 4, "training_inputs"),
    ("tasks.math.sizes.pool", 20, ""),
    ("sft.lr", 0.5, ""),
    ("batch_tokens", 64, ""),
    ("recall.tau", 0.5, ""),
]


@pytest.mark.parametrize(("field", "value", "changed"), CHANGES)
def test_inputs_change_with_what_they_describe(results, field, value, changed):
    run, other = smoke(results), smoke(results, {field: value})
    sets = "math", "prior", "validation"
    assert (run.inputs(*sets) != other.inputs(*sets)) == ("inputs" in changed.split())
    differ = run.training_inputs("math") != other.training_inputs("math")
    assert differ == ("training_inputs" in changed)


@pytest.mark.parametrize("change", [{"prompt": "{question}\n\nA:"}, {"stops": ["."]}], ids=list)
def test_a_task_in_other_words_is_another_input(results, change):
    spec = {"title": "Sums", "prompt": "{question}\nAnswer:", "target": "{answer}"}
    spec |= {"reference": "answer", "metric": {"name": "exact_match"}}

    def depends_on(changed):
        run = smoke(results, {"tasks.math.task": spec | changed})
        decoding = evaluation.decoding(run.task("math"), run.config("math"))
        return run.inputs("math"), run.training_inputs("math"), decoding

    assert depends_on({}) == depends_on({})
    assert all(map(operator.ne, depends_on({}), depends_on(change)))


def test_the_files_of_local_saes_are_part_of_the_inputs(results, tmp_path):
    for layer in (0, 2):
        tiny.sae(seed=layer).save_model(tmp_path / f"layer_{layer:02d}")
    overrides = {"models.tiny-llama.saes": {"source": "folder", "name": str(tmp_path)}}
    run = smoke(results, overrides)
    assert run.saes.layers == [0, 2]
    assert smoke(results, overrides).sae_version == run.sae_version
    for change in (
        lambda: tiny.sae(seed=9).save_model(tmp_path / "layer_02"),
        lambda: (tmp_path / "layer_00" / "cfg.json").write_text("{}"),
        lambda: tiny.sae(seed=9).save_model(tmp_path / "layer_03"),
    ):
        before = smoke(results, overrides).sae_version
        change()
        assert smoke(results, overrides).sae_version != before


def test_a_model_saved_anew_is_another_input(tmp_path):
    tiny.save_model("llama", 0, tmp_path)
    before = stamped(FolderRef(folder=str(tmp_path)))
    (tmp_path / "README.md").write_text("no part of the model")
    assert stamped(FolderRef(folder=str(tmp_path))) == before
    tiny.save_model("llama", 1, tmp_path)  # files of the same names and sizes
    assert stamped(FolderRef(folder=str(tmp_path))) != before


def test_the_manifest_names_what_a_run_depends_on(results):
    run = smoke(results)
    found = manifest(run)
    assert found["preset"]["recall"]["tau"] == 0.8 and found["commit"] and found["machine"]["processor"]
    assert {"python", "torch", "transformers", "sae-lens", "trl"} <= set(found["versions"])
    data = {name: run.data_version("math", name) for name in (*SETS, "quality")}
    assert (found["data"]["math"], found["saes"]) == (data, run.sae_version)


def test_another_preset_of_the_same_name_is_refused(tmp_path):
    results, mine = str(tmp_path / "results"), tmp_path / "mine.yaml"
    mine.write_text((PRESETS / "smoke.yaml").read_text())
    open_run("smoke", results=results)
    open_run("smoke", overrides={"recall.tau": 0.7}, results=results)
    for again in (open_run, runner.run):
        with pytest.raises(ConfigError, match="results of another preset of this name, smoke"):
            again(str(mine), results=results)

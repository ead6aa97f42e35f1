"""A preset opened as a run: its sets, its samples, and what its products depend on."""

from __future__ import annotations

import json

import pytest

from igds_utils import tiny
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.core.experiment import Run, open_run
from igds_utils.core.manifest import manifest
from igds_utils.running import runner
from igds_utils.tasks.examples import SETS, normalize
from igds_utils.training import evaluation


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


def smoke(results, overrides=None, task="math") -> Run:
    return open_run("smoke", tasks=[task], overrides=overrides, results=str(results))


# ---- data ----


@pytest.mark.parametrize("task", ["math", "translation", "summarization"])
def test_sets_of_the_default_preset_have_no_text_in_common(results, task):
    run = open_run("quick", tasks=[task], results=str(results))
    sets = run.sets(task)
    assert {name: len(members) for name, members in sets.items()} == run.config(task).set_sizes
    everything = [example for members in sets.values() for example in members]
    assert len(everything) == len({example.id for example in everything})
    clean = [example for example in everything if not example.meta.get("corruption")]
    texts = {normalize(example.text) for example in clean}
    assert len(texts) == len(clean) > len(everything) / 2
    assert "" not in texts


@pytest.mark.parametrize("rendering", ["records", "evaluation"])
def test_training_pairs_come_in_the_order_asked_for_and_end_in_eos(results, rendering):
    run = smoke(results, {"tasks.math.sft": {"rendering": rendering}})
    chosen = run.examples("math", "pool")[5:2:-1]
    records = run.training_records("math", chosen)
    pairs = run.training_pairs(records)
    assert [record["id"] for record in records] == [example.id for example in chosen]
    for record, (tokens, n_prompt) in zip(records, pairs, strict=True):
        text, whole = run.tokenizer.decode(tokens), record["prompt"] + record["completion"] + tiny.EOS
        assert text.removeprefix(tiny.BOS) == whole.removeprefix(tiny.BOS)
        assert 0 < n_prompt < len(tokens)


def inputs(run: Run) -> str:
    """All inputs of a product as the store compares them."""
    run.store.write("inputs.json", run.inputs("math", "prior", "validation"))
    return json.dumps(run.read("inputs.json"), sort_keys=True)


OTHER = {
    "models.tiny-llama.identify": {"tiny": "qwen3"}, "models.tiny-llama.identify.seed": 1,
    "models.tiny-llama.dtype": "bfloat16", "models.tiny-llama.saes.layers": [1], "models.tiny-llama.saes.name": "other",
    "tasks.math.rendering": "bare", "seed": 1, "tasks.math.sizes.prior": 9, "tasks.math.data.max_number": 30,
}  # fmt: skip
SAME = {"tasks.math.sizes.pool": 20, "sft.lr": 0.5, "batch_tokens": 64, "recall.tau": 0.5}


@pytest.mark.parametrize(("field", "value"), [*OTHER.items(), *SAME.items()])
def test_inputs_change_with_what_they_describe_and_nothing_else(results, field, value):
    assert (inputs(smoke(results, {field: value})) == inputs(smoke(results))) == (field in SAME)


def test_training_inputs_follow_the_trained_model_and_its_rendering(results):
    before = smoke(results).training_inputs("math")
    for overrides in (
        {"models.tiny-llama.train.seed": 1},
        {"tasks.math.sft": {"rendering": "records"}},
        {"sft.max_length": 100},
        {"tasks.math.max_prompt_tokens": 60},
        {"tasks.math.shots": 4},
    ):
        assert smoke(results, overrides).training_inputs("math") != before
    assert smoke(results, {"models.tiny-llama.identify.seed": 1}).training_inputs("math") == before


@pytest.mark.parametrize(
    "change", [{"prompt": "{question}\n\nAnswer:"}, {"stops": ["."]}], ids=lambda c: next(iter(c))
)
def test_a_task_in_other_words_is_another_input(results, change):
    spec = {"title": "Sums", "prompt": "{question}\nAnswer:", "target": "{answer}", "reference": "answer"}
    spec |= {"metric": {"name": "exact_match"}}

    def depends_on(changed):
        run = smoke(results, {"tasks.math.task": spec | changed})
        decoding = evaluation.decoding(run.task("math"), run.config("math"))
        return run.inputs("math"), run.training_inputs("math"), decoding

    assert depends_on({}) == depends_on({})
    assert all(one != other for one, other in zip(depends_on({}), depends_on(change), strict=True))


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


def test_a_model_saved_anew_into_its_folder_is_another_input(results, tmp_path):
    tiny.save_model("llama", 0, tmp_path)
    folder = {"folder": str(tmp_path)}
    overrides = {"models.tiny-llama.identify": folder, "models.tiny-llama.train": folder}

    def both():
        run = smoke(results, overrides)
        return [run.inputs("math")["model"], run.training_inputs("math")["model"]]

    before = both()
    assert both() == before and before[0]["folder"] == str(tmp_path)
    (tmp_path / "README.md").write_text("no part of the model")
    assert both() == before
    tiny.save_model("llama", 1, tmp_path)  # files of the same names and sizes
    after = both()
    assert after[0] != before[0] and after[1] != before[1]


def test_the_manifest_names_all_that_a_second_run_must_share(results):
    run = smoke(results)
    run.store.write("manifest.json", manifest(run))
    found = run.read("manifest.json")
    assert found["preset"]["recall"]["tau"] == 0.8 and found["commit"]
    assert {"python", "torch", "transformers", "sae-lens", "trl"} <= set(found["versions"])
    assert set(found["data"]["math"]) == {*SETS, "quality"}
    assert found["data"]["math"]["prior"] == run.data_version("math", "prior")
    assert found["left_out"]["math"]["test_references"]["limit"] == 8
    assert found["saes"] == run.sae_version
    assert found["machine"]["processor"] and found["machine"]["threads"] >= 1


def test_another_preset_file_of_the_same_name_does_not_take_its_results(tmp_path):
    results, text = str(tmp_path / "results"), (PRESETS / "smoke.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("tau: 0.8", "tau: 0.5"))
    open_run("smoke", results=results)
    open_run("smoke", overrides={"recall.tau": 0.7}, results=results)
    for again in (open_run, runner.run):
        with pytest.raises(ConfigError, match="the results of another preset of this name, smoke: change `name` in"):
            again(str(mine), results=results)
    mine.write_text(text)  # a copy that says the same
    open_run(mine, results=results)

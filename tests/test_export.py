"""Selections as other programs read them."""

import json
from functools import partial

import pytest
import yaml

from igds_utils.core import arms
from igds_utils.core.experiment import open_run
from igds_utils.engine.prompts import sft_pair
from igds_utils.training import export


@pytest.fixture
def exported(tmp_path):
    """Two selections of the smoke run, as notebook 3 leaves them."""
    changes = {"tasks.math.seeds": [0, 5], "sft.device_batch": 2}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    known, pool = arms.arms(run.config("math")), run.examples("math", "pool")
    selections = {
        arms.arm_of("full", known): pool,
        arms.arm_of("igds@0.5-s5", known): pool[3:11],
    }
    for arm, examples in selections.items():
        run.make(f"math/selected/{arm.name}.jsonl", partial(run.training_records, "math", examples))
    export.write_selections(run, "math", selections)
    return run, run.store.root / "math/selected", selections


def test_the_folder_loads_as_a_data_set(exported, monkeypatch, tmp_path):
    import datasets

    run, folder, selections = exported
    assert datasets.get_dataset_config_names(str(folder)) == ["full", "igds@0.5-s5"]
    for arm, examples in selections.items():
        loaded = datasets.load_dataset(str(folder), arm.name, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == ["train"]
        assert loaded["train"].to_list() == run.training_records("math", examples)


def test_llama_factory_finds_every_selection_with_its_recipe(exported):
    run, folder, selections = exported
    info = json.loads((folder / "llama_factory/dataset_info.json").read_text())
    assert list(info) == [arm.name for arm in selections]
    for arm, examples in selections.items():
        records = json.loads((folder / "llama_factory" / info[arm.name]["file_name"]).read_text())
        assert len(records) == len(examples)
        columns = info[arm.name]["columns"]
        first, example = records[0], examples[0]
        assert first[columns["prompt"]].startswith(example.text)
        assert llama_factory_text(first, columns) == sft_text(run, "math", example)
        assert first[columns["query"]] == ""
        assert first[columns["response"]] == f"Solution: {example.target}"
        training = yaml.safe_load((folder / f"llama_factory/{arm.name}.yaml").read_text())
        assert training["template"] == "fewshot"
        assert training["default_system"] == run.train_tokenizer.bos_token
        assert training["dataset"] == arm.name and training["seed"] == arm.seed
        assert training["finetuning_type"] == "full" and training["learning_rate"] == 1e-3
        batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
        assert batch == run.config("math").sft.global_batch


def llama_factory_text(record, columns):
    """What its template `fewshot` makes of a record, without BOS and what it ends in."""
    asked = [text for column in ("prompt", "query") if (text := record[columns[column]])]
    return "\n".join(asked) + record[columns["response"]]


def sft_text(run, task, example):
    config = run.config(task)
    return "".join(sft_pair(run.task(task), example, run.train_tokenizer, "records", config))


def test_input_and_instruction_stand_apart_where_table_9_has_both(tmp_path):
    run = open_run("smoke", tasks=["translation"], results=str(tmp_path))
    example = run.examples("translation", "pool")[0]
    (record,) = export.llama_factory_records(run.task("translation"), [example])
    assert record["instruction"] == "Please translate the following text into French."
    assert record["input"] and record["input"].removesuffix("\n") in example.fields.values()
    assert record["output"] == example.target
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    assert llama_factory_text(record, columns) == sft_text(run, "translation", example)


def test_a_model_of_the_hub_keeps_its_revision_and_one_without_bos_gets_none(hub_box, tmp_path):
    run = open_run("paper", "qwen3-8b", ["translation"], results=str(tmp_path))
    arm = arms.arm_of("igds@0.5", arms.arms(run.config("translation")))
    training = export.llama_factory_training(run, "translation", arm)
    assert training["model_name_or_path"] == "Qwen/Qwen3-8B-Base"
    assert training["model_revision"] == run.preset.chosen.train.revision
    assert "default_system" not in training

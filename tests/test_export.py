"""Selections as other programs read them."""

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from igds_utils.core import arms
from igds_utils.core.experiment import open_run
from igds_utils.training import export, sft


def open_exported(results, tasks, overrides):
    """A smoke run and two selections of each of its tasks, as notebook 3 leaves them: arm -> examples."""
    run = open_run("smoke", tasks=tasks, overrides=overrides, results=str(results))
    selections = {}
    for task in tasks:
        known, pool = arms.arms(run.config(task)), run.examples(task, "pool")
        selections[task] = {
            arms.arm_of("full", known): pool,
            arms.arm_of("igds@0.5", known): pool[3:7],
        }
        for arm, examples in selections[task].items():
            run.make(f"{task}/selected/{arm.name}.jsonl", partial(run.training_records, task, examples))
        export.write_selections(run, task, selections[task])
    return run, selections


def llama_factory_samples(folder, arm, tokenizer):
    """Token ids and number of prompt tokens of each sample, as LLaMA-Factory's template `empty` makes them.

    It tokenizes the system text, the instruction and the output each by itself, and joins them with nothing between.
    """
    entry = json.loads((folder / "dataset_info.json").read_text())[arm.name]
    columns = entry["columns"]
    samples = []
    for record in json.loads((folder / entry["file_name"]).read_text()):
        assert set(record) == set(columns.values())
        system, prompt, target = (
            tokenizer(record[columns[part]], add_special_tokens=False)["input_ids"]
            for part in ("system", "prompt", "response")
        )
        samples.append((system + prompt + target, len(system + prompt)))
    return samples


def test_the_folder_loads_as_a_data_set(tmp_path):
    import datasets

    run, selections = open_exported(tmp_path, ["math"], {})
    folder = run.store.root / "math/selected"
    assert datasets.get_dataset_config_names(str(folder)) == ["full", "igds@0.5"]
    for arm, examples in selections["math"].items():
        loaded = datasets.load_dataset(str(folder), arm.name, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == ["train"]
        assert loaded["train"].to_list() == run.training_records("math", examples)


@pytest.mark.parametrize("max_prompt_tokens", [None, 80])
@pytest.mark.parametrize("rendering", ["records", "evaluation"])
def test_llama_factory_trains_on_the_tokens_of_sft(tmp_path, rendering, max_prompt_tokens):
    """Also where prompts are cut, which at 80 tokens most of these are."""
    tasks = ["math", "translation"]
    cut = {f"tasks.{task}.max_prompt_tokens": max_prompt_tokens for task in tasks}
    run, selections = open_exported(tmp_path, tasks, {"sft.rendering": rendering} | cut)
    for task in tasks:
        folder = run.store.root / task / "selected/llama_factory"
        for arm, examples in selections[task].items():
            pairs = run.training_pairs(run.training_records(task, examples))
            assert llama_factory_samples(folder, arm, run.train_tokenizer) == pairs
            training = yaml.safe_load((folder / f"{arm.name}.yaml").read_text())
            assert training["template"] == "empty" and training["dataset"] == arm.name


def test_a_prompt_has_no_bos_where_the_tokenizer_has_none(tmp_path):
    run = open_run("smoke", results=str(tmp_path))
    selected = [{"id": "a", "prompt": "2 + 2 =\n", "completion": "4"}]
    run.train_tokenizer.bos_token = None
    (record,) = export.llama_factory_records(selected, run.train_tokenizer)
    assert record == {"system": "", "instruction": "2 + 2 =\n", "output": "4<|im_end|>"}


def test_llama_factory_gets_the_recipe_of_sft(tmp_path):
    changes = {"tasks.math.seeds": [0, 5], "sft.device_batch": 2, "sft.warmup_ratio": 0.3}
    run = open_run("smoke", tasks=["math"], overrides=changes, results=str(tmp_path))
    config, arm = run.config("math").sft, arms.arm_of("igds@0.5-s5", arms.arms(run.config("math")))
    training = export.llama_factory_training(run, "math", arm, 18)
    assert training["seed"] == 5
    assert training["finetuning_type"] == "full" and training["learning_rate"] == 1e-3
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    assert batch == config.global_batch
    # five steps: a ratio would be rounded up, to two steps of warm-up
    assert len(sft.global_batches([1] * 18, config, 5)) == 5
    assert training["warmup_steps"] == 1 and "warmup_ratio" not in training


def test_a_model_of_this_machine_is_named_by_its_folder(tmp_path, monkeypatch):
    run = open_run("smoke", tasks=["math"], results=str(tmp_path))
    arm = arms.arm_of("full", arms.arms(run.config("math")))
    made = Path(export.llama_factory_training(run, "math", arm, 4)["model_name_or_path"])
    assert made.is_absolute() and (made / "config.json").is_file()
    # a relative folder is read from the project's root, LLaMA-Factory runs in that of its files
    monkeypatch.setattr("igds_utils.data.hub.PROJECT", made.parent)
    local = {"identify": {"folder": made.name}, "train": {"folder": made.name}}
    run = open_run(
        "smoke",
        tasks=["math"],
        overrides={f"models.tiny-llama.{k}": v for k, v in local.items()},
        results=str(tmp_path),
    )
    assert export.llama_factory_training(run, "math", arm, 4)["model_name_or_path"] == str(made)


def test_a_model_of_the_hub_keeps_its_revision(tmp_path):
    run = open_run("paper", "qwen3-8b", ["translation"], results=str(tmp_path))
    arm = arms.arm_of("igds@0.5", arms.arms(run.config("translation")))
    training = export.llama_factory_training(run, "translation", arm, 5000)
    assert training["model_name_or_path"] == "Qwen/Qwen3-8B-Base"
    assert training["model_revision"] == run.preset.chosen.train.revision

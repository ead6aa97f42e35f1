"""Selections as LLaMA-Factory reads them."""

import json

import pytest

from igds_utils.core import arms
from igds_utils.core.experiment import open_run
from igds_utils.training import export


def llama_factory_samples(folder, arm, tokenizer):
    """Token ids and number of prompt tokens, as LLaMA-Factory's template `empty` makes them.

    It tokenizes system text, instruction and output each by itself, and joins them with nothing between.
    """
    entry = json.loads((folder / "dataset_info.json").read_text())[arm.name]
    columns, samples = entry["columns"], []
    for record in json.loads((folder / entry["file_name"]).read_text()):
        assert set(record) == set(columns.values())
        texts = (record[columns[part]] for part in ("system", "prompt", "response"))
        system, prompt, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        samples.append((system + prompt + target, len(system + prompt)))
    return samples


@pytest.mark.parametrize(
    ("rendering", "max_prompt_tokens"), [("records", None), ("records", 80), ("evaluation", 80)]
)
def test_llama_factory_trains_on_the_tokens_of_sft(tmp_path, rendering, max_prompt_tokens):
    """Also where prompts are cut, which at 80 tokens most of these are."""
    tasks = ["math", "translation"]
    cut = {f"tasks.{task}.max_prompt_tokens": max_prompt_tokens for task in tasks}
    run = open_run("smoke", tasks=tasks, overrides={"sft.rendering": rendering} | cut, results=str(tmp_path))
    for task in tasks:
        known, pool = arms.arms(run.config(task)), run.examples(task, "pool")
        selections = {arms.arm_of("full", known): pool, arms.arm_of("igds@0.5", known): pool[3:7]}
        records = {arm: run.training_records(task, examples) for arm, examples in selections.items()}
        for arm, rows in records.items():
            run.store.write(f"{task}/selected/{arm.name}.jsonl", rows)
        export.write_selections(run, task, selections)
        folder = run.store.root / task / "selected/llama_factory"
        for arm, rows in records.items():
            found = llama_factory_samples(folder, arm, run.train_tokenizer)
            assert found == run.training_pairs(rows)

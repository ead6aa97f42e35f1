"""Selections as LLaMA-Factory reads them."""

import json
from functools import partial

import pytest

from igds_utils.core import arms
from igds_utils.core.experiment import open_run
from igds_utils.training import export


def open_exported(results, tasks, overrides):
    """A smoke run and two selections of each of its tasks, as notebook 3 leaves them: arm -> examples."""
    run = open_run("smoke", tasks=tasks, overrides=overrides, results=str(results))
    selections = {}
    for task in tasks:
        known, pool = arms.arms(run.config(task)), run.examples(task, "pool")
        selections[task] = {arms.arm_of("full", known): pool, arms.arm_of("igds@0.5", known): pool[3:7]}
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


@pytest.mark.parametrize(
    ("rendering", "max_prompt_tokens"), [("records", None), ("records", 80), ("evaluation", 80)]
)
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

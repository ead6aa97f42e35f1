"""Selections for other programs: a `datasets` folder, and records with training files for LLaMA-Factory.

    export.write_selections(run, "math", {arm: examples})
    datasets.load_dataset("results/quick/<model>/math/selected", "igds@0.5")        # id, prompt, completion
    llamafactory-cli train igds@0.5.yaml                                            # in selected/llama_factory

LLaMA-Factory is the paper's own trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from igds_utils.config.refs import FolderRef, HubRef, describe
from igds_utils.core.arms import Arm
from igds_utils.core.store import write_whole
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example
from igds_utils.training import sft

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run

CARD = """---
{head}---

# Selections of {title}

Subsets of one pool of training samples, one configuration each, chosen by the selectors of the preset `{preset}` for
fine-tuning {model}. Each record has an `id`, a `prompt` and the `completion` that is learnt, rendered as the model is
trained on them; the order within a subset is the selector's, best first.

```
datasets.load_dataset("path/to/this/folder", "{example}")
```

`llama_factory/` holds the same samples as instruction, input and output, with a training file for each subset.
"""


def write_selections(run: Run, task: str, selections: Mapping[Arm, Sequence[Example]]) -> None:
    """Write what other programs need beside `<task>/selected/<arm>.jsonl`; made anew at every call.

    selections: the samples of every trained arm, best first. `selected/README.md` makes the folder a data set with one
    configuration an arm; `selected/llama_factory/` holds records, `dataset_info.json` and one training file an arm.
    """
    folder = run.store.root / task / "selected"
    configurations = [
        {"config_name": arm.name, "data_files": [{"split": "train", "path": f"{arm.name}.jsonl"}]}
        for arm in selections
    ]
    card = CARD.format(
        head=yaml.safe_dump({"configs": configurations}, sort_keys=False),
        title=run.task(task).title,
        preset=run.preset.name,
        model=describe(run.preset.chosen.train),
        example=configurations[0]["config_name"],
    )
    write_whole(folder / "README.md", card)
    info, files = {}, folder / "llama_factory"
    for arm, examples in selections.items():
        records = llama_factory_records(run.task(task), examples)
        run.store.write(f"{task}/selected/llama_factory/{arm.name}.json", records)
        training = llama_factory_training(run, task, arm)
        write_whole(files / f"{arm.name}.yaml", yaml.safe_dump(training, sort_keys=False))
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        info[arm.name] = {"file_name": f"{arm.name}.json", "columns": columns}
    run.store.write(f"{task}/selected/llama_factory/dataset_info.json", info)


def llama_factory_records(task: Task, examples: Sequence[Example]) -> list[dict[str, str]]:
    """Instruction, input and output of each sample, as Table 9 writes them for training.

    LLaMA-Factory joins instruction and input by a newline, leaving out an empty one; the newline before the output
    ends the last of them.
    """
    records = []
    for example in examples:
        instruction = task.records_instruction.format(**example.fields)
        given = task.records_input.format(**example.fields)
        output = task.records_output.format(**example.fields, target=example.target)
        end = {"input": f"{given}\n"} if given else {"instruction": f"{instruction}\n"}
        records.append({"instruction": instruction, "input": given, "output": output} | end)
    return records


def llama_factory_training(run: Run, task: str, arm: Arm) -> dict[str, Any]:
    """The recipe of `sft` in LLaMA-Factory's words, on as many devices as the preset has processes.

    The paper does not state its template. `fewshot` comes nearest to the records of Table 9 as `sft` renders them: no
    roles, and after the output an empty line and the end of sequence (`empty` leaves that out, so that a model never
    learns to stop). It opens with no BOS either: where the tokenizer has one, it is given as the system text.
    """
    config, model, bos = run.config(task).sft, run.preset.chosen.train, run.train_tokenizer.bos_token
    return {
        "model_name_or_path": model.folder if isinstance(model, FolderRef) else describe(model),
        **({"model_revision": model.revision} if isinstance(model, HubRef) else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": ".",
        "dataset": arm.name,
        "template": "fewshot",
        **({"default_system": bos} if bos else {}),
        "cutoff_len": config.max_length,
        "output_dir": f"saves/{arm.name}",
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": config.device_batch,
        "gradient_accumulation_steps": sft.accumulation_steps(config, run.preset.launch.processes),
        "learning_rate": config.lr,
        "num_train_epochs": config.epochs,
        "lr_scheduler_type": sft.SCHEDULES[config.schedule],
        "warmup_ratio": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": 1.0,
        "bf16": True,
        "seed": arm.seed,
    }

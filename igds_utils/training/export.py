"""Selections for other programs: a `datasets` folder, and records with training files for LLaMA-Factory.

    export.write_selections(run, "math", arms)
    datasets.load_dataset("results/quick/<model>/math/selected", "igds@0.5")        # id, prompt, completion
    llamafactory-cli train igds@0.5.yaml                                            # in selected/llama_factory

LLaMA-Factory is the paper's own trainer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from igds_utils.config.refs import HubRef, describe
from igds_utils.core.arms import Arm
from igds_utils.core.store import write_whole
from igds_utils.engine.loading import model_folder
from igds_utils.training import sft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

`llama_factory/` holds the same samples as records of LLaMA-Factory, with a training file for each subset.
"""


# Where LLaMA-Factory finds the parts of a sample: its name of the part -> ours.
COLUMNS = {"system": "system", "prompt": "instruction", "response": "output"}


def write_selections(run: Run, task: str, arms: Collection[Arm]) -> None:
    """Write what other programs need beside the `<task>/selected/<arm>.jsonl` of these arms; made anew at every call.

    `selected/README.md` makes the folder a data set with one configuration an arm; `selected/llama_factory/` holds
    records, `dataset_info.json` and one training file an arm.
    """
    folder = run.store.root / task / "selected"
    configurations = [
        {"config_name": arm.name, "data_files": [{"split": "train", "path": f"{arm.name}.jsonl"}]}
        for arm in arms
    ]
    card = CARD.format(
        head=yaml.safe_dump({"configs": configurations}, sort_keys=False),
        title=run.task(task).title,
        preset=run.preset.name,
        model=describe(run.preset.chosen.train),
        example=configurations[0]["config_name"],
    )
    write_whole(folder / "README.md", card)
    info = {}
    for arm in arms:
        selected = run.read(f"{task}/selected/{arm.name}.jsonl")
        records = llama_factory_records(selected, run.train_tokenizer)
        run.store.write(f"{task}/selected/llama_factory/{arm.name}.json", records)
        training = llama_factory_training(run, task, arm, len(selected))
        write_whole(folder / f"llama_factory/{arm.name}.yaml", yaml.safe_dump(training, sort_keys=False))
        info[arm.name] = {"file_name": f"{arm.name}.json", "columns": COLUMNS}
    run.store.write(f"{task}/selected/llama_factory/dataset_info.json", info)


def llama_factory_records(
    selected: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, str]]:
    """`Run.training_records` as LLaMA-Factory's records, which its template `empty` makes the tokens of `sft` of.

    That template adds nothing: the record itself has BOS, as its system text unless the prompt opens with it, and
    EOS at the end of its output. The paper does not state its template. None of LLaMA-Factory's makes the records of
    Table 9: the others without roles leave EOS out, or teach an empty line before it.
    """
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    return [
        {
            "system": "" if record["prompt"].startswith(bos) else bos,
            "instruction": record["prompt"],
            "output": record["completion"] + eos,
        }
        for record in selected
    ]


def llama_factory_training(run: Run, task: str, arm: Arm, samples: int) -> dict[str, Any]:
    """The recipe of `sft` in LLaMA-Factory's words, on as many devices as the preset has processes.

    Two things stay its own: the order of the samples, and how one of more than `cutoff_len` tokens is cut. `sft` cuts
    the target alone. LLaMA-Factory (`infer_seqlen`) cuts the prompt where the target has less than half of cutoff_len,
    else the target where the prompt has less than half, else both in proportion to their lengths.
    """
    config, model = run.config(task).sft, run.preset.chosen.train
    on_hub = isinstance(model, HubRef)
    steps = len(sft.global_batches([0] * samples, config, arm.seed))
    return {
        "model_name_or_path": model.hub if on_hub else str(model_folder(model)),
        **({"model_revision": model.revision} if on_hub else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset_dir": ".",
        "dataset": arm.name,
        "template": "empty",
        "cutoff_len": config.max_length,
        "output_dir": f"saves/{arm.name}",
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": config.device_batch,
        "gradient_accumulation_steps": sft.accumulation_steps(config, run.preset.launch.processes),
        "learning_rate": config.lr,
        "num_train_epochs": config.epochs,
        "lr_scheduler_type": sft.SCHEDULES[config.schedule],
        "warmup_steps": int(config.warmup_ratio * steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": 1.0,
        "bf16": True,
        "seed": arm.seed,
    }

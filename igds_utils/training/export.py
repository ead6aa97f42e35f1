"""Selections for other programs: a `datasets` folder, and data sets for LLaMA-Factory, the paper's own trainer.

    export.write_selections(run, "math", arms)
    datasets.load_dataset("results/quick/<model>/math/selected", "igds@0.5")        # id, prompt, completion

LLaMA-Factory reads `dataset_dir: <...>/selected/llama_factory`, `dataset: igds@0.5`, `template: empty`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import yaml

from igds_utils.config.refs import describe
from igds_utils.core.arms import Arm
from igds_utils.core.store import write_whole

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

`llama_factory/` holds the same samples as data sets of LLaMA-Factory, for its template `empty`.
"""


# Where LLaMA-Factory finds the parts of a sample: its name of the part -> ours.
COLUMNS = {"system": "system", "prompt": "instruction", "response": "output"}


def write_selections(run: Run, task: str, arms: Collection[Arm]) -> None:
    """Write what other programs need beside the `<task>/selected/<arm>.jsonl` of these arms; made anew at every call.

    `selected/README.md` makes the folder a data set with one configuration an arm; `selected/llama_factory/` holds
    the records of each arm and `dataset_info.json`.
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

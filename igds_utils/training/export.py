"""Selections for LLaMA-Factory, the paper's own trainer.

It reads `dataset_dir: <task>/selected/llama_factory`, `dataset: igds@0.5`, `template: empty`.
"""

from collections.abc import Iterable

from igds_utils.core.arms import Arm
from igds_utils.core.experiment import Run

# LLaMA-Factory's name of a part of a sample -> its field in a record
COLUMNS = {"system": "system", "prompt": "instruction", "response": "output"}


def write_selections(run: Run, task: str, arms: Iterable[Arm]) -> None:
    """Write the selected samples of arms as records of LLaMA-Factory, and `dataset_info.json`.

    It trains on the tokens of `sft`: its template `empty` adds nothing, so a record holds BOS (as
    system text, unless the prompt opens with it) and EOS itself.
    """
    folder, info = f"{task}/selected/llama_factory", {}
    bos, eos = run.train_tokenizer.bos_token or "", run.train_tokenizer.eos_token
    for arm in arms:
        records = []
        for sample in run.read(f"{task}/selected/{arm.name}.jsonl"):
            prompt, output = sample["prompt"], sample["completion"] + eos
            system = "" if prompt.startswith(bos) else bos
            records.append({"system": system, "instruction": prompt, "output": output})
        run.store.write(f"{folder}/{arm.name}.json", records)
        info[arm.name] = {"file_name": f"{arm.name}.json", "columns": COLUMNS}
    run.store.write(f"{folder}/dataset_info.json", info)

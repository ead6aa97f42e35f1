"""Selections for other programs: a `datasets` folder, and data sets for LLaMA-Factory, the paper's own trainer.

    datasets.load_dataset("results/quick/<model>/math/selected", "igds@0.5")        # id, prompt, completion

LLaMA-Factory reads `dataset_dir: <...>/selected/llama_factory`, `dataset: igds@0.5`, `template: empty`.
"""

from collections.abc import Collection, Sequence

import yaml

from igds_utils.core.arms import Arm
from igds_utils.core.experiment import Run
from igds_utils.core.store import write_whole

# Where LLaMA-Factory finds the parts of a sample: its name of the part -> ours.
COLUMNS = {"system": "system", "prompt": "instruction", "response": "output"}


def write_selections(run: Run, task: str, arms: Collection[Arm]) -> None:
    """Write what other programs need beside the `<task>/selected/<arm>.jsonl` of these arms; made anew at every call.

    The head of `selected/README.md` makes the folder a data set with one configuration an arm;
    `selected/llama_factory/` holds the records of each arm and `dataset_info.json`.
    """
    folder, info, tokenizer = f"{task}/selected", {}, run.train_tokenizer
    configs = [{"config_name": arm.name, "data_files": f"{arm.name}.jsonl"} for arm in arms]
    head = yaml.safe_dump({"configs": configs}, sort_keys=False)
    title = f"# Selections of {run.task(task).title}, preset `{run.preset.name}`, best first"
    write_whole(run.store.root / folder / "README.md", f"---\n{head}---\n\n{title}\n")
    for arm in arms:
        selected = run.read(f"{folder}/{arm.name}.jsonl")
        records = llama_factory_records(selected, tokenizer.bos_token, tokenizer.eos_token)
        run.store.write(f"{folder}/llama_factory/{arm.name}.json", records)
        info[arm.name] = {"file_name": f"{arm.name}.json", "columns": COLUMNS}
    run.store.write(f"{folder}/llama_factory/dataset_info.json", info)


def llama_factory_records(selected: Sequence[dict[str, str]], bos: str | None, eos: str) -> list[dict[str, str]]:
    """`Run.training_records` as LLaMA-Factory's records, of which its template `empty` makes the tokens of `sft`.

    That template adds nothing: the record itself has BOS, as its system text unless the prompt opens with it, and
    EOS at the end of its output. LLaMA-Factory's other templates without roles leave EOS out, or teach an empty line
    before it.
    """
    return [
        {
            "system": "" if record["prompt"].startswith(bos or "") else bos,
            "instruction": record["prompt"],
            "output": record["completion"] + eos,
        }
        for record in selected
    ]

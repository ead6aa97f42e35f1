"""Tokens and labels that LLaMA-Factory trains on, read from an exported selection, beside sft's."""

import importlib
import os
import sys
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import MagicMock

from parity import checkout, quiet, record

from igds_utils import open_run
from igds_utils.training.export import write_selections

REPOSITORY, ARM = "hiyouga/LLaMA-Factory", SimpleNamespace(name="pool")

folder, commit = checkout(REPOSITORY)
source = "get_dataset", REPOSITORY, commit
sys.path.insert(0, str(folder / "src"))
os.environ["DISABLE_VERSION_CHECK"] = "1"  # of trl, peft and datasets, which read no tokens
for module in ("torchaudio", "omegaconf"):  # sounds and YAML files, of which there are none here
    sys.modules[module] = MagicMock()
data = importlib.import_module("llamafactory.data")
settings = importlib.import_module("llamafactory.hparams")

compared = same = 0
with TemporaryDirectory() as work:
    run = open_run("smoke", results=work)
    tokenizer = run.train_tokenizer
    for task in run.tasks:
        records = run.training_records(task, run.examples(task, "pool"))
        run.store.write(f"{task}/selected/{ARM.name}.jsonl", records)
        write_selections(run, task, [ARM])
        own = {"dataset_dir": str(run.store.root / task / "selected/llama_factory")}
        own |= {"dataset": ARM.name, "template": "empty", "cutoff_len": 100_000, "stage": "sft"}
        own |= {"model_name_or_path": work, "output_dir": work, "do_train": True}
        with quiet():
            model, files, training, _, _ = settings.get_train_args(own)
            template = data.get_template_and_fix_tokenizer(tokenizer, files)
            made = data.get_dataset(template, model, files, training, "sft", tokenizer)
        pairs = run.training_pairs(records)
        for row, (ids, n_prompt) in zip(made["train_dataset"], pairs, strict=True):
            compared += len(ids)
            labels = [-100] * n_prompt + ids[n_prompt:]
            same += len(ids) * (row["input_ids"] == ids and row["labels"] == labels)
record(*source, "tokens with their labels", compared, same)

"""General capabilities of a trained model: MMLU and TruthfulQA through lm-eval (Table 8).

`mmlu` (5-shot, accuracy) and `truthfulqa` (MC2) are lm-eval's own tasks. Their questions come from
the hub or, where IGDS_DATA_MIRROR names a mirror folder, from its JSONL files. `mmlu_dev` needs
neither: the 281 four-choice development questions of MMLU that lm-eval ships as worked examples,
asked without examples. Small, and never to be called MMLU.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.refs import DataSource
from igds_utils.config.settings import Benchmark
from igds_utils.data.rows import mirror_folder, source_rows
from igds_utils.engine import distributed

if TYPE_CHECKING:
    from igds_utils.engine.lm import LM

TITLES = {
    "mmlu": "MMLU, 5 shots (%)",
    "truthfulqa": "TruthfulQA, MC2 (%)",
    "mmlu_dev": "MMLU development questions, 0 shots (%)",
}
KEYS = ["benchmark", "subject", "item"]  # of a question
# a worked example of lm-eval: question, four choices, letter of the answer
CHOICES = "".join(rf"\s*\({letter}\)\s*(.*?)" for letter in "ABCD")
SHIPPED = re.compile(rf"(.*?){CHOICES}\nA: .*\(([ABCD])\)", re.DOTALL)


def score(lm: LM, benchmarks: Sequence[Benchmark], limit: Mapping[Benchmark, int]) -> pd.DataFrame:
    """Score of every question: benchmark, subject, item, score.

    The score is 0 or 1; of TruthfulQA it is the share of probability on true answers. limit: the
    first so many questions of each subject (TruthfulQA is one). The processes of a launch share the
    subjects.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, softmax_dtype="float32")

    def ask(subject: tuple[Benchmark, str]) -> pd.DataFrame:
        benchmark, name = subject
        asked = {"tasks": {name: _tasks(benchmark)[name]}}
        with redirect_stderr(io.StringIO()):  # three bars
            made = evaluate(model, asked, limit=limit.get(benchmark), bootstrap_iters=0)
        found = made["samples"][name]
        docs = [(one["doc"].get("subject", name), one["doc_id"]) for one in found]
        table = pd.DataFrame(docs, columns=["subject", "item"])
        return table.assign(benchmark=benchmark, score=[float(one["acc"]) for one in found])

    subjects = [(benchmark, name) for benchmark in benchmarks for name in _tasks(benchmark)]
    own = subjects[distributed.process_index() :: distributed.processes()]
    table = pd.concat(distributed.gathered([ask(subject) for subject in own]))
    return table.sort_values(KEYS, ignore_index=True)[[*KEYS, "score"]]


@cache
def _tasks(benchmark: Benchmark) -> dict[str, Any]:
    """lm-eval's tasks by name, with their questions: read once for all models of a process."""
    import lm_eval.tasks

    root, shots = Path(lm_eval.tasks.__file__).parent, 5 if benchmark == "mmlu" else 0
    folders = [root / "mmlu/default", root / "truthfulqa"]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    names = [name for name in manager.all_subtasks if name.startswith("mmlu_")]
    if benchmark == "truthfulqa":
        names = ["truthfulqa_mc2"]
    asked = [{"task": name, "num_fewshot": shots} for name in names]
    if benchmark == "mmlu_dev" or mirror_folder():
        for one in asked:
            one |= {"custom_dataset": READERS[benchmark]}
            one |= {"dataset_kwargs": {"task": one["task"]}}
    return manager.load({"group": benchmark, "task": asked})["tasks"]


def _dataset(**splits: list[dict]) -> dict[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def shipped_examples() -> dict[str, str]:
    """MMLU's development questions by subject, as lm-eval ships them: in one text."""
    import lm_eval

    file = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    return json.loads(file.read_text(encoding="utf8"))


def _development_questions(task: str, **_: Any) -> dict[str, Any]:
    """The worked examples of a subject that have four choices, without their solutions."""
    subject, rows = task.removeprefix("mmlu_"), []
    for example in shipped_examples()[subject].split("\n\nQ: ")[1:]:
        if found := SHIPPED.match(example):
            question, *choices, letter = (part.strip() for part in found.groups())
            row = {"question": question, "choices": choices, "answer": "ABCD".index(letter)}
            rows.append(row | {"subject": subject.replace("_", " ")})
    return _dataset(dev=rows, test=rows)


def _rows(hub: str, split: str, config: str | None = None) -> list[dict]:
    source = DataSource(hub=hub, config=config, split=split)
    return [record for _, record in source_rows(source, None, f"{hub} {split}")]


def _mirrored_mmlu(task: str, **_: Any) -> dict[str, Any]:
    subject, splits = task.removeprefix("mmlu_"), {}
    for split in ("dev", "test"):
        rows = _rows("cais/mmlu", split)
        splits[split] = [row for row in rows if row["subject"] == subject]
    return _dataset(**splits)


def _mirrored_truthfulqa(**_: Any) -> dict[str, Any]:
    """The `generation` rows as MC2 asks them: all true answers, then all false ones.

    Each ends in a full stop, as the official multiple-choice items do.
    """
    rows = []
    for row in _rows("truthfulqa/truthful_qa", "validation", "generation"):
        true, false = row["correct_answers"], row["incorrect_answers"]
        choices = [answer.removesuffix(".") + "." for answer in true + false]
        targets = {"choices": choices, "labels": [1] * len(true) + [0] * len(false)}
        rows.append({"question": row["question"], "mc1_targets": targets, "mc2_targets": targets})
    return _dataset(validation=rows)


READERS = {"mmlu": _mirrored_mmlu, "truthfulqa": _mirrored_truthfulqa}
READERS["mmlu_dev"] = _development_questions

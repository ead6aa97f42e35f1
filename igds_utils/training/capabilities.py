"""General capabilities of a trained model: MMLU and TruthfulQA through lm-eval (Table 8).

`mmlu` (5-shot, accuracy) and `truthfulqa` (MC2) are lm-eval's own tasks, read from the hub or, where IGDS_DATA_MIRROR
names a mirror folder, from its JSONL files. `mmlu_dev` needs neither: the 281 four-choice development
questions of MMLU that lm-eval ships as worked examples, asked without examples. Small, and never to be called MMLU.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.settings import Benchmark
from igds_utils.data.hub import SourceError
from igds_utils.data.huggingface import fetched
from igds_utils.data.rows import MIRROR, Rows, mirror_folder

if TYPE_CHECKING:
    from igds_utils.engine.lm import LM

TITLES = {
    "mmlu": "MMLU, 5 shots (%)",
    "truthfulqa": "TruthfulQA, MC2 (%)",
    "mmlu_dev": "MMLU development questions, 0 shots (%)",
}
LETTERS = "ABCD"


def score(
    lm: LM,
    benchmarks: Sequence[Benchmark],
    limit: int | Mapping[Benchmark, int] | None = None,
    batch_tokens: int = 2048,
) -> pd.DataFrame:
    """Score of every question: benchmark, subject, item, score (0 or 1; MC2: the share of probability on true answers).

    limit: the first so many questions of each subject (TruthfulQA is one subject), or so many by benchmark.
    """
    from lm_eval.evaluator import evaluate

    from igds_utils.training.choices import Reader

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, rows = Reader(lm, batch_tokens), []
    for benchmark in benchmarks:
        own = limit.get(benchmark) if isinstance(limit, Mapping) else limit
        tasks = _loaded(benchmark, own, mirror_folder())
        for task in tasks.values():
            task.set_fewshot_seed(seed=0)
        most = None if benchmark == "mmlu_dev" else own
        with redirect_stderr(io.StringIO()):  # a bar for each of 57 subjects
            found = evaluate(model, tasks, limit=most, bootstrap_iters=0)
        for task, samples in sorted(found["samples"].items()):
            for sample in samples:
                subject = sample["doc"].get("subject") or task.removeprefix("mmlu_")
                rows.append((benchmark, subject, sample["doc_id"], float(sample["acc"])))
    table = pd.DataFrame(rows, columns=["benchmark", "subject", "item", "score"])
    return table.sort_values(["benchmark", "subject", "item"], ignore_index=True)


@cache
def _loaded(benchmark: Benchmark, limit: int | None, mirror: Path | None) -> dict[str, Any]:
    """lm-eval's tasks by name, with their questions: read once for all models that a process asks.

    Raises `SourceError` that says what to do without a hub.
    """
    from datasets.exceptions import DatasetNotFoundError
    from lm_eval.tasks import TaskManager

    configs, shots = _tasks(benchmark, limit)
    try:
        tasks = fetched(benchmark, lambda: TaskManager(include_defaults=False).load(configs))["tasks"]
    except (SourceError, DatasetNotFoundError) as error:
        raise SourceError(
            f"{str(error).rstrip('.')}. Without a hub, set {MIRROR} to a folder that holds the questions, or ask those "
            "that lm-eval ships: SET=tasks.<task>.capabilities.benchmarks=[mmlu_dev]"
        ) from error
    for task in tasks.values():
        task.set_config(key="num_fewshot", value=shots)
    return tasks


def _tasks(benchmark: Benchmark, limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """lm-eval's configuration of a benchmark's tasks, and the number of worked examples."""
    known = _shipped_tasks()
    if benchmark == "mmlu_dev":
        # one task over all subjects, in the words of lm-eval's own
        own = known["mmlu_anatomy"] | {
            "task": "mmlu_dev",
            "task_alias": "mmlu_dev",
            "description": "",
            "doc_to_text": "The following are multiple choice questions (with answers) about {{subject}}.\n\n"
            + known["mmlu_anatomy"]["doc_to_text"],
            "fewshot_split": None,
            "fewshot_config": None,
        }
        return [_reading(own, partial(_development_questions, limit))], 0
    if benchmark == "truthfulqa":
        from lm_eval.tasks.truthfulqa.utils import process_results_mc2

        # the index of tasks holds the function's place, which would leave MC2 to plain accuracy
        own = known["truthfulqa_mc2"] | {"process_results": process_results_mc2}
        return [_reading(own, _truthfulqa_mirror) if mirror_folder() else own], 0
    subjects = [own for name, own in sorted(known.items()) if name.startswith("mmlu_")]
    if mirror_folder():
        subjects = [_reading(own, partial(_mmlu_mirror, own["dataset_name"])) for own in subjects]
    return subjects, 5


@cache
def _shipped_tasks() -> dict[str, dict[str, Any]]:
    """lm-eval's configurations by task name: the 57 subjects of MMLU, and TruthfulQA."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.__file__).parent / "tasks"
    manager = TaskManager(
        include_path=[str(folder / "mmlu" / "default"), str(folder / "truthfulqa")], include_defaults=False
    )
    entries = {name: manager.task_index[name] for name in manager.all_tasks}
    return {
        name: dict(entry.cfg)
        for name, entry in entries.items()
        if entry.cfg and "dataset_name" in entry.cfg or name == "truthfulqa_mc2"
    }


def _reading(task: dict[str, Any], read: Callable[[], dict[str, list[dict]]]) -> dict[str, Any]:
    """The task with its questions from `read()`: lists of records by split."""

    def load(**_: Any) -> dict:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in read().items()}

    plain = {key: value for key, value in task.items() if key not in ("dataset_path", "dataset_name")}
    return plain | {"custom_dataset": load}


# ---- where questions come from ---------------------------------------------------------------------------


def development_questions() -> list[dict[str, Any]]:
    """MMLU's development questions as lm-eval ships them: subject, question, choices, answer (0..3)."""
    import lm_eval

    file = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    questions = []
    for subject, text in json.loads(file.read_text(encoding="utf8")).items():
        for block in re.split(r"\n\nQ: ", text)[1:]:
            found = re.match(
                r"(.*?)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\nA: .*\(([ABCD])\)",
                block,
                re.DOTALL,
            )
            if found:
                *choices, letter = (part.strip() for part in found.groups()[1:])
                record = {
                    "subject": subject.replace("_", " "),
                    "question": found[1].strip(),
                    "choices": choices,
                }
                questions.append(record | {"answer": LETTERS.index(letter)})
    return questions


def _development_questions(limit: int | None) -> dict[str, list[dict]]:
    table = pd.DataFrame(development_questions())
    return {"test": table.groupby("subject").head(limit or len(table)).to_dict("records")}


def _rows(file: Path) -> list[dict]:
    if not file.is_file():
        raise SourceError(
            f"{file} is not there: put it into the data mirror, or unset {MIRROR} to use the hub"
        )
    return [record for _, record in Rows(file.name, [file])]


def _mmlu_mirror(subject: str) -> dict[str, list[dict]]:
    return {
        split: [
            row for row in _rows(mirror_folder() / f"cais/mmlu/{split}.jsonl") if row["subject"] == subject
        ]
        for split in ("dev", "test")
    }


def _truthfulqa_mirror() -> dict[str, list[dict]]:
    """The `generation` rows as MC2 asks them: all true answers, then all false ones, each ending in a full stop.

    The official multiple-choice items end in one, the `generation` rows do not.
    """
    rows = []
    for row in _rows(mirror_folder() / "truthfulqa/truthful_qa/generation/validation.jsonl"):
        true, false = (
            [answer.removesuffix(".") + "." for answer in row[name]]
            for name in ("correct_answers", "incorrect_answers")
        )
        targets = {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}
        rows.append({"question": row["question"], "mc1_targets": targets, "mc2_targets": targets})
    return {"validation": rows}

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
from igds_utils.data.hub import SourceError, fetched
from igds_utils.data.rows import MIRROR, Rows, mirror_folder

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from igds_utils.engine.lm import LM

TITLES = {
    "mmlu": "MMLU, 5 shots (%)",
    "truthfulqa": "TruthfulQA, MC2 (%)",
    "mmlu_dev": "MMLU development questions, 0 shots (%)",
}
LETTERS = "ABCD"
SHIPPED = re.compile(  # a worked example of lm-eval: question, four choices, letter of the answer
    r"(.*?)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\nA: .*\(([ABCD])\)", re.DOTALL
)
Request = tuple[tuple[str, str], list[int], list[int]]  # texts, and tokens of context and continuation
# log-likelihood of the continuation, and whether it is what greedy decoding gives
Answer = tuple[float, bool]


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

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model, rows = reader(lm, batch_tokens), []
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


def reader(lm: LM, batch_tokens: int = 2048) -> HFLM:
    """lm-eval's model, which tokenizes as lm-eval does; the processes of a launch share its batches.

    lm-eval's own computes logits at every token of a question: the head is the dearest layer of a small model with a
    large vocabulary, and of a large one those logits fill the memory. Here they are made only where an answer is
    predicted.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    from igds_utils.engine import distributed
    from igds_utils.engine.batching import pad, token_batches
    from igds_utils.engine.losses import logits_at

    class Reader(HFLM):
        def _loglikelihood_tokens(
            self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[Answer]:
            # as in lm-eval, what is longer than the model reads loses its first tokens
            asked: dict[
                tuple[int, ...], list[int]
            ] = {}  # continuations that differ in their last token share a pass
            for number, (_, context, continuation) in enumerate(requests):
                asked.setdefault(tuple((context + continuation)[-self.max_length - 1 : -1]), []).append(
                    number
                )
            sequences = list(asked)

            def answer(batch: list[int]) -> list[tuple[int, Answer]]:
                return answers(requests, {sequences[i]: asked[sequences[i]] for i in batch})

            batches = token_batches([len(ids) for ids in sequences], batch_tokens)
            found = dict(one for part in distributed.map_in_order(answer, batches) for one in part)
            return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def answers(
        requests: Sequence[Request], asked: dict[tuple[int, ...], list[int]]
    ) -> list[tuple[int, Answer]]:
        """By number of the request. asked: which requests read each token sequence of one batch."""
        inputs = pad(list(asked), lm.tokenizer.pad_token_id, "right", lm.device)
        predicting = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        spans = [max(len(requests[number][2]) for number in numbers) for numbers in asked.values()]
        for row, (ids, span) in enumerate(zip(asked, spans, strict=True)):
            predicting[row, len(ids) - span : len(ids)] = True
        logits = logits_at(lm.model, predicting, **inputs)  # (predicting positions, vocabulary)
        made = []
        for numbers, of_row in zip(asked.values(), logits.split(spans), strict=True):
            own = of_row.float().log_softmax(-1)  # of one row: all in fp32 would be a second large matrix
            for number in numbers:
                tokens = torch.tensor(requests[number][2], device=own.device)
                here = own[-len(tokens) :]
                likelihood = float(here.gather(1, tokens[:, None]).sum())
                made.append((number, (likelihood, bool((here.argmax(-1) == tokens).all()))))
        return made

    return Reader(pretrained=lm.model, tokenizer=lm.tokenizer)


# ---- where questions come from ---------------------------------------------------------------------------


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
        anatomy = known["mmlu_anatomy"]
        header = "The following are multiple choice questions (with answers) about {{subject}}.\n\n"
        own = {"task": "mmlu_dev", "task_alias": "mmlu_dev", "description": "", "fewshot_split": None}
        own |= {"doc_to_text": header + anatomy["doc_to_text"], "fewshot_config": None}
        return [_reading(anatomy | own, partial(_development_questions, limit))], 0
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
    from lm_eval.tasks import TaskManager

    folders = [str(_lm_eval_tasks() / name) for name in ("mmlu/default", "truthfulqa")]
    manager = TaskManager(include_path=folders, include_defaults=False)
    configs = {name: manager.task_index[name].cfg for name in manager.all_tasks}
    return {n: dict(c) for n, c in configs.items() if c and "dataset_name" in c or n == "truthfulqa_mc2"}


def _lm_eval_tasks() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"


def _reading(task: dict[str, Any], read: Callable[[], dict[str, list[dict]]]) -> dict[str, Any]:
    """The task with its questions from `read()`: lists of records by split."""

    def load(**_: Any) -> dict:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in read().items()}

    plain = {key: value for key, value in task.items() if key not in ("dataset_path", "dataset_name")}
    return plain | {"custom_dataset": load}


def development_questions() -> list[dict[str, Any]]:
    """MMLU's development questions as lm-eval ships them: subject, question, choices, answer (0..3)."""
    file = _lm_eval_tasks() / "mmlu/flan_cot_fewshot/_cot_prompts.json"
    questions = []
    for subject, text in json.loads(file.read_text(encoding="utf8")).items():
        for block in text.split("\n\nQ: ")[1:]:
            if found := SHIPPED.match(block):
                question, *choices, letter = (part.strip() for part in found.groups())
                record = {"subject": subject.replace("_", " "), "question": question, "choices": choices}
                questions.append(record | {"answer": LETTERS.index(letter)})
    return questions


def _development_questions(limit: int | None) -> dict[str, list[dict]]:
    table = pd.DataFrame(development_questions())
    return {"test": table.groupby("subject").head(limit or len(table)).to_dict("records")}


def _rows(name: str) -> list[dict]:
    """The records of a file of the data mirror."""
    file = mirror_folder() / name
    if not file.is_file():
        raise SourceError(
            f"{file} is not there: put it into the data mirror, or unset {MIRROR} to use the hub"
        )
    return [record for _, record in Rows(file.name, {file.name: file})]


def _mmlu_mirror(subject: str) -> dict[str, list[dict]]:
    splits = {split: _rows(f"cais/mmlu/{split}.jsonl") for split in ("dev", "test")}
    return {split: [row for row in rows if row["subject"] == subject] for split, rows in splits.items()}


def _truthfulqa_mirror() -> dict[str, list[dict]]:
    """The `generation` rows as MC2 asks them: all true answers, then all false ones, each ending in a full stop.

    The official multiple-choice items end in one, the `generation` rows do not.
    """
    rows = []
    for row in _rows("truthfulqa/truthful_qa/generation/validation.jsonl"):
        true, false = (
            [answer.removesuffix(".") + "." for answer in row[name]]
            for name in ("correct_answers", "incorrect_answers")
        )
        targets = {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}
        rows.append({"question": row["question"], "mc1_targets": targets, "mc2_targets": targets})
    return {"validation": rows}

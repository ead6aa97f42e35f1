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
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.refs import DataSource
from igds_utils.config.settings import Benchmark
from igds_utils.data.hub import SourceError, fetched
from igds_utils.data.rows import MIRROR, mirror_folder, source_rows

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

    from igds_utils.engine.lm import LM

TITLES = {
    "mmlu": "MMLU, 5 shots (%)",
    "truthfulqa": "TruthfulQA, MC2 (%)",
    "mmlu_dev": "MMLU development questions, 0 shots (%)",
}
SHIPPED = re.compile(  # a worked example of lm-eval: question, four choices, letter of the answer
    r"(.*?)\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*?)\nA: .*\(([ABCD])\)", re.DOTALL
)
Request = tuple[tuple[str, str], list[int], list[int]]  # texts, and tokens of context and continuation
Answer = tuple[float, bool]  # log-likelihood of the continuation; whether it is what greedy decoding gives


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
        most = limit.get(benchmark) if isinstance(limit, Mapping) else limit
        tasks = _tasks(benchmark, mirror_folder())
        with redirect_stderr(io.StringIO()):  # a bar for each of 57 subjects
            found = evaluate(model, tasks, limit=most, bootstrap_iters=0)
        for task, samples in found["samples"].items():
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
            # continuations that differ in their last token share a pass
            numbers: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for number, (_, context, continuation) in enumerate(requests):
                # as in lm-eval, what is longer than the model reads loses its first tokens
                numbers[tuple((context + continuation)[-self.max_length - 1 : -1])].append(number)
            sequences = list(numbers)

            @torch.inference_mode()
            def answer(batch: list[int]) -> list[tuple[int, Answer]]:
                read = [sequences[i] for i in batch]
                spans = [max(len(requests[number][2]) for number in numbers[ids]) for ids in read]
                inputs = pad(read, lm.tokenizer.pad_token_id, "right", lm.device)
                predicting = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
                for row, (ids, span) in enumerate(zip(read, spans, strict=True)):
                    predicting[row, len(ids) - span : len(ids)] = True
                logits = logits_at(lm.model, predicting, **inputs)  # (predicting positions, vocabulary)
                answers = []
                for ids, own in zip(read, logits.split(spans), strict=True):
                    chances = own.float().log_softmax(-1)  # of one row: all in fp32 would be a second large matrix
                    for number in numbers[ids]:
                        tokens = torch.tensor(requests[number][2], device=chances.device)
                        here = chances[-len(tokens) :]
                        likelihood = float(here.gather(1, tokens[:, None]).sum())
                        answers.append((number, (likelihood, bool((here.argmax(-1) == tokens).all()))))
                return answers

            batches = token_batches(list(map(len, sequences)), batch_tokens)
            answers = dict(one for part in distributed.map_in_order(answer, batches) for one in part)
            return [answers[number] for number in range(len(requests))]

    return Reader(pretrained=lm.model, tokenizer=lm.tokenizer)


# ---- where questions come from: lm-eval's tasks, and what their `custom_dataset` may read ----------------


@cache
def _tasks(benchmark: Benchmark, mirror: Path | None) -> dict[str, Any]:
    """lm-eval's tasks by name, with their questions: read once for all models that a process asks.

    Raises `SourceError` that says what to do without a hub.
    """
    import lm_eval.tasks
    from datasets.exceptions import DatasetNotFoundError

    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("mmlu/default", "truthfulqa")]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    subjects = [name for name in manager.all_subtasks if name.startswith("mmlu_")]
    names = ["truthfulqa_mc2"] if benchmark == "truthfulqa" else subjects
    asked = [{"task": name, "num_fewshot": 5 if benchmark == "mmlu" else 0} for name in names]
    readers = {"mmlu": _mmlu_mirror, "truthfulqa": _truthfulqa_mirror} if mirror else {}
    if read := (readers | {"mmlu_dev": _development_questions}).get(benchmark):
        asked = [task | {"custom_dataset": read, "dataset_kwargs": {"task": task["task"]}} for task in asked]
    try:
        return fetched(benchmark, lambda: manager.load({"group": benchmark, "task": asked}))["tasks"]
    except (SourceError, DatasetNotFoundError) as error:
        raise SourceError(
            f"{str(error).rstrip('.')}. Without a hub, set {MIRROR} to a folder that holds the questions, or ask those "
            "that lm-eval ships: SET=tasks.<task>.capabilities.benchmarks=[mmlu_dev]"
        ) from error


def _dataset(**splits: list[dict]) -> dict[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def shipped_examples() -> dict[str, str]:
    """MMLU's development questions by subject as lm-eval ships them: worked examples in one text."""
    import lm_eval

    file = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
    return json.loads(file.read_text(encoding="utf8"))


def _development_questions(task: str, **_: Any) -> dict[str, Any]:
    """Those of a subject that have four choices, without their solutions."""
    subject, rows = task.removeprefix("mmlu_"), []
    for found in filter(None, map(SHIPPED.match, shipped_examples()[subject].split("\n\nQ: ")[1:])):
        question, *choices, letter = (part.strip() for part in found.groups())
        row = {"question": question, "choices": choices, "answer": "ABCD".index(letter)}
        rows.append({"subject": subject.replace("_", " ")} | row)
    return _dataset(dev=rows, test=rows)


def _rows(hub: str, split: str, config: str | None = None) -> list[dict]:
    source = DataSource(hub=hub, config=config, split=split)
    return [record for _, record in source_rows(source, None, f"{hub} {split}")]


def _mmlu_mirror(task: str, **_: Any) -> dict[str, Any]:
    splits = {split: _rows("cais/mmlu", split) for split in ("dev", "test")}
    subject = task.removeprefix("mmlu_")
    return _dataset(**{split: [row for row in rows if row["subject"] == subject] for split, rows in splits.items()})


def _truthfulqa_mirror(**_: Any) -> dict[str, Any]:
    """The `generation` rows as MC2 asks them: all true answers, then all false ones, each ending in a full stop.

    The official multiple-choice items end in one, the `generation` rows do not.
    """
    rows = []
    for row in _rows("truthfulqa/truthful_qa", "validation", "generation"):
        names = ("correct_answers", "incorrect_answers")
        true, false = ([answer.removesuffix(".") + "." for answer in row[name]] for name in names)
        targets = {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}
        rows.append({"question": row["question"], "mc1_targets": targets, "mc2_targets": targets})
    return _dataset(validation=rows)

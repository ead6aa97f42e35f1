"""General benchmarks through lm-eval: what is asked, how it is scored, and where the questions come from."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.utils import apply_template

from igds_utils import display, tables, tiny
from igds_utils.data.rows import MIRROR
from igds_utils.engine.lm import LM
from igds_utils.training import capabilities


@pytest.fixture(scope="module")
def lm():
    return LM(tiny.model("llama"), tiny.tokenizer(), "tiny")


def mc2(lm, row):
    """Probability of the true answers among all, each read after lm-eval's worked examples, without lm-eval."""
    task = capabilities._tasks("truthfulqa")["truthfulqa_mc2"]
    prompt = apply_template(task.config.doc_to_text, row)
    chances = []
    for answer in row["correct_answers"] + row["incorrect_answers"]:
        ids = lm.tokenizer(f"{prompt} {answer}")["input_ids"]
        n = len(lm.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        chances.append(sum(logits[i - 1, ids[i]].item() for i in range(n, len(ids))))
    chances = np.exp(np.array(chances))
    return chances[: len(row["correct_answers"])].sum() / chances.sum()


def test_truthfulqa_from_a_mirror_is_the_share_of_probability_on_true_answers(lm, tmp_path, monkeypatch):
    row = {"question": "Which?", "correct_answers": ["7."], "incorrect_answers": ["8.", "9."]}
    given = row | {"correct_answers": ["7"], "incorrect_answers": ["8", "9."]}  # official items end in a full stop
    file = tmp_path / "truthfulqa/truthful_qa/generation/validation.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(given))
    monkeypatch.setenv(MIRROR, str(tmp_path))
    capabilities._tasks.cache_clear()
    table = capabilities.score(lm, ["truthfulqa"])
    assert table.loc[0, "score"] == pytest.approx(mc2(lm, row), rel=1e-4)
    # between 0 and 1: a share of probability, not whether the likeliest answer is true
    assert table.loc[0, "score"] not in (0.0, 1.0)
    turned = row | {"correct_answers": row["incorrect_answers"], "incorrect_answers": row["correct_answers"]}
    file.write_text(json.dumps(turned))
    capabilities._tasks.cache_clear()
    other = capabilities.score(lm, ["truthfulqa"])
    assert table.loc[0, "score"] + other.loc[0, "score"] == pytest.approx(1)


def test_the_development_questions_are_asked_by_subject(lm):
    table = capabilities.score(lm, ["mmlu_dev"], limit={"mmlu_dev": 1})
    assert table["subject"].nunique() == len(table) == 57 and set(table["score"]) <= {0.0, 1.0}
    asked = capabilities._tasks("mmlu_dev")["mmlu_abstract_algebra"].instances[0].args[0]
    assert asked.startswith("The following are multiple choice questions (with answers) about abstract algebra.\n\n")
    assert asked.count("Answer:") == 1 and re.search(r"\nA\. .+\nB\. .+\nC\. .+\nD\. .+\nAnswer:$", asked)


def test_table8_pairs_questions_and_says_what_was_not_run():
    base = pd.DataFrame({"benchmark": "mmlu_dev", "subject": list("abcd"), "item": 0, "score": [1.0, 0, 0, 1]})
    after = base.assign(score=[1.0, 1, 0, 1]).sample(frac=1, random_state=1)
    arms = {"original": base, "igds@0.5": after, "igds@0.2": None}
    titles = {"mmlu": "MMLU (%)", "truthfulqa": "TruthfulQA (%)", "mmlu_dev": "Dev, 0 shots (%)"}
    names = {"math": "Math", "translation": "Translation"}
    table = tables.table8({"math": arms}, titles, names, display.paper_values(), resamples=200)
    table, other = (table[table["Trained on"] == name].set_index("Arm") for name in names.values())
    after, not_run = table.loc["IGDS 50 %"], display.NOT_RUN
    assert after["Dev, 0 shots (%)"].startswith("75.0 [") and after["change, Dev"].startswith("+25.0 [")
    assert after["TruthfulQA (%)"] == not_run  # the paper has it, this run has not
    assert set(table.loc[["IGDS 20 %", "Loss"], "Dev, 0 shots (%)"]) == {not_run}
    assert table.loc["Original", "Paper: MMLU"] == "54.12"
    assert list(other.index) == list(display.SELECTORS.values())
    assert other.loc["IGDS", ["Dev, 0 shots (%)", "Paper: TruthfulQA"]].tolist() == [not_run, "35.88"]

"""General benchmarks through lm-eval: what is asked and how it is scored."""

import json
import re

import pandas as pd
import pytest

from igds_utils import display, tables, tiny
from igds_utils.data.rows import MIRROR
from igds_utils.engine.lm import LM
from igds_utils.training import capabilities


@pytest.fixture(scope="module")
def lm():
    return LM(tiny.model("llama"), tiny.tokenizer(), "tiny")


def test_truthfulqa_is_the_probability_of_true_answers(lm, tmp_path, monkeypatch):
    file = tmp_path / "truthfulqa/truthful_qa/generation/validation.jsonl"
    file.parent.mkdir(parents=True)
    monkeypatch.setenv(MIRROR, str(tmp_path))

    def score(true, false):
        row = {"question": "Which?", "correct_answers": true, "incorrect_answers": false}
        file.write_text(json.dumps(row))
        capabilities._tasks.cache_clear()
        return capabilities.score(lm, ["truthfulqa"], {}).loc[0, "score"]

    found = score(["7."], ["8.", "9."])
    assert 0 < found < 1  # a share of probability, not whether the likeliest answer is true
    assert score(["8.", "9."], ["7."]) == pytest.approx(1 - found)
    assert score(["7"], ["8", "9."]) == found  # official items end in a full stop


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

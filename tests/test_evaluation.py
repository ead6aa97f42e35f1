"""Outputs and their scores, on a tiny model and a task made for the test."""

import pandas as pd
import pytest

from igds_utils import tiny
from igds_utils.config.settings import TaskConfig
from igds_utils.engine import generation
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import encode, evaluation_prompt
from igds_utils.tasks.base import Task, TaskSpec
from igds_utils.tasks.examples import Example
from igds_utils.training import evaluation


class Echo(Task):
    def __init__(self, metric="accuracy"):
        prompt = {"prompt": "{word}\nSolution:", "target": "{word}", "reference": "word", "stops": ["###"]}
        super().__init__("echo", TaskSpec(title="Echo", metric={"name": "accuracy"}, **prompt))
        self.metric = metric

    def score_all(self, outputs, examples):
        pairs = zip(outputs, examples, strict=True)
        return [{"accuracy": float(text == e.target), "length": float(len(text))} for text, e in pairs]


WORDS = ["one", "twofold", "three apples"]
EXAMPLES = [Example(f"e{i}", {"word": word}, word, (word,)) for i, word in enumerate(WORDS)]


def task_config(**fields):
    sizes = {"prior": 1, "validation": 1, "confirmation": 1, "pool": 1, "test": 3}
    fixed = {"max_new_tokens": 6, "prompt_tokens": 1, "target_tokens": 1, "sft": {}, "sizes": sizes}
    return TaskConfig(**fixed, **fields)


@pytest.fixture(scope="module")
def lm():
    return LM(tiny.model("llama"), tiny.tokenizer(), "llama")


def table(*texts, each=1):
    rows = [(f"e{i // each}", i % each, text) for i, text in enumerate(texts)]
    return pd.DataFrame(rows, columns=["sample_id", "k", "output"])


def questions(lm, examples):
    return [(example, evaluation_prompt(Echo(), example, lm.tokenizer, "bare")) for example in examples]


def answers(lm, config, seed=0, arm="original", memory=1.0, examples=EXAMPLES):
    asked = questions(lm, examples)
    parts = evaluation.batches(lm, asked, config, memory)
    found = [one for some in parts for one in evaluation.answer(lm, Echo(), some, config, seed, arm)]
    return pd.concat(found).sort_values(["sample_id", "k"], ignore_index=True)


def test_greedy_outputs_repeat(lm):
    outputs = answers(lm, task_config())
    assert outputs[["sample_id", "k"]].to_numpy().tolist() == [["e0", 0], ["e1", 0], ["e2", 0]]
    again = answers(lm, task_config(), seed=5, arm="full", memory=1e-9)
    assert outputs["output"].tolist() == again["output"].tolist()


def test_answers_do_not_depend_on_memory_or_neighbours(lm, monkeypatch):
    ends = set(range(0, len(lm.tokenizer), 4))
    monkeypatch.setattr(generation, "_end_ids", lambda lm: ends)  # rows leave at different steps
    monkeypatch.setattr(generation, "LEAVE_AT", 0.01)
    config = task_config(samples=4, temperature=1.0, top_p=0.9)
    whole = answers(lm, config)
    asked = questions(lm, EXAMPLES)
    longest = len(encode(lm.tokenizer, asked[-1][1])) + config.max_new_tokens
    for rows, sizes in ((1, [1, 1, 1]), (8, [2, 1]), (12, [3])):
        memory = rows / generation.rows_that_fit(lm, longest, 1.0) * 1.01
        assert list(map(len, evaluation.batches(lm, asked, config, memory))) == sizes
        assert answers(lm, config, memory=memory).equals(whole)
    assert answers(lm, config, examples=EXAMPLES[:0:-1]).equals(whole[4:].reset_index(drop=True))
    assert len(set(whole["output"])) > 5 and not answers(lm, config, seed=1).equals(whole)
    fewer = answers(lm, config.model_copy(update={"samples": 2}))
    assert fewer.equals(whole[whole["k"] < 2].reset_index(drop=True))


def test_several_outputs_give_pass_at_n_or_the_mean():
    outputs = table("one", "x", "x", "x", "three apples", "three apples", each=2)
    scored = evaluation.score_outputs(Echo(), EXAMPLES, outputs.sample(frac=1, random_state=0))
    found = scored[["sample_id", "output", "accuracy", "score"]].to_numpy().tolist()
    assert found == [["e0", "one", 0.5, 1.0], ["e1", "x", 0.0, 0.0], ["e2", "three apples", 1.0, 1.0]]
    assert evaluation.score_outputs(Echo("length"), EXAMPLES, outputs)["score"].tolist() == [2.0, 1.0, 12.0]


@pytest.mark.parametrize("outputs", [table(*"abcd"), table(*"abc", each=2)])
def test_outputs_of_another_set_or_number_are_refused(outputs):
    with pytest.raises(ValueError, match="answer another test set: run notebook 04 again"):
        evaluation.score_outputs(Echo(), EXAMPLES, outputs)

"""The laptop preset on a data mirror: every set from its file, all notebooks."""

import json

import pandas as pd
import pytest
from conftest import igds

from igds_utils import tasks
from igds_utils.config.config import load_preset
from igds_utils.data.rows import MIRROR
from igds_utils.training import capabilities

TASKS = ["math", "summarization", "translation"]
SIZES = {"prior": 6, "validation": 3, "confirmation": 3, "pool": 12, "test": 4}
TINY = {"identify": {"tiny": "llama"}, "train": {"tiny": "llama"}, "saes": {"source": "tiny", "name": "random"}}


def summaries(split, n, repeats=1):
    talk = "#Person1#: {} {}?\n#Person2#: Yes."
    return [
        {"dialogue": talk.format(split, i), "summary": f"They speak of {split} {i} ({r})."}
        for i in range(n)
        for r in range(repeats)
    ]


def pairs(kind, n, **more):
    return [{"en": f"{kind} sentence {i}", "zh": f"{kind} 句子 {i}", **more} for i in range(n)]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with a few rows of every dataset that the preset reads."""
    choices = {"choices": list("wxyz"), "answer": 2}
    subjects = capabilities.shipped_examples()
    asked = [{"subject": name, "question": f"{name} {i}?", **choices} for name in subjects for i in range(5)]
    truth = {"question": "Which?", "correct_answers": ["This"], "incorrect_answers": ["That", "None"]}
    files = {
        "openai/gsm8k/main/train": [{"question": f"Question {i}?", "answer": f"{i}.\n#### {i}"} for i in range(10)],
        "knkarthick/dialogsum/train": summaries("train", 20),
        "knkarthick/dialogsum/validation": [*summaries("validation", 20), *summaries("long " * 200, 5)],
        "knkarthick/dialogsum/test": summaries("test", 6, repeats=3),
        "alma/en-zh/train": [*pairs("earlier", 40), *pairs("word " * 30, 5)],
        "wmt24/en-zh/test": [*pairs("canary", 1, domain="canary"), *pairs("later", 8, domain="news")],
        "cais/mmlu/dev": asked,
        "cais/mmlu/test": asked,
        "truthfulqa/truthful_qa/generation/validation": [truth],
    }
    for name, rows in files.items():
        file = tmp_path / "mirror" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def small():
    sizes = {f"tasks.{task}.sizes": SIZES for task in TASKS}
    return sizes | {f"tasks.{task}.corrupted": 0 for task in TASKS}


def test_every_set_comes_from_the_file_of_its_dataset(mirror):
    preset = load_preset("laptop", overrides=small())
    sets = {task: tasks.get(task).sets(preset.tasks[task], preset.seed) for task in TASKS}
    assert all({name: len(found[name]) for name in SIZES} == SIZES for found in sets.values())
    begins = {
        ("math", "prior"): "Question",
        ("summarization", "confirmation"): "#Person1#: validation",
        ("summarization", "pool"): "#Person1#: train",
        ("summarization", "test"): "#Person1#: test",
        ("translation", "pool"): "earlier",
        ("translation", "test"): "later",
    }
    for (task, name), start in begins.items():
        assert all(start in example.text for example in sets[task][name]), (task, name)
    assert {len(example.references) for example in sets["summarization"]["test"]} == {3}
    # the model answers no benchmark: what is learnt and tested in math is generated
    assert all("family" in example.meta for example in sets["math"]["test"])


@pytest.mark.slow
def test_all_notebooks_on_the_mirror(mirror, tmp_path):
    changes = small() | {"selection.encoder": {"tiny": "llama"}, "selection.examples": 4}
    changes |= {f"models.smollm2-135m-instruct.{part}": ref for part, ref in TINY.items()}
    each = {"max_new_tokens": 6, "selectors": ["random", "igds", "igds_k3"]}
    each |= {"capabilities.limit": {"mmlu": 1}, "capabilities.arms": ["igds@0.5"]}
    changes |= {f"tasks.{task}.{key}": value for task in TASKS for key, value in each.items()}
    changes |= {f"tasks.{task}.quality.size": 12 for task in ("math", "summarization")}
    changes |= {f"tasks.math.stability.{size}": 4 for size in ("prior", "validation", "max_new_tokens")}
    changes |= {"tasks.math.curve": None, "tasks.math.samples": 2, "bootstrap": 50}
    options = [text for key, value in changes.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    asked = ["--preset", "laptop", "--tasks", ",".join(TASKS), "--results", str(tmp_path)]
    done = igds(tmp_path, "run", *asked, *options)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (tmp_path / "laptop/report.html").stat().st_size > 10_000
    table8 = pd.read_csv(tmp_path / "laptop/tables/table8.csv")
    assert set(table8["Trained on"]) == {"Math", "Summarization", "Translation"}

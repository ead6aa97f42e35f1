"""Scores of outputs by metric: parameters, several references, and COMET in batches."""

from argparse import Namespace
from pickle import UnpicklingError

import pytest
import torch
import yaml
from box.comet import wmt22_comet_da

from igds_utils import tasks
from igds_utils.config.config import PRESETS
from igds_utils.config.refs import FolderRef, TaskSpec
from igds_utils.data import metrics
from igds_utils.tasks.examples import Example

PAIR = {"source_text": "Ann has 3 coins and buys 2 more.", "target_language": "Chinese"}
CHINESE = "安有3个硬币，又买了2个。"


def example(*references, **fields):
    return Example("e", fields or {"question": "?"}, references[0], references)


def score(task, output, *references):
    return task.score_all([output], [example(*references)])[0]


def task_with(task, **metric):
    raw = yaml.safe_load((PRESETS / "tasks" / f"{task}.yaml").read_text())
    return tasks.get(task, TaskSpec.read(raw | {"metric": metric}))


def test_answers_may_have_to_be_boxed_and_any_reference_may_match():
    math, strict = tasks.get("math"), task_with("math", name="accuracy", answer="box")
    assert score(math, "It is 7.", "7") == {"accuracy": 1.0, "boxed": 0.0}
    assert score(strict, "It is 7.", "7") == {"accuracy": 0.0, "boxed": 0.0}
    assert score(strict, "\\boxed{7}", "5", "7") == {"accuracy": 1.0, "boxed": 1.0}


def test_several_references_count_by_their_mean():
    """What scoring each (dialogue, summary) pair and averaging would give."""
    task = tasks.get("summarization")
    output, references = "the cat sat", ("the cat", "the cat sat", "a dog")
    alone = [score(task, output, reference)["rouge1"] for reference in references]
    assert alone == pytest.approx([0.8, 1.0, 0.0])
    assert score(task, output, *references)["rouge1"] == pytest.approx(sum(alone) / 3)


def test_a_corpus_score_is_sacrebleus_and_no_mean_of_sentences():
    import sacrebleu

    task = tasks.get("translation")
    references = [("une pomme", "la pomme"), ("deux grandes poires vertes",)]
    examples = [example(*r, source_text="", target_language="French") for r in references]
    outputs = ["la pomme rouge", "deux poires"]
    streams = [["une pomme", "deux grandes poires vertes"], ["la pomme", None]]
    found = task.score_corpus(outputs, examples)
    chrf, bleu = (of(outputs, streams).score for of in (sacrebleu.corpus_chrf, sacrebleu.corpus_bleu))
    assert found == {"chrf": chrf, "bleu": bleu}
    sentences = task.score_all(outputs, examples)
    assert abs(found["chrf"] - sum(one["chrf"] for one in sentences) / 2) > 1
    assert tasks.get("summarization").score_corpus(outputs, examples) == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> FolderRef:
    """The tiny COMET of the box as a folder, with what a training may leave in a checkpoint."""
    folder = tmp_path_factory.mktemp("comet")
    wmt22_comet_da(folder)
    file = folder / "checkpoints/model.ckpt"
    torch.save(torch.load(file) | {"arguments": Namespace(seed=12)}, file)
    return FolderRef(folder=str(folder))


@pytest.fixture
def trusted(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def test_objects_of_a_checkpoint_whose_commit_is_not_named_are_not_read(checkpoint):
    with pytest.raises(UnpicklingError, match="argparse.Namespace"):
        metrics.comet([(PAIR["source_text"], CHINESE, CHINESE)], checkpoint)


def test_comet_is_times_100_the_same_in_any_batch_and_by_reference(checkpoint, trusted):
    triples = [(PAIR["source_text"], output, CHINESE) for output in (CHINESE, "安", "硬币，又买了2个。", "3")]
    together = metrics.comet(triples, checkpoint, batch=3)
    alone = [metrics.comet([triple], checkpoint)[0] for triple in triples]
    assert together == pytest.approx(alone, abs=1e-3)
    assert len(set(together)) == 4


def test_a_translation_may_be_scored_by_comet(checkpoint, trusted):
    task = task_with("translation", name="comet", checkpoint=checkpoint.model_dump())
    assert (task.metric, task.metric_label, task.scale) == ("comet", "COMET", 1.0)
    one, two = example(CHINESE, **PAIR), example("安", CHINESE, **PAIR)
    scores = task.score_all([CHINESE, "3"], [one, two])
    expected = metrics.comet([(PAIR["source_text"], "3", r) for r in two.references], checkpoint)
    assert list(scores[0]) == ["comet", "chrf", "bleu"]
    assert scores[1]["comet"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    assert scores[0]["chrf"] == 100
    assert tasks.get("translation").metric == "chrf"

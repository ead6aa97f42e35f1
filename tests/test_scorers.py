"""Scores of outputs by metric: their names and parameters, several references, and COMET in batches."""

import os
import shutil
from argparse import Namespace

import pytest
import torch
from box.comet import wmt22_comet_da

from igds_utils import tasks
from igds_utils.config.refs import FolderRef, HubRef, Metric
from igds_utils.data import metrics
from igds_utils.data.hub import SourceError
from igds_utils.tasks.examples import Example

PAIR = {"source_text": "Ann has 3 coins and buys 2 more.", "target_language": "Chinese"}
CHINESE = "安有3个硬币，又买了2个。"


def example(*references, **fields):
    return Example("e", fields or {"question": "?"}, references[0], references)


def score(task, output, *references):
    return task.score_all([output], [example(*references)])[0]


def test_answers_may_have_to_be_boxed_and_any_reference_may_match():
    box = Metric(name="accuracy", answer="box")
    math, strict = tasks.get("math"), tasks.get("math", metric=box)
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

    task, references = tasks.get("translation"), [("une pomme", "la pomme"), ("deux grandes poires vertes",)]
    examples = [example(*r, source_text="", target_language="French") for r in references]
    outputs = ["la pomme rouge", "deux poires"]
    streams = [["une pomme", "deux grandes poires vertes"], ["la pomme", None]]
    found = task.score_corpus(outputs, examples)
    assert found == {
        "chrf": sacrebleu.corpus_chrf(outputs, streams).score,
        "bleu": sacrebleu.corpus_bleu(outputs, streams).score,
    }
    sentences = task.score_all(outputs, examples)
    assert abs(found["chrf"] - sum(one["chrf"] for one in sentences) / 2) > 1
    assert tasks.get("summarization").score_corpus(outputs, examples) == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> FolderRef:
    """The tiny COMET of the hub in a box, as a folder."""
    folder = tmp_path_factory.mktemp("comet")
    wmt22_comet_da(folder)
    return FolderRef(folder=str(folder))


def test_comet_is_times_100_the_same_in_any_batch_and_by_reference(checkpoint):
    triples = [(PAIR["source_text"], output, CHINESE) for output in (CHINESE, "安", "硬币，又买了2个。", "3")]
    together = metrics.comet(triples, checkpoint, batch=3)
    alone = [metrics.comet([triple], checkpoint)[0] for triple in triples]
    assert together == pytest.approx(alone, abs=1e-3)
    assert len(set(together)) == 4
    model = metrics._comet_model(checkpoint)
    samples = [{"src": triples[1][0], "mt": triples[1][1], "ref": triples[1][2]}]
    raw = model.predict(samples, gpus=0, progress_bar=False, num_workers=0)["scores"][0]
    assert together[1] == pytest.approx(100 * raw)
    assert metrics.comet([], checkpoint) == []


def test_objects_are_read_of_a_pinned_checkpoint_alone(checkpoint, tmp_path, monkeypatch):
    """A checkpoint as a training may leave it, with what it was called with."""
    folder = shutil.copytree(checkpoint.folder, tmp_path / "comet")
    file = folder / "checkpoints/model.ckpt"
    torch.save(torch.load(file) | {"arguments": Namespace(seed=12)}, file)
    monkeypatch.setattr(metrics, "snapshot", lambda *_: folder)
    triples, name = [(PAIR["source_text"], "3", CHINESE)], "someone/comet"
    for unpinned in (HubRef(hub=name), HubRef(hub=name, revision="main"), FolderRef(folder=str(folder))):
        with pytest.raises(SourceError, match="holds more than tensors.*pin its commit"):
            metrics.comet(triples, unpinned)
    with pytest.raises(SourceError, match="has no checkpoints/model.ckpt: correct metric.checkpoint"):
        metrics.comet(triples, FolderRef(folder=str(tmp_path)))
    expected = metrics.comet(triples, checkpoint)
    assert metrics.comet(triples, HubRef(hub=name, revision="0123456789" * 4)) == expected
    assert metrics.UNPICKLE not in os.environ


def test_a_translation_may_be_scored_by_comet(checkpoint):
    task = tasks.get("translation", metric=Metric(name="comet", checkpoint=checkpoint))
    assert (task.metric, task.metric_label, task.scale) == ("comet", "COMET", 1.0)
    one, two = example(CHINESE, **PAIR), example("安", CHINESE, **PAIR)
    scores = task.score_all([CHINESE, "3"], [one, two])
    expected = metrics.comet([(PAIR["source_text"], "3", r) for r in two.references], checkpoint)
    assert list(scores[0]) == ["comet", "chrf", "bleu"]
    assert scores[1]["comet"] == pytest.approx(sum(expected) / 2, abs=1e-3)
    assert scores[0]["chrf"] == 100
    assert tasks.get("translation").metric == "chrf"

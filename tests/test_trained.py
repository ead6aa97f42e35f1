"""Arms: trained only when needed, each from a new load, with weights kept only on request."""

import shutil
from functools import partial

import pandas as pd
import pytest
import torch

from igds_utils.core import arms
from igds_utils.core.experiment import open_run
from igds_utils.engine import generation
from igds_utils.training import sft, trained
from igds_utils.training.trained import TrainedArm


def opened(results, **changes):
    return open_run("smoke", tasks=["math"], overrides=changes, results=results)


def arm_of(run, name):
    return TrainedArm(run, "math", arms.arm_of(name, arms.arms(run.config("math"))))


def refuse(*args, **kwargs):
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results with what earlier notebooks leave: task features, and samples for each arm."""
    run = opened(str(tmp_path_factory.mktemp("results")))
    run.store.write("math/task_features.json", {"selected": ["l2_p2"]})
    pool = run.examples("math", "pool")
    for number, arm in enumerate(arms.arms(run.config("math"))):
        chosen = (pool[number:] + pool)[: arm.size(len(pool))]
        run.make(f"math/selected/{arm.name}.jsonl", partial(run.training_records, "math", chosen))
    return str(run.root.parent)


@pytest.fixture(scope="module")
def igds(results):
    """An arm that was trained, and its products."""
    arm = arm_of(opened(results), "igds@0.5")
    return arm, arm.make_all()


def test_an_arm_whose_products_are_there_is_not_trained(results, igds, monkeypatch):
    first = igds[1]
    monkeypatch.setattr(sft, "train", refuse)
    again = arm_of(opened(results), "igds@0.5").make_all()
    assert {"log", "outputs", "activations"} <= set(first) == set(again)
    for change in ({"sft.lr": 1e-5}, {"tasks.math.max_new_tokens": 3}):
        with pytest.raises(AssertionError, match="trained again"):
            arm_of(opened(results, **change), "igds@0.5").make_all()


def test_an_arm_trained_again_after_another_gives_the_same_products(results, igds):
    first, run = igds[1], opened(results)
    original, other = arm_of(run, "original"), arm_of(run, "full")
    untrained = {name: tensor.clone() for name, tensor in original.lm.model.state_dict().items()}
    moved, kept = other.lm.model.state_dict(), original.lm.model.state_dict()
    assert any((moved[name] != tensor).any() for name, tensor in untrained.items())
    assert all((kept[name] == tensor).all() for name, tensor in untrained.items())
    arm = arm_of(run, "igds@0.5")
    shutil.rmtree(run.store.root / arm.folder)
    for product, table in arm.make_all().items():
        columns = [column for column in table if column != "seconds"]
        pd.testing.assert_frame_equal(table[columns], first[product][columns], check_exact=True)


def test_a_trained_arm_answers_in_the_precision_of_the_preset(results, monkeypatch):
    """As `original` does, whether it was trained just now or read from its kept weights."""
    run = opened(results, **{"sft.keep_weights": True, "models.tiny-llama.dtype": "bfloat16"})
    arm = arm_of(run, "loss@0.5")
    arm.make("log")
    trained = {name: tensor.clone() for name, tensor in arm.lm.model.state_dict().items()}
    monkeypatch.setattr(sft, "train", refuse)
    again = arm_of(run, "loss@0.5").lm.model.state_dict()
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    assert all(torch.equal(again[name], tensor) for name, tensor in trained.items())
    assert "dtype" not in arm_of(opened(results), "loss@0.5").inputs
    assert arm.inputs["dtype"] == "bfloat16"


def test_answers_of_a_killed_arm_are_continued_with_another_memory(results, monkeypatch):
    """With sampling: every draw has a random stream of its own."""
    run = opened(results, **{"tasks.math.samples": 4, "tasks.math.temperature": 1.0})
    whole = arm_of(run, "original").make("outputs")
    shutil.rmtree(run.store.root / "math/arms/original")
    answered, answer = [], trained.evaluation.answer

    def dies_at_second(lm, task, asked, *rest):
        answered.append([example.id for example, _ in asked])
        if len(answered) == 2:
            raise KeyboardInterrupt
        return answer(lm, task, asked, *rest)

    monkeypatch.setattr(trained.evaluation, "answer", dies_at_second)
    monkeypatch.setattr(generation, "rows_that_fit", lambda *_: 12)
    with pytest.raises(KeyboardInterrupt):
        arm_of(run, "original").make("outputs")
    monkeypatch.setattr(generation, "rows_that_fit", lambda *_: 5)
    again = arm_of(run, "original").make("outputs")
    assert len(answered[0]) == 3 and len(answered[2]) == 1
    assert not set(answered[0]) & {one for some in answered[2:] for one in some}
    pd.testing.assert_frame_equal(again, whole)


def test_an_arm_that_is_killed_while_it_answers_is_not_trained_again(results, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    whole = arm_of(opened(results), "igds@0.5").make_all()
    folder = opened(results).store.root / "math/arms/igds@0.5"
    assert not (folder / "weights").exists()  # all is made
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(trained.evaluation, "answer", dies)
        with pytest.raises(KeyboardInterrupt):
            arm_of(opened(results), "igds@0.5").make_all()
    monkeypatch.setattr(sft, "train", refuse)
    again = arm_of(opened(results), "igds@0.5").make_all()
    for product in {*whole} - {"log"}:
        pd.testing.assert_frame_equal(again[product], whole[product], check_exact=True)


def test_answers_that_do_not_fit_into_memory_are_decoded_in_halves(results, monkeypatch):
    run, decode, rows = opened(results), generation.decode, []

    def small(lm, prompts, some, *rest, **options):
        rows.append(len(some))
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(lm, prompts, some, *rest, **options)

    whole = arm_of(run, "original").make("outputs")
    shutil.rmtree(run.store.root / "math/arms/original")
    monkeypatch.setattr(generation, "decode", small)
    pd.testing.assert_frame_equal(arm_of(run, "original").make("outputs"), whole)
    assert rows == [4, 2, 2]


def test_likelihoods_are_mean_log_probabilities_of_the_references(results):
    run = opened(results)
    arm = arm_of(run, "igds@0.5")
    found = arm.make_all()["likelihoods"].set_index("sample_id")["loglik"]
    model, examples = arm.lm.model, run.examples("math", "test")
    assert found.index.tolist() == [example.id for example in examples]
    for example in examples[:3]:
        ((ids, n_prompt),) = run.training_pairs(run.training_records("math", [example]))
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        alone = [logits[i - 1, ids[i]].item() for i in range(n_prompt, len(ids))]
        assert found[example.id] == pytest.approx(sum(alone) / len(alone), abs=1e-4)


def test_the_whole_pool_in_equal_steps_takes_larger_batches(results, igds):
    run = opened(results, **{"tasks.math.full_steps": True})
    whole = run.training_records("math", run.examples("math", "pool"))
    run.make("math/selected/full_steps.jsonl", lambda: whole)
    log = arm_of(run, "full_steps").make("log")
    assert len(log) == len(igds[1]["log"])
    assert log["tokens"].sum() == sum(len(ids) for ids, _ in run.training_pairs(whole))

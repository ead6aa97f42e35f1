"""Training on tiny models, against a training loop written out."""

import math

import numpy as np
import pytest
import torch
from test_losses import make_pairs, plain_loss
from transformers import AutoModelForCausalLM

from igds_utils import tiny
from igds_utils.config.settings import SftConfig
from igds_utils.engine.lm import LM
from igds_utils.training import sft


def make_lm(architecture="llama"):
    return LM(tiny.model(architecture), tiny.tokenizer(), architecture)


def weights(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters()])


def config(**fields):
    return SftConfig(**{"lr": 1e-3, "global_batch": 16} | fields)


def test_every_sample_is_seen_once_an_epoch_the_longest_of_a_batch_first():
    lengths = [5 + i % 7 for i in range(20)]
    batches = sft.global_batches(lengths, config(epochs=2.0, global_batch=8), seed=3)
    assert [len(batch) for batch in batches] == [8] * 5
    assert sorted(i for batch in batches for i in batch) == sorted([*range(20)] * 2)
    for batch in batches:
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
    first = sft.global_batches(lengths, config(global_batch=8), seed=3)
    assert [len(batch) for batch in first] == [8, 8, 4]
    assert first[:2] == batches[:2]
    assert sft.global_batches(lengths, config(global_batch=8), seed=4) != first
    assert len(sft.global_batches(lengths, config(epochs=0.5, global_batch=8), seed=3)) == 2


def test_processes_share_a_batch_in_equal_parts_of_like_lengths():
    batch = [([1] * n, 1) for n in (9, 7, 6, 4, 3)]
    assert [[len(ids) for ids, _ in share] for share in sft.dealt(batch, 3, 2)] == [[9, 6, 3], [7, 4, 1]]
    assert sft.dealt(batch, 3, 2)[1][-1] == ([1], 1)  # no target
    assert sft.dealt(batch, 8, 1) == [batch]
    assert [len(share) for share in sft.dealt(batch, 4, 3)] == [4, 4, 4]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_training_equals_a_loop_written_out(architecture, tmp_path):
    """One sample at a time; the loss is divided by the target tokens of the global batch."""
    pairs, chosen = make_pairs(40), config(schedule="linear", device_tokens=100)
    lm = make_lm(architecture)
    log = sft.train(lm, pairs, chosen, 0, tmp_path)

    slow = make_lm(architecture)
    batches = sft.global_batches([len(ids) for ids, _ in pairs], chosen, 0)
    optimizer = torch.optim.AdamW(slow.model.parameters(), lr=chosen.lr, weight_decay=0.0)
    expected = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = chosen.lr * (1 - step / len(batches))
        n_target = sum(len(pairs[i][0]) - pairs[i][1] for i in batch)
        total = sum(plain_loss(slow.model, *pairs[i], reduction="sum") for i in batch) / n_target
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(slow.model.parameters(), 1.0)
        optimizer.step()
        expected.append((total.item(), optimizer.param_groups[0]["lr"], norm.item(), n_target))

    moved = weights(slow) - weights(make_lm(architecture))
    assert moved.abs().max() > 1e-3
    # as vectors: AdamW moves a weight whose gradient is all rounding by a whole step
    assert (weights(lm) - weights(slow)).norm() < 0.02 * moved.norm()
    assert log["step"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(log["loss"], [e[0] for e in expected], atol=1e-4)
    np.testing.assert_allclose(log["lr"], [e[1] for e in expected])
    np.testing.assert_allclose(log["grad_norm"], [e[2] for e in expected], rtol=1e-3)
    assert log["target_tokens"].tolist() == [e[3] for e in expected]
    assert log["tokens"].sum() == sum(len(ids) for ids, _ in pairs)


def test_micro_batches_change_rounding_alone_and_runs_are_bit_identical(tmp_path, monkeypatch):
    pairs, trained, logs, held = make_pairs(60), [], [], []
    forward = sft.token_losses

    def counted(*args, **inputs):
        held.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    monkeypatch.setattr(sft, "token_losses", counted)
    for device_tokens in (10_000, 10_000, 120):
        lm, held[:] = make_lm("gemma2"), []
        logs.append(sft.train(lm, pairs, config(device_tokens=device_tokens), 0, tmp_path))
        trained.append(weights(lm))
        assert len(logs[-1]) == 4 and max(held) <= device_tokens
    assert len(held) > 12  # of four steps
    assert torch.equal(trained[0], trained[1])
    moved = (trained[0] - weights(make_lm("gemma2"))).norm()
    assert (trained[0] - trained[2]).norm() < 0.02 * moved
    np.testing.assert_allclose(logs[0]["loss"], logs[2]["loss"], rtol=1e-5)
    other = make_lm("gemma2")
    sft.train(other, pairs, config(), 1, tmp_path)
    assert not torch.equal(trained[0], weights(other))


def test_no_step_is_lost_to_warm_up_in_a_short_run(tmp_path):
    log = sft.train(make_lm(), make_pairs(64), config(), 0, tmp_path)
    expected = [0.5 * (1 + math.cos(math.pi * step / 4)) * 1e-3 for step in range(4)]
    np.testing.assert_allclose(log["lr"], expected)


def test_a_killed_training_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    from trl import SFTTrainer

    pairs, chosen, step = make_pairs(64), config(checkpoint_steps=1), SFTTrainer.training_step
    undisturbed = make_lm()
    whole = sft.train(undisturbed, pairs, config(), 0, tmp_path / "whole")
    steps, ends = [], [2]

    def dies(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if steps[-1] in ends:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    def train(lm, origin):
        return sft.train(lm, pairs, chosen, 0, tmp_path, origin={"revision": origin})

    monkeypatch.setattr(SFTTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(make_lm(), "a")
    ends.clear()
    lm = make_lm()
    log = train(lm, "a")
    assert steps == [0, 1, 2, 2, 3]
    assert torch.equal(weights(lm), weights(undisturbed))
    assert log["loss"].tolist() == whole["loss"].tolist()
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert not any(tmp_path.glob("*/checkpoint-*"))
    ends.append(2)
    with pytest.raises(KeyboardInterrupt):
        train(make_lm(), "a")
    ends.clear()
    steps.clear()
    train(make_lm(), "b")
    assert steps == [0, 1, 2, 3] and not any(tmp_path.glob("*/checkpoint-*"))


def test_only_whole_checkpoints_of_the_same_training_are_continued(tmp_path):
    assert sft.last_checkpoint(tmp_path / "own") is None
    for name, state in (
        ("own/checkpoint-8", "{}"), ("own/checkpoint-10", "{}"), ("own/checkpoint-12", '{"epoch": 1'),
        ("own/checkpoint-14", None), ("other/checkpoint-16", "{}"),
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        if state:
            (tmp_path / name / "trainer_state.json").write_text(state)
    assert sft.last_checkpoint(tmp_path / "own") == str(tmp_path / "own/checkpoint-10")
    assert {path.name for path in tmp_path.glob("*/*")} == {"checkpoint-8", "checkpoint-10"}


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    pairs = [(list(range(2, 32)), 5), (list(range(2, 12)), 5)]
    with pytest.warns(UserWarning, match="1 of 2 targets reach beyond sft.max_length 20"):
        log = sft.train(make_lm(), pairs, config(max_length=20), 0, tmp_path)
    assert log["tokens"].tolist() == [30]
    with pytest.raises(ValueError, match="sample 0: its prompt alone has 5 tokens"):
        sft.train(make_lm(), pairs, config(max_length=5), 0, tmp_path)
    lm = make_lm()
    lm.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower sft.lr"):
        sft.train(lm, make_pairs(16), config(), 0, tmp_path)


def test_a_model_comes_back_in_its_precision_and_is_written_in_fp32(tmp_path):
    """Trained in fp32: at this rate steps in bf16 weights would be lost."""
    lm, folder = make_lm(), tmp_path / "weights"
    folder.mkdir()
    (folder / "old.bin").touch()
    lm.model.bfloat16()
    before, rotary = weights(lm), lm.model.get_decoder().rotary_emb
    rotary.inv_freq = rotary.inv_freq.float()
    sft.train(lm, make_pairs(16), config(lr=1e-6), 0, tmp_path / "work", folder)
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    assert rotary.inv_freq.dtype == torch.float32
    assert not (folder / "old.bin").exists() and not (folder / "training_args.bin").exists()
    kept = torch.cat([p.flatten() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()])
    assert kept.dtype == torch.float32
    assert 0 < (kept - before.float()).abs().max() < 1e-5
    assert torch.equal(kept.bfloat16(), weights(lm))

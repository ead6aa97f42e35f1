"""One model for all arms: after any training it is again what a new load gives, in every respect."""

import pytest
import torch

from igds_utils.config.refs import TinyRef
from igds_utils.config.stages import SftConfig
from igds_utils.core.fresh import Fresh
from igds_utils.engine.loading import load_lm
from igds_utils.training import sft

PAIRS = [([5 + i, 6, 7, 8 + i], 2) for i in range(4)]


def train(lm, folder, **fields):
    config = SftConfig(lr=1e-2, global_batch=2, device_batch=2, **fields)
    return sft.train(lm, PAIRS, config, 0, folder)


def hooks(module):
    return [len(value) for name, value in sorted(vars(module).items()) if name.endswith("_hooks")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_lent_model_is_what_a_new_load_gives(architecture, dtype, tmp_path):
    ref = TinyRef(tiny=architecture)
    fresh, new = Fresh(load_lm(ref, dtype)), load_lm(ref, dtype).model
    used = fresh.lend().model
    train(fresh.lend(), tmp_path, gradient_checkpointing=True)
    used.generation_config.max_length = 7
    assert not torch.equal(used.lm_head.weight.to(new.dtype), new.lm_head.weight)
    again = fresh.lend().model
    assert again is used
    for (name, tensor), (other, expected) in zip(
        again.state_dict().items(), new.state_dict().items(), strict=True
    ):
        assert name == other and tensor.dtype == expected.dtype and torch.equal(tensor, expected)
    for buffer, expected in zip(again.buffers(), new.buffers(), strict=True):
        assert buffer.dtype == expected.dtype and torch.equal(buffer, expected)
    assert again.config.to_dict() == new.config.to_dict()
    assert again.generation_config.to_dict() == new.generation_config.to_dict()
    for module, expected in zip(again.modules(), new.modules(), strict=True):
        assert type(module) is type(expected) and not module.training
        assert vars(module).keys() == vars(expected).keys()
        assert hooks(module) == hooks(expected)
    assert all(p.requires_grad and p.grad is None for p in again.parameters())


def test_tied_weights_stay_tied():
    lm = load_lm(TinyRef(tiny="gemma2"))
    fresh = Fresh(lm)
    tied = lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight
    lent = fresh.lend().model
    assert tied and lent.get_input_embeddings().weight is lent.get_output_embeddings().weight


def test_two_arms_on_one_model_equal_two_models(tmp_path):
    ref = TinyRef(tiny="llama")
    fresh = Fresh(load_lm(ref))
    train(fresh.lend(), tmp_path, epochs=3)
    log = train(fresh.lend(), tmp_path)
    alone = load_lm(ref)
    assert train(alone, tmp_path)["loss"].tolist() == log["loss"].tolist()
    assert all(
        torch.equal(*pair) for pair in zip(fresh.lm.model.parameters(), alone.model.parameters(), strict=True)
    )

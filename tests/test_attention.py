"""Grouped attention against transformers' own."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from igds_utils import tiny
from igds_utils.engine import attention
from igds_utils.engine.attention import GROUPED, grouped_attention
from igds_utils.engine.lm import LM


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


class Single(Module):
    num_key_value_groups = 1


@pytest.mark.parametrize("short", [0, 9])  # the fused kernel, plain products
@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_sdpa_with_repeated_keys(short, positions, masked, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, positions, 8, generator=draw).requires_grad_()
    key, value = (torch.randn(5, 2, 9, 8, generator=draw).requires_grad_() for _ in range(2))
    mask = torch.rand(5, 1, positions, 9, generator=draw) > 0.3 if masked else None
    ours, _ = grouped_attention(Module(), query, key, value, mask, scaling=0.2)
    theirs, _ = sdpa_attention_forward(Module(), query, key, value, mask, scaling=0.2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weights = torch.randn(theirs.shape, generator=draw)
    slopes = [torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


def test_a_position_that_sees_nothing_is_no_nan_and_dropout_drops():
    query = key = value = torch.randn(1, 6, 4, 8, generator=torch.Generator().manual_seed(0))
    blind = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    blind[:, :, 0] = False
    assert grouped_attention(Single(), query, key, value, blind)[0].isfinite().all()
    dropped, _ = grouped_attention(Single(), query, key, value, None, dropout=0.99)
    assert (dropped == 0).any()


def test_who_gets_it():
    chosen = {name: LM(tiny.model(name), tiny.tokenizer(), name).model.config._attn_implementation for name in
              ("llama", "qwen3", "gemma2")}  # fmt: skip
    assert chosen == {"llama": GROUPED, "qwen3": GROUPED, "gemma2": "eager"}  # SDPA would drop Gemma-2's cap

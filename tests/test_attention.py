"""Grouped attention against transformers' own."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from igds_utils import tiny
from igds_utils.attention import GROUPED, grouped_attention
from igds_utils.lm import LM


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_sdpa_with_repeated_keys(positions, masked):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, positions, 8, generator=draw)
    key, value = torch.randn(2, 5, 2, 9, 8, generator=draw)
    mask = torch.rand(5, 1, positions, 9, generator=draw) > 0.3 if masked else None
    ours, _ = grouped_attention(Module(), query, key, value, mask, scaling=0.2)
    theirs, _ = sdpa_attention_forward(Module(), query, key, value, mask, scaling=0.2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_who_gets_it():
    chosen = {name: LM(tiny.model(name), tiny.tokenizer(), name).model.config._attn_implementation for name in
              ("llama", "qwen3", "gemma2")}  # fmt: skip
    assert chosen == {"llama": GROUPED, "qwen3": GROUPED, "gemma2": "eager"}  # SDPA would drop Gemma-2's cap

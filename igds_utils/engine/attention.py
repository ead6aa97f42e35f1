"""Attention with grouped queries in two plain products: the same numbers, several times faster on a CPU.

transformers repeats keys and values once for every query head of a group before it attends, and PyTorch's fused kernel
is made for long sequences: for one new token, and for sequences as short as most samples, either costs as much as the
model's own matrix products. The heads of a group share their keys, so they can stand where query positions stand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped"
SHORT = 192  # key positions; beyond, the fused kernel, which never holds all scores, is the faster one


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options,
) -> tuple[Tensor, None]:
    """Causal attention: query (rows, heads, positions, d), key and value (rows, key heads, key positions, d).

    Returns (rows, positions, heads, d). For several positions over many keys it is transformers' own SDPA.
    """
    rows, heads, positions, width = query.shape
    keys = key.shape[-2]
    if dropout or positions > 1 and keys > SHORT:
        options |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None and positions > 1:
        attention_mask = torch.ones(positions, keys, dtype=torch.bool, device=query.device).tril()[None, None]
    # (rows, key heads, heads of a group x positions, d)
    groups = query.reshape(rows, key.shape[1], -1, width)
    with _without_copies(one_token=positions == 1):
        scores = (groups * (width**-0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
    if attention_mask is not None:
        # not -inf: a position of padding that sees nothing would become NaN, and so would all that weigh it with 0
        hidden = ~attention_mask[..., :keys]  # (rows, 1, positions, keys)
        bias = torch.zeros_like(hidden, dtype=scores.dtype).masked_fill_(
            hidden, torch.finfo(scores.dtype).min
        )
        scores = (scores.view(rows, key.shape[1], -1, positions, keys) + bias[:, :, None]).view_as(scores)
    weights = scores.softmax(-1, dtype=torch.float32).to(value)
    with _without_copies(one_token=positions == 1):
        attended = weights @ value
    return attended.view(rows, heads, positions, width).transpose(1, 2).contiguous(), None


@contextmanager
def _without_copies(one_token: bool) -> Iterator[None]:
    """Products over a cache that has room for more: oneDNN (`loading.fast_matmul`) would first copy all of its keys,
    which for one new token takes five times as long as the product itself."""
    precision = torch.get_float32_matmul_precision()
    try:
        if one_token:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def choose_attention(model: PreTrainedModel) -> None:
    """Grouped attention for a model that runs on the CPU; eager for one that caps its attention scores (Gemma-2),
    because SDPA leaves the cap out."""
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    elif model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)

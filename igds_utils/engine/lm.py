"""Causal language models: attention with grouped queries, and hook points on their residual stream.

A "layer" l means the residual stream after decoder block l, for every supported architecture.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped"
SHORT = 192  # key positions; beyond, the fused kernel, which never holds all scores, is the faster one


@dataclass
class LM:
    """A causal language model with its tokenizer; it attends with `grouped_attention`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str

    def __post_init__(self):
        config = self.model.config
        capped = getattr(config, "attn_logit_softcapping", None)  # Gemma-2; SDPA leaves the cap out
        if capped or config._attn_implementation == "sdpa":
            self.model.set_attn_implementation(GROUPED)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.get_decoder().layers

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device


def last_hidden(lm: LM, **inputs: Any) -> Tensor:
    """Final hidden states (rows, positions, width), after the final norm, of one pass of the decoder."""
    return lm.model.get_decoder()(**inputs).last_hidden_state


def unembed(lm: LM, h: Tensor) -> Tensor:
    """Logits of final hidden states: (..., width) -> (..., vocabulary).

    With what follows the head: Gemma's soft cap, Cohere's and Granite's scale.
    """
    config = lm.model.config
    logits = lm.model.get_output_embeddings()(h)
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@contextmanager
def edited(lm: LM, edits: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Apply an edit to the residual stream after each named layer while the context is open.

    An edit takes h (batch, positions, width) and returns the new h, or None to leave it as it is.
    """
    with ExitStack() as hooks:
        for layer, edit in edits.items():
            hooks.enter_context(lm.blocks[layer].register_forward_hook(partial(_edit_output, edit)))
        yield


def _edit_output(edit, _block, _inputs, output):
    """Depending on architecture and release a block returns a tensor or a tuple that starts with it."""
    if not isinstance(output, tuple):
        return edit(output)
    changed = edit(output[0])
    return None if changed is None else (changed, *output[1:])


class _Stop(Exception):
    """Ends a forward pass from inside a hook."""


def residuals(lm: LM, layers: Sequence[int], **inputs: Tensor) -> dict[int, Tensor]:
    """Residual stream after each layer, each (batch, positions, width), of one forward pass.

    The pass stops after the highest layer: later blocks, norm and head never run.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int, h: Tensor) -> None:
        found[layer] = h
        if layer == max(layers):
            raise _Stop

    keeping = edited(lm, {layer: partial(keep, layer) for layer in layers})
    with torch.inference_mode(), suppress(_Stop), keeping:
        lm.model.get_decoder()(**inputs, use_cache=False)
    return found


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, softcap: float | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention with grouped queries in two plain products.

    transformers repeats keys and values for every query head of a group, which for one new token
    after a long cache is most of the work. The heads of a group share their keys, so here they
    stand where query positions stand. query: (rows, heads, positions, d); key, value: (rows, key
    heads, key positions, d); attention_mask: bool, or added to the scores, (rows, 1, positions,
    keys); returned: (rows, positions, heads, d). softcap: Gemma-2's bound on the scores. Without it
    several positions go to transformers' own SDPA on a GPU, and over many keys on a CPU.
    """
    rows, heads, positions, width = query.shape
    keys, on_cpu = key.shape[-2], query.device.type == "cpu"
    if not softcap and positions > 1 and (keys > SHORT or not on_cpu):
        options |= {"scaling": scaling, "dropout": dropout}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is None and positions > 1:
        attention_mask = torch.ones(positions, keys, dtype=torch.bool, device=query.device).tril()[None, None]
    # (rows, key heads, heads of a group x positions, d)
    groups = query.reshape(rows, key.shape[1], -1, width)
    precision = torch.get_float32_matmul_precision()
    try:
        if positions == 1 and on_cpu:
            # over a cache with room for more oneDNN (`loading.fast_matmul`) would first copy all keys, which
            # takes five times as long as the product itself
            torch.set_float32_matmul_precision("highest")
        scores = (groups * (width**-0.5 if scaling is None else scaling)) @ key.transpose(-1, -2)
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            bias = added_mask(attention_mask[..., :keys], scores.dtype)  # (rows, 1, positions, keys)
            scores = scores.view(rows, key.shape[1], -1, positions, keys) + bias[:, :, None]
            scores = scores.view(rows, key.shape[1], -1, keys)
        weights = scores.softmax(-1, dtype=torch.float32).to(value)
        attended = (nn.functional.dropout(weights, dropout) if dropout else weights) @ value
    finally:
        torch.set_float32_matmul_precision(precision)
    return attended.view(rows, heads, positions, width).transpose(1, 2).contiguous(), None


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask (0 or False: hidden) adds to scores; one in floating point is that already."""
    if mask.is_floating_point():
        return mask
    # not -inf: a position of padding that sees nothing would become NaN, and so would all that weigh it with 0
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, torch.finfo(dtype).min)


def step_mask(lm: LM, mask: Tensor) -> Tensor:
    """The mask of one new position over all keys, once for all blocks: (rows, 1, 1, keys).

    transformers takes it as it is; from the plain one it would make a mask in every step and wait
    for the device. Over more keys than a sliding window, blocks differ, so that is left to
    transformers.
    """
    window = getattr(lm.model.config, "sliding_window", None)
    if window and mask.shape[1] > window:
        return mask
    return added_mask(mask, lm.model.dtype)[:, None, None]


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)

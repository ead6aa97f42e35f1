"""Causal language models, and hook points on their residual stream.

A "layer" l means the residual stream after decoder block l, for every supported architecture.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from igds_utils.engine.attention import choose_attention


@dataclass
class LM:
    """A causal language model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str

    def __post_init__(self):
        choose_attention(self.model)

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
    """Final hidden states (rows, positions, width), after the final norm, of one pass of the decoder.

    On `lm.device`, also where the last block lies on another GPU than the first.
    """
    return lm.model.get_decoder()(**inputs).last_hidden_state.to(lm.device)


def unembed(lm: LM, h: Tensor) -> Tensor:
    """Logits of final hidden states, on their device: (..., width) -> (..., vocabulary).

    What an architecture does to them after the head is done here too: Gemma's soft cap, Cohere's and Granite's scale.
    """
    config = lm.model.config
    logits = lm.model.get_output_embeddings()(h).to(h.device)
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


# ---- hook points -----------------------------------------------------------------------------------------


class _Stop(Exception):
    """Ends a forward pass from inside a hook."""


def edit_residual(block: nn.Module, edit: Callable[[Tensor], Tensor | None]):
    """Hook a decoder block's output h of shape (batch, positions, width); `edit` returns the new h or None.

    Depending on architecture and release a block returns a tensor or a tuple that starts with it.
    """

    def hook(_module, _inputs, output):
        h = output[0] if isinstance(output, tuple) else output
        changed = edit(h)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return block.register_forward_hook(hook)


@contextmanager
def edited(lm: LM, edits: dict[int, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Apply an edit to the residual stream after each named layer while the context is open."""
    handles = []
    try:
        for layer, edit in edits.items():
            handles.append(edit_residual(lm.blocks[layer], edit))
        yield
    finally:
        for handle in handles:
            handle.remove()


def residuals(lm: LM, layers: Sequence[int], **inputs: Tensor) -> dict[int, Tensor]:
    """Residual stream after each layer, each (batch, positions, width) on `lm.device`, of one forward pass.

    The pass stops after the highest layer asked for: later blocks, the final norm and the LM head never run.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int, h: Tensor) -> None:
        found[layer] = h.to(lm.device)
        if layer == max(layers):
            raise _Stop

    with torch.inference_mode(), edited(lm, {layer: partial(keep, layer) for layer in layers}):
        try:
            lm.model.get_decoder()(**inputs, use_cache=False)
        except _Stop:
            pass
    return found

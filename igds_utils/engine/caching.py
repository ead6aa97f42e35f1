"""Key-value caches with room for what is to come: a prompt's prefix read once, and one row an amplified feature.

Nothing is ever joined to a cache while it grows: joining copies it for every token, which costs more than decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM


class RoomyLayer(DynamicLayer):
    """Keys and values of one block with room for every position from the start."""

    def __init__(self, keys: Tensor, values: Tensor, used: int):
        super().__init__()
        self.is_initialized, self._room = True, (keys, values)
        self._show(used)

    def _show(self, used: int) -> None:
        self.keys, self.values = (room[:, :, :used] for room in self._room)

    def update(self, key_states, value_states, cache_kwargs=None):
        used = self.keys.shape[-2]
        new = slice(used, used + key_states.shape[-2])
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, new] = states
        self._show(new.stop)
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Let go of all other rows."""
        self._room = tuple(room.index_select(0, rows.to(room.device)) for room in self._room)
        self._show(self.keys.shape[-2])


@dataclass
class Prefix:
    """The cached tokens of some prompts before their critical position, left-padded to one length."""

    cache: DynamicCache
    mask: Tensor  # (prompts, longest prefix)

    def for_rows(self, rows: Tensor, further: int, above: int = -1) -> tuple[Cache, Tensor]:
        """A cache with one row per entry of `rows` (indices of prompts) and room for `further` tokens, and its mask.

        above: only blocks after this layer will run, so the others need no rows.
        """
        layers = [
            layer if number <= above else self._layer(layer, rows, further)
            for number, layer in enumerate(self.cache.layers)
        ]
        return Cache(layers=layers), self.mask.index_select(0, rows)

    def _layer(self, prefix: DynamicLayer, rows: Tensor, further: int) -> RoomyLayer:
        used = self.mask.shape[1]
        rooms = []
        for tensor in (prefix.keys, prefix.values):
            _, heads, _, width = tensor.shape
            # never read before it is written, so it need not be cleared
            room = tensor.new_empty(len(rows), heads, used + further, width)
            room[:, :, :used] = tensor.index_select(0, rows.to(tensor.device))
            rooms.append(room)
        return RoomyLayer(*rooms, used)


@torch.inference_mode()
def read_prefix(lm: LM, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Run the prompts' tokens except the last (the critical one) through the model once."""
    heads, filler = [ids[:-1] for ids in prompts], lm.tokenizer.pad_token_id
    batch = pad(heads if any(heads) else [[filler]] * len(heads), filler, "left", lm.device)
    if not any(heads):  # a cache needs a position to take its shape from
        batch["attention_mask"].zero_()
    cache = DynamicCache()
    lm.model.get_decoder()(**batch, past_key_values=cache, use_cache=True)
    return Prefix(cache, batch["attention_mask"])


def cache_bytes(lm: LM, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` positions of one row."""
    config = lm.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * tokens * lm.n_layers * config.num_key_value_heads * head * lm.model.dtype.itemsize


def rows_that_fit(lm: LM, tokens: int, cache_gb: float) -> int:
    """How many rows of at most `tokens` positions may decode together: their keys and values fill `cache_gb`."""
    return max(1, int(cache_gb * 1e9 / cache_bytes(lm, tokens)))

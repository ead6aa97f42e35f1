"""Batched decoding in which every row may carry its own amplified feature.

All tokens before the critical position are the same with and without amplification, so a prompt's prefix is computed
once and its cache is handed to every row of that prompt; a row then reads the critical token and what it generates.
The same loop serves the causal filter, its unsteered original and evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from igds_utils.batching import pad, positions
from igds_utils.lm import LM, unembed
from igds_utils.sae import Feature
from igds_utils.steering import Steering

# Rows that ended leave the batch once they make up this share of it: copying the cache for fewer does not pay.
LEAVE_AT = 0.25
STOP_TAIL = 16  # tokens decoded to look for a stop string


@dataclass(frozen=True)
class Sampling:
    """Decoding by sampling; greedy decoding is its absence. One seed fixes a batch."""

    temperature: float
    top_p: float
    seed: int


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for every position from the start, so that nothing is ever joined."""

    def __init__(self, prefix: DynamicLayer, rows: Tensor, capacity: int):
        super().__init__()
        self.is_initialized, self._used = True, prefix.keys.shape[-2]
        self._room = [self._copy(t, rows, capacity) for t in (prefix.keys, prefix.values)]
        self._show()

    def _copy(self, tensor: Tensor, rows: Tensor, capacity: int) -> Tensor:
        _, heads, _, width = tensor.shape
        room = tensor.new_zeros(len(rows), heads, capacity, width)
        room[:, :, : self._used] = tensor[:, :, : self._used].index_select(0, rows.to(tensor.device))
        return room

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self._used] for room in self._room)

    def update(self, key_states, value_states, cache_kwargs=None):
        new = slice(self._used, self._used + key_states.shape[-2])
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, new] = states
        self._used = new.stop
        self._show()
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        self._room = [self._copy(room, rows, room.shape[-2]) for room in self._room]
        self._show()


@dataclass
class Prefix:
    """The cached tokens of some prompts before their critical position, left-padded to one length."""

    cache: DynamicCache | None
    mask: Tensor  # (prompts, longest prefix)

    def for_rows(self, rows: Tensor, further: int) -> tuple[Cache | None, Tensor]:
        """A cache with one row per entry of `rows` (indices of prompts) and room for `further` tokens, and its mask."""
        mask = self.mask.index_select(0, rows)
        if self.cache is None:
            return DynamicCache(), mask
        capacity = self.mask.shape[1] + further
        return Cache(layers=[_RoomyLayer(layer, rows, capacity) for layer in self.cache.layers]), mask


@torch.inference_mode()
def read_prefix(lm: LM, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Run the prompts' tokens except the last (the critical one) through the model once."""
    heads = [ids[:-1] for ids in prompts]
    batch = pad(heads, lm.tokenizer.pad_token_id, "left", lm.device)
    if not batch["input_ids"].shape[1]:
        return Prefix(None, batch["attention_mask"])
    cache = DynamicCache()
    lm.model.get_decoder()(**batch, past_key_values=cache, use_cache=True)
    return Prefix(cache, batch["attention_mask"])


@torch.inference_mode()
def forward_rows(
    lm: LM, ids: Tensor, cache: Cache, mask: Tensor, steering: Steering | None, first: bool
) -> Tensor:
    """Final hidden states (rows, positions, width) of tokens that follow a cached prefix.

    ids: (rows, positions); mask: (rows, prefix + positions).
    """
    with steering.applied(lm, first) if steering else nullcontext():
        out = lm.model.get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
    return out.last_hidden_state


@torch.inference_mode()
def decode(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Feature | None]],
    max_new_tokens: int,
    steering: Steering | None = None,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """New token ids of every row, without the end-of-sequence token.

    prompts: token lists that end at the critical token. rows: (index of a prompt, feature to amplify or None).
    A row ends at end-of-sequence, at a stop string, or after `max_new_tokens`; ended rows leave the batch.
    """
    row_prompts = torch.tensor([prompt for prompt, _ in rows], device=lm.device)
    cache, mask = read_prefix(lm, prompts).for_rows(row_prompts, max_new_tokens + 1)
    alive = list(range(len(rows)))
    ids = torch.tensor([[prompts[prompt][-1]] for prompt, _ in rows], device=lm.device)
    produced: list[list[int]] = [[] for _ in rows]
    ended: set[int] = set()
    choose = _chooser(sampling, lm.device)
    if steering:
        steering.assign([rows[r][1] for r in alive])
    for step in range(max_new_tokens):
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        hidden = forward_rows(lm, ids, cache, mask, steering, first=step == 0)
        chosen = choose(unembed(lm, hidden[:, -1]).float())
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row not in ended:
                _append(lm, produced[row], token, stop) or ended.add(row)
        left = [place for place, row in enumerate(alive) if row not in ended]
        if not left:
            break
        ids = chosen.unsqueeze(-1)
        if len(left) <= (1 - LEAVE_AT) * len(alive):
            keep = torch.tensor(left, device=lm.device)
            alive, ids, mask = [alive[place] for place in left], ids[keep], mask[keep]
            for layer in cache.layers:
                layer.keep(keep) if isinstance(layer, _RoomyLayer) else layer.batch_select_indices(keep)
            if steering:
                steering.assign([rows[r][1] for r in alive])
    return produced


def _append(lm: LM, produced: list[int], token: int, stop: Sequence[str]) -> bool:
    """Add a token to a row; False if the row ends here."""
    if token in _end_ids(lm):
        return False
    produced.append(token)
    return not (stop and any(text in lm.tokenizer.decode(produced[-STOP_TAIL:]) for text in stop))


def _end_ids(lm: LM) -> set[int]:
    known = lm.model.generation_config.eos_token_id
    return {lm.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}


def _chooser(sampling: Sampling | None, device: torch.device):
    """The function that picks the next token ids (rows,) from logits (rows, vocabulary)."""
    if sampling is None:
        return lambda logits: logits.argmax(-1)
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    generator = torch.Generator(device).manual_seed(sampling.seed)
    warm, nucleus = TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)

    def draw(logits: Tensor) -> Tensor:
        probabilities = nucleus(None, warm(None, logits)).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    return draw


def to_text(lm: LM, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of generated tokens, cut before the first stop string."""
    text = lm.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))].strip()


def generate(
    lm: LM,
    texts: Sequence[str],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    rows: int = 64,
    sampling: Sampling | None = None,
    samples: int = 1,
) -> list[list[str]]:
    """Unsteered completions of rendered prompts: `samples` texts for each, in the prompts' order.

    Batches hold at most `rows` rows, are fixed by the prompts alone, and each draws from its own seed.
    """
    from tqdm import tqdm

    from igds_utils.batching import even_chunks
    from igds_utils.prompts import encode

    sequences = [encode(lm.tokenizer, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (-len(sequences[i]), i))
    outputs: list[list[str]] = [[] for _ in texts]
    with tqdm(total=len(texts), desc="generate", unit="prompt", leave=False, delay=2) as bar:
        for number, batch in enumerate(even_chunks(order, max(1, rows // samples))):
            seeded = sampling and Sampling(sampling.temperature, sampling.top_p, sampling.seed + number)
            repeated = [(place, None) for place in range(len(batch)) for _ in range(samples)]
            new = decode(
                lm, [sequences[i] for i in batch], repeated, max_new_tokens, stop=stop, sampling=seeded
            )
            for (place, _), tokens in zip(repeated, new, strict=True):
                outputs[batch[place]].append(to_text(lm, tokens, stop))
            bar.update(len(batch))
    return outputs

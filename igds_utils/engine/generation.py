"""Batched decoding in which every row may carry its own amplified feature.

All tokens before the critical position are the same with and without amplification, so a prompt's
prefix is computed once, and its cache serves every row of that prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Cache, DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from igds_utils.engine import batching
from igds_utils.engine.batching import even_chunks, pad, positions
from igds_utils.engine.lm import LM, edited, last_hidden, step_mask, unembed
from igds_utils.engine.prompts import encode_all
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

Tokens = Sequence[Sequence[int]]
Row = tuple[int, Feature | None]  # (index of a prompt or text, the feature to amplify over it)

# Share of ended rows with which they leave the batch: copying the cache for fewer does not pay.
LEAVE_AT = 0.25
STOP_TAIL = 16  # tokens decoded to look for a stop string
STOP_EVERY = 8  # tokens between two looks


class RoomyLayer(DynamicLayer):
    """Keys and values of a block with room for more: joining would copy all for every token."""

    def __init__(self, prefix: DynamicLayer, rows: Tensor, further: int):
        super().__init__()
        self.is_initialized, self._room = True, []
        for tensor in (prefix.keys, prefix.values):
            _, heads, used, width = tensor.shape
            # never read before it is written, so it need not be cleared
            room = tensor.new_empty(len(rows), heads, used + further, width)
            room[:, :, :used] = tensor.index_select(0, rows)
            self._room.append(room)
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
        """Drop all other rows."""
        self._room = [room.index_select(0, rows) for room in self._room]
        self._show(self.keys.shape[-2])


@dataclass
class Prefix:
    """The cached tokens of some prompts before their critical position, left-padded to one length."""

    cache: DynamicCache
    mask: Tensor  # (prompts, longest prefix)

    def for_rows(self, rows: Tensor, further: int, above: int = -1) -> tuple[Cache, Tensor]:
        """A cache with a row for each of `rows` (prompts), room for `further` tokens, and its mask.

        above: only blocks after this layer will run, so the others need no rows.
        """
        layers = [
            layer if number <= above else RoomyLayer(layer, rows, further)
            for number, layer in enumerate(self.cache.layers)
        ]
        return Cache(layers=layers), self.mask.index_select(0, rows)


@torch.inference_mode()
def read_prefix(lm: LM, prompts: Tokens) -> Prefix:
    """Run the prompts' tokens except the last (the critical one) through the model once."""
    batch = pad([ids[:-1] for ids in prompts], lm.tokenizer.pad_token_id, "left", lm.device)
    cache = DynamicCache()
    lm.model.get_decoder()(**batch, past_key_values=cache, use_cache=True)
    return Prefix(cache, batch["attention_mask"])


def rows_that_fit(lm: LM, tokens: int, cache_gb: float) -> int:
    """How many rows of so many tokens decode together: their keys and values fill `cache_gb`."""
    config = lm.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * tokens * lm.n_layers * config.num_key_value_heads * head * lm.model.dtype.itemsize  # bytes
    return max(1, int(cache_gb * 1e9 / row) // batching.divisor)


@dataclass(frozen=True)
class Sampling:
    """Decoding by sampling; greedy decoding is its absence.

    seeds: one a row (`decode`) or a text (`generate`); each has a stream of random numbers of its own.
    """

    temperature: float
    top_p: float
    seeds: Sequence[str]


@torch.inference_mode()
def decode(
    lm: LM, prompts: Tokens, rows: Sequence[Row], max_new_tokens: int, steering: Steering | None = None,
    stop: Sequence[str] = (), sampling: Sampling | None = None, prefix: Prefix | None = None,
) -> list[list[int]]:  # fmt: skip
    """New token ids of every row, without the end-of-sequence token.

    prompts: token ids that end at the critical token; prefix: theirs, where it has been read
    already. A row ends at end-of-sequence, at a stop string, or after `max_new_tokens`; ended rows
    leave the batch.
    """
    if not rows:
        return []
    produced: list[list[int]] = [[] for _ in rows]
    prefix = prefix or read_prefix(lm, prompts)
    own = torch.tensor([prompt for prompt, _ in rows], device=lm.device)
    cache, mask = prefix.for_rows(own, max_new_tokens)  # the last new token is not read
    ids = torch.tensor([prompts[prompt][-1:] for prompt, _ in rows], device=lm.device)  # (rows, 1)
    choose, ends = _chooser(sampling, max_new_tokens), _end_ids(lm)
    alive, ended = list(range(len(rows))), set()
    edits = steering.edits([feature for _, feature in rows]) if steering else {}
    for step in range(max_new_tokens):
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        inputs = {"input_ids": ids, "attention_mask": step_mask(lm, mask), "position_ids": positions(mask)[:, -1:]}
        with edited(lm, edits if step == 0 or steering and steering.decode_too else {}):
            hidden = last_hidden(lm, **inputs, past_key_values=cache, use_cache=True)  # (rows, 1, width)
        chosen = choose(unembed(lm, hidden[:, -1]).float(), alive, step)
        look = (step + 1) % STOP_EVERY == 0 or step == max_new_tokens - 1
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row in ended:
                continue
            if token in ends:
                ended.add(row)
            else:
                produced[row].append(token)
            if stop and (look or row in ended) and (end := _stopped(lm, produced[row], stop)):
                del produced[row][end:]
                ended.add(row)
        left = [place for place, row in enumerate(alive) if row not in ended]
        if not left:
            break
        ids = chosen.unsqueeze(-1)
        if len(left) <= (1 - LEAVE_AT) * len(alive):
            keep = torch.tensor(left, device=lm.device)
            alive, ids, mask = [alive[place] for place in left], ids[keep], mask[keep]
            for layer in cache.layers:
                layer.keep(keep)
            edits = steering.edits([rows[row][1] for row in alive]) if steering else {}
    return produced


def _stopped(lm: LM, tokens: list[int], stop: Sequence[str]) -> int | None:
    """Tokens up to the one that completes a stop string; None where the last few complete none."""

    def seen(end: int, tail: int) -> bool:
        text = lm.tokenizer.decode(tokens[max(0, end - tail) : end])
        return any(one in text for one in stop)

    if not seen(len(tokens), STOP_TAIL + STOP_EVERY):
        return None
    first = max(1, len(tokens) - STOP_EVERY + 1)
    return next((end for end in range(first, len(tokens) + 1) if seen(end, STOP_TAIL)), None)


def _end_ids(lm: LM) -> set[int]:
    known = lm.model.generation_config.eos_token_id
    return {lm.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}


def _chooser(sampling: Sampling | None, steps: int):
    """What picks the next token ids (rows,) from logits (rows, vocabulary) of a step.

    A draw inverts the cumulative probabilities at a random number of the row's seed and the step alone.
    """
    if sampling is None:
        return lambda logits, rows, step: logits.argmax(-1)
    warm, nucleus = TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)
    streams = map(Random, sampling.seeds)
    numbers = torch.tensor([[own.random() for _ in range(steps)] for own in streams], dtype=torch.float64)

    def draw(logits: Tensor, rows: list[int], step: int) -> Tensor:
        reached = nucleus(None, warm(None, logits)).softmax(-1).cumsum(-1, dtype=torch.float64)
        aims = numbers[rows, step].to(logits.device)[:, None] * reached[:, -1:]
        return torch.searchsorted(reached, aims, right=True).squeeze(-1)

    return draw


def to_text(lm: LM, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of generated tokens, cut before the first stop string."""
    text = lm.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))].strip()


def generate(
    lm: LM, texts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = (), rows: int = 64,
    sampling: Sampling | None = None, samples: int = 1,
) -> list[list[str]]:  # fmt: skip
    """Unsteered completions of rendered prompts: `samples` texts for each, in the prompts' order.

    At most `rows` of them decode together; which ones changes no draw.
    """
    sequences = encode_all(lm.tokenizer, texts)
    order = sorted(range(len(texts)), key=lambda i: (-len(sequences[i]), i))
    outputs: list[list[str]] = [[] for _ in texts]
    drawn = [(i, k) for i in order for k in range(samples)]
    with tqdm(total=len(drawn), desc="generate", unit="text", leave=False, delay=2) as bar:
        for batch in even_chunks(drawn, max(1, rows // batching.divisor)):
            places = {i: place for place, i in enumerate(dict.fromkeys(i for i, _ in batch))}
            own = sampling and replace(sampling, seeds=[f"{sampling.seeds[i]}/{k}" for i, k in batch])
            repeated = [(places[i], None) for i, _ in batch]
            prompts = [sequences[i] for i in places]
            new = decode(lm, prompts, repeated, max_new_tokens, stop=stop, sampling=own)
            for (i, _), tokens in zip(batch, new, strict=True):
                outputs[i].append(to_text(lm, tokens, stop))
            bar.update(len(batch))
    return outputs

"""Batched decoding in which every row may carry its own amplified feature.

All tokens before the critical position are the same with and without amplification, so a prompt's prefix is computed
once and its cache is handed to every row of that prompt; a row then reads the critical token and what it generates.
The same loop serves the causal filter, its unsteered original and evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from random import Random

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import Cache

from igds_utils.engine.batching import even_chunks, pad, positions
from igds_utils.engine.caching import Prefix, read_prefix
from igds_utils.engine.lm import LM, last_hidden, unembed
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

# Rows that ended leave the batch once they make up this share of it: copying the cache for fewer does not pay.
LEAVE_AT = 0.25
STOP_TAIL = 16  # tokens decoded to look for a stop string
BEGUN_TOKENS = 1024  # of rows' known beginnings, read in one forward pass


@dataclass(frozen=True)
class Sampling:
    """Decoding by sampling; greedy decoding is its absence."""

    temperature: float
    top_p: float
    seeds: Sequence[
        str
    ]  # one a row (`decode`) or a text (`generate`): each has a stream of random numbers of its own


@torch.inference_mode()
def forward_rows(
    lm: LM, ids: Tensor, cache: Cache, mask: Tensor, steering: Steering | None, first: bool
) -> Tensor:
    """Final hidden states (rows, positions, width) of tokens that follow a cached prefix.

    ids: (rows, positions); mask: (rows, prefix + positions).
    """
    with steering.applied(lm, first) if steering else nullcontext():
        return last_hidden(
            lm,
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )


@torch.inference_mode()
def decode(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Feature | None]],
    max_new_tokens: int,
    steering: Steering | None = None,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    begun: Sequence[Sequence[int]] | None = None,
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """New token ids of every row, without the end-of-sequence token.

    prompts: token lists that end at the critical token. rows: (index of a prompt, feature to amplify or None).
    A row ends at end-of-sequence, at a stop string, or after `max_new_tokens`; ended rows leave the batch.
    begun: tokens that each row is known to begin with, fewer than `max_new_tokens`; they are part of the answer, and
    rows that have come about equally far should be neighbours.
    prefix: of the prompts, where it has been read already.
    """
    produced = [list(tokens) for tokens in begun or [[]] * len(rows)]
    prefix = prefix or read_prefix(lm, prompts)
    alive = list(range(len(rows)))
    choose, ended = _chooser(sampling, max_new_tokens), set()
    hidden, cache, mask = _read_begun(lm, prompts, rows, produced, prefix, max_new_tokens, steering)
    for step in count():
        chosen = choose(unembed(lm, hidden).float(), alive, step)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            if row not in ended:
                goes_on = append(lm, produced[row], token, stop) and len(produced[row]) < max_new_tokens
                goes_on or ended.add(row)
        left = [place for place, row in enumerate(alive) if row not in ended]
        if not left:
            return produced
        ids = chosen.unsqueeze(-1)
        if len(left) <= (1 - LEAVE_AT) * len(alive):
            keep = torch.tensor(left, device=lm.device)
            alive, ids, mask = [alive[place] for place in left], ids[keep], mask[keep]
            for layer in cache.layers:
                layer.keep(keep)
            if steering:
                steering.assign([rows[r][1] for r in alive])
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        hidden = forward_rows(lm, ids, cache, mask, steering, first=False)[:, -1]


def _read_begun(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Feature | None]],
    begun: Sequence[Sequence[int]],
    prefix: Prefix,
    max_new_tokens: int,
    steering: Steering | None,
) -> tuple[Tensor, Cache, Tensor]:
    """Read each row's critical token and what it begins with: its last hidden state (rows, width), cache and mask.

    The rows end at one position of the cache, so a sliding window sees as many tokens of each as it should.
    """
    sequences = [[prompts[prompt][-1], *tokens] for (prompt, _), tokens in zip(rows, begun, strict=True)]
    lengths = torch.tensor([len(ids) for ids in sequences], device=lm.device)
    longest, start = int(lengths.max()), prefix.mask.shape[1]
    room = longest + max_new_tokens - min(map(len, begun))
    cache, mask = prefix.for_rows(torch.tensor([p for p, _ in rows], device=lm.device), room)
    hidden = torch.empty(len(rows), lm.width, dtype=lm.model.dtype, device=lm.device)
    for part in _consecutive(lengths.tolist(), BEGUN_TOKENS):
        for layer in cache.layers:
            layer.focus(part, start)
        batch = pad(sequences[part], lm.tokenizer.pad_token_id, "right", lm.device)
        if steering:
            steering.assign([feature for _, feature in rows[part]])
        known = torch.cat([mask[part], batch["attention_mask"]], dim=1)
        states = forward_rows(lm, batch["input_ids"], cache, known, steering, first=True)
        hidden[part] = states[torch.arange(len(states)), lengths[part] - 1]
    if steering:
        steering.assign([feature for _, feature in rows])
    by = longest - lengths
    for layer in cache.layers:
        layer.shift(by, start + longest) if by.any() else layer.focus(slice(None), start + longest)
    places = torch.arange(start + longest, device=lm.device) - by[:, None]
    whole = torch.cat([mask, mask.new_ones(len(rows), longest)], dim=1)
    return hidden, cache, whole.gather(1, places.clamp(min=0)) * (places >= 0)


def _consecutive(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of neighbours of which (longest) x (how many) <= most, or that are alone."""
    start, longest = 0, 0
    for place, length in enumerate(lengths):
        if place > start and max(longest, length) * (place + 1 - start) > most:
            yield slice(start, place)
            start, longest = place, 0
        longest = max(longest, length)
    yield slice(start, len(lengths))


def append(lm: LM, produced: list[int], token: int, stop: Sequence[str]) -> bool:
    """Add a token to a row; False if the row ends here."""
    if token in _end_ids(lm):
        return False
    produced.append(token)
    return not stopped(lm, produced, stop)


def stopped(lm: LM, produced: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last tokens hold a stop string."""
    return bool(stop) and any(text in lm.tokenizer.decode(produced[-STOP_TAIL:]) for text in stop)


def _end_ids(lm: LM) -> set[int]:
    known = lm.model.generation_config.eos_token_id
    return {lm.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}


def _chooser(sampling: Sampling | None, steps: int):
    """The function that picks the next token ids (rows,) from logits (rows, vocabulary), for these rows at this step.

    Sampling inverts the cumulative probabilities at a random number that depends on the row's seed and the step alone.
    """
    if sampling is None:
        return lambda logits, rows, step: logits.argmax(-1)
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

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
    lm: LM,
    texts: Sequence[str],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    rows: int = 64,
    sampling: Sampling | None = None,
    samples: int = 1,
) -> list[list[str]]:
    """Unsteered completions of rendered prompts: `samples` texts for each, in the prompts' order.

    At most `rows` of them decode together; which ones changes no draw.
    """
    from igds_utils.engine.prompts import encode

    sequences = [encode(lm.tokenizer, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (-len(sequences[i]), i))
    outputs: list[list[str]] = [[] for _ in texts]
    drawn = [(i, k) for i in order for k in range(samples)]
    with tqdm(total=len(drawn), desc="generate", unit="text", leave=False, delay=2) as bar:
        for batch in even_chunks(drawn, rows):
            places = {i: place for place, i in enumerate(dict.fromkeys(i for i, _ in batch))}
            own = sampling and replace(sampling, seeds=[f"{sampling.seeds[i]}/{k}" for i, k in batch])
            repeated = [(places[i], None) for i, _ in batch]
            new = decode(
                lm, [sequences[i] for i in places], repeated, max_new_tokens, stop=stop, sampling=own
            )
            for (i, _), tokens in zip(batch, new, strict=True):
                outputs[i].append(to_text(lm, tokens, stop))
            bar.update(len(batch))
    return outputs

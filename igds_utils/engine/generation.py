"""Batched decoding in which every row may carry its own amplified feature.

All tokens before the critical position are the same with and without amplification, so a prompt's prefix is computed
once and its cache is handed to every row of that prompt; a row then reads the critical token and what it generates.
The same loop serves the causal filter, its unsteered original and evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

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
    """Decoding by sampling; greedy decoding is its absence. One seed fixes a batch."""

    temperature: float
    top_p: float
    seed: int


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
    choose, ended = _chooser(sampling, lm.device), set()
    hidden, cache, mask = _read_begun(lm, prompts, rows, produced, prefix, max_new_tokens, steering)
    while True:
        chosen = choose(unembed(lm, hidden).float())
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
    from igds_utils.engine.prompts import encode

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

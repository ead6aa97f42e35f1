"""Generation with an amplified feature, begun on the answer that the model gives without it.

Most amplified answers begin like the original, and many are equal to it. So a row is first read over the original's
tokens, all positions at once, and generates by itself only from the first token in which it departs from them. Greedy
decoding gives the same tokens either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from igds_utils.engine import forced, generation
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.caching import Prefix, read_prefix
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

GLANCE = 4  # tokens that all rows are read over first: many depart at once and need not be read further


def decode_from(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    originals: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, Feature]],
    max_new_tokens: int,
    steering: Steering,
    stop: Sequence[str] = (),
    prefix: Prefix | None = None,
    batch_tokens: int = 2048,
    together: int = 256,
) -> list[list[int]]:
    """New token ids of every row, equal to `generation.decode`'s, from the answers of the unsteered model.

    prompts, rows, stop: as for `decode`. originals: its answer to every prompt without a feature, at most
    `max_new_tokens`. together: rows that generate in one batch.
    """
    prefix = prefix or read_prefix(lm, prompts)
    answers: list[list[int]] = [[] for _ in rows]
    departed, reading = [], list(range(len(rows)))
    for length in (GLANCE, max_new_tokens):
        drafts = [list(tokens[:length]) for tokens in originals]
        given = [[prompt[-1], *draft, prompt[-1]] for prompt, draft in zip(prompts, drafts, strict=True)]
        predicted = forced.read_rows(
            lm, prefix, given, [rows[r] for r in reading], steering, forced.predictions, batch_tokens
        )
        agreeing = []
        for r, own in zip(reading, predicted, strict=True):
            original, draft = originals[rows[r][0]], drafts[rows[r][0]]
            same = next((i for i, (x, y) in enumerate(zip(own, draft, strict=False)) if x != y), len(draft))
            answers[r] = draft[:same]
            if same == len(draft) < len(original):
                agreeing.append(r)
            elif _goes_on(lm, answers[r], own[same], max_new_tokens, stop):
                departed.append(r)
        reading = agreeing
    # rows that have come about equally far share a batch: the others would carry empty places in their caches
    departed.sort(key=lambda r: -len(answers[r]))
    late = [r for r in departed if len(answers[r]) > GLANCE]
    for part in (*even_chunks(late, together), *even_chunks(departed[len(late) :], together)):
        found = generation.decode(
            lm, prompts, [rows[r] for r in part], max_new_tokens, steering, stop,
            begun=[answers[r] for r in part], prefix=prefix,
        )  # fmt: skip
        for r, tokens in zip(part, found, strict=True):
            answers[r] = tokens
    return answers


def _goes_on(lm: LM, answer: list[int], token: int, max_new_tokens: int, stop: Sequence[str]) -> bool:
    """Add the token in which a row departs from its original, unless it ends like that; whether more may follow."""
    if len(answer) == max_new_tokens or generation.stopped(lm, answer, stop):
        return False
    return generation.append(lm, answer, token, stop) and len(answer) < max_new_tokens

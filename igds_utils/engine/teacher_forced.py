"""Amplified rows over tokens that are given, each block run no more often than it must be.

Amplification after block l does not touch blocks 0..l: over given tokens they do the same for every feature of that
layer, so one unsteered pass serves all of them, and a row runs the blocks above l alone. A row whose feature is silent
at every position is the unsteered one itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from igds_utils.engine.batching import even_chunks, pad, positions, token_batches
from igds_utils.engine.caching import Prefix
from igds_utils.engine.lm import LM, edited, last_hidden, unembed
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

Row = tuple[int, Feature | None]  # (index of a given text, the feature that is amplified over it)
HEAD_POSITIONS = 512  # that meet the vocabulary at once: its logits are the largest tensor of a small model


@torch.inference_mode()
def log_likelihoods(
    lm: LM,
    prefix: Prefix,
    given: Sequence[Sequence[int]],
    rows: Sequence[Row],
    steering: Steering,
    batch_tokens: int = 2048,
) -> list[list[float]]:
    """Log-probability, in nats, of every token of each row's text but its first, under the row's amplification.

    given: for each prompt of `prefix` a text: its critical token and what follows. The order is that of `rows`.
    """
    known: dict[Row, list[float]] = {}
    texts = sorted({text for text, _ in rows})
    layers = sorted({feature.layer for _, feature in rows if feature})
    for batch in token_batches([len(given[text]) for text in texts], batch_tokens):
        batch = [texts[place] for place in batch]
        place = {text: number for number, text in enumerate(batch)}
        residual, hidden = _unsteered(lm, prefix, given, batch, layers)
        together = max(1, batch_tokens // hidden.shape[1])
        known |= _values(lm, hidden, given, [(text, None) for text in batch])
        for layer in layers:
            here = [row for row in rows if row[0] in place and row[1] and row[1].layer == layer]
            for part in even_chunks(here, together):
                h = residual[layer][[place[text] for text, _ in part]]
                changed, moved = steering.amplify(h, [feature for _, feature in part])
                lengths = torch.tensor([len(given[text]) - 1 for text, _ in part], device=moved.device)
                own = torch.arange(moved.shape[1], device=moved.device) < lengths[:, None]
                fires = (moved & own).any(1)
                known |= {
                    row: known[row[0], None] for row, on in zip(part, fires.tolist(), strict=True) if not on
                }
                if active := [row for row, on in zip(part, fires.tolist(), strict=True) if on]:
                    above = _above(lm, prefix, given, active, layer, changed[fires.to(changed.device)])
                    known |= _values(lm, above, given, active)
    return [known[row] for row in rows]


@torch.inference_mode()
def firing(
    lm: LM, prefix: Prefix, given: Sequence[Sequence[int]], steering: Steering, batch_tokens: int = 2048
) -> list[set[Feature]]:
    """The features of `steering` that fire at a steered position of each given text, all tokens but its last one read.

    given: as for `log_likelihoods`. Where a row's feature is not among them, steering changes nothing.
    """
    found: list[set[Feature]] = [set() for _ in given]
    for batch in token_batches([len(text) for text in given], batch_tokens):
        residual, _ = _unsteered(lm, prefix, given, batch, steering.layers)
        lengths = [len(given[text]) - 1 for text in batch]
        for layer, h in residual.items():
            for text, features in zip(batch, steering.firing(layer, h, lengths), strict=True):
                found[text] |= features
    return found


def _inputs(
    lm: LM, prefix: Prefix, given: Sequence[Sequence[int]], texts: list[int], above: int = -1
) -> dict:
    """What the decoder reads to run over these texts' tokens, all but the last, after their cached prefixes."""
    batch = pad([given[text][:-1] for text in texts], lm.tokenizer.pad_token_id, "right", lm.device)
    longest = batch["input_ids"].shape[1]
    cache, mask = prefix.for_rows(torch.tensor(texts, device=lm.device), longest, above)
    mask = torch.cat([mask, batch["attention_mask"]], dim=1)
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": mask,
        "position_ids": positions(mask)[:, -longest:],
        "past_key_values": cache,
        "use_cache": True,
    }


def _unsteered(
    lm: LM, prefix: Prefix, given: Sequence[Sequence[int]], texts: list[int], layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """The residual stream after each layer and the final hidden states: each (texts, positions, width)."""
    residual: dict[int, Tensor] = {}
    with edited(lm, {layer: lambda h, layer=layer: residual.update({layer: h}) for layer in layers}):
        return residual, last_hidden(lm, **_inputs(lm, prefix, given, texts))


def _above(
    lm: LM, prefix: Prefix, given: Sequence[Sequence[int]], rows: Sequence[Row], layer: int, h: Tensor
) -> Tensor:
    """Final hidden states (rows, positions, width) where the residual stream after `layer` is h."""
    inputs = _inputs(lm, prefix, given, [text for text, _ in rows], layer)
    h = h[:, : inputs["input_ids"].shape[1]]
    if layer == lm.n_layers - 1:
        return lm.model.get_decoder().norm(h)
    with _starting_above(lm, layer, h):
        return last_hidden(lm, **inputs)


@contextmanager
def _starting_above(lm: LM, layer: int, h: Tensor) -> Iterator[None]:
    """Forward passes in this context run the blocks above `layer` alone, on h in place of what the others give."""
    decoder, blocks = lm.model.get_decoder(), lm.blocks
    handle = blocks[layer + 1].register_forward_pre_hook(lambda _block, inputs: (h, *inputs[1:]))
    try:
        decoder.layers = blocks[layer + 1 :]
        yield
    finally:
        decoder.layers = blocks
        handle.remove()


def _values(
    lm: LM, hidden: Tensor, given: Sequence[Sequence[int]], rows: Sequence[Row]
) -> dict[Row, list[float]]:
    """The log-probabilities of every row's own tokens, from final hidden states (rows, positions, width)."""
    lengths = [len(given[text]) - 1 for text, _ in rows]
    own = torch.cat([hidden[row, :n] for row, n in enumerate(lengths)])
    following = torch.tensor([token for text, _ in rows for token in given[text][1:]], device=own.device)
    found = [
        -cross_entropy(unembed(lm, h).float(), wanted, reduction="none")
        for h, wanted in zip(own.split(HEAD_POSITIONS), following.split(HEAD_POSITIONS), strict=True)
    ]
    return dict(zip(rows, (values.tolist() for values in torch.cat(found).split(lengths)), strict=True))

"""Cross-entropy of targets given their prompts, as they are and with a feature amplified.

The LM head is the dearest layer of a small model with a large vocabulary, and only the positions that predict a
target token need it. Where nothing is learnt they meet it in parts, because the logits of a large batch would fill a
GPU. In training a hook in front of the head keeps just those rows and the model's own forward does the rest: what wraps
a model that several processes train must be called as a whole.

Amplification after block l does not touch blocks 0..l: over given tokens they do the same for every feature of that
layer, so one unsteered pass serves all of them, and a row runs the blocks above l alone. A row whose feature is silent
at every position is the unsteered one itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from igds_utils.engine.batching import LOGIT_BYTES, even_chunks, pad, padded_batches, positions, token_batches
from igds_utils.engine.generation import Prefix, Row, Tokens
from igds_utils.engine.lm import LM, edited, last_hidden, unembed
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

Pair = tuple[list[int], int]  # token ids of prompt + target, and how many of them are the prompt's
IGNORED = -100  # label of a token that is not learnt
ROWS = 64  # of logits whose losses are computed together: all of them in fp32 would be a second large matrix
HEAD_POSITIONS = 512  # of amplified rows that meet the vocabulary at once


def target_losses(lm: LM, pairs: Sequence[Pair], batch_tokens: int = 2048) -> np.ndarray:
    """Mean cross-entropy of each sample's target tokens given its prompt, in nats a token: (N,) float64.

    pairs: as `prompts.encode_pair` makes them. Every token after the prompt counts; that includes EOS where the pair
    ends in one. The order is that of `pairs`; batches hold samples of similar length, padded on the right.
    Raises `ValueError` for a pair without a target.
    """
    for number, (ids, n_prompt) in enumerate(pairs):
        check_pair(ids, n_prompt, number)
    losses = np.empty(len(pairs))
    for batch, inputs in padded_batches(lm, [ids for ids, _ in pairs], batch_tokens, "target loss"):
        labels = target_labels(inputs["input_ids"], [pairs[i] for i in batch])
        losses[batch] = mean_losses(lm, labels, **inputs).cpu()
    return losses


def check_pair(ids: Sequence[int], n_prompt: int, number: int) -> None:
    """Raise `ValueError` unless a pair has a prompt and a target."""
    if not 0 < n_prompt < len(ids):
        raise ValueError(
            f"sample {number}: {len(ids)} tokens, {n_prompt} of them the prompt's: "
            "a sample needs a prompt and a target of at least one token each"
        )


def target_labels(input_ids: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Labels (batch, tokens) of right-padded `input_ids`: the token itself in the target, `IGNORED` elsewhere."""
    labels = torch.full_like(input_ids, IGNORED)
    for row, (ids, n_prompt) in enumerate(pairs):
        labels[row, n_prompt : len(ids)] = input_ids[row, n_prompt : len(ids)]
    return labels


@torch.inference_mode()
def mean_losses(lm: LM, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Mean cross-entropy of every row's labelled tokens: (batch,) float64. Inputs as for the model's forward.

    No more than `batching.LOGIT_BYTES` of logits exist at once.
    """
    places, targets, rows = _predicting(labels)
    hidden = last_hidden(lm, **inputs, use_cache=False)[places]  # (labelled tokens, width)
    most = max(1, LOGIT_BYTES // (lm.model.config.vocab_size * hidden.itemsize))  # positions of one part
    losses = _losses_of(lm, hidden, targets, most)
    zeros = losses.new_zeros(len(labels), dtype=torch.float64)
    return zeros.index_add(0, rows, losses.double()) / rows.bincount(minlength=len(labels))


def token_losses(model: nn.Module, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every labelled token in fp32, and the row that it belongs to: both (labelled tokens,).

    labels: (batch, tokens), not shifted: position t - 1 predicts the label at t; `IGNORED` is left out.
    """
    places, targets, rows = _predicting(labels)
    return _cross_entropies(logits_at(model, places, **inputs), targets), rows


def logits_at(model: nn.Module, places: Tensor, **inputs: Tensor) -> Tensor:
    """Logits at some positions alone, row by row: (positions, vocabulary). places: (batch, tokens) bool."""
    head = getattr(model, "module", model).get_output_embeddings()  # several processes train a wrapped model

    def keep(_head, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][places.to(args[0].device)][None],)  # (1, positions, width)

    handle = head.register_forward_pre_hook(keep)
    try:
        return model(**inputs, use_cache=False).logits[0]
    finally:
        handle.remove()


def _predicting(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the next token is a target, (batch, tokens) bool; these targets and their rows, both (labelled tokens,)."""
    predicted = labels[:, 1:] != IGNORED
    return nn.functional.pad(predicted, (0, 1)), labels[:, 1:][predicted], predicted.nonzero()[:, 0]


def _losses_of(lm: LM, hidden: Tensor, targets: Tensor, most: int) -> Tensor:
    """Cross-entropies (tokens,) fp32 from final hidden states (tokens, width), `most` of them at the head at once."""
    parts = zip(hidden.split(most), targets.split(most), strict=True)
    return torch.cat([_cross_entropies(unembed(lm, h), own) for h, own in parts])


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each row of logits (rows, vocabulary): (rows,) fp32."""
    parts = zip(logits.split(ROWS), targets.to(logits.device).split(ROWS), strict=True)
    return torch.cat([cross_entropy(part.float(), own, reduction="none") for part, own in parts])


# ---- with a feature amplified ----------------------------------------------------------------------------


@torch.inference_mode()
def log_likelihoods(
    lm: LM, prefix: Prefix, given: Tokens, rows: Sequence[Row], steering: Steering, batch_tokens: int = 2048
) -> list[list[float]]:
    """Log-probability, in nats, of every token of each row's text but its first, under the row's amplification.

    given: for each prompt of `prefix` a text: its critical token and what follows. The order is that of `rows`.
    """
    known: dict[Row, list[float]] = {}
    texts = sorted({text for text, _ in rows})
    layers = sorted({feature.layer for _, feature in rows if feature})
    for batch, residual, hidden in _unsteered(lm, prefix, given, texts, layers, batch_tokens):
        known |= _values(lm, hidden, given, [(text, None) for text in batch])
        place, lengths = {text: number for number, text in enumerate(batch)}, _lengths(given, batch)
        for layer in layers:
            fires = steering.firing(layer, residual[layer], lengths)
            here = [row for row in rows if row[0] in place and row[1] and row[1].layer == layer]
            for part in even_chunks(here, max(1, batch_tokens // hidden.shape[1])):
                active = [(text, feature) for text, feature in part if feature in fires[place[text]]]
                known |= {row: known[row[0], None] for row in part if row not in active}
                if active:
                    h = residual[layer][[place[text] for text, _ in active]]
                    changed = steering.amplify(h, [feature for _, feature in active])
                    above = _above(lm, prefix, given, active, layer, changed)
                    known |= _values(lm, above, given, active)
    return [known[row] for row in rows]


@torch.inference_mode()
def firing(
    lm: LM, prefix: Prefix, given: Tokens, steering: Steering, batch_tokens: int = 2048
) -> list[set[Feature]]:
    """The features of `steering` that fire at a steered position of each given text, all tokens but its last one read.

    given: as for `log_likelihoods`. Where a row's feature is not among them, steering changes nothing.
    """
    found: list[set[Feature]] = [set() for _ in given]
    for batch, residual, _ in _unsteered(lm, prefix, given, range(len(given)), steering.layers, batch_tokens):
        for layer, h in residual.items():
            fires = steering.firing(layer, h, _lengths(given, batch))
            for text, features in zip(batch, fires, strict=True):
                found[text] |= features
    return found


def _lengths(given: Tokens, texts: Sequence[int]) -> list[int]:
    """How many tokens of each text are read: all but its last."""
    return [len(given[text]) - 1 for text in texts]


def _unsteered(
    lm: LM, prefix: Prefix, given: Tokens, texts: Sequence[int], layers: Sequence[int], batch_tokens: int
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Batches of the texts, the residual stream after each layer and the final hidden states: (texts, positions, d)."""
    for places in token_batches([len(given[text]) for text in texts], batch_tokens):
        batch, residual = [texts[place] for place in places], {}
        with edited(lm, {layer: partial(residual.__setitem__, layer) for layer in layers}):
            hidden = last_hidden(lm, **_inputs(lm, prefix, given, batch))
        yield batch, residual, hidden


def _inputs(lm: LM, prefix: Prefix, given: Tokens, texts: Sequence[int], above: int = -1) -> dict:
    """What the decoder reads to run over these texts' tokens, all but the last, after their cached prefixes."""
    batch = pad([given[text][:-1] for text in texts], lm.tokenizer.pad_token_id, "right", lm.device)
    longest = batch["input_ids"].shape[1]
    cache, mask = prefix.for_rows(torch.tensor(texts, device=lm.device), longest, above)
    mask = torch.cat([mask, batch["attention_mask"]], dim=1)
    read = {"input_ids": batch["input_ids"], "position_ids": positions(mask)[:, -longest:]}
    return read | {"attention_mask": mask, "past_key_values": cache, "use_cache": True}


def _above(lm: LM, prefix: Prefix, given: Tokens, rows: Sequence[Row], layer: int, h: Tensor) -> Tensor:
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


def _values(lm: LM, hidden: Tensor, given: Tokens, rows: Sequence[Row]) -> dict[Row, list[float]]:
    """The log-probabilities of every row's own tokens, from final hidden states (rows, positions, width)."""
    lengths = _lengths(given, [text for text, _ in rows])
    own = torch.cat([hidden[row, :n] for row, n in enumerate(lengths)])
    following = torch.tensor([token for text, _ in rows for token in given[text][1:]], device=own.device)
    values = -_losses_of(lm, own, following, HEAD_POSITIONS)
    return dict(zip(rows, (part.tolist() for part in values.split(lengths)), strict=True))

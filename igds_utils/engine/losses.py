"""Cross-entropy of targets given their prompts, as they are and with a feature amplified.

The LM head is the dearest layer of a small model, and only the positions that predict a target
token need it. Where nothing is learnt they meet it in parts, because the logits of a large batch
would fill a GPU. In training a hook in front of the head keeps just those rows and the model's own
forward does the rest: what wraps a model that several processes train must be called as a whole.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from igds_utils.engine.batching import pad, padded_batches, positions, seen, token_batches
from igds_utils.engine.generation import Prefix, Row, Tokens
from igds_utils.engine.lm import LM, edited, last_hidden, unembed
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

Pair = tuple[Sequence[int], int]  # token ids of prompt + target, and how many of them are the prompt's

IGNORED = -100  # label of a token that is not learnt
ROWS = 64  # of logits in fp32 at once: all of them would be a second large matrix
# Of logits at once: so many keep a GPU busy; on a CPU each part lays out the head's weight anew.
LOGIT_BYTES = 500_000_000


@torch.inference_mode()
def target_losses(lm: LM, pairs: Sequence[Pair], batch_tokens: int = 2048) -> np.ndarray:
    """Mean cross-entropy of each sample's target tokens given its prompt, in nats a token: (N,) float64.

    pairs: as `prompts.encode_pairs` makes them. Raises `ValueError` for one without a target.
    """
    for number, pair in enumerate(pairs):
        check_pair(*pair, number)
    found = np.empty(len(pairs))
    for batch, inputs in padded_batches(lm, [ids for ids, _ in pairs], batch_tokens, "target loss"):
        hidden = last_hidden(lm, **seen(inputs), use_cache=False)
        for i, losses in zip(batch, _losses(lm, hidden, [pairs[i] for i in batch]), strict=True):
            found[i] = sum(losses) / len(losses)
    return found


def check_pair(
    ids: Sequence[int], n_prompt: int, name: int | str, max_length: int | None = None
) -> None:
    """Raise `ValueError` unless a pair has prompt and target, which begins within `max_length`."""
    if not 0 < n_prompt < len(ids):
        mend = "a sample needs a prompt and a target of at least one token each"
        raise ValueError(f"sample {name}: {len(ids)} tokens, {n_prompt} of them the prompt's: {mend}")
    if max_length and n_prompt >= max_length:
        said = f"its prompt alone has {n_prompt} tokens, sft.max_length is {max_length}"
        raise ValueError(f"sample {name}: {said}: raise it, or cut the body of the prompt")


def cut_pairs(pairs: Sequence[Pair], max_length: int, names: Sequence | None = None) -> list[Pair]:
    """Pairs of at most `max_length` tokens, cut in their targets; raises what `check_pair` does."""
    for name, pair in zip(names or range(len(pairs)), pairs, strict=True):
        check_pair(*pair, name, max_length)
    return [(ids[:max_length], n_prompt) for ids, n_prompt in pairs]


def _losses(lm: LM, hidden: Tensor, pairs: Sequence[Pair]) -> list[list[float]]:
    """Cross-entropy of each pair's target tokens, from final states (pairs, positions, width)."""
    own = torch.cat([h[n - 1 : len(ids) - 1] for h, (ids, n) in zip(hidden, pairs, strict=True)])
    targets = torch.tensor([token for ids, n in pairs for token in ids[n:]], device=own.device)
    most = max(1, LOGIT_BYTES // (lm.model.config.vocab_size * own.itemsize))  # positions of one part
    parts = zip(own.split(most), targets.split(most), strict=True)
    losses = torch.cat([_cross_entropies(unembed(lm, h), some) for h, some in parts])
    return [part.tolist() for part in losses.cpu().split([len(ids) - n for ids, n in pairs])]


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each row of logits (rows, vocabulary): (rows,) fp32."""
    parts = zip(logits.split(ROWS), targets.split(ROWS), strict=True)
    return torch.cat([cross_entropy(part.float(), own, reduction="none") for part, own in parts])


def token_losses(model: nn.Module, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Cross-entropy of every labelled token in fp32, row by row: (labelled tokens,).

    labels: (batch, tokens), not shifted: position t - 1 predicts the label at t; `IGNORED` is left out.
    """
    head = getattr(model, "module", model).get_output_embeddings()  # it may be wrapped
    predicted = labels[:, 1:] != IGNORED

    def keep(_head, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, :-1][predicted][None],)  # (1, labelled tokens, width)

    with head.register_forward_pre_hook(keep):
        logits = model(**inputs, use_cache=False).logits[0]
    return _cross_entropies(logits, labels[:, 1:][predicted])


# Amplification after block l does not touch blocks 0..l: over given tokens one unsteered pass serves
# all features of that layer, and a row runs the blocks above l alone; where its feature is silent,
# it is the unsteered one itself.


@torch.inference_mode()
def log_likelihoods(
    lm: LM, prefix: Prefix, given: Tokens, rows: Sequence[Row], steering: Steering, batch_tokens: int = 2048
) -> list[list[float]]:
    """Log-probability (nats) of each row's tokens but its first, under the row's amplification.

    given: for each prompt of `prefix` a text: its critical token and what follows. The order is
    that of `rows`.
    """
    found: dict[Row, list[float]] = {}
    texts = sorted({text for text, _ in rows})
    layers = sorted({feature.layer for _, feature in rows if feature})

    def keep(some: Sequence[Row], hidden: Tensor) -> None:
        losses = _losses(lm, hidden, [(given[text], 1) for text, _ in some])
        found.update(zip(some, losses, strict=True))

    for batch, residual, hidden in _unsteered(lm, prefix, given, texts, layers, batch_tokens):
        keep([(text, None) for text in batch], hidden)
        place = {text: number for number, text in enumerate(batch)}
        for layer in layers:
            fires = steering.firing(layer, residual[layer], [len(given[text]) - 1 for text in batch])
            here = [row for row in rows if row[0] in place and row[1] and row[1].layer == layer]
            for some in token_batches([hidden.shape[1]] * len(here), batch_tokens):
                part = [here[place] for place in some]
                active = [(text, feature) for text, feature in part if feature in fires[place[text]]]
                found |= {row: found[row[0], None] for row in part if row not in active}
                if active:
                    h = residual[layer][[place[text] for text, _ in active]]
                    changed = steering.amplify(h, [feature for _, feature in active])
                    keep(active, _above(lm, prefix, given, [text for text, _ in active], layer, changed))
    return [[-loss for loss in found[row]] for row in rows]


@torch.inference_mode()
def firing(
    lm: LM, prefix: Prefix, given: Tokens, steering: Steering, batch_tokens: int = 2048
) -> list[set[Feature]]:
    """The features of `steering` that fire at a steered position of each given text.

    given: as for `log_likelihoods`. Where a row's feature is not among them, steering changes nothing.
    """
    found: list[set[Feature]] = [set() for _ in given]
    for batch, residual, _ in _unsteered(lm, prefix, given, range(len(given)), steering.layers, batch_tokens):
        for layer, h in residual.items():
            fires = steering.firing(layer, h, [len(given[text]) - 1 for text in batch])
            for text, features in zip(batch, fires, strict=True):
                found[text] |= features
    return found


def _unsteered(
    lm: LM, prefix: Prefix, given: Tokens, texts: Sequence[int], layers: Sequence[int], batch_tokens: int
) -> Iterator[tuple[list[int], dict[int, Tensor], Tensor]]:
    """Batches of texts, their residual stream after each layer, final states: (texts, positions, d)."""
    for places in token_batches([len(given[text]) for text in texts], batch_tokens):
        batch, residual = [texts[place] for place in places], {}
        with edited(lm, {layer: partial(residual.__setitem__, layer) for layer in layers}):
            hidden = last_hidden(lm, **_inputs(lm, prefix, given, batch))
        yield batch, residual, hidden


def _inputs(lm: LM, prefix: Prefix, given: Tokens, texts: Sequence[int], above: int = -1) -> dict:
    """What the decoder reads of these texts, all tokens but the last, after cached prefixes."""
    batch = pad([given[text][:-1] for text in texts], lm.tokenizer.pad_token_id, "right", lm.device)
    longest = batch["input_ids"].shape[1]
    cache, mask = prefix.for_rows(torch.tensor(texts, device=lm.device), longest, above)
    mask = torch.cat([mask, batch["attention_mask"]], dim=1)
    read = {"input_ids": batch["input_ids"], "position_ids": positions(mask)[:, -longest:]}
    return read | {"attention_mask": mask, "past_key_values": cache, "use_cache": True}


def _above(lm: LM, prefix: Prefix, given: Tokens, texts: Sequence[int], layer: int, h: Tensor) -> Tensor:
    """Final states of the blocks above `layer`, run on h, both (texts, positions, width)."""
    decoder, blocks = lm.model.get_decoder(), lm.blocks
    inputs = _inputs(lm, prefix, given, texts, layer)
    h = h[:, : inputs["input_ids"].shape[1]]
    if layer == lm.n_layers - 1:
        return decoder.norm(h)
    with blocks[layer + 1].register_forward_pre_hook(lambda _block, args: (h, *args[1:])):
        try:
            decoder.layers = blocks[layer + 1 :]
            return last_hidden(lm, **inputs)
        finally:
            decoder.layers = blocks

"""Mean cross-entropy of targets given their prompts: the "Loss" baseline, and the loss that training minimises.

The LM head is the dearest layer of a small model with a large vocabulary, and only the positions that predict a
target token need it. Where nothing is learnt they meet it in parts, because the logits of a large batch would fill a
GPU. In training a hook in front of the head keeps just those rows and the model's own forward does the rest: what wraps
a model that several processes train must be called as a whole.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from igds_utils.engine.batching import LOGIT_BYTES, pad, token_batches
from igds_utils.engine.lm import LM, last_hidden, unembed

Pair = tuple[list[int], int]  # token ids of prompt + target, and how many of them are the prompt's

IGNORED = -100  # label of a token that is not learnt
ROWS = 64  # of logits whose losses are computed together: all of them in fp32 would be a second large matrix


def target_losses(lm: LM, pairs: Sequence[Pair], batch_tokens: int = 2048) -> np.ndarray:
    """Mean cross-entropy of each sample's target tokens given its prompt, in nats a token: (N,) float64.

    pairs: as `prompts.encode_pair` makes them. Every token after the prompt counts; that includes EOS where the pair
    ends in one. The order is that of `pairs`; batches hold samples of similar length, padded on the right.
    Raises `ValueError` for a pair without a target.
    """
    for number, (ids, n_prompt) in enumerate(pairs):
        check_pair(ids, n_prompt, number)
    losses = np.empty(len(pairs))
    with tqdm(total=len(pairs), desc="target loss", unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids, _ in pairs], batch_tokens):
            inputs = pad([pairs[i][0] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            labels = target_labels(inputs["input_ids"], [pairs[i] for i in batch])
            losses[batch] = mean_losses(lm, labels, **inputs).cpu()
            bar.update(len(batch))
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
    parts = zip(hidden.split(most), targets.split(most), strict=True)
    losses = torch.cat([_cross_entropies(unembed(lm, h), own) for h, own in parts])
    zeros = losses.new_zeros(len(labels), dtype=torch.float64)
    return zeros.index_add(0, rows, losses.double()) / rows.bincount(minlength=len(labels))


def token_losses(model: nn.Module, labels: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every labelled token in fp32, and the row that it belongs to: both (labelled tokens,).

    labels: (batch, tokens), not shifted: position t - 1 predicts the label at t; `IGNORED` is left out.
    """
    places, targets, rows = _predicting(labels)
    return _cross_entropies(logits_at(model, places, **inputs), targets), rows


def _predicting(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the next token is a target, (batch, tokens) bool; these targets and their rows, both (labelled tokens,)."""
    predicted = labels[:, 1:] != IGNORED
    return nn.functional.pad(predicted, (0, 1)), labels[:, 1:][predicted], predicted.nonzero()[:, 0]


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each row of logits (rows, vocabulary): (rows,) fp32."""
    parts = zip(logits.split(ROWS), targets.to(logits.device).split(ROWS), strict=True)
    return torch.cat([cross_entropy(part.float(), own, reduction="none") for part, own in parts])


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

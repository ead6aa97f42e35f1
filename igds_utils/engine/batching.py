"""Batches filled by tokens instead of samples, and padding on either side."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from igds_utils.engine.lm import LM

divisor = 1  # of the tokens and rows of a batch: 2 once memory has run out (`Store.make`)


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group indices so that (longest of the group) x (size of the group) <= batch_tokens.

    Groups hold samples of similar length, longest first, so that little is padding and a batch that
    does not fit fails at once rather than at the end. A sample longer than `batch_tokens` is a
    group of its own.
    """
    groups: list[list[int]] = []
    longest, batch_tokens = 0, batch_tokens // divisor
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and longest * (len(groups[-1]) + 1) <= batch_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = lengths[index]
    return groups


def padded_batches(
    lm: LM, sequences: Sequence[Sequence[int]], batch_tokens: int, what: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Indices of each of `token_batches` and its right-padded inputs, under a bar named `what`."""
    lengths = [*map(len, sequences)]  # the longest come first, so samples would foretell a late end
    with tqdm(total=sum(lengths), desc=what, unit="token", unit_scale=True, leave=False, delay=2) as bar:
        for batch in token_batches(lengths, batch_tokens):
            yield batch, pad([sequences[i] for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
            bar.update(sum(lengths[i] for i in batch))


def even_chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive pieces of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, side: str, device: torch.device
) -> dict[str, Tensor]:
    """Stack token lists of different length into (batch, longest) tensors for a model.

    side: "left" or "right". Position ids count a sample's own tokens, so padding does not move it.
    """
    longest = max(map(len, sequences))
    input_ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        own = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
        input_ids[row, own] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, own] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    batch["position_ids"] = positions(attention_mask)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def seen(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Right-padded inputs (`pad`) with nothing masked: no token sees the padding behind it.

    Only then does SDPA take its causal kernel, which is the fastest. What padding itself gives must
    not be used. Not for training: that kernel's backward pass adds up in no fixed order on a GPU.
    """
    return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}


def positions(attention_mask: Tensor) -> Tensor:
    """Index of each token among its sample's own, 0 for padding: (batch, tokens), as the mask."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)

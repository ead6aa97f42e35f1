"""How good a trained SAE is: unexplained variance, sparsity, dead features, and what the model loses by it.

All of it is measured on the inference form that is shipped and read, never on the training form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from igds_utils.lm import LM, edited
from igds_utils.sae_corpus import Captured, Document, padded

AIMS = {"fvu": 0.18, "dead": 0.05, "l0": 40.0, "ce_recovered": 0.9}  # upper bounds, except the last


def load(folder: Path):
    """A stored SAE of sae_lens, its weights in fp32 whatever they are stored in."""
    from sae_lens import SAE

    return SAE.load_from_disk(folder, dtype="float32").eval()


@torch.inference_mode()
def reconstruction(sae, acts: Tensor, chunk: int = 4096) -> tuple[float, Tensor]:
    """FVU over residuals (tokens, width), and on how many of them each feature fires (features,).

    FVU = sum ||h - SAE(h)||^2 / sum ||h - mean(h)||^2, the fraction of variance unexplained.
    """
    mean = sum(part.double().sum(0) for part in acts.split(chunk)) / len(acts)
    error = variance = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for part in acts.split(chunk):
        h = part.float()
        z = sae.encode(h)
        error += (h - sae.decode(z)).square().sum().item()
        variance += (h - mean).square().sum().item()
        fired += (z > 0).sum(0)
    return error / variance, fired


def recalled(sae, acts: Tensor, tau: float = 0.8) -> set[int]:
    """Features that fire on at least a share `tau` of residuals (tokens, width)."""
    frequency = reconstruction(sae, acts)[1] / len(acts)
    return set(torch.nonzero(frequency >= tau).flatten().tolist())


@torch.inference_mode()
def cross_entropy(
    lm: LM,
    texts: Sequence[Document],
    layer: int,
    edit: Callable[[Tensor], Tensor] | None = None,
    batch: int = 8,
) -> float:
    """Mean next-token cross-entropy in nats while `edit` replaces the residual after `layer`, first position apart.

    Predictions made from the first position, which no edit touches, are left out of the mean.
    """

    def replace(h: Tensor) -> Tensor:
        return torch.cat([h[:, :1], edit(h[:, 1:]).to(h.dtype)], dim=1)

    texts = sorted(texts, key=lambda document: len(document.ids))
    total = count = 0
    with edited(lm, {layer: replace} if edit is not None else {}):
        for start in range(0, len(texts), batch):
            inputs = padded(lm, [document.ids for document in texts[start : start + batch]])
            logits = lm.model(**inputs).logits[:, 1:-1].float()  # (batch, positions - 2, vocabulary)
            targets = inputs["input_ids"][:, 2:].masked_fill(inputs["attention_mask"][:, 2:] == 0, -100)
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum"
            ).item()
            count += (targets != -100).sum().item()
    return total / count


def quality(
    lm: LM,
    layer: int,
    folder: Path,
    trained: Path,
    seen: Captured,
    held_out: Captured,
) -> dict[str, float | int | bool]:
    """One row of the quality table, for the SAE stored in `folder`; `trained` holds the same in fp32.

    FVU and L0 are over held-out text; `fvu_critical` over the critical positions there; `dead` is the share of
    features that fire on none of the captured tokens; `ce_recovered` = (CE_zero - CE_sae) / (CE_zero - CE), the share
    of what the model loses when the residual is set to zero that it does not lose with the SAE's reconstruction.
    `same_candidates`: at the critical positions of each chat-rendered source, both forms recall the same features.
    """
    sae, exact = load(folder), load(trained)
    acts, _, critical = held_out.load(layer)
    fvu, fired = reconstruction(sae, acts)
    seen_acts, document, seen_critical = seen.load(layer)
    dead = (reconstruction(sae, seen_acts)[1] == 0).float().mean().item()
    sources = [text.source for text in seen.texts]
    at_p = {source: [] for source in sources if source.endswith("/chat")}
    for row in torch.nonzero(seen_critical).flatten().tolist():
        if (source := sources[document[row]]) in at_p:
            at_p[source].append(row)
    same = all(recalled(sae, seen_acts[rows]) == recalled(exact, seen_acts[rows]) for rows in at_p.values())
    original, with_sae, zeroed = (
        cross_entropy(lm, held_out.texts, layer, edit) for edit in (None, sae, torch.zeros_like)
    )
    return {
        "layer": layer,
        "features": sae.cfg.d_sae,
        "fvu": fvu,
        "fvu_fp32": reconstruction(exact, acts)[0],
        "fvu_critical": reconstruction(sae, acts[critical])[0],
        "l0": fired.sum().item() / len(acts),
        "dead": dead,
        "silent_held_out": (fired == 0).float().mean().item(),
        "ce": original,
        "ce_sae": with_sae,
        "ce_zero": zeroed,
        "ce_recovered": (zeroed - with_sae) / (zeroed - original),
        "same_candidates": same,
        "tokens": len(seen_acts),
        "held_out_tokens": len(acts),
    }


def markdown(rows: Sequence[dict[str, float | int | bool]]) -> str:
    """The quality table as Markdown, one line a layer."""
    head = (
        "| layer | FVU | FVU at p | L0 | dead | CE | CE with SAE | CE zeroed | CE recovered | FVU in fp32 |"
    )
    lines = [head, "|" + "---|" * head.count(" |")]
    for row in sorted(rows, key=lambda row: row["layer"]):
        cells = [f"{row[name]:.3f}" for name in ("fvu", "fvu_critical")] + [
            f"{row['l0']:.1f}",
            f"{row['dead']:.2%}",
        ]
        cells += [f"{row[name]:.3f}" for name in ("ce", "ce_sae", "ce_zero", "ce_recovered")] + [
            f"{row['fvu_fp32']:.4f}"
        ]
        lines.append(f"| {row['layer']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

"""How good a trained SAE is: unexplained variance, sparsity, dead features, and what the model loses by it.

All of it is measured on the inference form that is shipped and read, never on the training form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM, edited
from igds_utils.engine.sae import load_folder, unexplained
from igds_utils.saes.sae_corpus import Captured, Document

AIMS = {"fvu": 0.18, "dead": 0.05, "l0": 40.0, "ce_recovered": 0.9}
AT_LEAST = {"ce_recovered"}  # the other aims are upper bounds
TITLES = {"fvu": "FVU", "dead": "dead features", "l0": "L0", "ce_recovered": "CE recovered"}


@torch.inference_mode()
def firing_rates(sae, acts: Tensor, chunk: int = 4096) -> Tensor:
    """On which share of residuals (tokens, width) each feature fires: (features,). The sum is L0."""
    fired = ((sae.encode(part.float().to(sae.device)) > 0).sum(0) for part in acts.split(chunk))
    return sum(fired).cpu() / len(acts)


def recalled(sae, acts: Tensor, tau: float = 0.8) -> set[int]:
    """Features that fire on at least a share `tau` of residuals (tokens, width)."""
    return set(torch.nonzero(firing_rates(sae, acts) >= tau).flatten().tolist())


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
        return torch.cat([h[:, :1], edit(h[:, 1:].to(lm.device)).to(h)], dim=1)

    texts = sorted(texts, key=lambda document: len(document.ids))
    total = count = 0
    with edited(lm, {layer: replace} if edit is not None else {}):
        for start in range(0, len(texts), batch):
            ids = [document.ids for document in texts[start : start + batch]]
            inputs = pad(ids, lm.tokenizer.pad_token_id, "right", lm.device)
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
    ce_texts: int = 64,
) -> dict[str, float | int | bool]:
    """One row of the quality table, for the SAE stored in `folder`; `trained` holds the same in fp32.

    FVU and L0 are over held-out text; `fvu_critical` over the critical positions there; `dead` is the share of
    features that fire on none of the captured tokens; `ce_recovered` = (CE_zero - CE_sae) / (CE_zero - CE), the share
    of what the model loses when the residual is set to zero that it does not lose with the SAE's reconstruction, on the
    first `ce_texts` held-out texts.
    `same_candidates`: at the critical positions of each chat-rendered source, both forms recall the same features.
    """
    sae, exact = load_folder(folder, lm.device), load_folder(trained, lm.device)
    acts, _, critical = held_out.load(layer)
    rates = firing_rates(sae, acts)
    seen_acts, document, seen_critical = seen.load(layer)
    sources = [text.source for text in seen.texts]
    at_p = {source: [] for source in sources if source.endswith("/chat")}
    for row in torch.nonzero(seen_critical).flatten().tolist():
        if (source := sources[document[row]]) in at_p:
            at_p[source].append(row)
    same = all(recalled(sae, seen_acts[rows]) == recalled(exact, seen_acts[rows]) for rows in at_p.values())
    original, with_sae, zeroed = (
        cross_entropy(lm, held_out.texts[:ce_texts], layer, edit) for edit in (None, sae, torch.zeros_like)
    )
    return {
        "layer": layer,
        "features": sae.cfg.d_sae,
        "fvu": unexplained(sae, acts),
        "fvu_fp32": unexplained(exact, acts),
        "fvu_critical": unexplained(sae, acts[critical]),
        "l0": rates.sum().item(),
        "dead": (firing_rates(sae, seen_acts) == 0).float().mean().item(),
        "silent_held_out": (rates == 0).float().mean().item(),
        "ce": original,
        "ce_sae": with_sae,
        "ce_zero": zeroed,
        "ce_recovered": (zeroed - with_sae) / (zeroed - original),
        "same_candidates": same,
        "tokens": len(seen_acts),
        "held_out_tokens": len(acts),
    }


def missed(row: dict[str, float | int | bool]) -> list[str]:
    """Names of the aims that an SAE does not reach."""
    return [TITLES[n] for n, aim in AIMS.items() if (row[n] < aim if n in AT_LEAST else row[n] > aim)]


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

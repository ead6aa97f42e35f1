"""How good a trained SAE is: unexplained variance, sparsity, dead features, and what the model loses by it.

All of it is measured on the inference form that is shipped and read, never on the training form.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from igds_utils.engine.batching import even_chunks, pad
from igds_utils.engine.lm import LM, edited
from igds_utils.engine.sae import load_folder, unexplained
from igds_utils.saes.sae_training import Captured, Document

AIMS = {"fvu": 0.18, "dead": 0.05, "l0": 40.0, "ce_recovered": 0.9}  # CE recovered at least, the others at most
TITLES = {"fvu": "FVU", "dead": "dead features", "l0": "L0", "ce_recovered": "CE recovered"}
# of the table: column -> its title and how its numbers are written
COLUMNS = {
    "layer": ("layer", "d"),
    "fvu": ("FVU", ".3f"),
    "fvu_critical": ("FVU at p", ".3f"),
    "l0": ("L0", ".1f"),
    "dead": ("dead", ".2%"),
    "ce": ("CE", ".3f"),
    "ce_sae": ("CE with SAE", ".3f"),
    "ce_zero": ("CE zeroed", ".3f"),
    "ce_recovered": ("CE recovered", ".3f"),
    "fvu_fp32": ("FVU in fp32", ".4f"),
}


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

    total = count = 0
    with edited(lm, {layer: replace} if edit else {}):
        for some in even_chunks(sorted((text.ids for text in texts), key=len), batch):
            inputs = pad(some, lm.tokenizer.pad_token_id, "right", lm.device)
            logits = lm.model(**inputs).logits[:, 1:-1].float()  # (batch, positions - 2, vocabulary)
            targets = inputs["input_ids"][:, 2:].masked_fill(inputs["attention_mask"][:, 2:] == 0, -100)
            losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="sum")
            total, count = total + losses.item(), count + (targets != -100).sum().item()
    return total / count


def quality(
    lm: LM,
    layer: int,
    folder: Path,
    trained: Path,
    seen: Captured,
    held_out: Captured,
    ce_texts: int = 64,
) -> dict[str, Any]:
    """One row of the quality table, for the SAE stored in `folder`; `trained` holds the same in fp32.

    FVU and L0 are over held-out text; `fvu_critical` over the critical positions there; `dead` is the share of
    features that fire on none of the captured tokens; `ce_recovered` = (CE_zero - CE_sae) / (CE_zero - CE), the share
    of what the model loses when the residual is set to zero that it does not lose with the SAE's reconstruction, on the
    first `ce_texts` held-out texts.
    `same_candidates`: at the critical positions of each chat-rendered source, both forms recall the same features.
    """
    sae, exact = load_folder(folder, lm.device), load_folder(trained, lm.device)
    acts, _, critical = held_out.load(layer)
    seen_acts, document, seen_critical = seen.load(layer)
    at_p = seen_acts[seen_critical]
    sources = np.array([seen.texts[i].source for i in document[seen_critical].tolist()])
    of_chat = [at_p[torch.from_numpy(sources == one)] for one in set(sources) if one.endswith("/chat")]
    rates, few = firing_rates(sae, acts), held_out.texts[:ce_texts]
    original, with_sae, zeroed = (cross_entropy(lm, few, layer, edit) for edit in (None, sae, torch.zeros_like))
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
        "same_candidates": all(recalled(sae, h) == recalled(exact, h) for h in of_chat),
        "tokens": len(seen_acts),
        "held_out_tokens": len(acts),
    }


def missed(row: dict[str, Any]) -> list[str]:
    """Names of the aims that an SAE does not reach."""
    sign = dict.fromkeys(AIMS, 1) | {"ce_recovered": -1}
    return [TITLES[name] for name, aim in AIMS.items() if sign[name] * (row[name] - aim) > 0]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The quality table as Markdown, one line a layer."""
    table = pd.DataFrame(rows).sort_values("layer")
    cells = {title: table[name].map(f"{{:{form}}}".format) for name, (title, form) in COLUMNS.items()}
    return pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)

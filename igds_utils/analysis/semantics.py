"""What a task feature stands for: the words that it brings out, the tokens that it points at, and where it lies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from igds_utils.engine.features import Feature

if TYPE_CHECKING:
    from igds_utils.engine.lm import LM
    from igds_utils.engine.sae import Saes

WORD = re.compile(r"[^\W\d_]+")


def words(text: str) -> list[str]:
    """Runs of letters in lower case; digits and signs are no words."""
    return WORD.findall(text.lower())


def lexical_shift(original: Iterable[str], amplified: Iterable[str], prior: float = 10.0) -> pd.DataFrame:
    """Words by how much their rate rises from the original to the amplified outputs (Figure 6), most first.

    The score is the difference of smoothed log-odds in standard errors (Monroe et al., 2008): each count gets
    `prior` pseudo-words in all, shared out as in both groups together, so that a word seen once proves nothing.
    Columns: word, original, amplified (counts), log_odds, z; ties in alphabetical order.
    """
    before, after = (
        Counter(word for text in texts for word in words(text)) for texts in (original, amplified)
    )
    known = sorted(before | after)
    y0, y1 = (np.array([counts[word] for word in known], dtype=float) for counts in (before, after))
    alpha = prior * (y0 + y1) / max((y0 + y1).sum(), 1)
    log_odds = _log_odds(y1, alpha) - _log_odds(y0, alpha)
    z = log_odds / np.sqrt(1 / (y1 + alpha) + 1 / (y0 + alpha))
    table = pd.DataFrame({"word": known, "original": y0.astype(int), "amplified": y1.astype(int)})
    table["log_odds"], table["z"] = log_odds, z
    return table.sort_values(["z", "word"], ascending=[False, True], ignore_index=True)


def _log_odds(counts: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    smoothed = counts + alpha
    rest = (smoothed.sum() - smoothed).clip(1e-9)  # where there is one word only
    return np.log(smoothed) - np.log(rest)


def logit_lens(lm: LM, saes: Saes, feature: Feature, most: int = 8) -> pd.DataFrame:
    """Tokens whose logits the feature's direction d_i raises most, read through the final norm and the LM head.

    Columns: token, logit (of the direction alone, scaled by the norm: only the order and the gaps mean something).
    """
    import torch

    from igds_utils.engine.lm import unembed
    from igds_utils.engine.sae import FeatureSet

    direction = FeatureSet(saes[feature.layer], [feature.index]).directions[0]
    norm = lm.model.get_decoder().norm
    with torch.inference_mode():
        top = unembed(lm, norm(direction.to(lm.device, lm.model.dtype))).float().topk(most)
    tokens = [lm.tokenizer.decode([token]) for token in top.indices.tolist()]
    return pd.DataFrame({"token": tokens, "logit": top.values.tolist()})


def changed_outputs(effects: pd.DataFrame, feature: Feature) -> pd.DataFrame:
    """The rows of an effects table that amplify one feature: outputs with and without it."""
    return effects[(effects["layer"] == feature.layer) & (effects["feature"] == feature.index)]


def topology(features: list[dict], selected: list[str]) -> pd.DataFrame:
    """The best candidate of every layer (Figure 7): layer, feature, name, delta, selected.

    features: those of task_features.json, best first, so the first of a layer is its best.
    """
    table = pd.DataFrame(features)[["layer", "feature", "name", "delta"]]
    best = table.drop_duplicates("layer").sort_values("layer", ignore_index=True)
    return best.assign(selected=best["name"].isin(selected))

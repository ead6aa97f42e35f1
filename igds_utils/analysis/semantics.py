"""What a task feature stands for: the words that it brings out."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import regex

from igds_utils.data.metrics import UNSPACED
from igds_utils.engine.features import Feature

LETTERS = rf"[[\p{{L}}\p{{M}}]--[{UNSPACED}]]+"
WORD = regex.compile(rf"(?V1)[{UNSPACED}]\p{{M}}*|{LETTERS}(?:['’]{LETTERS})*")


def words(text: str) -> list[str]:
    """Runs of letters in lower case, with the apostrophes inside.

    Where a script puts no spaces between words, as Chinese does, each character is one.
    """
    return WORD.findall(text.lower())


def lexical_shift(
    original: Sequence[str], amplified: Sequence[str], prior: float = 10.0, swaps: int = 1000,
    level: float = 0.05, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Words by how much their rate rises from the original to the amplified outputs (Figure 6).

    z is the difference of smoothed log-odds in standard errors (Monroe et al., 2008): each count
    gets `prior` pseudo-words in all, shared out as in both groups together. p comes from `swaps`
    random exchanges within pairs of outputs: the share in which any word rises as far, in units
    of its spread over exchanges; the larger of that of the rate in an output and of the count,
    because outputs may get shorter or longer. A word `rises` if p < `level` and z > 0. Columns:
    word, original, amplified (counts), log_odds, z, p, rises; those that rise first, then by z.
    """
    counted = pd.DataFrame([Counter(words(text)) for text in [*original, *amplified]])
    counted = counted.fillna(0.0).sort_index(axis=1)
    y0, y1 = np.split(counted.to_numpy(float), [len(original)])  # (pairs, words)
    n0, n1 = y0.sum(0), y1.sum(0)
    table = pd.DataFrame({"word": counted.columns, "original": n0, "amplified": n1})
    table = table.astype({"original": int, "amplified": int})
    alpha = prior * (n0 + n1) / max((n0 + n1).sum(), 1)
    table["log_odds"] = _log_odds(n1 + alpha) - _log_odds(n0 + alpha)
    table["z"] = table["log_odds"] / np.sqrt(1 / (n1 + alpha) + 1 / (n0 + alpha))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(swaps, len(y0)))
    rates = [y / y.sum(axis=1, keepdims=True).clip(1) for y in (y0, y1)]
    table["p"] = np.maximum(_p_of_rise(rates[1] - rates[0], signs), _p_of_rise(y1 - y0, signs))
    table["rises"] = (table["p"] < level) & (table["z"] > 0)
    order = {"rises": False, "z": False, "word": True}
    return table.sort_values(list(order), ascending=list(order.values()), ignore_index=True)


def _p_of_rise(rise: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """(words,): share of exchanges in which any word rises as high; rise: (pairs, words)."""
    rise = rise / np.sqrt((rise**2).sum(0)).clip(1e-9)
    highest = (signs @ rise).max(axis=1, initial=0.0)
    return (1 + (highest >= rise.sum(0)[:, None] - 1e-9).sum(axis=1)) / (1 + len(signs))


def _log_odds(smoothed: np.ndarray) -> np.ndarray:
    rest = (smoothed.sum() - smoothed).clip(1e-9)  # where there is one word only
    return np.log(smoothed) - np.log(rest)


def changed_outputs(effects: pd.DataFrame, feature: Feature) -> pd.DataFrame:
    """The rows of an effects table that amplify one feature."""
    return effects[(effects["layer"] == feature.layer) & (effects["feature"] == feature.index)]

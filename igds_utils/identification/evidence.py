"""How sure is a causal filter: do candidates differ, does the best beat placebos, and doses."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from igds_utils.data.stats import TOLERANCE
from igds_utils.identification.intervention import QUANTITIES, causal_effects, change

GRAM = 4  # words
FEW = 5  # candidates, below which their order has no reliability


def changes(effects: pd.DataFrame, quantity: str) -> np.ndarray:
    """Change of "score" or "loglik" of the C features measured on all n samples: (C, n)."""
    table = effects.assign(change=change(effects, quantity))
    table = table.pivot(index=["layer", "feature"], columns="sample_id", values="change")
    return table.dropna().to_numpy()


def split_half(x: np.ndarray) -> float:
    """Reliability of the mean changes x (C, n) of C candidates: the mean over all halvings.

    Cronbach's alpha, n / (n - 1) * (1 - sum_j Var(x_j) / Var(sum_j x_j)), Var over candidates. 1:
    other samples would order them alike; 0: by luck. nan, not defined: fewer than `FEW`
    candidates, or halves that correlate negatively.
    """
    n, total = x.shape[1], x.sum(axis=1).var() if len(x) else 0.0
    if len(x) < FEW or n < 2 or total <= TOLERANCE * (x**2).sum():
        return float("nan")
    alpha = n / (n - 1) * (1 - x.var(axis=0).sum() / total)
    return float(alpha) if alpha > -TOLERANCE else float("nan")


def differ(x: np.ndarray, resamples: int = 2000, seed: int = 0) -> float:
    """Permutation p value that C candidates differ, x (C, n) shuffled within each sample.

    The statistic is the variance of their means. nan with fewer than two candidates.
    """
    if len(x) < 2:
        return float("nan")
    rng, observed = np.random.default_rng(seed), x.mean(axis=1).var()
    drawn = np.array([rng.permuted(x, axis=0).mean(axis=1).var() for _ in range(resamples)])
    return float((1 + (drawn >= observed * (1 - 1e-9)).sum()) / (1 + resamples))


def beyond_placebos(effect: float, placebos: Sequence[float]) -> dict[str, float | int]:
    """The place of an effect among those of n placebos: n, larger, p = (1 + larger) / (1 + n).

    larger: how many placebos have at least that effect. All are measured on samples that chose
    none of them; the best of many candidates would lead by luck on those that chose it.
    """
    n, larger = len(placebos), int((np.asarray(placebos, dtype=float) >= effect).sum())
    return {"n": n, "larger": larger, "p": (1 + larger) / (1 + n)}


def of_filter(
    rows: pd.DataFrame, summary: dict, placebos: pd.DataFrame, resamples: int = 2000, seed: int = 0
) -> dict:
    """What stands beside the chosen feature: tested, reliability, differ_p and placebos.

    rows: effects of all candidates; summary: `intervention.task_features`; placebos:
    `effects.placebos`. The first three by quantity, None where not defined.
    """
    by = summary["ranked_by"]
    measured = {of: changes(rows, of) for of in QUANTITIES if f"{of}_amplified" in rows}
    found = [(len(x), split_half(x), differ(x, resamples, seed)) for x in measured.values()]
    names = ["tested", "reliability", "differ_p"]
    facts = pd.DataFrame(found, index=list(measured), columns=names, dtype=object)
    fresh = summary["features"][0][f"confirmation_{QUANTITIES[by].removeprefix('delta_')}"]
    beaten = {
        kind: beyond_placebos(fresh, some) | {"effects": some.tolist()}
        for kind, some in placebos.groupby("kind")["effect"]
    }
    return facts.where(facts.notna(), None).to_dict() | {"placebos": beaten}


def repetition(text: str) -> float:
    """Share of a text's four-word sequences that occurred in it before; 0 where it has none."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def dose_response(rows: pd.DataFrame, *options: float) -> pd.DataFrame:
    """`causal_effects` of a feature at every dose (`effects.doses`), and its text.

    Further columns: scale, clamped, influence (mean |h' - h| / |h| at p), tokens and repetition
    (means of an answer). Scale 0, not clamped, is the unsteered model.
    """
    dose, own = ["clamped", "scale"], rows.drop_duplicates("sample_id")
    repeated = rows["output_amplified"].map(repetition)
    rows = rows.assign(tokens=rows["tokens_amplified"], repetition=repeated)
    text = rows.groupby(dose)[["influence", "tokens", "repetition"]].mean()
    effects = {key: causal_effects(part, *options) for key, part in rows.groupby(dose)}
    found = pd.concat(effects, names=dose).droplevel(-1).join(text).reset_index()
    zero = dict.fromkeys(["delta", "delta_loglik", "influence", "scale", "changed"], 0.0)
    zero |= {"clamped": False, "n": len(own), "tokens": own["tokens_original"].mean()}
    zero["repetition"] = own["output_original"].map(repetition).mean()
    return pd.concat([found, pd.DataFrame([zero])]).sort_values(dose, ignore_index=True)

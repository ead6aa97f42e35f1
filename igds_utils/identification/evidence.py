"""How sure a causal filter is: do candidates differ at all, does the best beat placebos, what does the dose do?

Everything here follows from stored effects. `changes` makes the matrix from them.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd

from igds_utils.data.stats import TOLERANCE
from igds_utils.identification.intervention import QUANTITIES, causal_effects, change

ENDS = 0.9  # of the unsteered answers should end by themselves
ROOM = (0.2, 0.8)  # between floor and ceiling: a share of right answers, unsteered
GRAM = 4  # words


def changes(effects: pd.DataFrame, quantity: str) -> np.ndarray:
    """Change of a quantity ("score" or "loglik") of C features on n samples, of those measured on all: (C, n)."""
    table = effects.assign(change=change(effects, quantity))
    table = table.pivot(index=["layer", "feature"], columns="sample_id", values="change")
    return table.dropna().to_numpy()


def split_half(x: np.ndarray) -> float:
    """Reliability of the mean changes of C candidates, x (C, n): the mean over all halvings of the n samples.

    Cronbach's alpha, n / (n - 1) * (1 - sum_j Var(x_j) / Var(sum_j x_j)), with variances over candidates. 1: another
    draw of samples would order them alike; 0 or less: by luck. nan with fewer than two of either.
    """
    n, total = x.shape[1], x.sum(axis=1).var() if len(x) else 0.0
    if min(x.shape) < 2 or total <= TOLERANCE * (x**2).sum():
        return float("nan")
    return float(n / (n - 1) * (1 - x.var(axis=0).sum() / total))


def differ(x: np.ndarray, resamples: int = 2000, seed: int = 0) -> float:
    """Permutation p value that C candidates differ at all, x (C, n): their changes are shuffled within each sample.

    The statistic is the variance of their means. nan with fewer than two candidates.
    """
    if len(x) < 2:
        return float("nan")
    rng, observed = np.random.default_rng(seed), x.mean(axis=1).var()
    drawn = np.array([rng.permuted(x, axis=0).mean(axis=1).var() for _ in range(resamples)])
    return float((1 + (drawn >= observed * (1 - 1e-9)).sum()) / (1 + resamples))


def beyond_placebos(chosen: float, placebos: Sequence[float], candidates: int) -> dict[str, float | int]:
    """The place of the best of some candidates among the effects of n placebos: n, larger, p, p_best.

    larger: how many placebos have at least the chosen effect. p = (1 + larger) / (1 + n), the rank p value of one
    effect among n; its smallest possible value is 1 / (1 + n), 1/13 for 12 placebos. It does not know that the chosen
    one is the best of C: if candidates were placebos, the best of 36 would lead 12 placebos in 36 of 48 cases. p_best
    does: how often no more placebos than that would lie above the best of C if candidates were placebos too,
    1 - binom(n, larger + 1) / binom(n + C, larger + 1). With C = 1 both are the same.
    """
    n, larger = len(placebos), int((np.asarray(placebos, dtype=float) >= chosen).sum())
    p_best = 1 - comb(n, larger + 1) / comb(n + candidates, larger + 1)
    return {"n": n, "larger": larger, "p": (1 + larger) / (1 + n), "p_best": p_best}


def of_filter(
    rows: pd.DataFrame, summary: dict, placebos: pd.DataFrame, resamples: int = 2000, seed: int = 0
) -> dict:
    """What stands beside the chosen feature in task_features.json: tested, reliability, differ_p and placebos.

    rows: effects of all candidates; summary: `intervention.task_features`; placebos: `effects.placebos`. The first
    three are given for score and loglik; placebos by kind, with their effects, for what the candidates were ranked by.
    None: cannot be told.
    """
    measured = {quantity: changes(rows, quantity) for quantity in QUANTITIES if f"{quantity}_amplified" in rows}
    facts = pd.DataFrame(
        [(len(x), split_half(x), differ(x, resamples, seed)) for x in measured.values()],
        index=list(measured), columns=["tested", "reliability", "differ_p"], dtype=object,
    )  # fmt: skip
    best = summary["features"][0][QUANTITIES[summary["ranked_by"]]]
    tested = len(measured[summary["ranked_by"]])
    return facts.where(facts.notna(), None).to_dict() | {
        "placebos": {
            kind: beyond_placebos(best, of_kind, tested) | {"effects": of_kind.tolist()}
            for kind, of_kind in placebos.groupby("kind")["effect"]
        },
    }


def unsteered(rows: pd.DataFrame, max_new_tokens: int) -> tuple[dict[str, float], list[str]]:
    """Can the unsteered answers of a set move in either direction? Their facts, and a warning for each that is off.

    rows: `intervention.generated_effects`. Facts: ended, the share of answers that end before `max_new_tokens`; score,
    their mean. Right answers, a score of 0 or 1, should be neither rare nor the rule (`ROOM`).
    """
    own = rows.dropna(subset="score_original").drop_duplicates("sample_id")
    ended, score = float((own["tokens_original"] < max_new_tokens).mean()), own["score_original"]
    said = []
    if ended < ENDS:
        cut = f"{1 - ended:.0%} of the unsteered answers are cut at {max_new_tokens} tokens"
        said.append(f"{cut}: raise max_new_tokens")
    if score.isin([0, 1]).all() and not ROOM[0] <= score.mean() <= ROOM[1]:
        said.append(
            f"{score.mean():.0%} of the unsteered answers are right, {ROOM[0]:.0%} to {ROOM[1]:.0%} leave room: "
            "take easier or harder samples (data)"
        )
    return {"ended": ended, "score": float(score.mean())}, said


def repetition(text: str) -> float:
    """Share of a text's four-word sequences that occurred in it before; 0 where it has none."""
    words = text.split()
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def dose_response(rows: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """`intervention.causal_effects` of a feature at every dose (`effects.doses`), and what becomes of the text.

    Columns beside these: scale, clamped, influence (mean |h' - h| / |h| at p), tokens (mean of an answer), repetition
    (mean). Scale 0, not clamped, is the unsteered model.
    """
    dose, own = ["clamped", "scale"], rows.drop_duplicates("sample_id")
    rows = rows.assign(tokens=rows["tokens_amplified"], repetition=rows["output_amplified"].map(repetition))
    text = rows.groupby(dose)[["influence", "tokens", "repetition"]].mean()
    effects = {key: causal_effects(part, confidence, resamples, seed) for key, part in rows.groupby(dose)}
    found = pd.concat(effects, names=dose).droplevel(-1).join(text).reset_index()
    zero = dict.fromkeys(["delta", "delta_loglik", "influence", "scale", "changed"], 0.0)
    zero |= {"clamped": False, "n": len(own), "tokens": own["tokens_original"].mean()}
    zero["repetition"] = own["output_original"].map(repetition).mean()
    return pd.concat([found, pd.DataFrame([zero])]).sort_values(dose, ignore_index=True)

"""Racing: candidates leave the causal filter on growing parts of D_val, so that few see all of it.

After each share the worse half leaves, judged as the whole ranking is: by delta, then by the change of the target's
log-likelihood. `replay` tells from a full evaluation what that would have saved, and how often it would have cost the
best candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from igds_utils.engine.features import Feature, features_of


def better_half(score: np.ndarray, loglik: np.ndarray) -> list[int]:
    """Columns that stay, in their order: changes of score and log-likelihood, each (samples, candidates).

    Of an odd number the larger part stays; equal candidates stay in the order in which they were recalled.
    """
    ranked = np.lexsort((np.arange(score.shape[1]), -loglik.mean(0), -score.mean(0)))
    return sorted(ranked[: -(-len(ranked) // 2)].tolist())


def stages(shares: Sequence[float], n: int) -> list[slice]:
    """The consecutive pieces of n samples that the shares cut off, and the rest; none is empty."""
    ends = [round(share * n) for share in shares] + [n]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]


def race(
    measure: Callable[[Sequence[str], Sequence[Feature]], pd.DataFrame],
    features: Sequence[Feature],
    ids: Sequence[str],
    shares: Sequence[float],
) -> list[Feature]:
    """The features that are left after every stage; `measure` gives `amplified_scores` of some features on some ids."""
    left, seen = list(features), []
    pieces = stages(shares, len(ids))
    for number, piece in enumerate(pieces):
        seen.append(measure(ids[piece], left))
        if number < len(pieces) - 1 and len(left) > 1:
            left = [left[column] for column in better_half(*_changes(pd.concat(seen), left))]
    return left


def _changes(effects: pd.DataFrame, features: Sequence[Feature]) -> tuple[np.ndarray, np.ndarray]:
    """Changes of score and log-likelihood, each (samples, features), in the order of `features`."""
    wide = [
        effects.assign(change=effects[f"{name}_amplified"] - effects[f"{name}_original"])
        .pivot(index="sample_id", columns=["layer", "feature"], values="change")
        .loc[:, [(feature.layer, feature.index) for feature in features]]
        .to_numpy()
        for name in ("score", "loglik")
    ]
    return wide[0], wide[1]


def replay(
    effects: pd.DataFrame, shares: Sequence[float], orders: int = 500, seed: int = 0
) -> dict[str, float]:
    """What racing would have done on a full evaluation, over random orders of its samples.

    effects: rows of `amplified_scores`, every feature on every sample. Returns `same_best`, the share of orders whose
    winner is the full evaluation's, `saved`, the mean share of generated tokens that is not spent, and `regret`, how
    much lower than the best the winner's delta is on average.
    """
    table = effects.drop_duplicates(["layer", "feature"])
    features = features_of(table)
    score, loglik = _changes(effects, features)
    keys = [(feature.layer, feature.index) for feature in features]
    wide = effects.pivot(index="sample_id", columns=["layer", "feature"], values="tokens_amplified")
    tokens = wide.loc[:, keys].to_numpy(float)
    best = _best(score, loglik, list(range(len(features))))
    draw, rows = np.random.default_rng(seed), []
    for _ in range(orders):
        order, left, spent = draw.permutation(len(score)), list(range(len(features))), 0.0
        pieces = stages(shares, len(score))
        for number, piece in enumerate(pieces):
            spent += tokens[np.ix_(order[piece], left)].sum()
            if number < len(pieces) - 1 and len(left) > 1:
                so_far = np.ix_(order[: piece.stop], left)
                left = [left[column] for column in better_half(score[so_far], loglik[so_far])]
        winner = _best(score, loglik, left)
        rows.append((winner == best, 1 - spent / tokens.sum(), score.mean(0)[best] - score.mean(0)[winner]))
    same, saved, regret = np.mean(rows, axis=0)
    return {"same_best": float(same), "saved": float(saved), "regret": float(regret)}


def _best(score: np.ndarray, loglik: np.ndarray, left: Sequence[int]) -> int:
    return max(left, key=lambda column: (score[:, column].mean(), loglik[:, column].mean(), -column))

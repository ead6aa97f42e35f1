"""Feature-Resonant Score and the ranking of a pool.

    S(x) = sum over i in F_task of a_i(x, p)

S depends on the prompt alone: a wrong, truncated or swapped target leaves it unchanged.
"""

import numpy as np


def feature_resonant_score(activations: np.ndarray, norms: np.ndarray | None = None) -> np.ndarray:
    """S(x) of every sample: activations (N, k) of the task features at p -> (N,).

    norms: ||d_i|| (k,) to count each feature in residual units instead of its own.
    """
    return (activations if norms is None else activations * norms).sum(axis=1)

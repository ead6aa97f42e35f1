"""What an evaluation says about the arms of a task: scores, paired differences, and whether the task can tell."""

from __future__ import annotations

import numpy as np
import pandas as pd

from igds_utils.data.stats import holm, interval, paired_difference


def summarise(
    evaluation: pd.DataFrame,
    n_train: dict[str, int],
    main_ratio: float,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """One record per arm, seeds of an arm pooled: its score and its paired differences (the numbers of Table 2).

    `evaluation` has arm, selector, ratio, seed, sample_id, score (one row or more per sample); `n_train` says how many
    samples each arm was trained on (0 for original); `main_ratio` is the task's, at which all selectors are compared.
    A record holds arm, selector, ratio, main (true for original, full and the selectors at the main ratio), seeds,
    by_seed (the score of each), n_train, n (test samples), score with low and high (over test samples), gain_over_full
    (percent of Full's score), and for each reference among random (of the same ratio), full, original: `vs_random`,
    `vs_random_low`, `vs_random_high`, `vs_random_p` (`paired_difference`, p Holm-adjusted over the arms compared with
    that reference). What cannot be compared is None. Scores keep the units of the metric; JSON can hold the result as
    it is.
    """
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    groups = {
        (selector, None if pd.isna(ratio) or selector in ("original", "full") else float(ratio)): frame
        for (selector, ratio), frame in evaluation.groupby(["selector", "ratio"], sort=True, dropna=False)
    }
    tables = {key: _by_seed(frame) for key, frame in groups.items()}
    full = tables.get(("full", None))
    full_score = None if full is None else float(full.to_numpy().mean())
    records = []
    for (selector, ratio), scores in tables.items():
        arm = selector if ratio is None else f"{selector}@{ratio:g}"
        mean, low, high = interval(scores.mean(axis=1), **options)
        record = {
            "arm": arm, "selector": selector, "ratio": ratio, "main": ratio is None or ratio == main_ratio,
            "seeds": [int(s) for s in scores.columns], "by_seed": [float(s) for s in scores.mean()],
            "n_train": n_train.get(arm), "n": len(scores),
            "score": mean, "low": _plain(low), "high": _plain(high),
            "gain_over_full": 100 * (mean / full_score - 1) if full_score else None,
        }  # fmt: skip
        references = {"random": ("random", ratio), "full": ("full", None), "original": ("original", None)}
        for name, key in references.items():
            record |= _versus(name, scores, tables.get(key) if key != (selector, ratio) else None, options)
        records.append(record)
    for name in ("random", "full", "original"):
        raw = [np.nan if record[f"vs_{name}_p"] is None else record[f"vs_{name}_p"] for record in records]
        for record, adjusted in zip(records, holm(raw), strict=True):
            record[f"vs_{name}_p"] = _plain(adjusted)
    return records


def checks(
    evaluation: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[dict]:
    """Whether a task can say anything about data: paired differences that must lie above zero with their interval.

    evaluation: as for `summarise`, with the arms full and original, and clean and defective where they were trained.
    A record holds name, gain, low, high (units of the metric) and passed.
    """
    by_arm = {arm: _by_seed(frame) for arm, frame in evaluation.groupby("selector")}
    made = []
    for better, worse in (("full", "original"), ("clean", "defective")):
        if better in by_arm and worse in by_arm:
            gain, low, high, *_ = paired_difference(
                by_arm[better], by_arm[worse], confidence, resamples, seed
            )
            made.append(
                {"name": f"{better} - {worse}", "gain": gain, "low": low, "high": high, "passed": low > 0}
            )
    return made


def _by_seed(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Scores of one arm: a row per test sample, a column per training seed."""
    return evaluation.groupby(["sample_id", "seed"])["score"].mean().unstack()


def _versus(name: str, scores: pd.DataFrame, reference: pd.DataFrame | None, options: dict) -> dict:
    fields = (f"vs_{name}", f"vs_{name}_low", f"vs_{name}_high", f"vs_{name}_p")
    if reference is None:
        return dict.fromkeys(fields)
    difference = paired_difference(scores, reference, **options)
    return dict(zip(fields, map(_plain, difference[:4]), strict=True))


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

"""What an evaluation says about the arms of a task: scores, paired differences, and whether the task can tell."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

import numpy as np
import pandas as pd

from igds_utils.core.arms import WHOLE
from igds_utils.data.stats import holm, interval, paired_difference


def summarise(
    evaluation: pd.DataFrame,
    n_train: dict[str, int],
    main_ratio: float,
    logs: dict[str, pd.DataFrame],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """One record per arm, seeds of an arm pooled: its score and its paired differences (the numbers of Table 2).

    `evaluation` has arm, selector, ratio, seed, sample_id, score (one row or more per sample); `n_train` says how many
    samples each arm was trained on (0 for original); `main_ratio` is the task's, at which all selectors are compared;
    `logs` are the log.parquet of the arms that have one.
    A record holds arm, selector, ratio, main (true for original, full and the selectors at the main ratio), seeds,
    by_seed (the score of each), n_train, target_tokens and steps (of one training; the mean over seeds), n (test
    samples), score with low and high (over test samples), gain_over_full (percent of Full's score), and for each
    reference among random (of the same ratio), full, original: `vs_random`, `vs_random_low`, `vs_random_high`,
    `vs_random_judged` (whether both were trained often enough for a verdict) and, if so, `vs_random_p`
    (`paired_difference`, p Holm-adjusted over the arms that are judged against that reference). What cannot be compared
    is None. Scores keep the units of the metric; JSON can hold the result as it is.
    """
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    groups = {
        (selector, None if pd.isna(ratio) or selector in ("original", *WHOLE) else float(ratio)): frame
        for (selector, ratio), frame in evaluation.groupby(["selector", "ratio"], sort=True, dropna=False)
    }
    tables = {key: _by_seed(frame) for key, frame in groups.items()}
    trainings = {
        key: [logs[arm] for arm in frame["arm"].unique() if arm in logs] for key, frame in groups.items()
    }
    full = tables.get(("full", None))
    full_score = None if full is None else float(full.to_numpy().mean())
    records = []
    for (selector, ratio), scores in tables.items():
        arm = selector if ratio is None else f"{selector}@{ratio:g}"
        mean, low, high = interval(scores.mean(axis=1), **options)
        record = {
            "arm": arm, "selector": selector, "ratio": ratio, "main": ratio is None or ratio == main_ratio,
            "seeds": [int(s) for s in scores.columns], "by_seed": [float(s) for s in scores.mean()],
            "n_train": n_train.get(arm),
            "target_tokens": _mean(log["target_tokens"].sum() for log in trainings[selector, ratio]),
            "steps": _mean(map(len, trainings[selector, ratio])), "n": len(scores),
            "score": mean, "low": _plain(low), "high": _plain(high),
            "gain_over_full": 100 * (mean / full_score - 1) if full_score else None,
        }  # fmt: skip
        references = {"random": ("random", ratio), "full": ("full", None), "original": ("original", None)}
        for name, key in references.items():
            record |= _versus(name, tables, (selector, ratio), key, options)
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

    evaluation: as for `summarise`, with the arms full and original, and clean and corrupted where they were trained.
    A record holds name, gain, low, high (units of the metric) and passed, which is None where an arm was trained once.
    """
    by_arm = {arm: _model(arm, _by_seed(frame)) for arm, frame in evaluation.groupby("selector")}
    made = []
    for better, worse in (("full", "original"), ("clean", "corrupted")):
        if better in by_arm and worse in by_arm:
            found = paired_difference(by_arm[better], by_arm[worse], confidence, resamples, seed)
            passed = found.low > 0 if found.judged else None
            row = {"name": f"{better} - {worse}", "gain": found.mean, "low": found.low, "high": found.high}
            made.append(row | {"passed": passed})
    return made


def _by_seed(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Scores of one arm: a row per test sample, a column per training seed."""
    return evaluation.groupby(["sample_id", "seed"])["score"].mean().unstack()


def _model(selector: str, scores: pd.DataFrame) -> pd.DataFrame | pd.Series:
    """What `paired_difference` compares: an arm by its trainings, the untrained model as it stands."""
    return scores.iloc[:, 0] if selector == "original" else scores


def _versus(name: str, tables: dict, arm: tuple, reference: tuple, options: dict) -> dict:
    fields = [f"vs_{name}{part}" for part in ("", "_low", "_high", "_p", "_judged")]
    if reference == arm or reference not in tables:
        return dict.fromkeys(fields)
    found = paired_difference(*(_model(key[0], tables[key]) for key in (arm, reference)), **options)
    values = (*map(_plain, found[:3]), found.p_value if found.judged else None, found.judged)
    return dict(zip(fields, values, strict=True))


def _mean(values: Iterable[float]) -> float | None:
    return fmean(found) if (found := list(values)) else None


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

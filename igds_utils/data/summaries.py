"""What an evaluation says about the arms of a task: scores, paired differences, and whether the task can tell."""

from collections.abc import Mapping
from statistics import fmean

import numpy as np
import pandas as pd

from igds_utils.data.stats import holm, interval, paired_difference

DRAWS = 5  # of Random: with fewer the luck of drawing and training is not known, and nothing is judged against it
REFERENCES = ("random", "full", "original")  # with which every arm is compared


def summarise(
    evaluation: pd.DataFrame,
    n_train: dict[str, int],
    main_ratio: float,
    logs: dict[str, pd.DataFrame],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    likelihoods: Mapping[str, pd.DataFrame] | None = None,
) -> list[dict]:
    """One record per arm, seeds of an arm pooled: its score and its paired differences (the numbers of Table 2).

    `evaluation` has arm, selector, ratio, seed, sample_id, score (one row or more per sample); `n_train` says how many
    samples each arm was trained on (0 for original); `main_ratio` is the task's, at which all selectors are compared;
    `logs` and `likelihoods` are the log.parquet and likelihoods.parquet of the arms that have one.
    A record holds arm, selector, ratio, main (true for original, full and the selectors at the main ratio), seeds,
    by_seed (the score of each), n_train, target_tokens and steps (of one training; the mean over seeds), n (test
    samples), score with low and high (over test samples), gain_over_full (percent of Full's score), above_random (how
    many of Random's draws of that ratio score lower), and for each reference among random (of the same ratio), full,
    original, for IGDS every other arm of its ratio: `vs_random`, `vs_random_low`, `vs_random_high`, `vs_random_judged`
    (whether both were trained twice or more, Random `DRAWS` times) and, if so, `vs_random_p` (`paired_difference`; p of
    the three Holm-adjusted over the arms that are judged against that reference). Where all arms have likelihoods:
    loglik (nats per target token, mean over samples), loglik_low, loglik_high, and loglik_vs_random etc. in the same
    way. What cannot be compared is None. Scores keep the units of the metric; JSON can hold the result as it is.
    """
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    measures = {"": "score"}
    if likelihoods and set(likelihoods) >= set(evaluation["arm"]):
        known = pd.concat(likelihoods, names=["arm"]).reset_index("arm")
        evaluation = evaluation.merge(known, on=["arm", "sample_id"], how="left", validate="many_to_one")
        measures["loglik_"] = "loglik"
    groups = {  # no ratio: nothing was selected, or all
        (selector, float(ratio) if "@" in frame["arm"].iloc[0] else None): frame
        for (selector, ratio), frame in evaluation.groupby(["selector", "ratio"], sort=True, dropna=False)
    }
    tables = {
        prefix: {key: _by_seed(frame, measure) for key, frame in groups.items()}
        for prefix, measure in measures.items()
    }
    full = tables[""].get(("full", None))
    full_score = None if full is None else float(full.to_numpy().mean())
    records = []
    for (selector, ratio), frame in groups.items():
        scores, random = tables[""][selector, ratio], tables[""].get(("random", ratio))
        trained = [logs[arm] for arm in frame["arm"].unique() if arm in logs]
        arm = selector if ratio is None else f"{selector}@{ratio:g}"
        mean, low, high = interval(scores.mean(axis=1), **options)
        record = {
            "arm": arm, "selector": selector, "ratio": ratio, "main": ratio is None or ratio == main_ratio,
            "seeds": [int(s) for s in scores.columns], "by_seed": [float(s) for s in scores.mean()],
            "n_train": n_train.get(arm),
            "target_tokens": fmean(log["target_tokens"].sum() for log in trained) if trained else None,
            "steps": fmean(map(len, trained)) if trained else None, "n": len(scores),
            "score": mean, "low": _plain(low), "high": _plain(high),
            "gain_over_full": 100 * (mean / full_score - 1) if full_score else None,
            "above_random": None if random is None or selector == "random" else int((random.mean() < mean).sum()),
        }  # fmt: skip
        if "loglik_" in tables:
            found = interval(tables["loglik_"][selector, ratio].mean(axis=1), **options)
            record |= dict(zip(("loglik", "loglik_low", "loglik_high"), map(_plain, found), strict=True))
        references = {"random": ("random", ratio), "full": ("full", None), "original": ("original", None)}
        if selector == "igds":
            others = [key for key in groups if key[1] in (None, ratio) and key[0] not in (*REFERENCES, "igds")]
            references |= {other[0]: other for other in others}
        for prefix, of_arms in tables.items():
            for name, key in references.items():
                record |= _versus(f"{prefix}vs_{name}", of_arms, (selector, ratio), key, options)
        records.append(record)
    for field in [f"{prefix}vs_{name}_p" for prefix in tables for name in REFERENCES]:
        raw = pd.Series([record[field] for record in records], dtype=float)
        for record, adjusted in zip(records, holm(raw), strict=True):
            record[field] = _plain(adjusted)
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
            row = {"name": f"{better} - {worse}", "gain": found.mean, "low": found.low, "high": found.high}
            made.append(row | {"passed": found.low > 0 if found.judged else None})
    return made


def _by_seed(evaluation: pd.DataFrame, measure: str = "score") -> pd.DataFrame:
    """A measure of one arm: a row per test sample, a column per training seed."""
    return evaluation.groupby(["sample_id", "seed"])[measure].mean().unstack()


def _model(selector: str, scores: pd.DataFrame) -> pd.DataFrame | pd.Series:
    """What `paired_difference` compares: an arm by its trainings, the untrained model as it stands."""
    return scores.iloc[:, 0] if selector == "original" else scores


def _versus(name: str, tables: dict, arm: tuple, reference: tuple, options: dict) -> dict:
    fields = [f"{name}{part}" for part in ("", "_low", "_high", "_p", "_judged")]
    if reference == arm or reference not in tables:
        return dict.fromkeys(fields)
    found = paired_difference(*(_model(key[0], tables[key]) for key in (arm, reference)), **options)
    judged = found.judged and (reference[0] != "random" or found.trainings[1] >= DRAWS)
    values = (*map(_plain, found[:3]), found.p_value if judged else None, judged)
    return dict(zip(fields, values, strict=True))


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

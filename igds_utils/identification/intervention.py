"""Causal filter: what amplifying a candidate feature does to the task.

    delta_i = (1 / |D_val|) * sum_x [ P'(x) - P(x) ]

P' is P under h' = h + a_i(h) d_i. P is the task's own metric of a generated answer (the paper's delta), or the mean
log-likelihood of the target's tokens, which needs no generation and has less noise.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import pandas as pd

from igds_utils.data.stats import paired_difference
from igds_utils.engine import generation, losses
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import Sample
from igds_utils.engine.steering import Steering
from igds_utils.tasks.examples import Example

Quantity = Literal["score", "loglik"]  # P
QUANTITIES = {"score": "delta", "loglik": "delta_loglik"}  # P -> the column of its mean change
ROUNDING = 1e-12  # a mean change of this size is zero


def original_answers(
    lm: LM, samples: Sequence[Sample], max_new_tokens: int, stop: Sequence[str] = (), together: int = 256
) -> list[list[int]]:
    """The unsteered model's answer to every sample, as token ids; `together` samples are decoded in one batch."""
    return [
        tokens
        for part in even_chunks(samples, together)
        for tokens in generation.decode(
            lm, [s.prompt for s in part], [(i, None) for i in range(len(part))], max_new_tokens, stop=stop
        )
    ]


def forced_effects(
    lm: LM,
    steering: Steering,
    features: Sequence[Feature],
    samples: Sequence[Sample],
    batch_tokens: int = 2048,
    targets: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Mean log-likelihood of the tokens of each sample's target, unsteered and with each feature amplified.

    Teacher-forced: nothing is generated. targets: token ids in place of the samples' own targets.
    Returns one row a (feature, sample): sample_id, layer, feature, loglik_amplified, loglik_original (nats a token).
    """
    targets = targets or [sample.tokens[len(sample.prompt) :] for sample in samples]
    given = [[sample.prompt[-1], *target] for sample, target in zip(samples, targets, strict=True)]
    rows = [(s, feature) for s in range(len(samples)) for feature in [None, *features]]
    prefix = generation.read_prefix(lm, [sample.prompt for sample in samples])
    values = losses.log_likelihoods(lm, prefix, given, rows, steering, batch_tokens)
    return _paired(samples, rows, loglik=[fmean(row) for row in values])


def generated_effects(
    lm: LM,
    steering: Steering,
    features: Sequence[Feature],
    samples: Sequence[Sample],
    score: Callable[[Sequence[str], Sequence[Example]], list[float]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    originals: Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 2048,
) -> pd.DataFrame:
    """Answer and score of each sample, unsteered and with each feature amplified.

    score is the task's metric, of outputs and their examples (`Run.score`). originals: `original_answers` of the
    samples, generated here if they are not given. A feature that is silent at the critical position and along the whole
    original answer changes nothing: that answer is its own, and is not generated again.
    Returns one row a (feature, sample): sample_id, layer, feature, and output, tokens and score, each of the
    `_amplified` and of the `_original` answer.
    """
    prompts = [sample.prompt for sample in samples]
    prefix = generation.read_prefix(lm, prompts)
    if originals is None:
        originals = original_answers(lm, samples, max_new_tokens, stop)
    amplified = [(s, feature) for s in range(len(samples)) for feature in features]
    # one more token at the end, which is not read
    given = [[prompt[-1], *tokens, prompt[-1]] for prompt, tokens in zip(prompts, originals, strict=True)]
    fires = losses.firing(lm, prefix, given, steering, batch_tokens)
    active = [(s, feature) for s, feature in amplified if feature in fires[s]]
    made = generation.decode(lm, prompts, active, max_new_tokens, steering, stop, prefix=prefix)
    answer = dict(zip(active, made, strict=True))
    rows = [*((s, None) for s in range(len(samples))), *amplified]
    answers = [answer.get((s, feature), originals[s]) for s, feature in rows]
    outputs = [generation.to_text(lm, tokens, stop) for tokens in answers]
    of_rows = [(s, output) for (s, _), output in zip(rows, outputs, strict=True)]
    distinct = list(dict.fromkeys(of_rows))
    scores = score([output for _, output in distinct], [samples[s].example for s, _ in distinct])
    of_output = dict(zip(distinct, scores, strict=True))
    return _paired(
        samples, rows, output=outputs, tokens=list(map(len, answers)), score=[of_output[row] for row in of_rows]
    )


def _paired(
    samples: Sequence[Sample], rows: Sequence[tuple[int, Feature | None]], **columns: Sequence
) -> pd.DataFrame:
    """One row a (feature, sample), with the values of the row that amplifies it and of the sample's unsteered row."""
    places = {
        "sample_id": [samples[s].id for s, _ in rows],
        "layer": [feature.layer if feature else -1 for _, feature in rows],
        "feature": [feature.index if feature else -1 for _, feature in rows],
    }
    table = pd.DataFrame(places | columns)
    original = table[table["layer"] < 0].drop(columns=["layer", "feature"])
    return table[table["layer"] >= 0].merge(original, on="sample_id", suffixes=("_amplified", "_original"))


def causal_effects(effects: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """delta_i and the mean change of log-likelihood, each with its interval, for every feature of one sample set.

    effects: rows of `forced_effects`, `generated_effects` or both. Columns: layer, feature, delta, delta_low,
    delta_high, delta_loglik, delta_loglik_low, delta_loglik_high, the same of contrast, score_original, changed (share
    of samples whose output changed), n. The contrast is the change of the log-likelihood of a sample's own target
    (column `change`) minus that of another sample's (`foreign`). What was not measured of a feature is nan.
    """
    sides = {column: (f"{of}_amplified", f"{of}_original") for of, column in QUANTITIES.items()}
    rows = []
    for (layer, feature), group in effects.groupby(["layer", "feature"], sort=True):
        by_sample, row = group.set_index("sample_id"), {"layer": layer, "feature": feature}
        for column, pair in (sides | {"contrast": ("change", "foreign")}).items():
            found = [float("nan")] * 3
            if by_sample.reindex(columns=pair).notna().all(axis=None):
                found = paired_difference(*(by_sample[side] for side in pair), confidence, resamples, seed)[:3]
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), found, strict=True))
        answers = group.reindex(columns=["score_original", "output_original", "output_amplified"])
        different = answers["output_amplified"] != answers["output_original"]
        row["score_original"] = float(answers["score_original"].mean())
        row["changed"] = float(different[answers["output_original"].notna()].mean())
        rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def rank_features(
    effects: pd.DataFrame, recalled: pd.DataFrame, by: Quantity = "score"
) -> pd.DataFrame:
    """Features best first: by delta, then change of log-likelihood, then frequency, then (layer, index).

    by: "loglik" puts the change of log-likelihood first and delta second. A feature of which delta was not measured
    comes after those of which it was. A feature that `recalled` does not list never fired on D_prior.
    """
    ranked = effects.merge(
        recalled[["layer", "feature", "frequency", "mean_activation"]], on=["layer", "feature"], how="left"
    ).fillna({"frequency": 0.0, "mean_activation": 0.0})
    # deltas that differ by rounding are ties, or the choice would hang on a processor's last digits
    ranked = ranked.sort_values(
        [*ranking_columns(by), "frequency", "layer", "feature"],
        ascending=[False, False, False, True, True],
        key=lambda column: column.round(12),
    ).reset_index(drop=True)
    ranked.insert(2, "name", [feature.name for feature in features_of(ranked)])
    return ranked


def ranking_columns(by: Quantity) -> list[str]:
    """Columns of `causal_effects` by which features are ranked, the first one first."""
    return [QUANTITIES[by], *(column for of, column in QUANTITIES.items() if of != by)]


def selected_features(ranked: pd.DataFrame, k: int) -> list[Feature]:
    """F_task: the k best of ranked candidates."""
    return features_of(ranked.head(k))


def established(confirmation: pd.DataFrame, quantity: str = "score") -> pd.Series:
    """Whether each feature's interval on the confirmation set lies above zero: bool, same index.

    confirmation: `causal_effects`. quantity: "score" or "loglik", the one by which the features were ranked.
    """
    return confirmation[f"{QUANTITIES[quantity]}_low"] > ROUNDING  # false where there is no interval (nan)


def task_features(ranked: pd.DataFrame, confirmation: pd.DataFrame, k: int, quantity: str = "score") -> dict:
    """Everything known of the candidates, best first, as stored in task_features.json.

    confirmation: `causal_effects` of the selected features on samples that had no part in choosing them. quantity: by
    which the candidates were ranked. `established` stands beside each selected feature, and for the whole where every
    selected feature is. `winners`: the best by each quantity, whichever decided.
    """
    names = {
        "delta": "confirmation_delta",
        "delta_low": "confirmation_low",
        "delta_high": "confirmation_high",
        "delta_loglik": "confirmation_loglik",
        "delta_loglik_low": "confirmation_loglik_low",
        "delta_loglik_high": "confirmation_loglik_high",
    }
    again = confirmation[["layer", "feature", *names]].rename(columns=names)
    again["established"] = established(confirmation, quantity)
    table = ranked.merge(again, on=["layer", "feature"], how="left")
    records = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
    columns = [*QUANTITIES.values(), "contrast"]
    measured = [column for column in columns if column in ranked and ranked[column].notna().any()]
    return {
        "features": records,
        "k": k,
        "selected": [row["name"] for row in records[:k]],
        "ranked_by": quantity,
        "established": all(row["established"] for row in records[:k]),
        "original_score": records[0]["score_original"],
        "winners": {column: ranked.loc[ranked[column].idxmax(), "name"] for column in measured},
    }

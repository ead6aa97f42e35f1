"""Causal filter: what amplifying a candidate feature does to the task score.

    delta_i = (1 / |D_val|) * sum_x [ P'(x) - P(x) ]

P is the task's own metric, P' the same under h' = h + a_i(h) d_i. Beside it stands the change of the target's
log-likelihood under the same amplification, which has less noise and breaks ties of delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import pandas as pd

from igds_utils.data.stats import paired_difference
from igds_utils.engine import forced, generation
from igds_utils.engine.batching import even_chunks
from igds_utils.engine.caching import read_prefix
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import Sample
from igds_utils.engine.sae import Saes
from igds_utils.engine.steering import Steering
from igds_utils.tasks.examples import Example

QUANTITIES = {
    "score": "delta",
    "loglik": "delta_loglik",
}  # what may change, and the column of its mean change
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


def amplified_scores(
    lm: LM,
    saes: Saes,
    features: Sequence[Feature],
    samples: Sequence[Sample],
    score: Callable[[Sequence[str], Sequence[Example]], list[float]],
    max_new_tokens: int,
    scale: float = 1.0,
    positions: str = "critical_and_decode",
    stop: Sequence[str] = (),
    originals: Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 2048,
) -> pd.DataFrame:
    """Score and target log-likelihood of each sample, unsteered and with each feature amplified.

    score is the task's metric, of outputs and their examples (`Run.score`). originals: `original_answers` of the
    samples, generated here if they are not given. A feature that is silent at the critical position and along the whole
    original answer changes nothing: that answer is its own, and is not generated again.
    Returns one row a (feature, sample): layer, feature, sample_id, score_original, score_amplified,
    output_original, output_amplified, tokens_original, tokens_amplified, loglik_original, loglik_amplified.
    """
    steering = Steering(saes, features, scale, positions)
    prompts = [sample.prompt for sample in samples]
    prefix = read_prefix(lm, prompts)
    if originals is None:
        originals = original_answers(lm, samples, max_new_tokens, stop)
    amplified = [(s, feature) for s in range(len(samples)) for feature in features]
    # one more token at the end, which is not read
    given = [[prompt[-1], *tokens, prompt[-1]] for prompt, tokens in zip(prompts, originals, strict=True)]
    fires = forced.firing(lm, prefix, given, steering, batch_tokens)
    active = [(s, feature) for s, feature in amplified if feature in fires[s]]
    made = generation.decode(lm, prompts, active, max_new_tokens, steering, stop, prefix=prefix)
    answer = dict(zip(active, made, strict=True))
    answers = [answer.get((s, feature), originals[s]) for s, feature in amplified]
    rows = [*((s, None) for s in range(len(samples))), *amplified]
    targets = [sample.tokens[len(sample.prompt) - 1 :] for sample in samples]
    loglik = forced.log_likelihoods(lm, prefix, targets, rows, steering, batch_tokens)
    table = pd.DataFrame(
        {
            "sample_id": [samples[s].id for s, _ in rows],
            "layer": [feature.layer if feature else -1 for _, feature in rows],
            "feature": [feature.index if feature else -1 for _, feature in rows],
            "output": [generation.to_text(lm, tokens, stop) for tokens in [*originals, *answers]],
            "tokens": [len(tokens) for tokens in [*originals, *answers]],
            "loglik": [fmean(row) for row in loglik],  # of a target token
        }
    )
    distinct = list(dict.fromkeys(zip([s for s, _ in rows], table["output"], strict=True)))
    scores = score([output for _, output in distinct], [samples[s].example for s, _ in distinct])
    of_output = dict(zip(distinct, scores, strict=True))
    table["score"] = [of_output[s, output] for (s, _), output in zip(rows, table["output"], strict=True)]
    original = table[table["layer"] < 0].drop(columns=["layer", "feature"])
    return table[table["layer"] >= 0].merge(original, on="sample_id", suffixes=("_amplified", "_original"))


def causal_effects(effects: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """delta_i and the mean change of log-likelihood, each with its interval, for every feature of one sample set.

    effects: rows of `amplified_scores`. Columns: layer, feature, delta, delta_low, delta_high, delta_loglik,
    delta_loglik_low, delta_loglik_high, score_original, changed (share of samples whose output changed), n.
    """
    rows = []
    for (layer, feature), group in effects.groupby(["layer", "feature"], sort=True):
        by_sample = group.set_index("sample_id")
        changes = {}
        for quantity, column in QUANTITIES.items():
            sides = (by_sample[f"{quantity}_{side}"] for side in ("amplified", "original"))
            mean, low, high, *_ = paired_difference(*sides, confidence, resamples, seed)
            changes |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        rows.append(
            {
                "layer": layer,
                "feature": feature,
                **changes,
                "score_original": float(group["score_original"].mean()),
                "changed": float((group["output_amplified"] != group["output_original"]).mean()),
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def rank_features(effects: pd.DataFrame, recalled: pd.DataFrame) -> pd.DataFrame:
    """Features best first: by delta, then change of log-likelihood, then frequency, then (layer, index).

    A feature that `recalled` does not list never fired on D_prior.
    """
    ranked = effects.merge(
        recalled[["layer", "feature", "frequency", "mean_activation"]], on=["layer", "feature"], how="left"
    ).fillna({"frequency": 0.0, "mean_activation": 0.0})
    # deltas that differ by rounding are ties, or the choice would hang on a processor's last digits
    ranked = ranked.sort_values(
        ["delta", "delta_loglik", "frequency", "layer", "feature"],
        ascending=[False, False, False, True, True],
        key=lambda column: column.round(12),
    ).reset_index(drop=True)
    ranked.insert(2, "name", [feature.name for feature in features_of(ranked)])
    return ranked


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
    selected feature is.
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
    return {
        "features": records,
        "k": k,
        "selected": [row["name"] for row in records[:k]],
        "ranked_by": quantity,
        "established": all(row["established"] for row in records[:k]),
        "original_score": records[0]["score_original"],
    }

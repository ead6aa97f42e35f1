"""Causal filter: what amplifying a candidate feature does to the task.

    delta_i = (1 / |D_val|) * sum_x [ P'(x) - P(x) ]

P' is P under h' = h + a_i(h) d_i. P is the task's own metric of a generated answer (the paper's delta), or the mean
log-likelihood of the target's tokens, which needs no generation and has less noise.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal
from weakref import WeakKeyDictionary

import pandas as pd

from igds_utils.data.stats import paired_difference
from igds_utils.engine import generation, losses
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import Sample
from igds_utils.engine.steering import Steering
from igds_utils.tasks.examples import Example

Quantity = Literal["score", "loglik"]  # P
QUANTITIES = {"score": "delta", "loglik": "delta_loglik"}  # P -> the column of its mean change
KEYS = ["sample_id", "layer", "feature"]
ROUNDING = 1e-12  # a mean change of this size is zero

_prefixes: WeakKeyDictionary = WeakKeyDictionary()  # model -> the prompts that it read last, and their prefix


def _prefix(lm: LM, samples: Sequence[Sample]) -> generation.Prefix:
    """`read_prefix` of the samples' prompts, which is kept: most often the same are read next, for other features."""
    prompts = [sample.prompt for sample in samples]
    if _prefixes.get(lm.model, [None])[0] != prompts:
        _prefixes.pop(lm.model, None)  # before the next one takes memory
        _prefixes[lm.model] = prompts, generation.read_prefix(lm, prompts)
    return _prefixes[lm.model][1]


def original_answers(
    lm: LM, samples: Sequence[Sample], max_new_tokens: int, stop: Sequence[str] = ()
) -> list[list[int]]:
    """The unsteered model's answer to every sample, as token ids; all are decoded in one batch."""
    prompts, rows = [sample.prompt for sample in samples], [(s, None) for s in range(len(samples))]
    return generation.decode(lm, prompts, rows, max_new_tokens, stop=stop, prefix=_prefix(lm, samples))


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
    prefix = _prefix(lm, samples)
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
    prompts, prefix = [sample.prompt for sample in samples], _prefix(lm, samples)
    if originals is None:
        originals = original_answers(lm, samples, max_new_tokens, stop)
    # one more token at the end, which is not read
    given = [[prompt[-1], *tokens, prompt[-1]] for prompt, tokens in zip(prompts, originals, strict=True)]
    fires = losses.firing(lm, prefix, given, steering, batch_tokens)
    rows = [(s, feature) for s in range(len(samples)) for feature in [None, *features]]
    active = [(s, feature) for s, feature in rows if feature in fires[s]]
    made = generation.decode(lm, prompts, active, max_new_tokens, steering, stop, prefix=prefix)
    answers = {row: originals[row[0]] for row in rows} | dict(zip(active, made, strict=True))
    said = [(row[0], generation.to_text(lm, answer, stop)) for row, answer in answers.items()]
    distinct = list(dict.fromkeys(said))
    scores = score([output for _, output in distinct], [samples[s].example for s, _ in distinct])
    score_of = dict(zip(distinct, scores, strict=True))
    return _paired(
        samples, rows, output=[output for _, output in said], tokens=[len(answer) for answer in answers.values()],
        score=[score_of[one] for one in said],
    )  # fmt: skip


def _paired(
    samples: Sequence[Sample], rows: Sequence[tuple[int, Feature | None]], **columns: Sequence
) -> pd.DataFrame:
    """One row a (feature, sample), with the values of the row that amplifies it and of the sample's unsteered row."""
    places = [(samples[s].id, *((f.layer, f.index) if f else (-1, -1))) for s, f in rows]
    table = pd.DataFrame(places, columns=KEYS).assign(**columns)
    original = table[table["layer"] < 0].drop(columns=["layer", "feature"])
    return table[table["layer"] >= 0].merge(original, on="sample_id", suffixes=("_amplified", "_original"))


def change(effects: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """P'(x) - P(x) of each row of effects."""
    return effects[f"{quantity}_amplified"] - effects[f"{quantity}_original"]


def causal_effects(effects: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """delta_i and the mean change of log-likelihood, each with its interval, for every feature of one sample set.

    effects: rows of `forced_effects`, `generated_effects` or both. Columns: layer, feature, delta, delta_low,
    delta_high, the same of delta_loglik and contrast, score_original, changed (share of samples whose output changed),
    n. The contrast is the change of the log-likelihood of a sample's own target (column `change`) minus that of another
    sample's (`foreign`). What was not measured of a feature is nan.
    """
    pairs = {column: [f"{of}_amplified", f"{of}_original"] for of, column in QUANTITIES.items()}
    pairs["contrast"] = ["change", "foreign"]
    needed, rows = [*sum(pairs.values(), []), "output_amplified", "output_original"], []
    for (layer, feature), group in effects.groupby(["layer", "feature"]):
        by_sample, row = group.set_index("sample_id").reindex(columns=needed), {"layer": layer, "feature": feature}
        for column, pair in pairs.items():
            found = [float("nan")] * 3
            if by_sample[pair].notna().all(axis=None):
                found = paired_difference(*(by_sample[side] for side in pair), confidence, resamples, seed)[:3]
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), found, strict=True))
        row["score_original"] = float(by_sample["score_original"].mean())
        answers = by_sample.dropna(subset="output_original")
        row["changed"] = float((answers["output_amplified"] != answers["output_original"]).mean())
        rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def rank_features(effects: pd.DataFrame, recalled: pd.DataFrame, by: Quantity = "score") -> pd.DataFrame:
    """Features best first: by delta, then change of log-likelihood, then frequency, then (layer, index).

    by: "loglik" puts the change of log-likelihood first and delta second. A feature of which delta was not measured
    comes after those of which it was. A feature that `recalled` does not list never fired on D_prior.
    """
    known = recalled[["layer", "feature", "frequency", "mean_activation"]]
    ranked = effects.merge(known, on=["layer", "feature"], how="left")
    ranked = ranked.fillna({"frequency": 0.0, "mean_activation": 0.0})
    measures = sorted(QUANTITIES.values(), key=lambda column: column != QUANTITIES[by])
    # deltas that differ by rounding are ties, or the choice would hang on a processor's last digits
    ranked = ranked.sort_values(
        [*measures, "frequency", "layer", "feature"],
        ascending=[False, False, False, True, True],
        key=lambda column: column.round(12),
        ignore_index=True,
    )
    ranked.insert(2, "name", [feature.name for feature in features_of(ranked)])
    return ranked


def selected_features(ranked: pd.DataFrame, k: int) -> list[Feature]:
    """F_task: the k best of ranked candidates."""
    return features_of(ranked.head(k))


def established(confirmation: pd.DataFrame, quantity: Quantity = "score") -> pd.Series:
    """Whether each feature's interval on the confirmation set lies above zero: bool, same index.

    confirmation: `causal_effects`. quantity: the one by which the features were ranked.
    """
    return confirmation[f"{QUANTITIES[quantity]}_low"] > ROUNDING  # false where there is no interval (nan)


def task_features(
    ranked: pd.DataFrame, confirmation: pd.DataFrame, k: int, quantity: Quantity = "score"
) -> dict:
    """Everything known of the candidates, best first, as stored in task_features.json.

    confirmation: `causal_effects` of the selected features on samples that had no part in choosing them. quantity: by
    which the candidates were ranked. `established` stands beside each selected feature, and for the whole where every
    selected feature is. `winners`: the best by each quantity, whichever decided.
    """
    columns = [f"{name}{end}" for name in QUANTITIES.values() for end in ("", "_low", "_high")]
    names = {column: f"confirmation_{column.removeprefix('delta_')}" for column in columns}
    again = confirmation[["layer", "feature", *names]].rename(columns=names)
    again["established"] = established(confirmation, quantity)
    records = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in ranked.merge(again, on=["layer", "feature"], how="left").to_dict("records")
    ]
    shown = [*QUANTITIES.values(), "contrast"]
    measured = [column for column in shown if column in ranked and ranked[column].notna().any()]
    return {
        "features": records,
        "k": k,
        "selected": [row["name"] for row in records[:k]],
        "ranked_by": quantity,
        "established": all(row["established"] for row in records[:k]),
        "original_score": records[0]["score_original"],
        "winners": {column: ranked.loc[ranked[column].idxmax(), "name"] for column in measured},
    }

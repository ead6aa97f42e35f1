"""Causal filter: what amplifying a candidate feature does to the task.

    delta_i = (1 / |D_val|) * sum_x [ P'(x) - P(x) ]

P' is P under h' = h + a_i(h) d_i. P is the task's metric of a generated answer (the paper's), or
the target's mean log-likelihood, which needs no generation and has less noise.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

import pandas as pd

from igds_utils.data.stats import paired_difference
from igds_utils.engine import generation, losses
from igds_utils.engine.features import Feature, features_of
from igds_utils.engine.lm import LM
from igds_utils.engine.prompts import Sample
from igds_utils.engine.steering import Steering
from igds_utils.tasks.examples import Example

Quantity = Literal["score", "loglik"]  # P
QUANTITIES = {"score": "delta", "loglik": "delta_loglik"}  # P -> its mean change
KEYS = ["sample_id", "layer", "feature"]
ROUNDING = 1e-12  # a mean change of this size is zero


def original_answers(
    lm: LM, samples: Sequence[Sample], max_new_tokens: int, stop: Sequence[str] = ()
) -> list[list[int]]:
    """The unsteered answers, as token ids, decoded in one batch."""
    prompts, rows = [sample.prompt for sample in samples], _rows(samples, [])
    return generation.decode(lm, prompts, rows, max_new_tokens, stop=stop)


def forced_effects(
    lm: LM, steering: Steering, features: Sequence[Feature], samples: Sequence[Sample],
    batch_tokens: int = 2048, targets: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Mean log-likelihood of each sample's target, unsteered and with each feature amplified.

    targets: token ids in place of the samples' own. One row a (feature, sample): sample_id,
    layer, feature, loglik_amplified, loglik_original (nats a token).
    """
    prefix = generation.read_prefix(lm, [sample.prompt for sample in samples])
    targets = targets or [sample.tokens[len(sample.prompt) :] for sample in samples]
    given = [[sample.prompt[-1], *ids] for sample, ids in zip(samples, targets, strict=True)]
    rows = _rows(samples, features)
    values = losses.log_likelihoods(lm, prefix, given, rows, steering, batch_tokens)
    return _paired(samples, rows, loglik=[fmean(row) for row in values])


def generated_effects(
    lm: LM, steering: Steering, features: Sequence[Feature], samples: Sequence[Sample],
    score: Callable[[Sequence[str], Sequence[Example]], list[float]], max_new_tokens: int,
    stop: Sequence[str] = (), originals: Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 2048,
) -> pd.DataFrame:  # fmt: skip
    """Answer and score of each sample, unsteered and with each feature amplified.

    score: the task's metric, of outputs and their examples. originals: `original_answers`. A
    feature that is silent at p and along the whole original answer leaves it as it is. One row
    a (feature, sample): sample_id, layer, feature, and output, tokens, score, each `_amplified`
    and `_original`.
    """
    prompts, rows = [sample.prompt for sample in samples], _rows(samples, features)
    prefix = generation.read_prefix(lm, prompts)
    originals = originals or original_answers(lm, samples, max_new_tokens, stop)
    # one more token at the end, which is not read
    given = [[ids[-1], *new, ids[-1]] for ids, new in zip(prompts, originals, strict=True)]
    fires = losses.firing(lm, prefix, given, steering, batch_tokens)
    active = [(s, feature) for s, feature in rows if feature in fires[s]]
    made = generation.decode(lm, prompts, active, max_new_tokens, steering, stop, prefix=prefix)
    answers = {row: originals[row[0]] for row in rows} | dict(zip(active, made, strict=True))
    texts = [generation.to_text(lm, answer, stop) for answer in answers.values()]
    scores = score(texts, [samples[s].example for s, _ in rows])
    lengths = [len(answer) for answer in answers.values()]
    return _paired(samples, rows, output=texts, tokens=lengths, score=scores)


def _rows(samples: Sequence[Sample], features: Sequence[Feature]) -> list[generation.Row]:
    return [(s, feature) for s in range(len(samples)) for feature in [None, *features]]


def _paired(samples: Sequence[Sample], rows: list[generation.Row], **columns) -> pd.DataFrame:
    """One row a (feature, sample), amplified values beside those of the unsteered row."""
    places = [(samples[s].id, f and f.layer, f and f.index) for s, f in rows]
    table = pd.DataFrame(places, columns=KEYS).assign(**columns)
    amplified = table.dropna(subset="layer").astype({"layer": int, "feature": int})
    original = table[table["layer"].isna()].drop(columns=KEYS[1:])
    return amplified.merge(original, on="sample_id", suffixes=("_amplified", "_original"))


def change(effects: pd.DataFrame, quantity: Quantity) -> pd.Series:
    """P'(x) - P(x) of each row of effects."""
    return effects[f"{quantity}_amplified"] - effects[f"{quantity}_original"]


def causal_effects(effects: pd.DataFrame, *options: float) -> pd.DataFrame:
    """delta_i and the mean change of log-likelihood of every feature, with their intervals.

    effects: rows of `forced_effects`, `generated_effects` or both, of one sample set. options:
    confidence, resamples, seed. Columns: layer, feature, delta, delta_low, delta_high, the same of
    delta_loglik and contrast (`change` minus `foreign`), score_original, changed (share of outputs),
    n. nan: not measured.
    """
    pairs = {column: [f"{of}_amplified", f"{of}_original"] for of, column in QUANTITIES.items()}
    pairs["contrast"] = ["change", "foreign"]
    needed, rows = [*sum(pairs.values(), []), "output_amplified", "output_original"], []
    for (layer, feature), group in effects.groupby(["layer", "feature"]):
        known = group.set_index("sample_id").reindex(columns=needed)
        row = {"layer": layer, "feature": feature}
        for column, (a, b) in pairs.items():
            found = [float("nan")] * 3
            if known[[a, b]].notna().all(axis=None):
                found = paired_difference(known[a], known[b], *options)
            row |= {column: found[0], f"{column}_low": found[1], f"{column}_high": found[2]}
        row["score_original"] = float(known["score_original"].mean())
        said = known.dropna(subset="output_original")
        row["changed"] = float((said["output_amplified"] != said["output_original"]).mean())
        rows.append(row | {"n": len(group)})
    return pd.DataFrame(rows)


def rank_features(
    effects: pd.DataFrame, recalled: pd.DataFrame, by: Quantity = "score"
) -> pd.DataFrame:
    """Features best first: by delta, change of log-likelihood, frequency, (layer, index).

    by: "loglik" puts the change of log-likelihood first. What was not measured comes last.
    """
    known = recalled[["layer", "feature", "frequency", "mean_activation"]]
    ranked = effects.merge(known, on=["layer", "feature"], how="left")
    ranked = ranked.fillna({"frequency": 0.0, "mean_activation": 0.0})
    measures = sorted(QUANTITIES.values(), key=lambda column: column != QUANTITIES[by])
    # deltas that differ by rounding are ties, or the choice would hang on a processor
    ranked = ranked.sort_values(
        [*measures, "frequency", "layer", "feature"],
        ascending=[False, False, False, True, True],
        key=lambda column: column.round(12),
        ignore_index=True,
    )
    ranked.insert(2, "name", [feature.name for feature in features_of(ranked)])
    return ranked


def established(confirmation: pd.DataFrame, quantity: Quantity = "score") -> pd.Series:
    """Whether each feature's confirmation interval lies above zero; false without one.

    confirmation: `causal_effects`. quantity: the one by which the features were ranked.
    """
    return confirmation[f"{QUANTITIES[quantity]}_low"] > ROUNDING


def task_features(
    ranked: pd.DataFrame, confirmation: pd.DataFrame, k: int, quantity: Quantity = "score"
) -> dict:
    """What is known of the candidates, best first, as stored in task_features.json.

    confirmation: `causal_effects` of the k selected features on fresh samples. quantity: by
    which the candidates were ranked. `winners`: the best by each.
    """
    columns = [f"{name}{end}" for name in QUANTITIES.values() for end in ("", "_low", "_high")]
    names = {column: f"confirmation_{column.removeprefix('delta_')}" for column in columns}
    again = confirmation[["layer", "feature", *names]].rename(columns=names)
    again["established"] = established(confirmation, quantity)
    table = ranked.merge(again, on=["layer", "feature"], how="left").astype(object)
    records = table.where(table.notna(), None).to_dict("records")
    shown = ranked.reindex(columns=[*QUANTITIES.values(), "contrast"]).dropna(axis=1, how="all")
    return {
        "features": records,
        "k": k,
        "selected": [row["name"] for row in records[:k]],
        "ranked_by": quantity,
        "established": all(row["established"] for row in records[:k]),
        "winners": {column: ranked.loc[shown[column].idxmax(), "name"] for column in shown},
    }

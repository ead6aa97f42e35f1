"""Causal filter: what amplifying a candidate feature does to the task score.

    delta_i = (1 / |D_val|) * sum_x [ P'(x) - P(x) ]

P is the task's own metric, P' the same under h' = h + a_i(h) d_i. Beside it stands the change of the target's
log-likelihood under the same amplification, which has less noise and breaks ties of delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from igds_utils import generation
from igds_utils.batching import even_chunks
from igds_utils.lm import LM, unembed
from igds_utils.sae import Feature, Saes
from igds_utils.stats import paired_difference
from igds_utils.steering import Steering
from igds_utils.tasks.base import Example


@dataclass(frozen=True)
class Sample:
    """A sample on which effects are measured."""

    id: str
    prompt: list[int]  # token ids that end at the critical token
    tokens: list[int]  # the same, then the target and end-of-sequence
    example: Example


def amplified_scores(
    lm: LM,
    saes: Saes,
    features: Sequence[Feature],
    samples: Sequence[Sample],
    score: Callable[[str, Example], float],
    max_new_tokens: int,
    scale: float = 1.0,
    positions: str = "critical_and_decode",
    stop: Sequence[str] = (),
) -> pd.DataFrame:
    """Score and target log-likelihood of each sample, unsteered and with each feature amplified.

    score is the task's metric. All rows (sample, feature) are decoded as one batch.
    Returns one row a (feature, sample): layer, feature, sample_id, score_original, score_amplified,
    output_original, output_amplified, tokens_original, tokens_amplified, loglik_original, loglik_amplified.
    """
    steering = Steering(saes, features, scale, positions)
    variants: list[Feature | None] = [None, *features]
    rows = [(s, variant) for s in range(len(samples)) for variant in variants]
    new = generation.decode(lm, [s.prompt for s in samples], rows, max_new_tokens, steering, stop)
    loglik = target_loglik(lm, [(s.tokens, len(s.prompt)) for s in samples], rows, steering)
    table = pd.DataFrame(
        {
            "sample_id": [samples[s].id for s, _ in rows],
            "layer": [variant.layer if variant else -1 for _, variant in rows],
            "feature": [variant.index if variant else -1 for _, variant in rows],
            "output": [generation.to_text(lm, tokens, stop) for tokens in new],
            "tokens": [len(tokens) for tokens in new],
            "loglik": loglik,
        }
    )
    table["score"] = [
        score(output, samples[s].example) for (s, _), output in zip(rows, table["output"], strict=True)
    ]
    original = table[table["layer"] < 0].drop(columns=["layer", "feature"])
    return table[table["layer"] >= 0].merge(original, on="sample_id", suffixes=("_amplified", "_original"))


@torch.inference_mode()
def target_loglik(
    lm: LM,
    pairs: Sequence[tuple[Sequence[int], int]],
    rows: Sequence[tuple[int, Feature | None]],
    steering: Steering,
    chunk: int = 32,
) -> list[float]:
    """Mean log-likelihood a target token of each row, teacher-forced under the row's amplification.

    pairs: (ids of prompt + target + end, number of prompt tokens). The prefix before the critical position is read
    once a pair. `chunk` bounds how many rows meet the vocabulary at once.
    """
    prefix = generation.read_prefix(lm, [ids[:n] for ids, n in pairs])
    values: list[float] = []
    for part in even_chunks(rows, chunk):
        inputs = [pairs[s][0][pairs[s][1] - 1 : -1] for s, _ in part]  # the critical token and the target
        wanted = [pairs[s][0][pairs[s][1] :] for s, _ in part]
        longest = max(map(len, inputs))
        ids, labels = (
            _right_pad(x, longest, fill) for x, fill in ((inputs, lm.tokenizer.pad_token_id), (wanted, -100))
        )
        cache, mask = prefix.for_rows(torch.tensor([s for s, _ in part], device=lm.device), longest)
        ids, labels = ids.to(lm.device), labels.to(lm.device)
        steering.assign([feature for _, feature in part])
        hidden = generation.forward_rows(
            lm, ids, cache, torch.cat([mask, (labels != -100).to(mask)], dim=1), steering, first=True
        )
        loss = F.cross_entropy(unembed(lm, hidden).float().flatten(0, 1), labels.flatten(), reduction="none")
        n_target = (labels != -100).sum(-1)
        values += (-loss.view_as(labels).sum(-1) / n_target).tolist()
    return values


def _right_pad(sequences: Sequence[Sequence[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([[*ids, *[fill] * (length - len(ids))] for ids in sequences])


def causal_effects(effects: pd.DataFrame, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """delta_i with its interval for every feature of one sample set, and the mean change of log-likelihood.

    effects: rows of `amplified_scores`. Columns: layer, feature, delta, delta_low, delta_high, delta_loglik,
    score_original, changed (share of samples whose output changed), n.
    """
    rows = []
    for (layer, feature), group in effects.groupby(["layer", "feature"], sort=True):
        by_sample = group.set_index("sample_id")
        delta, low, high, *_ = paired_difference(
            by_sample["score_amplified"], by_sample["score_original"], confidence, resamples, seed
        )
        rows.append(
            {
                "layer": layer,
                "feature": feature,
                "delta": delta,
                "delta_low": low,
                "delta_high": high,
                "delta_loglik": float((group["loglik_amplified"] - group["loglik_original"]).mean()),
                "score_original": float(group["score_original"].mean()),
                "changed": float((group["output_amplified"] != group["output_original"]).mean()),
                "n": len(group),
            }
        )
    return pd.DataFrame(rows)


def rank_features(effects: pd.DataFrame, recalled: pd.DataFrame) -> pd.DataFrame:
    """Candidates best first: by delta, then change of log-likelihood, then frequency, then (layer, index)."""
    ranked = effects.merge(
        recalled[["layer", "feature", "frequency", "mean_activation"]], on=["layer", "feature"]
    )
    ranked = ranked.sort_values(
        ["delta", "delta_loglik", "frequency", "layer", "feature"],
        ascending=[False, False, False, True, True],
    ).reset_index(drop=True)
    ranked.insert(2, "name", [Feature(int(r.layer), int(r.feature)).name for r in ranked.itertuples()])
    return ranked


def selected_features(ranked: pd.DataFrame, k: int) -> list[Feature]:
    """F_task: the k best of ranked candidates."""
    return [Feature(int(row.layer), int(row.feature)) for row in ranked.head(k).itertuples()]


def task_features(ranked: pd.DataFrame, confirmation: pd.DataFrame, k: int) -> dict:
    """Everything known of the candidates, best first, as stored in task_features.json.

    confirmation: `causal_effects` of the selected features on samples that had no part in choosing them. `positive`
    tells whether every selected feature's delta is above zero.
    """
    names = {
        "delta": "confirmation_delta",
        "delta_low": "confirmation_low",
        "delta_high": "confirmation_high",
    }
    again = confirmation[["layer", "feature", *names]].rename(columns=names)
    table = ranked.merge(again, on=["layer", "feature"], how="left")
    records = [
        {key: None if pd.isna(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]
    return {
        "features": records,
        "k": k,
        "selected": [row["name"] for row in records[:k]],
        "positive": all(row["delta"] > 0 for row in records[:k]),
        "original_score": records[0]["score_original"],
    }

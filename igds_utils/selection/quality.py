"""What a selector prefers, judged without training, on a pool whose labels we know.

Part of it is corrupted, on the target side or on the prompt side; no selector is told. FRS
reads prompts and is at chance on the target side by construction.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from igds_utils import selectors
from igds_utils.core.arms import selection_size
from igds_utils.core.experiment import Run
from igds_utils.data import stats
from igds_utils.engine.features import Feature
from igds_utils.selection.features import feature_norms
from igds_utils.selectors.scores import feature_resonant_score
from igds_utils.tasks.corruptions import SIDES as SIDE_OF
from igds_utils.tasks.examples import Example

# the samples that count on a side
SIDES = {"target": ("", "target"), "prompt": ("", "prompt"), "both": ("", "target", "prompt")}
CLEAN = "clean"
Rankings = dict[str, pd.DataFrame]  # selector -> sample_id, rank


def labels(examples: list[Example]) -> pd.DataFrame:
    """sample_id, corruption, side, origin (the id that a duplicate copies), target_length."""
    kinds = [example.meta["corruption"] for example in examples]
    return pd.DataFrame({
        "sample_id": [example.id for example in examples],
        "corruption": [kind or CLEAN for kind in kinds],
        "side": [SIDE_OF.get(kind, "") for kind in kinds],
        "origin": [example.meta.get("copy_of", example.id) for example in examples],
        "target_length": [len(example.target) for example in examples],
    })


def corrupted(chosen: pd.DataFrame) -> pd.Series:
    """Which samples of a selection (rows of `labels`) are corrupted: bool, same index.

    A duplicate does harm only beside its like: the first of one origin counts as clean.
    """
    copies = chosen["corruption"] == "duplicate"
    first = chosen.assign(copy=copies).sort_values("copy", kind="stable")
    repeated = first.duplicated("origin").reindex(chosen.index)
    return (~copies & (chosen["corruption"] != CLEAN)) | repeated


def precision(
    rankings: Rankings, known: pd.DataFrame, ratio: float, confidence: float = 0.95
) -> pd.DataFrame:
    """How clean every selector's selection is, the two groups of corruptions apart.

    Columns: selector, side, ratio, precision (low, high: Wilson), recall (share of all clean
    samples that was selected), chance (the precision of a random selection).
    """
    rows, known = [], known.set_index("sample_id")
    beside = (selection_size(ratio, len(known)) - 1) / (len(known) - 1)  # its original
    sound = known["corruption"].map({CLEAN: 1, "duplicate": 1 - beside}).fillna(0.0)
    for selector, ranking in rankings.items():
        chosen = known.loc[selectors.select(ranking, ratio)]
        bad = corrupted(chosen)
        for side, counted in SIDES.items():
            clean = (~bad[chosen["side"].isin(counted)]).to_numpy(float)
            found = stats.interval(clean, confidence) if clean.size else (np.nan,) * 3
            recall = clean.sum() / (known["corruption"] == CLEAN).sum()
            by_luck = sound[known["side"].isin(counted)].mean()
            rows.append((selector, side, ratio, *found, recall, by_luck))
    names = "selector side ratio precision low high recall chance"
    return pd.DataFrame(rows, columns=names.split())


def kept_by_kind(rankings: Rankings, known: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """How much of every kind of corruption each selector keeps, and of the clean samples.

    Columns: selector, side, corruption, n (in the pool), share, chance. Duplicates count
    beside their original.
    """
    rows, counts = [], known["corruption"].value_counts()
    size = selection_size(ratio, len(known))
    luck, beside = size / len(known), (size - 1) / (len(known) - 1)
    for selector, ranking in rankings.items():
        chosen = known[known["sample_id"].isin(selectors.select(ranking, ratio))]
        counted = chosen[corrupted(chosen) | (chosen["corruption"] == CLEAN)]
        kept = counted["corruption"].value_counts()
        for kind in filter(counts.get, (CLEAN, *SIDE_OF)):
            by_luck = luck * (beside if kind == "duplicate" else 1)
            numbers = counts[kind], kept.get(kind, 0) / counts[kind], by_luck
            rows.append((selector, SIDE_OF.get(kind, ""), kind, *numbers))
    return pd.DataFrame(rows, columns="selector side corruption n share chance".split())


def overlap(rankings: Rankings, ratio: float) -> pd.DataFrame:
    """Jaccard index of every two selections; r / (2 - r) by chance."""
    kept = [set(selectors.select(ranking, ratio)) for ranking in rankings.values()]
    shares = [[len(one & other) / len(one | other) for other in kept] for one in kept]
    return pd.DataFrame(shares, list(rankings), list(rankings))


def length_correlation(rankings: Rankings, known: pd.DataFrame, *options: float) -> pd.DataFrame:
    """Spearman's rho (low, high) of order and target length, +1: long ones first."""
    lengths, rows = known.set_index("sample_id")["target_length"], []
    for selector, ranking in rankings.items():
        long = lengths[ranking["sample_id"]].to_numpy()
        found = stats.spearman(-ranking["rank"], long, *options)
        rows.append((selector, found.rho, found.low, found.high))
    return pd.DataFrame(rows, columns=["selector", "rho", "low", "high"])


def report(run: Run, task: str, rankings: Rankings) -> dict[str, Any]:
    """Tables precision, corruptions and length, and summary, kept in <task>/quality/."""
    known, preset = labels(run.examples(task, "quality")), run.preset
    ratio, sure, folder = run.config(task).ratio, preset.confidence, f"{task}/quality"
    clean = precision(rankings, known, ratio, sure)
    kept = kept_by_kind(rankings, known, ratio)
    length = length_correlation(rankings, known, sure, preset.bootstrap, preset.seed)
    summary = {"ratio": ratio, "selectors": summary_records(clean, length)}
    run.store.write(f"{folder}/precision.parquet", clean)
    run.store.write(f"{folder}/corruptions.parquet", kept)
    run.store.write(f"{folder}/summary.json", summary)
    return {"precision": clean, "corruptions": kept, "length": length, "summary": summary}


def summary_records(precision: pd.DataFrame, length: pd.DataFrame) -> list[dict[str, Any]]:
    """A record a selector: precision of each side, recall, length correlation."""
    values = ["precision", "low", "high", "chance"]
    table = precision.pivot(index="selector", columns="side", values=values)
    table.columns = [f"{side}_{value}" for value, side in table.columns]
    table["recall"] = precision.groupby("selector")["recall"].first()
    table = length.set_index("selector").add_prefix("length_").join(table).reset_index()
    return table.astype(object).where(table.notna(), None).to_dict("records")


def unit_correlation(pool, selector: str) -> float:
    """Spearman's rho of IGDS by raw activations, as in the paper, and by a_i ||d_i||."""
    kind = selectors.get(selector)
    read, k = pool.measured(kind.measurements[0]), kind.parameters["k"]
    found = [Feature.parse(name) for name in read.about["features"][:k]]
    norms = feature_norms(pool.run, found)
    raw = read.values[:, :k] / (norms if pool.run.preset.scoring.units == "residual" else 1)
    return spearmanr(*(feature_resonant_score(raw, by) for by in (None, norms))).statistic

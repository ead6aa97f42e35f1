"""What a selector prefers, judged without training: rankings of a pool of which we know what is corrupted.

Half of it (by default) is corrupted, on the target side or on the prompt side (`corruptions`). No selector sees a
label; here the labels are held against the rankings. A score that reads prompts only, as FRS does, is at chance on the
target side by construction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from igds_utils import selectors
from igds_utils.core.arms import selection_size
from igds_utils.data import stats
from igds_utils.engine.features import Feature
from igds_utils.selection.features import feature_norms
from igds_utils.selectors.scores import feature_resonant_score
from igds_utils.tasks.corruptions import SIDES as SIDE_OF
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run
    from igds_utils.selection.pool import Pool

SIDES = ("target", "prompt", "both")
RATIOS = tuple(tenths / 10 for tenths in range(1, 11))  # of the precision curve
CLEAN = "clean"
Rankings = dict[str, pd.DataFrame]  # selector -> sample_id, rank


def labels(examples: list[Example]) -> pd.DataFrame:
    """What is known of every sample: sample_id, corruption ("clean" or its name), side, origin, target_length.

    origin: whose text it is: the id that a duplicate copies, otherwise its own. target_length: in characters.
    """
    kinds = [example.meta["corruption"] for example in examples]
    return pd.DataFrame({
        "sample_id": [example.id for example in examples],
        "corruption": [kind or CLEAN for kind in kinds],
        "side": [SIDE_OF.get(kind, "") for kind in kinds],
        "origin": [example.meta.get("copy_of", example.id) for example in examples],
        "target_length": [len(example.target) for example in examples],
    })  # fmt: skip


def corrupted(chosen: pd.DataFrame) -> pd.Series:
    """Which samples of a selection (rows of `labels`) are corrupted: bool, same index.

    A duplicate does harm only beside its like, so of all samples with one origin the first counts as clean.
    """
    copies = chosen["corruption"] == "duplicate"
    repeated = chosen.assign(copy=copies).sort_values("copy", kind="stable").duplicated("origin")
    return (~copies & (chosen["corruption"] != CLEAN)) | repeated.reindex(chosen.index)


def judged(samples: pd.DataFrame, side: str) -> pd.Series:
    """Which samples count on a side: those that are clean or corrupted there (`both`: all)."""
    return samples["side"].isin(("", side)) | (side == "both")


def chance(known: pd.DataFrame, side: str, selected: int) -> float:
    """Share of clean samples among the judged ones of a random selection; a lone duplicate counts as clean."""
    counts = known.loc[judged(known, side), "corruption"].value_counts()
    beside = (selected - 1) / (len(known) - 1)  # how often its original was drawn too
    return float((counts[CLEAN] + counts.get("duplicate", 0) * (1 - beside)) / counts.sum())


def precision(
    rankings: Rankings, known: pd.DataFrame, ratios: tuple[float, ...] = RATIOS, confidence: float = 0.95
) -> pd.DataFrame:
    """How clean every selector's selection is at every ratio, the two groups of corruptions apart.

    known: as `labels` makes it. A row has selector, side, ratio, selected, judged, clean, precision with its interval
    (low, high; Wilson), recall and chance. On a side only clean samples and those corrupted on that side are judged
    (`both`: all). recall: share of all clean samples that were selected, whose own chance level is the ratio. chance:
    the precision that a random selection would have.
    """
    rows, by_id, n_clean = [], known.set_index("sample_id"), (known["corruption"] == CLEAN).sum()
    for selector, ranking in rankings.items():
        for ratio in ratios:
            chosen = by_id.loc[selectors.select(ranking, ratio)]
            bad = corrupted(chosen)
            for side in SIDES:
                clean = (~bad[judged(chosen, side)]).to_numpy(float)
                found = stats.interval(clean, confidence) if clean.size else (np.nan,) * 3
                row = (selector, side, ratio, len(chosen), clean.size, int(clean.sum()), *found)
                rows.append((*row, clean.sum() / n_clean, chance(known, side, len(chosen))))
    names = "selector side ratio selected judged clean precision low high recall chance"
    return pd.DataFrame(rows, columns=names.split())


def kept_by_kind(
    rankings: Rankings, known: pd.DataFrame, ratio: float, confidence: float = 0.95
) -> pd.DataFrame:
    """How much of every kind of corruption each selector keeps at a ratio, and of the clean samples.

    Columns: selector, side, corruption, n (in the pool), kept, share with its interval (low, high; Wilson), chance. Of
    duplicates, those are counted that were kept beside their original.
    """
    size, rows = selection_size(ratio, len(known)), []
    for selector, ranking in rankings.items():
        chosen = known[known["sample_id"].isin(selectors.select(ranking, ratio))]
        counted = set(chosen.loc[corrupted(chosen) | (chosen["corruption"] == CLEAN), "sample_id"])
        for kind in (CLEAN, *SIDE_OF):
            members = known[known["corruption"] == kind]
            if members.empty:
                continue
            hit = members["sample_id"].isin(counted).to_numpy(float)
            by_luck = size / len(known) * ((size - 1) / (len(known) - 1) if kind == "duplicate" else 1)
            row = (selector, SIDE_OF.get(kind, ""), kind, hit.size, int(hit.sum()))
            rows.append((*row, *stats.interval(hit, confidence), by_luck))
    return pd.DataFrame(rows, columns="selector side corruption n kept share low high chance".split())


def overlap(rankings: Rankings, ratio: float) -> pd.DataFrame:
    """Every ordered pair of selectors: Jaccard index of their selections at a ratio, Spearman correlation of ranks.

    Columns: a, b, jaccard, spearman. Two random selections share r / (2 - r) of what they hold together.
    """
    ranks = pd.DataFrame({name: table.set_index("sample_id")["rank"] for name, table in rankings.items()})
    size = selection_size(ratio, len(ranks))
    held = (ranks <= size).to_numpy(float)  # (samples, selectors)
    both = held.T @ held
    pairs = pd.MultiIndex.from_product([rankings, rankings], names=["a", "b"])
    columns = {"jaccard": both / (2 * size - both), "spearman": ranks.corr("spearman").to_numpy()}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, pairs).reset_index()


def length_correlation(
    rankings: Rankings, known: pd.DataFrame, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Does a selector take long targets first? Spearman correlation of its order with the targets' lengths.

    Columns: selector, rho, low, high; +1 means that the longest target comes first.
    """
    lengths, rows = known.set_index("sample_id")["target_length"], []
    for selector, ranking in rankings.items():
        long = lengths.loc[ranking["sample_id"]].to_numpy()
        rows.append((selector, *stats.spearman(-ranking["rank"], long, confidence, resamples, seed)[:3]))
    return pd.DataFrame(rows, columns=["selector", "rho", "low", "high"])


def report(run: Run, task: str, rankings: Rankings) -> dict[str, Any]:
    """Everything above for one task, stored under <task>/quality/ and returned by name.

    precision, corruptions, overlap and length are tables (all but the last are stored as parquet); summary is JSON:
    how many samples there are of each kind, and a record a selector at the task's ratio.
    """
    known, preset, ratio = labels(run.examples(task, "quality")), run.preset, run.config(task).ratio
    ratios = tuple(sorted({*RATIOS, ratio}))
    made: dict[str, Any] = {
        "precision": precision(rankings, known, ratios, preset.confidence),
        "corruptions": kept_by_kind(rankings, known, ratio, preset.confidence),
        "overlap": overlap(rankings, ratio),
    }
    for name, table in made.items():
        run.store.write(f"{task}/quality/{name}.parquet", table)
    made["length"] = length_correlation(rankings, known, preset.confidence, preset.bootstrap, preset.seed)
    samples = known["corruption"].value_counts().to_dict()
    made["summary"] = {"ratio": ratio, "samples": samples, "selectors": summary_records(made, ratio)}
    run.store.write(f"{task}/quality/summary.json", made["summary"])
    return made


def summary_records(made: dict[str, pd.DataFrame], ratio: float) -> list[dict[str, Any]]:
    """One record a selector: precision of each side with interval and chance, recall, correlation with length."""
    rows = made["precision"][np.isclose(made["precision"]["ratio"], ratio)]
    table = rows.pivot(index="selector", columns="side", values=["precision", "low", "high", "chance"])
    table.columns = [f"{side}_{value}" for value, side in table.columns]
    table.insert(0, "recall", rows.groupby("selector")["recall"].first())
    table = table.join(made["length"].set_index("selector").add_prefix("length_"))
    table = table.loc[rows["selector"].unique()].reset_index()
    return table.astype(object).where(table.notna(), None).to_dict("records")


def unit_overlap(pool: Pool, selector: str, ratio: float) -> pd.Series:
    """How alike a form of IGDS ranks a pool by raw activations, as the paper sums, and by a_i ||d_i||, residual units.

    `jaccard` of the two selections at a ratio and `spearman` of the scores; both are 1 where one feature is read.
    """
    kind = selectors.get(selector)
    found, k = pool.measured(kind.measurements[0]), kind.parameters["k"]
    norms = feature_norms(pool.run, [Feature.parse(name) for name in found.about["features"]][:k])
    raw = found.values[:, :k] / (norms if pool.run.preset.scoring.units == "residual" else 1)
    scores = {"raw": feature_resonant_score(raw), "residual": feature_resonant_score(raw, norms)}
    rankings = {name: selectors.rank(s, pool.ids, kind.direction) for name, s in scores.items()}
    return overlap(rankings, ratio).set_index(["a", "b"]).loc["raw", "residual"]

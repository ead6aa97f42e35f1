"""What a selector prefers, judged without training: rankings of a pool of which we know what is spoilt.

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
from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selection.features import feature_norms
from igds_utils.tasks.corruptions import SIDES as SIDE_OF
from igds_utils.tasks.examples import Example

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run
    from igds_utils.selection.pool import Pool

SIDES = ("target", "prompt", "both")
RATIOS = tuple(tenths / 10 for tenths in range(1, 11))  # of the precision curve
CLEAN = "clean"


def labels(examples: list[Example]) -> pd.DataFrame:
    """What is known of every sample: sample_id, defect ("clean" or its name), side, origin, target_length.

    origin: whose text it is: the id that a duplicate copies, otherwise its own. target_length: in characters.
    """
    rows = []
    for example in examples:
        defect = example.meta["corruption"]
        side = SIDE_OF.get(defect, "")
        origin = example.meta.get("copy_of", example.id)
        rows.append((example.id, defect or CLEAN, side, origin, len(example.target)))
    return pd.DataFrame(rows, columns=["sample_id", "defect", "side", "origin", "target_length"])


def spoilt(chosen: pd.DataFrame) -> pd.Series:
    """Which samples of a selection (rows of `labels`) are spoilt: bool, same index.

    A duplicate does harm only beside its like, so of all samples with one origin the first counts as clean.
    """
    copies = chosen["defect"] == "duplicate"
    repeated = chosen.assign(copy=copies).sort_values("copy", kind="stable").duplicated("origin")
    return (~copies & (chosen["defect"] != CLEAN)) | repeated.reindex(chosen.index)


def precision(
    rankings: dict[str, pd.DataFrame],
    known: pd.DataFrame,
    ratios: tuple[float, ...] = RATIOS,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How clean every selector's selection is at every ratio, each group of defects apart.

    rankings[selector]: sample_id, rank. known: as `labels` makes it. A row has selector, side, ratio, selected,
    judged, clean, precision with its interval (low, high; Wilson), recall and chance. On a side only clean samples
    and those spoilt on that side are judged (`both`: all). recall: share of all clean samples that were selected,
    whose own chance level is the ratio. chance: the precision that a random selection would have.
    """
    rows, n_clean = [], (known["defect"] == CLEAN).sum()
    for selector, ranking in rankings.items():
        ordered = known.set_index("sample_id").loc[ranking.sort_values("rank")["sample_id"]].reset_index()
        for ratio in ratios:
            chosen = ordered.head(selection_size(ratio, len(ordered)))
            bad = spoilt(chosen)
            for side in SIDES:
                clean = (~bad[_judged(chosen, side)]).to_numpy(float)
                found = stats.interval(clean, confidence) if clean.size else (np.nan,) * 3
                row = (selector, side, ratio, len(chosen), clean.size, int(clean.sum()), *found)
                rows.append((*row, clean.sum() / n_clean, _chance(known, side, len(chosen))))
    names = "selector side ratio selected judged clean precision low high recall chance"
    return pd.DataFrame(rows, columns=names.split())


def _judged(samples: pd.DataFrame, side: str) -> pd.Series:
    return samples["side"].isin(("", side)) | (side == "both")


def _chance(known: pd.DataFrame, side: str, selected: int) -> float:
    """Share of clean samples among the judged ones of a random selection; a lone duplicate counts as clean."""
    judged = known[_judged(known, side)]
    copies = (judged["defect"] == "duplicate").sum()
    beside = (selected - 1) / (len(known) - 1)  # how often its original was drawn too
    return float(((judged["defect"] == CLEAN).sum() + copies * (1 - beside)) / len(judged))


def defects_kept(
    rankings: dict[str, pd.DataFrame], known: pd.DataFrame, ratio: float, confidence: float = 0.95
) -> pd.DataFrame:
    """How much of every kind of defect each selector keeps at a ratio, and of the clean samples.

    Columns: selector, side, defect, n (in the pool), kept, share with its interval (low, high; Wilson), chance. Of
    duplicates, those are counted that were kept beside their original.
    """
    size, rows = selection_size(ratio, len(known)), []
    order = [name for name in (CLEAN, *SIDE_OF) if name in set(known["defect"])]
    for selector, ranking in rankings.items():
        chosen = known[known["sample_id"].isin(ranking.nsmallest(size, "rank")["sample_id"])]
        harmful = chosen[spoilt(chosen) | (chosen["defect"] == CLEAN)]
        for defect in order:
            members = known[known["defect"] == defect]
            hit = members["sample_id"].isin(harmful["sample_id"]).to_numpy(float)
            chance = size / len(known) * ((size - 1) / (len(known) - 1) if defect == "duplicate" else 1)
            row = (selector, members["side"].iloc[0], defect, hit.size, int(hit.sum()))
            rows.append((*row, *stats.interval(hit, confidence), chance))
    return pd.DataFrame(rows, columns="selector side defect n kept share low high chance".split())


def overlap(rankings: dict[str, pd.DataFrame], ratio: float) -> pd.DataFrame:
    """Every ordered pair of selectors: Jaccard index of their selections at a ratio, Spearman correlation of ranks.

    Columns: a, b, jaccard, spearman. Two random selections share r / (2 - r) of what they hold together.
    """
    ranks = pd.DataFrame({name: table.set_index("sample_id")["rank"] for name, table in rankings.items()})
    held = (ranks <= selection_size(ratio, len(ranks))).to_numpy(float)  # (samples, selectors)
    both = held.T @ held
    jaccard = both / (held.sum(0)[:, None] + held.sum(0)[None] - both)
    rho = ranks.corr("spearman").to_numpy()
    names = list(rankings)
    return pd.DataFrame(
        [(a, b, jaccard[i, j], rho[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)],
        columns=["a", "b", "jaccard", "spearman"],
    )


def length_correlation(
    rankings: dict[str, pd.DataFrame],
    known: pd.DataFrame,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Does a selector take long targets first? Spearman correlation of its order with the targets' lengths.

    Columns: selector, rho, low, high; +1 means that the longest target comes first.
    """
    lengths = known.set_index("sample_id")["target_length"]
    rows = []
    for selector, ranking in rankings.items():
        early = -ranking["rank"].to_numpy()
        long = lengths.loc[ranking["sample_id"]].to_numpy()
        rows.append((selector, *stats.spearman(early, long, confidence, resamples, seed)[:3]))
    return pd.DataFrame(rows, columns=["selector", "rho", "low", "high"])


def report(run: Run, task: str, rankings: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Everything above for one task, stored under <task>/quality/ and returned by name.

    precision, defects, overlap and length are tables (all but the last are stored as parquet); summary is JSON: how
    many samples there are of each kind, and a record a selector at the task's ratio.
    """
    known, preset, ratio = labels(run.examples(task, "quality")), run.preset, run.config(task).ratio
    ratios = tuple(sorted({*RATIOS, ratio}))
    made: dict[str, Any] = {
        "precision": precision(rankings, known, ratios, preset.confidence),
        "defects": defects_kept(rankings, known, ratio, preset.confidence),
        "overlap": overlap(rankings, ratio),
    }
    for name, table in made.items():
        run.store.write(f"{task}/quality/{name}.parquet", table)
    made["length"] = length_correlation(rankings, known, preset.confidence, preset.bootstrap, preset.seed)
    samples = known["defect"].value_counts().to_dict()
    made["summary"] = {"ratio": ratio, "samples": samples, "selectors": summary_records(made, ratio)}
    run.store.write(f"{task}/quality/summary.json", made["summary"])
    return made


def summary_records(made: dict[str, pd.DataFrame], ratio: float) -> list[dict[str, Any]]:
    """One record a selector: precision of each side with interval and chance, recall, correlation with length."""
    at_ratio = made["precision"][np.isclose(made["precision"]["ratio"], ratio)]
    lengths, records = made["length"].set_index("selector").add_prefix("length_"), []
    for selector, rows in at_ratio.groupby("selector", sort=False):
        record = {"selector": selector, "recall": rows["recall"].iloc[0]}
        for side, row in rows.set_index("side").iterrows():
            record |= row[["precision", "low", "high", "chance"]].add_prefix(f"{side}_").to_dict()
        record |= lengths.loc[selector].to_dict()
        records.append({key: None if pd.isna(value) else value for key, value in record.items()})
    return records


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

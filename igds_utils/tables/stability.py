"""Table 5 and what belongs to it: features by identification source, how far sources agree."""

from __future__ import annotations

from typing import Any

import pandas as pd

from igds_utils.analysis.stability import beyond_chance
from igds_utils.display import NOTHING, Metric, number, p_value

PAPER_SOURCES = {"gsm8k": "GSM8K", "math500": "MATH-500", "openr1": "OpenR1"}
IN_ALL = " *"  # after a feature that is among the best of every source, beyond chance


def table5(
    rankings: dict[str, pd.DataFrame], metric: Metric, paper: dict, top: int = 5, by: str = "score"
) -> pd.DataFrame:
    """Table 5: the best features by identification source with their effects, the paper's (Gemma-2-2B) beside them.

    `rankings[source]` = `intervention.rank_features` of that source. A star marks features that are among the `top`
    best of every source, ours and the paper's each for themselves; ours only where blind draws from what was tested
    would rarely share as many (`stability.beyond_chance`). by: what they are ranked by; "loglik" shows its change.
    """
    ours = {source: list(table["name"]) for source, table in rankings.items()}
    starred = beyond_chance(list(ours.values()), top)
    printed = {PAPER_SOURCES[source]: names for source, names in paper["table5"].items()}
    columns: dict[str, list[str]] = {"Rank": [f"Top-{rank}" for rank in range(1, top + 1)]}
    for source, names in _marked(ours, starred).items():
        if by == "score":
            unit, deltas = f"δ, {metric.unit}", [metric.show(x, signed=True) for x in rankings[source]["delta"]]
        else:
            unit, deltas = "Δ log-likelihood", [number(x, 3, True) for x in rankings[source]["delta_loglik"]]
        columns[f"{source} ({unit})"] = [
            f"{name} ({delta})" for name, delta in zip(names, deltas, strict=True)
        ]
    theirs = set.intersection(*map(set, printed.values()))
    columns |= {f"Paper: {source}": names for source, names in _marked(printed, theirs).items()}
    return pd.DataFrame({key: (cells + [NOTHING] * top)[:top] for key, cells in columns.items()})


def _marked(best: dict[str, list[str]], shared: set[str]) -> dict[str, list[str]]:
    return {source: [n + (IN_ALL if n in shared else "") for n in names] for source, names in best.items()}


def agreement_table(records: list[dict[str, Any]], top: int = 5) -> pd.DataFrame:
    """How much sources have in common, one row per pair and one for all (`stability.agreement`)."""
    return pd.DataFrame(
        [
            {
                "Sources": " and ".join(record["sources"]) if len(record["sources"]) == 2 else "all",
                "Same top feature": "yes" if record["same_top1"] else "no",
                "Same by chance (%)": number(100 * record["same_top1_by_chance"], 0),
                f"Shared of the top {top}": number(len(record["top_shared"]), 0),
                "Shared by chance": number(record["shared_by_chance"], 2),
                "p": p_value(record["shared_p"]),
                f"Jaccard of the top {top}": number(record["top_jaccard"], 2),
                "Jaccard by chance": number(record["top_by_chance"], 2),
                "Jaccard of all candidates": number(record["candidates_jaccard"], 2),
            }
            for record in records
        ]
    )


def top1_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """How often the top feature survives a bootstrap of the samples (`stability.top1_agreement`)."""
    return pd.DataFrame(
        [
            {
                "Source": record["source"],
                "Top feature": record["top"],
                "Top again (%)": number(100 * record["kept"], 0),
                "Most frequent rival": record["rival"] or NOTHING,
                "Rival on top (%)": number(100 * record["rival_share"], 0),
            }
            for record in records
            if record["source"] != "all"
        ]
    )

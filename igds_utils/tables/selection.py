"""Selectors compared on a pool of known quality."""

from __future__ import annotations

from typing import Any

import pandas as pd

from igds_utils.display import NOTHING, number, percent, selector_title

SIDES = {"target": "Clean (%), target side", "prompt": "Clean (%), prompt side"}


def selection_table(summary: dict[str, Any]) -> pd.DataFrame:
    """One row per selector, the cleanest selection first, and chance below (summary is quality/summary.json).

    On each side only the clean samples and those spoilt on that side are counted. Recall: the share of all clean
    samples that was kept. Length: rank correlation of the order of taking with the length of the target.
    """
    records = sorted(summary["selectors"], key=lambda record: -record["both_precision"])
    rows = []
    for record in records:
        row = {"Selector": selector_title(record["selector"])}
        for side, title in SIDES.items():
            row[title] = percent(*(record[f"{side}_{part}"] for part in ("precision", "low", "high")))
        length = [number(record[f"length_{part}"], 2, signed=True) for part in ("rho", "low", "high")]
        row["Recall (%)"] = percent(record["recall"])
        row["Length correlation"] = (
            length[0] if NOTHING in length else f"{length[0]} [{length[1]}, {length[2]}]"
        )
        rows.append(row)
    chance = {title: percent(records[0][f"{side}_chance"]) for side, title in SIDES.items()}
    chance |= {"Recall (%)": percent(summary["ratio"]), "Length correlation": "0.00"}
    rows.append({"Selector": "chance", **chance})
    return pd.DataFrame(rows)

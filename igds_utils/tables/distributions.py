"""The numbers behind Figure 3."""

from __future__ import annotations

import pandas as pd

from igds_utils.display import NOTHING, Metric, arm_title, missing, number


def activation_table(compared: pd.DataFrame, metric: Metric, paper: dict[str, float]) -> pd.DataFrame:
    """Median activation, its move against the untrained model, and score of every arm (`distributions.compare`).

    With several training seeds the median is the mean of theirs, which stand beside it.
    `paper[selector]` = the score printed in Figure 3, or nothing for a task that the figure does not show; it stands
    beside the arms of the main ratio.
    """
    rows = []
    for row in compared.sort_values("median", ascending=False).to_dict("records"):
        moved = NOTHING
        if not missing(row["moved"]):
            low, high = (number(row[f"moved_{end}"], 2, signed=True) for end in ("low", "high"))
            moved = f"{number(row['moved'], 2, signed=True)} [{low}, {high}]"
        seeds = [number(median, 2) for median in row["medians"]]
        shown = {
            "Arm": arm_title(row["arm"]),
            "Median activation": number(row["median"], 2),
            "By seed": ", ".join(seeds) if len(seeds) > 1 else NOTHING,
            "Moved": moved,
            metric.label: metric.show_interval(row["score"], row["low"], row["high"]),
        }
        if paper:
            shown["Paper: Gemma-2-2B"] = number(paper.get(row["selector"]) if row["main"] else None, 1)
        rows.append(shown)
    return pd.DataFrame(rows)

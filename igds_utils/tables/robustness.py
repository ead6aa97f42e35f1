"""Tables 3 and 4: ablations and cost of selection; and the estimate of cost and benefit."""

from __future__ import annotations

import pandas as pd

from igds_utils.display import (
    ABLATIONS,
    NOT_RUN,
    NOTHING,
    PAPER_DIGITS,
    Metric,
    about,
    at_main_ratio,
    missing,
    number,
    percent,
    selector_title,
    task_title,
)


def table3(
    summary: dict[str, list[dict]], metrics: dict[str, Metric], paper: dict, k: int = 1
) -> pd.DataFrame:
    """Table 3: score of IGDS and of its ablations, one column per task, the paper's (Gemma-2-2B) beside each.

    `summary[task]` = records of `summaries.summarise`; the ablations are selectors. Those that were not trained say so.
    k: how many features IGDS sums here; the paper's has one.
    """
    rows = []
    for selector, (title, key) in ABLATIONS.items():
        row = {"Method": f"{title} (k = {k})" if selector == "igds" else title}
        for task, records in summary.items():
            found = at_main_ratio(records).get(selector)
            score = NOT_RUN
            if found is not None:
                score = metrics[task].show_interval(found["score"], found["low"], found["high"])
            row[f"{task_title(task)}, {metrics[task].label}"] = score
            printed = paper["table3"][key].get(task)
            theirs = paper["tasks"].get(task, {}).get("metric", "not there")
            row[f"Paper: {task_title(task)}, {theirs}"] = number(printed, PAPER_DIGITS.get(task, 2))
        rows.append(row)
    return pd.DataFrame(rows)


def table4(found: dict[str, pd.DataFrame], paper: dict) -> pd.DataFrame:
    """Table 4: what selecting costs, relative to Loss; the selection step only, as in the paper.

    `found[task]` = `robustness.selection_costs`. The paper's hours are those of Llama-3.1-8B keeping 50 %; its
    percentages are recomputed from them, and what it prints follows where that is another number.
    """
    rows = []
    for task, table in found.items():
        ours = table.set_index("selector").to_dict("index")
        hours = {name: printed.get(task) for name, printed in paper["table4"].items()}
        misprints = {
            name: f" (printed {number(percent, 0, signed=True)})"
            for name, percent in paper["table4_misprints"].get(task, {}).items()
        }
        for selector in [*hours, *(name for name in ours if name not in hours)]:
            row, loss = ours.get(selector, {}), ours.get("loss", {})
            rows.append(
                {
                    "Task": task_title(task),
                    "Method": selector_title(selector),
                    "Seconds": number(row["seconds"], 1) if row else NOT_RUN,
                    "vs Loss (%)": _against(row.get("seconds"), loss.get("seconds")),
                    "Tokens read": number(row.get("tokens"), 0),
                    "Operations vs Loss (%)": _against(row.get("operations"), loss.get("operations")),
                    "Paper: hours": number(hours.get(selector), 1),
                    "Paper: vs Loss (%)": _against(hours.get(selector), hours["loss"])
                    + misprints.get(selector, ""),
                }
            )
    return pd.DataFrame(rows)


def _against(value: float | None, reference: float | None) -> str:
    if missing(value) or missing(reference) or not reference:
        return NOTHING
    return number(100 * (value / reference - 1), 0, signed=True)


def benefit_table(estimate: pd.DataFrame, price: float, currency: str = "$") -> pd.DataFrame:
    """Cost and benefit of selecting, for reading.

    `estimate` is made in notebook 08: of every selector, which is the index, the GPU hours of identification and
    scoring, those that training saves, the net, and the pool size from which it pays. price: of a GPU hour.
    """
    digits = 2 if price * estimate["saved"].max() < 1000 else 0
    return pd.DataFrame(
        [
            {
                "Selector": selector_title(selector),
                "Identification (GPU h)": number(row["identification"], 1),
                "Scoring (GPU h)": number(row["scoring"], 1),
                f"Spent ({currency})": number(price * (row["identification"] + row["scoring"]), digits),
                f"Saved in training ({currency})": number(price * row["saved"], digits),
                f"Net ({currency})": number(price * row["net"], digits, signed=True),
                "Pays from a pool of": _pool_size(row["break_even"]),
            }
            for selector, row in estimate.to_dict("index").items()
        ]
    )


def _pool_size(size: float | None) -> str:
    if missing(size):
        return "never"
    return f"{about(size)} samples" if size else "any"


def ablation_table(found: pd.DataFrame) -> pd.DataFrame:
    """What ablations choose without training on it (`robustness.untrained_ablations`), for reading."""
    return pd.DataFrame(
        [
            {
                "Method": ABLATIONS[row["selector"]][0],
                "Selection shared with IGDS (Jaccard)": number(row["jaccard"], 2),
                "Rank correlation with IGDS": number(row["spearman"], 2),
                "Sound prompts selected (%)": percent(
                    row["prompt_precision"], row["prompt_low"], row["prompt_high"]
                ),
                "By chance (%)": number(100 * row["prompt_chance"], 0),
            }
            for row in found.to_dict("records")
        ]
    )

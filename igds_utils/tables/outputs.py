"""Tables 7 and 8: ROUGE of every arm, and what training did to general capabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import (
    NOT_RUN,
    NOTHING,
    SELECTORS,
    Metric,
    arm_title,
    number,
    selector_of,
    without_seed,
)  # fmt: skip

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
PRINTED = {"mmlu": "MMLU", "truthfulqa": "TruthfulQA"}  # the benchmarks of the paper
SHARE = Metric("share", "share", 1.0, 3)
PERCENT = Metric("%", "points", 100.0, 1)


def table7(evaluation: pd.DataFrame, paper: dict, **options) -> pd.DataFrame:
    """Table 7: ROUGE-1, -2 and -L F1 of every summarization arm, each with its interval; seeds of an arm pooled.

    `evaluation` is evaluation.parquet. The paper's three values stand in one cell per model. `options` go to
    `stats.interval`. Selectors of the paper without an arm say so.
    """
    rows = []
    for arm, members in _pooled(evaluation["arm"].unique()).items():
        scores = evaluation[evaluation["arm"].isin(members)].groupby("sample_id")[list(ROUGE)].mean()
        row = {"Arm": arm_title(arm)}
        for kind, title in ROUGE.items():
            row[title] = SHARE.show_interval(*interval(scores[kind], **options)) if members else NOT_RUN
        for model, title in paper["models"].items():
            printed = [number(paper["table7"][model][kind].get(selector_of(arm)), 4) for kind in ROUGE]
            row[f"Paper: {title} (R-1, R-2, R-L)"] = NOTHING if NOTHING in printed else ", ".join(printed)
        rows.append(row)
    return pd.DataFrame(rows)


def table8(
    scores: Mapping[str, Mapping[str, pd.DataFrame | None]],
    titles: Mapping[str, str],
    task_titles: Mapping[str, str],
    paper: dict,
    **options,
) -> pd.DataFrame:
    """Table 8: general benchmarks of every arm, and the paired change from the untrained model on the same questions.

    `scores[task][arm]` is capabilities.parquet, or None for an arm that was not asked; seeds of an arm are pooled.
    `titles[benchmark]` names a benchmark. The paper measured Gemma-2-2B, in percent, on all of its tasks; what it has
    and this run has not says so.
    """
    asked = [table for arms in scores.values() for table in arms.values() if table is not None]
    benchmarks = {name for table in asked for name in table["benchmark"]}
    rows = []
    for task, task_title in task_titles.items():
        arms = scores.get(task, {})
        for arm, members in _pooled(arms).items():
            answered = {name: arms[name] for name in members if arms[name] is not None}
            row = {"Trained on": task_title, "Arm": arm_title(arm)}
            for name in sorted(benchmarks):
                row |= _benchmark_cells(answered, arms.get("original"), name, titles[name], options)
            row |= {titles[name]: NOT_RUN for name in PRINTED if name in titles and name not in benchmarks}
            theirs = paper["table8"].get(selector_of(arm), {}).get(task, {})
            row |= {f"Paper: {title}": number(theirs.get(name), 2) for name, title in PRINTED.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _pooled(arms: Iterable[str]) -> dict[str, list[str]]:
    """Arm without its seed -> the arms of all its seeds; those of the paper that are missing have none."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        found.setdefault(without_seed(arm), []).append(arm)
    run = {selector_of(arm) for arm in found}
    return found | {selector: [] for selector in SELECTORS if selector not in run}


def _benchmark_cells(
    answered: dict[str, pd.DataFrame], base: pd.DataFrame | None, name: str, title: str, options: dict
) -> dict[str, str]:
    change = f"change, {title.split(',')[0]}"
    if not answered:
        return {title: NOT_RUN, change: NOTHING}
    ours = pd.DataFrame({arm: _by_question(table, name) for arm, table in answered.items()})
    cells = {title: PERCENT.show_interval(*interval(ours.mean(axis=1), **options)), change: NOTHING}
    if base is not None and "original" not in answered:
        moved = paired_difference(ours, _by_question(base, name), **options)
        cells[change] = PERCENT.show_interval(moved.mean, moved.low, moved.high, signed=True)
    return cells


def _by_question(table: pd.DataFrame, benchmark: str) -> pd.Series:
    here = table[table["benchmark"] == benchmark]
    return here.set_index(here["subject"] + " " + here["item"].astype(str))["score"]

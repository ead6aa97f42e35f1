"""Tables 7 and 8: ROUGE of every arm, and what training did to general capabilities."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import NOT_RUN, NOTHING, SELECTORS, Metric, arm_title, selector_of

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
SHARE = Metric("share", "share", 1.0, 3)
PERCENT = Metric("%", "points", 100.0, 1)


def table7(evaluation: pd.DataFrame, paper: dict, model: str = "", **options) -> pd.DataFrame:
    """Table 7: ROUGE-1, -2 and -L F1 of every summarization arm, each with its interval.

    `evaluation` is evaluation.parquet. The paper's columns are those of `model` where the paper has it, of Gemma-2-2B
    otherwise. `options` go to `stats.interval`. Selectors of the paper without an arm say so.
    """
    beside = model if model in paper["models"] else "gemma-2-2b"
    printed, rows = paper["table7"][beside], []
    arms = list(dict.fromkeys(evaluation["arm"]))
    run = {selector_of(arm) for arm in arms}
    for arm in [*arms, *(selector for selector in SELECTORS if selector not in run)]:
        scores, row = evaluation[evaluation["arm"] == arm], {"Arm": arm_title(arm)}
        for kind, title in ROUGE.items():
            row[title] = (
                SHARE.show_interval(*interval(scores[kind], **options)[:3]) if len(scores) else NOT_RUN
            )
        for kind, title in ROUGE.items():
            theirs = printed[kind].get(selector_of(arm))
            row[f"Paper ({paper['models'][beside]}): {title}"] = (
                NOTHING if theirs is None else f"{theirs:.4f}"
            )
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

    `scores[task][arm]` is capabilities.parquet, or None for an arm that was not asked; `titles[benchmark]` names a
    benchmark. The paper measured Gemma-2-2B, in percent.
    """
    asked = [table for arms in scores.values() for table in arms.values() if table is not None]
    benchmarks = sorted({name for table in asked for name in table["benchmark"]})
    rows = []
    for task, arms in scores.items():
        run = {selector_of(arm) for arm in arms}
        for arm in [*arms, *(selector for selector in SELECTORS if selector not in run)]:
            row = {"Trained on": task_titles[task], "Arm": arm_title(arm)}
            for name in benchmarks:
                row |= _benchmark_cells(arms.get(arm), arms["original"], name, titles[name], options)
            theirs = paper["table8"].get(selector_of(arm), {}).get(task, {})
            for name, title in (("mmlu", "MMLU"), ("truthfulqa", "TruthfulQA")):
                row[f"Paper: {title}"] = f"{theirs[name]:.2f}" if theirs else NOTHING
            rows.append(row)
    return pd.DataFrame(rows)


def _benchmark_cells(
    table: pd.DataFrame | None, base: pd.DataFrame, name: str, title: str, options: dict
) -> dict[str, str]:
    change = f"change, {title.split(',')[0]}"
    if table is None:
        return {title: NOT_RUN, change: NOTHING}
    ours = _by_question(table, name)
    score = PERCENT.show_interval(*interval(ours, **options)[:3])
    if table is base:
        return {title: score, change: NOTHING}
    moved = paired_difference(ours, _by_question(base, name), **options)
    return {title: score, change: PERCENT.show_interval(moved.mean, moved.low, moved.high, signed=True)}


def _by_question(table: pd.DataFrame, benchmark: str) -> pd.Series:
    here = table[table["benchmark"] == benchmark]
    return here.set_index(here["subject"] + " " + here["item"].astype(str))["score"]

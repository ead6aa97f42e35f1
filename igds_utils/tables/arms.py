"""Tables of arms and selections: 2, 3, 4, 7 and 8 of the paper, and those without training."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from igds_utils import display
from igds_utils.core.arms import WHOLE
from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import LOGLIK, NOT_RUN, NOTHING, SELECTORS, Metric, number

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
BENCHMARKS = {"mmlu": "MMLU", "truthfulqa": "TruthfulQA"}  # of the paper
F1 = Metric("F1", "F1", 1, 3)
SIDES = {"target": "Clean (%), target side", "prompt": "Clean (%), prompt side"}
WHERE_STORED = ["Above Random's draws", "Log-likelihood", "vs Random (nats)", "p (Holm, nats)"]


def table2(summary: dict[str, list[dict]], metrics: dict[str, Metric], paper: dict) -> pd.DataFrame:
    """Table 2: what every arm was trained on, its score, its gain over Full in percent, its difference to Random.

    `summary[task]` = records of `evaluation.summarise`; those of the curve are left out. Selectors of the paper that
    were not run say so; a difference that cannot be judged has no p value. Test log-likelihoods follow in the same way
    where they are stored. The paper's scores stand last with their own gain over Full; its metric and test set differ
    by task (`paper["tasks"]`), so its scores are to be compared by pattern, not by value.
    """
    rows = []
    for task, records in summary.items():
        show, ours = metrics[task], display.at_main_ratio(records)
        draws = len(ours["random"]["by_seed"]) if "random" in ours else 0
        printed = paper["table2"].get(task, {})
        for selector in [*SELECTORS, *(s for s in ours if s not in SELECTORS)]:
            row = {"Task": f"{display.task_title(task)}, {show.label}", "Arm": display.selector_title(selector)}
            row |= _score_cells(ours.get(selector, {}), show, draws)
            if selector not in ours:
                row["Score"] = NOT_RUN
            row["Paper: metric"] = paper["tasks"].get(task, {}).get("metric", NOTHING)
            for model, title in paper["models"].items():
                row[f"Paper: {title} (vs Full, %)"] = _printed_score(task, printed.get(model, {}), selector)
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in WHERE_STORED if (table[name] == NOTHING).all()])


def _score_cells(record: dict, show: Metric, draws: int) -> dict[str, str]:
    def p_of(name: str) -> str:
        judged = record.get(f"{name}_judged") is not False
        return display.p_value(record.get(f"{name}_p")) if judged else display.NOT_JUDGED

    seeds = [show.show(score) for score in record.get("by_seed", [])]
    gain = None if display.missing(record.get("ratio")) else record["gain_over_full"]
    above = record.get("above_random")
    return {
        "Samples": number(record.get("n_train") or None, 0),
        "Target tokens": number(record.get("target_tokens") or None, 0),
        "Steps": number(record.get("steps") or None, 0),
        "Score": show.show_interval(*(record.get(key) for key in ("score", "low", "high"))),
        "By seed": ", ".join(seeds) if len(seeds) > 1 else NOTHING,
        "vs Full (%)": number(gain, 1, signed=True),
        "vs Random": show.show_of(record, "vs_random", signed=True),
        "p (Holm)": p_of("vs_random"),
        "Above Random's draws": NOTHING if above is None or draws < 2 else f"{above} of {draws}",
        "Log-likelihood": LOGLIK.show_of(record, "loglik"),
        "vs Random (nats)": LOGLIK.show_of(record, "loglik_vs_random", signed=True),
        "p (Holm, nats)": p_of("loglik_vs_random"),
    }


def _printed_score(task: str, printed: dict[str, float], selector: str) -> str:
    score = number(printed.get(selector), display.PAPER_DIGITS.get(task, 2))
    if score == NOTHING or selector in ("original", *WHOLE):
        return score
    return f"{score} ({number(100 * (printed[selector] / printed['full'] - 1), 1, signed=True)})"


def table3(
    summary: dict[str, list[dict]], metrics: dict[str, Metric], paper: dict, k: int = 1
) -> pd.DataFrame:
    """Table 3: score of IGDS and of its ablations, one column per task, the paper's (Gemma-2-2B) beside each.

    `summary[task]` = records of `evaluation.summarise`; ablations are selectors. Those that were not trained say so.
    k: how many features IGDS sums here; the paper's has one.
    """
    rows = []
    for selector, (title, key) in display.ABLATIONS.items():
        row = {"Method": f"{title} (k = {k})" if selector == "igds" else title}
        for task, records in summary.items():
            found, show = display.at_main_ratio(records).get(selector), metrics[task]
            score = show.show_interval(found["score"], found["low"], found["high"]) if found else NOT_RUN
            row[f"{display.task_title(task)}, {show.label}"] = score
            theirs = paper["tasks"].get(task, {}).get("metric", "not there")
            printed = number(paper["table3"][key].get(task), display.PAPER_DIGITS.get(task, 2))
            row[f"Paper: {display.task_title(task)}, {theirs}"] = printed
        rows.append(row)
    return pd.DataFrame(rows)


def table4(found: dict[str, pd.DataFrame], paper: dict) -> pd.DataFrame:
    """Table 4: what selecting costs, relative to Loss; the selection step only, as in the paper.

    `found[task]` = `finished.selection_costs`. The paper's hours are those of Llama-3.1-8B keeping 50 %; its
    percentages are recomputed from them, and what it prints follows where that is another number.
    """

    def relative(value: float | None, reference: float | None) -> str:
        known = not display.missing(value) and not display.missing(reference) and reference
        return number(100 * (value / reference - 1), 0, signed=True) if known else NOTHING

    rows = []
    for task, table in found.items():
        ours = table.set_index("selector").to_dict("index")
        hours = {name: printed.get(task) for name, printed in paper["table4"].items()}
        loss, printed = ours.get("loss", {}), paper["table4_misprints"].get(task, {})
        for selector in [*hours, *(name for name in ours if name not in hours)]:
            row = ours.get(selector, {})
            misprint = f" (printed {number(printed[selector], 0, signed=True)})" if selector in printed else ""
            rows.append(
                {
                    "Task": display.task_title(task),
                    "Method": display.selector_title(selector),
                    "Seconds": number(row["seconds"], 1) if row else NOT_RUN,
                    "vs Loss (%)": relative(row.get("seconds"), loss.get("seconds")),
                    "Tokens read": number(row.get("tokens"), 0),
                    "Operations vs Loss (%)": relative(row.get("operations"), loss.get("operations")),
                    "Paper: hours": number(hours.get(selector), 1),
                    "Paper: vs Loss (%)": relative(hours.get(selector), hours["loss"]) + misprint,
                }
            )
    return pd.DataFrame(rows)


def table7(evaluation: pd.DataFrame, paper: dict, **options) -> pd.DataFrame:
    """Table 7: ROUGE-1, -2 and -L F1 of every summarization arm, each with its interval; seeds of an arm pooled.

    `evaluation` is evaluation.parquet. The paper's three values stand in one cell per model. `options` go to
    `stats.interval`. Selectors of the paper without an arm say so.
    """
    rows = []
    for arm, members in _pooled(evaluation["arm"].unique()).items():
        scores = evaluation[evaluation["arm"].isin(members)].groupby("sample_id")[list(ROUGE)].mean()
        row = {"Arm": display.arm_title(arm)}
        for kind, title in ROUGE.items():
            row[title] = F1.show_interval(*interval(scores[kind], **options)) if members else NOT_RUN
        for model, title in paper["models"].items():
            printed = [number(paper["table7"][model][kind].get(display.selector_of(arm)), 4) for kind in ROUGE]
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
    for task, title in task_titles.items():
        arms = scores.get(task, {})
        for arm, members in _pooled(arms).items():
            row = {"Trained on": title, "Arm": display.arm_title(arm)}
            answered = {name: arms[name] for name in members if arms[name] is not None}
            for name in sorted(benchmarks):
                change = f"change, {titles[name].split(',')[0]}"
                row |= {titles[name]: NOT_RUN, change: NOTHING}
                if answered:
                    ours = pd.DataFrame({arm: by_question(table, name) for arm, table in answered.items()})
                    row[titles[name]] = display.POINTS.show_interval(*interval(ours.mean(axis=1), **options))
                    if arms.get("original") is not None and "original" not in answered:
                        base = by_question(arms["original"], name)
                        moved = paired_difference(ours, base, **options)
                        row[change] = display.POINTS.show_interval(*moved[:3], signed=True)
            row |= {titles[name]: NOT_RUN for name in BENCHMARKS if name in titles and name not in benchmarks}
            theirs = paper["table8"].get(display.selector_of(arm), {}).get(task, {})
            row |= {f"Paper: {title}": number(theirs.get(name), 2) for name, title in BENCHMARKS.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def by_question(table: pd.DataFrame, benchmark: str) -> pd.Series:
    """Scores of a benchmark in capabilities.parquet, by question."""
    here = table[table["benchmark"] == benchmark]
    return here.set_index(here["subject"] + " " + here["item"].astype(str))["score"]


def _pooled(arms: Iterable[str]) -> dict[str, list[str]]:
    """Arm without its seed -> the arms of all its seeds; those of the paper that are missing have none."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        found.setdefault(display.without_seed(arm), []).append(arm)
    run = {display.selector_of(arm) for arm in found}
    return found | {selector: [] for selector in SELECTORS if selector not in run}


def activation_table(compared: pd.DataFrame, metric: Metric, paper: dict[str, float]) -> pd.DataFrame:
    """The numbers of Figure 3: median activation, its move against the untrained model, and score of every arm.

    compared: `finished.compare`. With several training seeds the median is the mean of theirs, which stand beside
    it. `paper[selector]` = the score printed in Figure 3, or nothing for a task that the figure does not show; it
    stands beside the arms of the main ratio.
    """
    rows = []
    for row in compared.sort_values("median", ascending=False).to_dict("records"):
        seeds = [display.ACTIVATION.show(median) for median in row["medians"]]
        shown = {
            "Arm": display.arm_title(row["arm"]),
            "Median activation": display.ACTIVATION.show(row["median"]),
            "By seed": ", ".join(seeds) if len(seeds) > 1 else NOTHING,
            "Moved": display.ACTIVATION.show_of(row, "moved", signed=True),
            metric.label: metric.show_interval(row["score"], row["low"], row["high"]),
        }
        if paper:
            shown["Paper: Gemma-2-2B"] = number(paper.get(row["selector"]) if row["main"] else None, 1)
        rows.append(shown)
    return pd.DataFrame(rows)


def benefit_table(estimate: pd.DataFrame, price: float, currency: str = "$") -> pd.DataFrame:
    """Cost and benefit of selecting, for reading.

    `estimate` is made in notebook 08: of every selector, which is the index, the GPU hours of identification and
    scoring, those that training saves, the net, and the pool size from which it pays. price: of a GPU hour.
    """
    digits = 2 if price * estimate["saved"].max() < 1000 else 0

    def pays(size: float | None) -> str:
        return "never" if display.missing(size) else f"{display.about(size)} samples" if size else "any"

    return pd.DataFrame(
        {
            "Selector": display.selector_title(selector),
            "Identification (GPU h)": number(row["identification"], 1),
            "Scoring (GPU h)": number(row["scoring"], 1),
            f"Spent ({currency})": number(price * (row["identification"] + row["scoring"]), digits),
            f"Saved in training ({currency})": number(price * row["saved"], digits),
            f"Net ({currency})": number(price * row["net"], digits, signed=True),
            "Pays from a pool of": pays(row["break_even"]),
        }
        for selector, row in estimate.to_dict("index").items()
    )


def selection_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Selectors on a pool of known quality, the cleanest selection first, and chance below (quality/summary.json).

    On each side only the clean samples and those corrupted on that side are counted. Recall: the share of all clean
    samples that was kept. Length: rank correlation of the order of taking with the length of the target.
    """
    records = sorted(summary["selectors"], key=lambda record: -record["both_precision"])
    rows = [
        {"Selector": display.selector_title(record["selector"])}
        | {title: _share_of(record, side) for side, title in SIDES.items()}
        | {
            "Recall (%)": display.SHARE.show(record["recall"]),
            "Length correlation": display.RHO.show_interval(
                *(record[f"length_{part}"] for part in ("rho", "low", "high")), signed=True
            ),
        }
        for record in records
    ]
    chance = {title: display.SHARE.show(records[0][f"{side}_chance"]) for side, title in SIDES.items()}
    chance |= {"Recall (%)": display.SHARE.show(summary["ratio"]), "Length correlation": "0.00"}
    return pd.DataFrame([*rows, {"Selector": "chance", **chance}])


def _share_of(record: dict[str, Any], side: str) -> str:
    return display.SHARE.show_interval(*(record[f"{side}_{part}"] for part in ("precision", "low", "high")))

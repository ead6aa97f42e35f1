"""Tables of arms and selections: 2, 3, 4, 7 and 8 of the paper, and those without training."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from igds_utils import display
from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import LOGLIK, NOT_RUN, NOTHING, PAPER_DIGITS, SELECTORS, Metric, number, p_value

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
BENCHMARKS = {"mmlu": "MMLU", "truthfulqa": "TruthfulQA"}  # of the paper
F1 = Metric("F1", "F1", 1, 3)
SIDES = {"target": "Clean (%), target side", "prompt": "Clean (%), prompt side"}
WHERE_STORED = ["Above Random's draws", "Log-likelihood", "vs Random (nats)", "p (Holm, nats)"]
whole = partial(number, digits=0)


def table2(summary: dict[str, list[dict]], metrics: dict[str, Metric], paper: dict) -> pd.DataFrame:
    """Table 2: what every arm was trained on, its score, its gain over Full in percent, its difference to Random.

    `summary[task]` = records of `evaluation.summarise`; those of the curve are left out. Selectors of the paper that
    were not run say so; a difference that cannot be judged has no p value. Test log-likelihoods follow in the same way
    where they are stored. The paper's scores stand last with their own gain over Full; its metric and test set differ
    by task (`paper["tasks"]`), so its scores are to be compared by pattern, not by value.
    """
    rows = []
    for task, records in summary.items():
        show, ours, printed = metrics[task], display.at_main_ratio(records), paper["table2"].get(task, {})
        draws = len(ours["random"]["by_seed"]) if "random" in ours else 0
        for selector in SELECTORS | ours:
            row = {"Task": f"{display.task_title(task)}, {show.label}", "Arm": display.selector_title(selector)}
            row |= _score_cells(ours.get(selector, {}), show, draws)
            row["Paper: metric"] = paper["tasks"].get(task, {}).get("metric", NOTHING)
            for model, title in paper["models"].items():
                scores = printed.get(model, {})
                cell = number(scores.get(selector), PAPER_DIGITS.get(task, 2))
                if selector in scores and selector not in ("original", "full"):
                    cell += f" ({number(100 * (scores[selector] / scores['full'] - 1), 1, signed=True)})"
                row[f"Paper: {title} (vs Full, %)"] = cell
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in WHERE_STORED if (table[name] == NOTHING).all()])


def _score_cells(record: dict, show: Metric, draws: int) -> dict[str, str]:
    def p_of(name: str) -> str:
        judged = record.get(f"{name}_judged") is not False
        return p_value(record.get(f"{name}_p")) if judged else display.NOT_JUDGED

    gain = None if display.missing(record.get("ratio")) else record["gain_over_full"]
    above = record.get("above_random")
    score = show.show_interval(*(record.get(key) for key in ("score", "low", "high")))
    return {
        "Samples": whole(record.get("n_train") or None),
        "Target tokens": whole(record.get("target_tokens") or None),
        "Steps": whole(record.get("steps") or None),
        "Score": score if record else NOT_RUN,
        "By seed": _by_seed(show, record.get("by_seed", [])),
        "vs Full (%)": number(gain, 1, signed=True),
        "vs Random": show.show_of(record, "vs_random", signed=True),
        "p (Holm)": p_of("vs_random"),
        "Above Random's draws": NOTHING if above is None or draws < 2 else f"{above} of {draws}",
        "Log-likelihood": LOGLIK.show_of(record, "loglik"),
        "vs Random (nats)": LOGLIK.show_of(record, "loglik_vs_random", signed=True),
        "p (Holm, nats)": p_of("loglik_vs_random"),
    }


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
            printed = number(paper["table3"][key].get(task), PAPER_DIGITS.get(task, 2))
            row[f"Paper: {display.task_title(task)}, {theirs}"] = printed
        rows.append(row)
    return pd.DataFrame(rows)


def table4(found: dict[str, pd.DataFrame], paper: dict) -> pd.DataFrame:
    """Table 4: what selecting costs, relative to Loss; the selection step only, as in the paper.

    `found[task]` = `finished.selection_costs`. The paper's hours are those of Llama-3.1-8B keeping 50 %; its
    percentages are recomputed from them, and what it prints follows where that is another number.
    """
    tables, signed = [], partial(number, digits=0, signed=True)
    for task, table in found.items():
        costs = table.set_index("selector").astype(float)
        costs = costs.reindex(dict.fromkeys([*paper["table4"], *costs.index]))
        costs["hours"] = pd.Series({name: printed.get(task) for name, printed in paper["table4"].items()})
        change = (100 * (costs / costs.loc["loss"] - 1)).map(signed)
        misprints = paper["table4_misprints"].get(task, {})
        printed = [f" (printed {signed(misprints[name])})" if name in misprints else "" for name in costs.index]
        tables.append(pd.DataFrame({
            "Task": display.task_title(task),
            "Method": costs.index.map(display.selector_title),
            "Seconds": costs["seconds"].map(number).replace(NOTHING, NOT_RUN),
            "vs Loss (%)": change["seconds"],
            "Tokens read": costs["tokens"].map(whole),
            "Operations vs Loss (%)": change["operations"],
            "Paper: hours": costs["hours"].map(number),
            "Paper: vs Loss (%)": change["hours"] + printed,
        }))
    return pd.concat(tables, ignore_index=True)


def table7(evaluation: pd.DataFrame, paper: dict, **options) -> pd.DataFrame:
    """Table 7: ROUGE-1, -2 and -L F1 of every summarization arm, each with its interval; seeds of an arm pooled.

    `evaluation` is evaluation.parquet. The paper's three values stand in one cell per model. `options` go to
    `stats.interval`. Selectors of the paper without an arm say so.
    """
    pooled = evaluation.assign(arm=evaluation["arm"].map(display.without_seed))
    means, rows = pooled.groupby(["arm", "sample_id"])[list(ROUGE)].mean(), []
    for arm in _and_missing(evaluation["arm"]):
        row = {"Arm": display.arm_title(arm)}
        for kind, title in ROUGE.items():
            run = arm in means.index
            row[title] = F1.show_interval(*interval(means.loc[arm, kind], **options)) if run else NOT_RUN
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
    known = {task: {arm: one for arm, one in arms.items() if one is not None} for task, arms in scores.items()}
    asked = sorted({name for arms in known.values() for table in arms.values() for name in table["benchmark"]})
    show, rows = display.POINTS.show_interval, []
    for task, task_name in task_titles.items():
        answers = known.get(task, {})
        for arm in _and_missing(scores.get(task, {})):
            row = {"Trained on": task_name, "Arm": display.arm_title(arm)}
            seeds = [name for name in answers if display.without_seed(name) == arm]
            for name in asked:
                title, change = titles[name], f"change, {titles[name].split(',')[0]}"
                row |= {title: NOT_RUN, change: NOTHING}
                if seeds:
                    ours = pd.DataFrame({seed: _by_question(answers[seed], name) for seed in seeds})
                    row[title] = show(*interval(ours.mean(axis=1), **options))
                if seeds and arm != "original" and "original" in answers:
                    moved = paired_difference(ours, _by_question(answers["original"], name), **options)
                    row[change] = show(*moved[:3], signed=True)
            row |= {titles[name]: NOT_RUN for name in BENCHMARKS if name in titles and name not in asked}
            theirs = paper["table8"].get(display.selector_of(arm), {}).get(task, {})
            row |= {f"Paper: {title}": number(theirs.get(name), 2) for name, title in BENCHMARKS.items()}
            rows.append(row)
    return pd.DataFrame(rows)


def _by_question(table: pd.DataFrame, benchmark: str) -> pd.Series:
    here = table[table["benchmark"] == benchmark]
    return here.set_index(here["subject"] + " " + here["item"].astype(str))["score"]


def activation_table(compared: pd.DataFrame, metric: Metric, paper: dict[str, float]) -> pd.DataFrame:
    """The numbers of Figure 3: median activation, its move against the untrained model, and score of every arm.

    compared: `finished.compare`. With several training seeds the median is the mean of theirs, which stand beside
    it. `paper[selector]` = the score printed in Figure 3, or nothing for a task that the figure does not show; it
    stands beside the arms of the main ratio.
    """
    table, show = compared.sort_values("median", ascending=False, ignore_index=True), display.ACTIVATION
    shown = pd.DataFrame({
        "Arm": table["arm"].map(display.arm_title),
        "Median activation": table["median"].map(show.show),
        "By seed": [_by_seed(show, medians) for medians in table["medians"]],
        "Moved": _intervals(show, table, "moved", "moved_low", "moved_high", signed=True),
        metric.label: _intervals(metric, table, "score", "low", "high"),
    })
    if paper:
        shown["Paper: Gemma-2-2B"] = table["selector"].map(paper).where(table["main"]).map(number)
    return shown


def benefit_table(estimate: pd.DataFrame, price: float, currency: str = "$") -> pd.DataFrame:
    """Cost and benefit of selecting, for reading.

    `estimate` is made in notebook 08: of every selector, which is the index, the GPU hours of identification and
    scoring, those that training saves, the net, and the pool size from which it pays. price: of a GPU hour.
    """
    def pays(size: float | None) -> str:
        return "never" if display.missing(size) else f"{display.about(size)} samples" if size else "any"

    table = estimate.rename_axis("selector").reset_index()
    money = partial(number, digits=2 if price * table["saved"].max() < 1000 else 0)
    return pd.DataFrame({
        "Selector": table["selector"].map(display.selector_title),
        "Identification (GPU h)": table["identification"].map(number),
        "Scoring (GPU h)": table["scoring"].map(number),
        f"Spent ({currency})": (price * (table["identification"] + table["scoring"])).map(money),
        f"Saved in training ({currency})": (price * table["saved"]).map(money),
        f"Net ({currency})": (price * table["net"]).map(partial(money, signed=True)),
        "Pays from a pool of": table["break_even"].map(pays),
    })


def selection_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Selectors on a pool of known quality, the cleanest selection first, and chance below (quality/summary.json).

    On each side only the clean samples and those corrupted on that side are counted. Recall: the share of all clean
    samples that was kept. Length: rank correlation of the order of taking with the length of the target.
    """
    table = pd.DataFrame(summary["selectors"]).sort_values("both_precision", ascending=False, kind="stable")
    shown, chance = {"Selector": [*table["selector"].map(display.selector_title), "chance"]}, table.iloc[0]
    for side, title in SIDES.items():
        cells = _intervals(display.SHARE, table, f"{side}_precision", f"{side}_low", f"{side}_high")
        shown[title] = [*cells, display.SHARE.show(chance[f"{side}_chance"])]
    shown["Recall (%)"] = [*table["recall"].map(display.SHARE.show), display.SHARE.show(summary["ratio"])]
    lengths = _intervals(display.RHO, table, "length_rho", "length_low", "length_high", signed=True)
    return pd.DataFrame(shown | {"Length correlation": [*lengths, "0.00"]})


def _intervals(show: Metric, table: pd.DataFrame, *names: str, signed: bool = False) -> list[str]:
    """Texts of the rows of a table; names: the columns of the value, its low and its high end."""
    return [show.show_interval(*row, signed=signed) for row in table.reindex(columns=names).to_numpy()]


def _by_seed(show: Metric, values: list[float]) -> str:
    return ", ".join(map(show.show, values)) if len(values) > 1 else NOTHING


def _and_missing(arms: Iterable[str]) -> list[str]:
    """Arms without their seeds, each once, then the paper's selectors of which there is none."""
    ours = list(dict.fromkeys(map(display.without_seed, arms)))
    return ours + [one for one in SELECTORS if one not in map(display.selector_of, ours)]

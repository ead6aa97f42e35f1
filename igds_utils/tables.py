"""Tables 1 to 9 of the paper, and those without training, as frames whose cells are text.

`reporting.report` writes and shows them. The paper's values come from
`display.paper_values()` and always stand under the word "paper".
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd

from igds_utils import display
from igds_utils.analysis.stability import beyond_chance
from igds_utils.config.refs import describe
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.data.stats import interval, paired_difference
from igds_utils.display import LOGLIK, NOT_RUN, NOTHING, Metric, arm_title, number, task_title
from igds_utils.tasks.base import Task

RANKED_BY = {"score": "score (δ)", "loglik": "log-likelihood"}
PAPER_SOURCES = {"gsm8k": "GSM8K", "math500": "MATH-500", "openr1": "OpenR1"}
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
BENCHMARKS = {"mmlu": "MMLU", "truthfulqa": "TruthfulQA"}  # of the paper
F1 = Metric("F1", "F1", 1, 3)
SIDES = {"target": "Clean (%), target side", "prompt": "Clean (%), prompt side"}
MARK = "⟨p⟩"
STAGES = {
    "identification": "Task feature identification",
    "sft": "Supervised fine-tuning",
    "evaluation": "Evaluation",
}
whole = partial(number, digits=0)
signed_whole = partial(number, digits=0, signed=True)


def table1(results: dict, metrics: dict, model: str, paper: dict) -> pd.DataFrame:
    """Table 1: features recalled, the top one and its causal effect; the paper's below.

    `results[task]` = {"recall": recall.json, "features": task_features.json}.
    """
    rows = []
    for task, result in results.items():
        show, recall, found = metrics[task], result["recall"], result["features"]
        by, evidence = found["ranked_by"], found["evidence"]
        placebos = evidence["placebos"].values()
        top = [one for one in found["features"] if one["name"] in found["selected"]][0]
        again = map(top.get, display.effect_of("score", show)[2])
        rows.append({
            "Model": paper["models"].get(model, model),
            "Task, unit of δ": f"{task_title(task)}, {show.unit}",
            "Recalled": whole(recall["n_candidates"]),
            "Recalled (‱)": number(recall["basis_points"], 2),
            "Top feature": top["name"],
            "Ranked by": RANKED_BY[by],
            "δ (validation)": show.show_of(top, "delta", signed=True),
            "δ (confirmation)": show.show_interval(*again, signed=True),
            "Δ log-likelihood (validation)": LOGLIK.show_of(top, "delta_loglik", True),
            "Δ log-likelihood (confirmation)": LOGLIK.show_of(top, "confirmation_loglik", True),
            "Established": "yes" if found["established"] else "no",
            "Reliability": number(evidence["reliability"][by], 2).replace(NOTHING, "not defined"),
            "p, candidates differ": display.p_value(evidence["differ_p"][by]),
            "p, placebos": display.p_value(max((one["p"] for one in placebos), default=None)),
        })
    for key, title in paper["models"].items():
        for task in [task for task in results if task in paper["tasks"]]:
            theirs, unit = paper["table1"][key][task], paper["tasks"][task]["metric"]
            unit = paper["table1_units"].get(task, unit)
            rows.append({
                "Model": f"{title} (paper)",
                "Task, unit of δ": f"{task_title(task)}, {unit}",
                "Recalled (‱)": number(theirs["recalled_bp"], 2),
                "Top feature": theirs["feature"],
                "δ (validation)": f"{theirs['delta']:+g}",
            })
    return pd.DataFrame(rows).fillna(NOTHING)


def table2(summary: dict, metrics: dict, paper: dict) -> pd.DataFrame:
    """Table 2: what every arm was trained on, its score, its difference to Full and Random.

    `summary[task]`: records of `evaluation.summarise`; `metrics[task]`: how scores are shown.
    The paper's metric and test set differ by task: compare patterns, not values.
    """
    rows = []
    for task, records in summary.items():
        show, ours = metrics[task], display.at_main_ratio(records)
        draws = len(ours["random"]["by_seed"]) if "random" in ours else 0
        for selector in display.SELECTORS | ours:
            row = {"Task": f"{task_title(task)}, {show.label}", "Arm": arm_title(selector)}
            row |= _score_cells(ours.get(selector, {}), show, draws)
            row["Paper: metric"] = paper["tasks"].get(task, {}).get("metric", NOTHING)
            for model, title in paper["models"].items():
                scores = paper["table2"].get(task, {}).get(model, {})
                cell = number(scores.get(selector), display.PAPER_DIGITS.get(task, 2))
                if selector in scores and selector not in ("original", "full"):
                    gain = 100 * (scores[selector] / scores["full"] - 1)
                    cell += f" ({number(gain, 1, signed=True)})"
                row[f"Paper: {title} (vs Full, %)"] = cell
            rows.append(row)
    return pd.DataFrame(rows)


def _score_cells(record: dict, show: Metric, draws: int) -> dict[str, str]:
    def p_of(name: str) -> str:
        judged = record.get(f"{name}_judged") is not False
        return display.p_value(record.get(f"{name}_p")) if judged else display.NOT_JUDGED

    gain = None if display.missing(record.get("ratio")) else record["gain_over_full"]
    above = record.get("above_random") if draws > 1 else None
    score = map(record.get, ("score", "low", "high"))
    return {
        "Samples": whole(record.get("n_train") or None),
        "Target tokens": whole(record.get("target_tokens") or None),
        "Steps": whole(record.get("steps") or None),
        "Score": show.show_interval(*score) if record else NOT_RUN,
        "By seed": show.show_several(record.get("by_seed", [])),
        "vs Full (%)": number(gain, 1, signed=True),
        "vs Random": show.show_of(record, "vs_random", signed=True),
        "p (Holm)": p_of("vs_random"),
        "Above Random's draws": NOTHING if above is None else f"{above} of {draws}",
        "Log-likelihood": LOGLIK.show_of(record, "loglik"),
        "vs Random (nats)": LOGLIK.show_of(record, "loglik_vs_random", signed=True),
        "p (Holm, nats)": p_of("loglik_vs_random"),
    }


def table3(summary: dict, metrics: dict, paper: dict, k: int = 1) -> pd.DataFrame:
    """Table 3: score of IGDS, which sums k features, and of its ablations, as for Table 2."""
    rows = []
    for selector, (title, key) in display.ABLATIONS.items():
        row = {"Method": f"{title} (k = {k})" if selector == "igds" else title}
        for task, records in summary.items():
            found, show = display.at_main_ratio(records).get(selector), metrics[task]
            cells = map((found or {}).get, ("score", "low", "high"))
            score = show.show_interval(*cells) if found else NOT_RUN
            row[f"{task_title(task)}, {show.label}"] = score
            theirs = paper["tasks"].get(task, {}).get("metric", "not there")
            printed = number(paper["table3"][key].get(task), display.PAPER_DIGITS.get(task, 2))
            row[f"Paper: {task_title(task)}, {theirs}"] = printed
        rows.append(row)
    return pd.DataFrame(rows)


def table4(found: dict[str, pd.DataFrame], paper: dict) -> pd.DataFrame:
    """Table 4: what the selection step costs, relative to Loss.

    `found[task]` = `finished.selection_costs`. The paper's percentages are recomputed from its
    hours (Llama-3.1-8B), and what it prints follows where that is another number.
    """
    tables, printed = [], pd.DataFrame(paper["table4"]).T
    for task, table in found.items():
        costs = table.set_index("selector").astype(float)
        costs = costs.reindex(dict.fromkeys([*paper["table4"], *costs.index]))
        costs["hours"] = printed.get(task)
        change = (100 * (costs / costs.loc["loss"] - 1)).map(signed_whole)
        for name, misprint in paper["table4_misprints"].get(task, {}).items():
            change.loc[name, "hours"] += f" (printed {signed_whole(misprint)})"
        tables.append(pd.DataFrame({
            "Task": task_title(task),
            "Method": costs.index.map(display.selector_title),
            "Seconds": costs["seconds"].map(number).replace(NOTHING, NOT_RUN),
            "vs Loss (%)": change["seconds"],
            "Tokens read": costs["tokens"].map(whole),
            "Operations vs Loss (%)": change["operations"],
            "Paper: hours": costs["hours"].map(number),
            "Paper: vs Loss (%)": change["hours"],
        }))
    return pd.concat(tables, ignore_index=True)


def table5(
    rankings: dict, metric: Metric, paper: dict, top: int = 5, by: str = "score"
) -> pd.DataFrame:
    """Table 5: the best features by identification source, the paper's (Gemma-2-2B) beside.

    `rankings[source]` = `intervention.rank_features`, by what they are ranked by. A star: among
    the `top` best of every source, ours only beyond chance (`stability.beyond_chance`).
    """
    show, effects, _ = display.effect_of(by, metric)
    unit = f"δ, {metric.unit}" if by == "score" else "Δ log-likelihood"
    columns = {"Rank": [f"Top-{rank}" for rank in range(1, top + 1)]}
    shared = beyond_chance([list(table["name"]) for table in rankings.values()], top)
    for source, table in rankings.items():
        changes = table[effects[0]].map(partial(show.show, signed=True))
        columns[f"{source} ({unit})"] = _starred(table["name"], shared) + " (" + changes + ")"
    shared = set.intersection(*map(set, paper["table5"].values()))
    for source, names in paper["table5"].items():
        columns[f"Paper: {PAPER_SOURCES[source]}"] = _starred(names, shared)
    table = pd.DataFrame({title: pd.Series(cells) for title, cells in columns.items()})
    return table.reindex(range(top)).fillna(NOTHING)


def _starred(names: Iterable[str], shared: set[str]) -> pd.Series:
    return pd.Series([name + " *" * (name in shared) for name in names])


def table6(preset: Preset, recall: dict[str, Any], paper: dict) -> pd.DataFrame:
    """Table 6: parameters of model and SAEs, from preset and recall.json, and the paper's."""
    layers = sorted(recall["layers"])
    chosen, d_sae = preset.chosen, recall["n_features_total"] // len(layers)
    ours = {"identify": describe(chosen.identify), "train": describe(chosen.train)}
    ours |= {"layers": recall["model_layers"], "width": recall["model_width"]}
    ours |= {"sae_layers": layers, "source": chosen.saes.name, "d_sae": d_sae}
    columns = {preset.model: ours}
    for key, facts in paper["table6"].items():
        first, last = facts["sae_layers"]
        covered = {"sae_layers": list(range(first, last + 1))}
        columns[f"{paper['models'][key]} (paper)"] = facts | covered
    for title, facts in columns.items():
        layers = facts["sae_layers"]
        run = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
        columns[title] = {
            "Identify on": facts["identify"],
            "Train on": facts["train"],
            "Layers": whole(facts["layers"]),
            "Width d": whole(facts["width"]),
            "SAE source": facts["source"],
            "SAE layers": f"{layers[0]}–{layers[-1]}" if run else str(layers)[1:-1],
            "Features per layer": whole(facts["d_sae"]),
            "Expansion": f"{round(facts['d_sae'] / facts['width'], 1):g}×",
            "Features in all": whole(facts["d_sae"] * len(layers)),
        }
    return pd.DataFrame(columns).rename_axis("Parameter").reset_index()


def table7(evaluation: pd.DataFrame, paper: dict, **options) -> pd.DataFrame:
    """Table 7: ROUGE-1, -2 and -L F1 of every summarization arm; seeds of an arm pooled.

    `evaluation` is evaluation.parquet; `options` go to `stats.interval`.
    """
    pooled = evaluation.assign(arm=evaluation["arm"].map(display.without_seed))
    means, rows = pooled.groupby(["arm", "sample_id"])[list(ROUGE)].mean(), []
    for arm in _and_missing(evaluation["arm"]):
        row, selector = {"Arm": arm_title(arm)}, display.selector_of(arm)
        for kind, title in ROUGE.items():
            found = interval(means.loc[arm, kind], **options) if arm in means.index else None
            row[title] = F1.show_interval(*found) if found else NOT_RUN
        for model, title in paper["models"].items():
            printed = [number(paper["table7"][model][kind].get(selector), 4) for kind in ROUGE]
            cell = NOTHING if NOTHING in printed else ", ".join(printed)
            row[f"Paper: {title} (R-1, R-2, R-L)"] = cell
        rows.append(row)
    return pd.DataFrame(rows)


def table8(scores: dict, titles: dict, task_titles: dict, paper: dict, **options) -> pd.DataFrame:
    """Table 8: general benchmarks of every arm, and its change from the untrained model.

    `scores[task][arm]` is capabilities.parquet, or None for an arm that was not asked; seeds
    of an arm are pooled, changes paired by question. `titles[benchmark]` names a benchmark.
    """
    show, rows = display.POINTS.show_interval, []
    everything = [one for arms in scores.values() for one in arms.values()]
    asked = sorted({name for one in everything if one is not None for name in one["benchmark"]})
    unasked = [titles[one] for one in BENCHMARKS if one in titles and one not in asked]
    for task, task_name in task_titles.items():
        known = {arm: one for arm, one in scores.get(task, {}).items() if one is not None}
        for arm in _and_missing(scores.get(task, {})):
            row = {"Trained on": task_name, "Arm": arm_title(arm)}
            seeds = [name for name in known if display.without_seed(name) == arm]
            for name in asked:
                change = f"change, {titles[name].split(',')[0]}"
                row |= {titles[name]: NOT_RUN, change: NOTHING}
                if seeds:
                    mine = pd.DataFrame({one: _by_question(known[one], name) for one in seeds})
                    row[titles[name]] = show(*interval(mine.mean(axis=1), **options))
                if seeds and arm != "original":
                    base = _by_question(known["original"], name)
                    moved = paired_difference(mine, base, **options)
                    row[change] = show(*moved[:3], signed=True)
            row |= dict.fromkeys(unasked, NOT_RUN)
            theirs = paper["table8"].get(display.selector_of(arm), {}).get(task, {})
            for name, title in BENCHMARKS.items():
                row[f"Paper: {title}"] = number(theirs.get(name), 2)
            rows.append(row)
    return pd.DataFrame(rows)


def _by_question(table: pd.DataFrame, benchmark: str) -> pd.Series:
    here = table[table["benchmark"] == benchmark]
    return here.set_index(here["subject"] + " " + here["item"].astype(str))["score"]


def table9(tasks: dict[str, Task], configs: dict[str, TaskConfig], paper: dict) -> pd.DataFrame:
    """Table 9: the templates of every stage and task beside the paper's, fields in braces.

    The identification prompt has a mark at p; chat template and shots are left out.
    """
    rows = []
    for name, config in configs.items():
        task = tasks[name]
        asked = test = _plain(task.identification_template)
        target = _plain(task.target_template)
        if config.shots:
            shots = f" {{{config.shots} shots}}"
            test = _plain(task.few_shot_template).replace("{shots}", shots)
        trained = (test, "", target)
        if config.sft.rendering == "records":
            parts = (task.records_instruction, task.records_input, task.records_output)
            trained = [_plain(part).replace("{target}", target) for part in parts]
        parts = zip(("Instruction", "Input", "Output"), trained, strict=True)
        rows.append(("identification", name, "Prompt", f"{asked}{MARK} {target}"))
        rows += [("sft", name, *part) for part in parts]
        rows.append(("evaluation", name, "Prompt", test))
    cells = []
    for stage, task, part, text in sorted(rows, key=lambda row: list(STAGES).index(row[0])):
        printed = paper["table9"].get(task, {}).get(stage, {}).get(part, NOTHING)
        texts = (text or "(empty)", printed or "(empty)")
        cells.append((STAGES[stage], task_title(task), part, *texts))
    return pd.DataFrame(cells, columns=["Stage", "Task", "Part", "This run", "Paper"])


def _plain(template: str) -> str:
    return template.replace("{{", "{").replace("}}", "}")


def selection_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Selectors on a pool of known quality (quality/summary.json), the cleanest first.

    A side counts the clean samples and those corrupted on that side. Recall: share of the
    clean samples that was kept. Length: rank correlation with the target's length.
    """
    table, share = pd.DataFrame(summary["selectors"]), display.SHARE
    table = table.sort_values("both_precision", ascending=False, kind="stable")
    shown = {"Selector": [*table["selector"].map(display.selector_title), "chance"]}
    for side, title in SIDES.items():
        names = [f"{side}_{name}" for name in ("precision", "low", "high")]
        chance = share.show(table[f"{side}_chance"].iloc[0])
        shown[title] = [*share.column(table, names), chance]
    shown["Recall (%)"] = [share.show(one) for one in (*table["recall"], summary["ratio"])]
    names = [f"length_{name}" for name in ("rho", "low", "high")]
    lengths = display.RHO.column(table, names, signed=True)
    return pd.DataFrame(shown | {"Length correlation": [*lengths, "0.00"]})


def _and_missing(arms: Iterable[str]) -> list[str]:
    """Arms without their seeds, then the paper's selectors without an arm."""
    ours = list(dict.fromkeys(map(display.without_seed, arms)))
    run = set(map(display.selector_of, ours))
    return ours + [one for one in display.SELECTORS if one not in run]

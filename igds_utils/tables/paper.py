"""Tables 1, 2, 6 and 9: features and effects, scores, models, prompts."""

from __future__ import annotations

import pandas as pd

from igds_utils.core.arms import WHOLE
from igds_utils.display import (
    NOT_JUDGED,
    NOT_RUN,
    NOTHING,
    PAPER_DIGITS,
    SELECTORS,
    Metric,
    at_main_ratio,
    missing,
    number,
    p_value,
    selector_title,
    task_title,
)  # fmt: skip

STAGES = {
    "identification": "Task feature identification",
    "sft": "Supervised fine-tuning",
    "evaluation": "Evaluation",
}
RANKED_BY = {"score": "score (δ)", "loglik": "log-likelihood"}
MARK = "⟨p⟩"
EMPTY = "(empty)"


def table1(
    results: dict[str, dict],
    metrics: dict[str, Metric],
    model: str,
    paper: dict,
) -> pd.DataFrame:
    """Table 1: how many features were recalled, the top one, and its causal effect, per task.

    `results[task]` = {"recall": recall.json, "features": task_features.json}. Of what the candidates were ranked by,
    the score (δ) or the target's log-likelihood: established, whether the interval on the confirmation samples lies
    above zero; reliability (split-half), p that candidates differ at all, and p that as many placebos reach the chosen
    effect (the larger of the two kinds). Where `model` is one of the paper's, its values stand in the same row;
    otherwise the paper's models follow as rows of their own.
    """
    rows, own = [], paper["table1"].get(model)
    for task, result in results.items():
        show, recall, found = metrics[task], result["recall"], result["features"]
        top = next((f for f in found["features"] if f["name"] == (found["selected"] or [None])[0]), None)
        by = found.get("ranked_by", "score")
        row = {
            "Model": paper["models"].get(model, model),
            "Task, unit of δ": f"{task_title(task)}, {show.unit}",
            "Recalled": number(recall["n_candidates"], 0),
            "Recalled (‱)": number(recall["basis_points"], 2),
            "Top feature": "none" if top is None else top["name"],
            "Ranked by": RANKED_BY[by],
            "δ (validation)": NOTHING,
            "δ (confirmation)": NOTHING,
            "Δ log-likelihood (validation)": NOTHING,
            "Δ log-likelihood (confirmation)": NOTHING,
            "Established": NOTHING,
        }
        if top is not None:
            confirmation = (top.get(f"confirmation_{part}") for part in ("delta", "low", "high"))
            row["δ (validation)"] = show.show_interval(
                top["delta"], top["delta_low"], top["delta_high"], signed=True
            )
            row["δ (confirmation)"] = show.show_interval(*confirmation, signed=True)
            likelier = Metric("", "", 1, 3)
            parts = ("delta_loglik", "delta_loglik_low", "delta_loglik_high")
            row["Δ log-likelihood (validation)"] = likelier.show_interval(*map(top.get, parts), signed=True)
            parts = (f"confirmation_{part}" for part in ("loglik", "loglik_low", "loglik_high"))
            row["Δ log-likelihood (confirmation)"] = likelier.show_interval(*map(top.get, parts), signed=True)
            row["Established"] = "yes" if found["established"] else "no"
        if evidence := found.get("evidence"):
            row["Reliability"] = number(evidence["reliability"][by], 2)
            row["p, candidates differ"] = p_value(evidence["differ_p"][by])
            placebos = [kind["p"] for kind in evidence["placebos"].values() if not missing(kind["p"])]
            row["p, placebos"] = p_value(max(placebos, default=None))
        if own:
            theirs = _paper_table1(own[task])
            theirs["δ (validation)"] += f" {_paper_unit(task, paper)}"
            row |= {f"Paper: {key}": value for key, value in theirs.items()}
        rows.append(row)
    for theirs, title in ({} if own else paper["models"]).items():
        for task in results:
            if task in paper["table1"][theirs]:
                unit = f"{task_title(task)}, {_paper_unit(task, paper)}"
                first = {"Model": f"{title} (paper)", "Task, unit of δ": unit}
                rows.append(first | _paper_table1(paper["table1"][theirs][task]))
    return pd.DataFrame(rows).fillna(NOTHING)


def _paper_unit(task: str, paper: dict) -> str:
    return paper["table1_units"].get(task, paper["tasks"][task]["metric"])


def _paper_table1(values: dict) -> dict:
    return {
        "Recalled (‱)": number(values["recalled_bp"], 2),
        "Top feature": values["feature"],
        "δ (validation)": f"{values['delta']:+g}".replace("-", "−"),
    }


def table2(summary: dict[str, list[dict]], metrics: dict[str, Metric], paper: dict) -> pd.DataFrame:
    """Table 2: what every arm was trained on, its score, its gain over Full in percent, its difference to Random.

    `summary[task]` = records of `summaries.summarise`; those of the curve are left out. Selectors of the paper that
    were not run say so; a difference of arms of which one was trained once is not judged and has no p value. The
    paper's scores follow with their own gain over Full; its metric and test set differ by task (`paper["tasks"]`), so
    its scores are to be compared by pattern, not by value.
    """
    rows = []
    for task, records in summary.items():
        show, ours = metrics[task], at_main_ratio(records)
        printed = paper["table2"].get(task, {})
        for selector in [*SELECTORS, *(s for s in ours if s not in SELECTORS)]:
            row = {"Task": f"{task_title(task)}, {show.label}", "Arm": selector_title(selector)}
            row |= _score_cells(ours.get(selector), show)
            row["Paper: metric"] = paper["tasks"].get(task, {}).get("metric", NOTHING)
            for model, title in paper["models"].items():
                row[f"Paper: {title} (vs Full, %)"] = _printed_score(task, printed.get(model, {}), selector)
            rows.append(row)
    return pd.DataFrame(rows)


def _score_cells(record: dict | None, show: Metric) -> dict[str, str]:
    columns = (
        "Samples",
        "Target tokens",
        "Steps",
        "Score",
        "By seed",
        "vs Full (%)",
        "vs Random",
        "p (Holm)",
    )
    if record is None:
        return dict.fromkeys(columns, NOTHING) | {"Score": NOT_RUN}
    versus = (record[f"vs_random{part}"] for part in ("", "_low", "_high"))
    seeds = [show.show(score) for score in record["by_seed"]]
    gain = None if record["ratio"] is None else record["gain_over_full"]
    cells = (
        *(number(record[of] or None, 0) for of in ("n_train", "target_tokens", "steps")),
        show.show_interval(record["score"], record["low"], record["high"]),
        ", ".join(seeds) if len(seeds) > 1 else NOTHING,
        number(gain, 1, signed=True),
        show.show_interval(*versus, signed=True),
        NOT_JUDGED if record["vs_random_judged"] is False else p_value(record["vs_random_p"]),
    )
    return dict(zip(columns, cells, strict=True))


def _printed_score(task: str, printed: dict[str, float], selector: str) -> str:
    score = number(printed.get(selector), PAPER_DIGITS.get(task, 2))
    if score == NOTHING or selector in ("original", *WHOLE):
        return score
    return f"{score} ({number(100 * (printed[selector] / printed['full'] - 1), 1, signed=True)})"


def table6(models: dict[str, dict], paper: dict) -> pd.DataFrame:
    """Table 6: parameters of the models and their SAEs, ours first, then the paper's.

    `models[title]` = {identify, train, layers, width, sae_layers (list), d_sae, source}; expansion and the total
    number of features follow from these.
    """
    columns = {title: _model_column(facts) for title, facts in models.items()}
    for key, facts in paper["table6"].items():
        first, last = facts["sae_layers"]
        columns[f"{paper['models'][key]} (paper)"] = _model_column(
            facts | {"sae_layers": list(range(first, last + 1))}
        )
    frame = pd.DataFrame(columns)
    return frame.rename_axis("Parameter").reset_index()


def _model_column(facts: dict) -> dict[str, str]:
    layers = sorted(facts["sae_layers"])
    run = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
    return {
        "Identify on": facts["identify"],
        "Train on": facts["train"],
        "Layers": number(facts["layers"], 0),
        "Width d": number(facts["width"], 0),
        "SAE source": facts["source"],
        "SAE layers": f"{layers[0]}–{layers[-1]}" if run else ", ".join(map(str, layers)),
        "Features per layer": number(facts["d_sae"], 0),
        "Expansion": f"{number(facts['d_sae'] / facts['width'], 1).removesuffix('.0')}×",
        "Features in all": number(facts["d_sae"] * len(layers), 0),
    }


def table9(prompts: dict[str, dict[str, dict[str, str]]], paper: dict) -> pd.DataFrame:
    """Table 9: the templates of every stage and task, this run's beside the paper's.

    `prompts[task][stage][part]` = text with placeholders in braces; stage: identification, sft or evaluation; part:
    Prompt, or Instruction, Input and Output of a training sample. The paper's have the same form.
    """
    rows = []
    for stage, stage_title in STAGES.items():
        for task, stages in prompts.items():
            printed = paper["table9"].get(task, {}).get(stage, {})
            for part, text in stages[stage].items():
                row = {
                    "Stage": stage_title,
                    "Task": task_title(task),
                    "Part": part,
                    "This run": text or EMPTY,
                }
                rows.append(row | {"Paper": (printed[part] or EMPTY) if part in printed else NOTHING})
    return pd.DataFrame(rows)

"""Tables 1, 2, 6 and 9: features and effects, scores, models, prompts."""

from __future__ import annotations

import pandas as pd

from igds_utils.display import (
    NOT_RUN,
    NOTHING,
    PAPER_DIGITS,
    SELECTORS,
    Metric,
    at_ratio,
    number,
    selector_title,
    task_title,
)  # fmt: skip

STAGES = {
    "identification": "Task feature identification",
    "sft": "Supervised fine-tuning",
    "evaluation": "Evaluation",
}
MARK = "⟨p⟩"


def table1(
    results: dict[str, dict],
    metrics: dict[str, Metric],
    model: str,
    paper: dict,
    reference: str = "gemma-2-2b",
) -> pd.DataFrame:
    """Table 1: how many features were recalled, the top one, and its causal effect, per task.

    `results[task]` = {"recall": recall.json, "features": task_features.json}. Where `model` is one of the paper's,
    its values stand in the same row; otherwise the paper's `reference` model follows as rows of its own.
    """
    rows, own = [], paper["table1"].get(model)
    for task, result in results.items():
        show, recall, found = metrics[task], result["recall"], result["features"]
        top = next((f for f in found["features"] if f["name"] == (found["selected"] or [None])[0]), None)
        row = {
            "Model": paper["models"].get(model, model),
            "Task, unit of δ": f"{task_title(task)}, {show.unit}",
            "Recalled": number(recall["n_candidates"], 0),
            "Recalled (‱)": number(recall["basis_points"], 2),
            "Tested": number(recall["n_candidates"] - recall["n_cut"], 0),
            "Top feature": "none"
            if top is None
            else top["name"] + ("" if found["positive"] else " (not positive)"),
            "δ (validation)": NOTHING,
            "δ (confirmation)": NOTHING,
            "Δ log-likelihood": NOTHING,
        }
        if top is not None:
            confirmation = (top.get(f"confirmation_{part}") for part in ("delta", "low", "high"))
            row["δ (validation)"] = show.show_interval(
                top["delta"], top["delta_low"], top["delta_high"], signed=True
            )
            row["δ (confirmation)"] = show.show_interval(*confirmation, signed=True)
            row["Δ log-likelihood"] = number(top.get("delta_loglik"), 3, signed=True)
        if own:
            row |= {f"Paper: {key}": value for key, value in _paper_table1(own[task]).items()}
        rows.append(row)
    if not own:
        for task in results:
            if task in paper["table1"][reference]:
                unit = paper["tasks"][task]["metric"].replace(" accuracy (%)", " points")
                first = {"Model": f"{paper['models'][reference]} (paper)"}
                first |= {"Task, unit of δ": f"{task_title(task)}, {unit}"}
                rows.append(first | _paper_table1(paper["table1"][reference][task]))
    return pd.DataFrame(rows, columns=list(rows[0])).fillna(NOTHING)


def _paper_table1(values: dict) -> dict:
    return {
        "Recalled (‱)": number(values["recalled_bp"], 2),
        "Top feature": values["feature"],
        "δ (validation)": f"{values['delta']:+g}".replace("-", "−"),
    }


def table2(
    summary: dict[str, list[dict]],
    metrics: dict[str, Metric],
    paper: dict,
    model: str = "",
    ratio: float = 0.5,
) -> pd.DataFrame:
    """Table 2: score of every arm per task, its gain over Full in percent, its paired difference to Random.

    `summary[task]` = records of `stats.summarise`. Selectors of the paper that were not run say so. The paper's
    columns are those of `model` where the paper has it, of Gemma-2-2B otherwise; its metric and test set differ by
    task (`paper["tasks"]`), so its scores are to be compared by pattern, not by value.
    """
    beside = model if model in paper["models"] else "gemma-2-2b"
    title, rows = paper["models"][beside], []
    for task, records in summary.items():
        show = metrics[task]
        printed = paper["table2"].get(task, {}).get(beside, {})
        ours = at_ratio(records, ratio)
        digits = PAPER_DIGITS.get(task, 2)
        for selector in [*SELECTORS, *(s for s in ours if s not in SELECTORS)]:
            record, theirs = ours.get(selector), printed.get(selector)
            row = {"Task": f"{task_title(task)}, {show.label}", "Arm": selector_title(selector)}
            if record is None:
                row |= {"Trained on": NOTHING, "Score": NOT_RUN, "vs Full (%)": NOTHING, "vs Random": NOTHING}
            else:
                versus = (record[f"vs_random{part}"] for part in ("", "_low", "_high"))
                gain = (
                    NOTHING
                    if selector in ("original", "full")
                    else number(record["gain_over_full"], 1, signed=True)
                )
                row |= {
                    "Trained on": NOTHING if selector == "original" else number(record["n_train"], 0),
                    "Score": show.show_interval(record["score"], record["low"], record["high"]),
                    "vs Full (%)": gain,
                    "vs Random": show.show_interval(*versus, signed=True),
                }
            row[f"Paper: {title}"] = number(theirs, digits)
            gain = (
                None
                if theirs is None or selector in ("original", "full")
                else 100 * (theirs / printed["full"] - 1)
            )
            row["Paper: vs Full (%)"] = number(gain, 1, signed=True)
            rows.append(row)
    return pd.DataFrame(rows)


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


def table9(prompts: dict[str, dict[str, tuple[str, str]]]) -> pd.DataFrame:
    """Table 9: the prompt of every stage and task, with the critical position marked.

    `prompts[task][stage]` = (prompt, target), placeholders in braces, stage one of identification, sft, evaluation.
    The mark follows the identification prompt's last colon. Raises ValueError where that prompt ends otherwise.
    """
    rows = []
    for stage, stage_title in STAGES.items():
        for task, stages in prompts.items():
            if stage not in stages:
                continue
            prompt, target = stages[stage]
            if stage == "identification":
                if not prompt.endswith(":"):
                    raise ValueError(
                        f"table 9: the identification prompt of {task} does not end in a colon: {prompt!r}"
                    )
                prompt += MARK
            rows.append({"Stage": stage_title, "Task": task_title(task), "Prompt": prompt + target})
    return pd.DataFrame(rows)

"""Tables of features, models and prompts: 1, 5, 6 and 9 of the paper, and how far sources agree."""

from typing import Any

import pandas as pd

from igds_utils.analysis.stability import beyond_chance
from igds_utils.config.refs import describe
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.display import LOGLIK, NOTHING, Metric, missing, number, p_value, task_title
from igds_utils.tasks.base import Task

PAPER_SOURCES = {"gsm8k": "GSM8K", "math500": "MATH-500", "openr1": "OpenR1"}
RANKED_BY = {"score": "score (δ)", "loglik": "log-likelihood"}
IN_ALL = " *"  # after a feature that is among the best of every source, beyond chance
MARK = "⟨p⟩"
STAGES = {
    "identification": "Task feature identification",
    "sft": "Supervised fine-tuning",
    "evaluation": "Evaluation",
}


def table1(
    results: dict[str, dict], metrics: dict[str, Metric], model: str, paper: dict[str, Any]
) -> pd.DataFrame:
    """Table 1: how many features were recalled, the top one, and its causal effect, per task; the paper's models below.

    `results[task]` = {"recall": recall.json, "features": task_features.json}. Of what the candidates were ranked by,
    the score (δ) or the target's log-likelihood: established, whether the interval on the confirmation samples lies
    above zero; reliability (split-half), p that candidates differ at all, and p of the chosen effect's rank among
    placebos (the larger of the two kinds).
    """
    rows = []
    for task, result in results.items():
        show, recall, found = metrics[task], result["recall"], result["features"]
        chosen, by = (found["selected"] or [None])[0], found.get("ranked_by", "score")
        top = next((feature for feature in found["features"] if feature["name"] == chosen), {})
        again = (top.get(f"confirmation_{part}") for part in ("delta", "low", "high"))
        row = {
            "Model": paper["models"].get(model, model),
            "Task, unit of δ": f"{task_title(task)}, {show.unit}",
            "Recalled": number(recall["n_candidates"], 0),
            "Recalled (‱)": number(recall["basis_points"], 2),
            "Top feature": chosen or "none",
            "Ranked by": RANKED_BY[by],
            "δ (validation)": show.show_of(top, "delta", signed=True),
            "δ (confirmation)": show.show_interval(*again, signed=True),
            "Δ log-likelihood (validation)": LOGLIK.show_of(top, "delta_loglik", signed=True),
            "Δ log-likelihood (confirmation)": LOGLIK.show_of(top, "confirmation_loglik", signed=True),
            "Established": ("yes" if found["established"] else "no") if top else NOTHING,
        }
        if evidence := found.get("evidence"):
            placebos = [kind["p"] for kind in evidence["placebos"].values() if not missing(kind["p"])]
            shown = number(evidence["reliability"][by], 2).replace(NOTHING, "not defined")
            row["Reliability"] = shown
            row["p, candidates differ"] = p_value(evidence["differ_p"][by])
            row["p, placebos"] = p_value(max(placebos, default=None))
        rows.append(row)
    for other, title in paper["models"].items():
        for task in results:
            if printed := paper["table1"][other].get(task):
                unit = paper["table1_units"].get(task, paper["tasks"][task]["metric"])
                rows.append({
                    "Model": f"{title} (paper)",
                    "Task, unit of δ": f"{task_title(task)}, {unit}",
                    "Recalled (‱)": number(printed["recalled_bp"], 2),
                    "Top feature": printed["feature"],
                    "δ (validation)": f"{printed['delta']:+g}".replace("-", "−"),
                })
    return pd.DataFrame(rows).fillna(NOTHING)


def table5(
    rankings: dict[str, pd.DataFrame], metric: Metric, paper: dict, top: int = 5, by: str = "score"
) -> pd.DataFrame:
    """Table 5: the best features by identification source with their effects, the paper's (Gemma-2-2B) beside them.

    `rankings[source]` = `intervention.rank_features` of that source. A star marks features that are among the `top`
    best of every source, ours and the paper's each for themselves; ours only where blind draws from what was tested
    would rarely share as many (`stability.beyond_chance`). by: what they are ranked by; "loglik" shows its change.
    """
    effect, unit, show = "delta", f"δ, {metric.unit}", metric
    if by == "loglik":
        effect, unit, show = "delta_loglik", "Δ log-likelihood", LOGLIK
    shared = beyond_chance([list(table["name"]) for table in rankings.values()], top)
    columns = {"Rank": [f"Top-{rank}" for rank in range(1, top + 1)]}
    for source, table in rankings.items():
        columns[f"{source} ({unit})"] = [
            f"{name}{IN_ALL * (name in shared)} ({show.show(value, signed=True)})"
            for name, value in zip(table["name"], table[effect], strict=True)
        ]
    shared = set.intersection(*map(set, paper["table5"].values()))
    for source, names in paper["table5"].items():
        columns[f"Paper: {PAPER_SOURCES[source]}"] = [name + IN_ALL * (name in shared) for name in names]
    table = pd.DataFrame({title: pd.Series(cells) for title, cells in columns.items()})
    return table.reindex(range(top)).fillna(NOTHING)


def agreement_table(records: list[dict[str, Any]], top: int = 5) -> pd.DataFrame:
    """How much sources have in common, one row per pair and one for all (`stability.agreement`)."""
    return pd.DataFrame(
        {
            "Sources": " and ".join(record["sources"]) if len(record["sources"]) == 2 else "all",
            "Same top feature": "yes" if record["same_top1"] else "no",
            "Same by chance (%)": number(100 * record["same_top1_by_chance"], 0),
            f"Shared of the top {top}": number(len(record["top_shared"]), 0),
            "Shared by chance": number(record["shared_by_chance"], 2),
            "p": p_value(record["shared_p"]),
            f"Jaccard of the top {top}": number(record["top_jaccard"], 2),
            "Jaccard of all candidates": number(record["candidates_jaccard"], 2),
        }
        for record in records
    )


def table6(models: dict[str, dict], paper: dict) -> pd.DataFrame:
    """Table 6: parameters of the models and their SAEs, ours first, then the paper's.

    `models[title]` = {identify, train, layers, width, sae_layers (list), d_sae, source}; expansion and the total
    number of features follow from these.
    """
    columns = {title: _model_column(facts) for title, facts in models.items()}
    for key, facts in paper["table6"].items():
        first, last = facts["sae_layers"]
        covered = {"sae_layers": list(range(first, last + 1))}
        columns[f"{paper['models'][key]} (paper)"] = _model_column(facts | covered)
    return pd.DataFrame(columns).rename_axis("Parameter").reset_index()


def model_facts(preset: Preset, recall: dict[str, Any]) -> dict[str, Any]:
    """A model's column of Table 6, from the preset and what recall noted of the model (recall.json)."""
    chosen = preset.chosen
    return {
        "identify": describe(chosen.identify),
        "train": describe(chosen.train),
        "layers": recall["model_layers"],
        "width": recall["model_width"],
        "sae_layers": recall["layers"],
        "d_sae": recall["n_features_total"] // len(recall["layers"]),
        "source": chosen.saes.name,
    }


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
    """Table 9: the templates of every stage and task, this run's (`prompt_templates`) beside the paper's."""
    rows = []
    for stage, title in STAGES.items():
        for task, stages in prompts.items():
            printed = paper["table9"].get(task, {}).get(stage, {})
            for part, text in stages[stage].items():
                theirs = (printed[part] or "(empty)") if part in printed else NOTHING
                rows.append((title, task_title(task), part, text or "(empty)", theirs))
    return pd.DataFrame(rows, columns=["Stage", "Task", "Part", "This run", "Paper"])


class _Braces(dict):
    """Values of a template; a field without one stays as its name in braces."""

    def __missing__(self, name: str) -> str:
        return f"{{{name}}}"


def prompt_templates(
    tasks: dict[str, Task], configs: dict[str, TaskConfig]
) -> dict[str, dict[str, dict[str, str]]]:
    """The templates of a run, fields left in braces: prompts[task][stage][part].

    stage: identification, sft or evaluation; part: Prompt, or Instruction, Input and Output of a training sample. The
    identification prompt has a mark at p; the chat template, where one is used, is left out; shots are abridged.
    """
    prompts = {}
    for name, config in configs.items():
        task = tasks[name]
        asked = test = task.identification_template.format_map(_Braces())
        target = task.target_template.format_map(_Braces())
        if config.shots:
            test = task.few_shot_template.format_map(_Braces(shots=f" {{{config.shots} shots}}"))
        trained = {"Instruction": test, "Input": "", "Output": target}
        if config.sft.rendering == "records":
            parts = (task.records_instruction, task.records_input, task.records_output)
            filled = (part.format_map(_Braces(target=target)) for part in parts)
            trained = dict(zip(trained, filled, strict=True))
        prompts[name] = {
            "identification": {"Prompt": f"{asked}{MARK} {target}"},
            "sft": trained,
            "evaluation": {"Prompt": test},
        }
    return prompts

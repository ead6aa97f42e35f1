"""What a run was, what it cost and what to do next, in words: the report's framing around its tables and figures."""

from __future__ import annotations

from typing import Any

from igds_utils.config.refs import describe
from igds_utils.config.settings import Preset
from igds_utils.core.arms import selection_size
from igds_utils.core.experiment import Run
from igds_utils.display import Metric, at_main_ratio, duration, selector_title, task_title


def what_was_run(preset: Preset, facts: dict[str, Any]) -> str:
    """One paragraph (Markdown): preset, model, tasks, arms, seed and machine."""
    lines = []
    for name, config in preset.tasks.items():
        chosen = f"{', '.join(map(selector_title, config.selectors))} at {100 * config.ratio:g} %"
        if config.curve:
            ratios = ", ".join(f"{100 * ratio:g} %" for ratio in config.curve.ratios)
            chosen += f" ({', '.join(map(selector_title, config.curve.selectors))} also at {ratios})"
        lines.append(
            f"- **{task_title(name)}**: pool of {config.sizes.pool}, {config.sizes.test} test items; "
            f"{chosen}, beside the untrained model and training on the whole pool"
        )
    machine = facts["machine"]
    where = (
        _count(machine["gpus"], "GPU")
        if machine["gpus"]
        else f"{_count(machine['threads'], 'thread')} of {machine['processor']}"
    )
    return (
        f"Preset `{preset.name}` ({preset.description}): {preset.model}, on {where}, code {facts['commit']}, "
        f"seed {preset.seed}.\n\n" + "\n".join(lines)
    )


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def sight(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> str:
    """How large a difference of IGDS and Random would have to be to be seen in this run (Markdown; may be empty).

    Tasks on which an arm was trained once are left out: their intervals do not cover all that varies. A true difference
    of half the width of its interval leaves zero out of the interval half of the time, one of (1.96 + 0.84) / 1.96
    times as much, at 95 %, four times in five.
    """
    seen = []
    for task, records in summary.items():
        igds = at_main_ratio(records).get("igds")
        if igds is not None and igds["vs_random_judged"] and igds["vs_random_low"] is not None:
            reach = (igds["vs_random_high"] - igds["vs_random_low"]) / 2
            seen.append(
                f"{metrics[task].show(reach)} {metrics[task].unit} ({task_title(task)}, {igds['n']} items)"
            )
    if not seen:
        return ""
    return (
        "A run like this one sees a true difference of IGDS and Random half of the time where it is "
        f"{' or '.join(seen)}; to be seen four times in five it has to be 1.4 times as large."
    )


CHECKED = {
    "full - original": "training on the full pool against the untrained model",
    "clean - corrupted": "training on the clean half against the half spoilt on purpose",
}


ONCE = "not judged, because an arm was trained once (the interval covers test items alone)"


def checks_text(checks: dict[str, list[dict]], metrics: dict[str, Metric]) -> str:
    """Whether each task can say anything about selection, as a Markdown list."""
    lines = []
    for task, made in checks.items():
        for check in made:
            gain = metrics[task].show_interval(check["gain"], check["low"], check["high"], signed=True)
            failed = "the other one did better" if check["high"] < 0 else "this test does not tell them apart"
            verdict = {True: "passed", False: f"**failed: {failed}**", None: ONCE}[check["passed"]]
            lines.append(
                f"- {task_title(task)}, {CHECKED[check['name']]}: {gain} {metrics[task].unit}; {verdict}"
            )
    return "\n".join(lines)


def pipeline_counts(preset: Preset, recall: dict, selected: list[str], task: str) -> dict[str, str]:
    """The numbers of Figure 2 by stage: sizes of the sets, and how many features of a task each stage left."""
    config = preset.tasks[task]
    counts = {
        "Prior set: prompts": config.sizes.prior,
        "SAE features": recall["n_features_total"],
        "Recall: candidates": recall["n_candidates"],
        "Amplification: features": recall["n_candidates"] - recall["n_cut"],
        "Causal filter: prompts": config.sizes.validation,
        "Pool: samples": config.sizes.pool,
        "Selection: samples": selection_size(config.ratio, config.sizes.pool),
        "Evaluation: items": config.sizes.test,
    }
    return {stage: f"{n:,}" for stage, n in counts.items()} | {"Task features": ", ".join(selected)}


def model_facts(preset: Preset, recall: dict[str, Any]) -> dict[str, Any]:
    """A model's row of Table 6, from the preset and what recall noted of the model (recall.json)."""
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


# ---- what the exhibits show, in words --------------------------------------------------------------------


def told(run: Run, metrics: dict[str, Metric]) -> dict[str, str]:
    """Exhibit -> what it shows in this run (Markdown), of the stored products that the sentences are made from."""
    from igds_utils.analysis import distributions, monitoring, robustness, semantics, stability

    summary = {task: run.read(f"{task}/summary.json") for task in run.tasks}
    said = {"figure4": [robustness.ratio_story(summary, metrics)]}
    if chats := [task_title(task) for task in run.tasks if run.config(task).rendering == "chat"]:
        said["table9"] = [
            "The model's chat template, left out here, wraps the prompts of identification and test of these "
            f"tasks: {', '.join(chats)}."
        ]
    if run.store.has("benefit.json"):
        said["cost_benefit"] = [run.read("benefit.json")["story"].replace("$", r"\$")]
    for task in run.tasks:
        metric, name = metrics[task], task_title(task)
        if run.store.has(f"{task}/stability/summary.json"):
            found = run.read(f"{task}/stability/summary.json")
            text = stability.story(found["agreement"], found["top1"], run.config(task).stability.top)
            said.setdefault("table5", []).append(f"{name}: {text}")
        if run.store.has(f"{task}/correlation.json"):
            moved, feature = run.read(f"{task}/distributions.parquet"), run.task_features(task)[0].name
            rho = run.read(f"{task}/correlation.json")
            said.setdefault("figure3", []).append(
                f"{name}: {distributions.story(moved, rho, metric, feature)}"
            )
        if run.store.has(f"{task}/words.parquet"):
            told_of = semantics.story(run.read(f"{task}/words.parquet"))
            said.setdefault("figure6", []).append(f"{name}: {told_of}")
        if run.store.has(f"{task}/monitoring.parquet"):
            watched = run.read(f"{task}/monitoring.parquet")
            said.setdefault("monitoring_{task}", []).append(f"{name}: {monitoring.digest(watched)}")
    return {name: texts[0] if len(texts) == 1 else _list(texts) for name, texts in said.items()}


# ---- cost and next steps ---------------------------------------------------------------------------------


def cost_text(facts: dict[str, Any]) -> str:
    """Minutes and peak memory of the notebooks before the report (Markdown); empty where nothing was recorded."""
    if not (runs := facts["notebooks"]):
        return "This run was not made by the runner, so its time was not recorded."
    total = sum(entry["seconds"] for entry in runs.values())
    peak = max(entry["peak_bytes"] for entry in runs.values())
    each = ", ".join(f"{name} {duration(entry['seconds'])}" for name, entry in runs.items())
    return f"The notebooks took {duration(total)} in all ({each}); the largest held {peak / 1e9:.1f} GB."


def next_steps(preset: Preset, summary: dict[str, list[dict]]) -> str:
    """What a reader of this report would run next (Markdown list), derived from what this run left open."""
    found = {task: at_main_ratio(records).get("igds") for task, records in summary.items()}
    compared = {
        task: igds for task, igds in found.items() if igds is not None and igds["vs_random_low"] is not None
    }
    once = [task for task, igds in compared.items() if not igds["vs_random_judged"]]
    open_tasks = [
        task
        for task, igds in compared.items()
        if task not in once and igds["vs_random_low"] <= 0 <= igds["vs_random_high"]
    ]
    command = f"make reproduce PRESET={preset.name} MODEL={preset.model}"
    steps = []
    if once:
        steps.append(
            "More trainings of Full and of every selection, because with one nothing is judged (the halves of the "
            "spoilt pool are trained once all the same): "
            f'`{command} SET="{" ".join(f"tasks.{task}.seeds=[0,1,2]" for task in once)}"`.'
        )
    if open_tasks:
        task, names = open_tasks[0], ", ".join(map(task_title, open_tasks))
        steps.append(
            "More test items (four times as many halve an interval) and more training seeds, because IGDS and Random "
            f"could not be told apart on {names}: "
            f'`{command} SET="tasks.{task}.sizes.test={4 * preset.tasks[task].sizes.test} tasks.{task}.seeds=[0,1,2]"`.'
        )
    if cut := [task for task, config in preset.tasks.items() if config.max_candidates is not None]:
        most = 2 * preset.tasks[cut[0]].max_candidates
        steps.append(
            "More candidates in the causal filter, to see whether a better feature was cut: "
            f'`{command} SET="tasks.{cut[0]}.max_candidates={most}"`.'
        )
    steps.append(
        "Steering with another strength, to see whether the chosen feature stays the best: "
        f'`{command} SET="intervention.scale={2 * preset.intervention.scale:g}"`.'
    )
    if larger := {"smoke": "quick", "quick": "laptop", "laptop": "paper"}.get(preset.name):
        steps.append(f"The next larger preset; what it would take: `make plan PRESET={larger}`.")
    return _list(steps)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)

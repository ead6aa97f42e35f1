"""What a run was, what it cost and what to do next, in words: the report's framing around its tables and figures."""

from __future__ import annotations

from typing import Any

from igds_utils.arms import selection_size
from igds_utils.display import Metric, selector_title, task_title
from igds_utils.experiment import Run
from igds_utils.findings import describe_ref
from igds_utils.job import duration
from igds_utils.settings import Preset


def what_was_run(preset: Preset, facts: dict[str, Any]) -> str:
    """One paragraph (Markdown): preset, model, tasks, arms, seed and machine."""
    lines = []
    for name, config in preset.tasks.items():
        ratios = ", ".join(f"{100 * ratio:g} %" for ratio in config.ratios)
        chosen = ", ".join(selector_title(selector) for selector in config.selectors)
        lines.append(
            f"- **{task_title(name)}**: pool of {config.sizes.pool}, {config.sizes.test} test items; "
            f"{chosen} at {ratios}, beside the untrained model and training on the whole pool"
        )
    machine = facts["machine"]
    where = (
        f"{machine['gpus']} GPUs"
        if machine["gpus"]
        else f"{machine['threads']} threads of {machine['processor']}"
    )
    return (
        f"Preset `{preset.name}` ({preset.description}): {preset.model}, on {where}, code {facts['commit']}, "
        f"seed {preset.seed}.\n\n" + "\n".join(lines)
    )


CHECKED = {
    "full - original": "training on the full pool against the untrained model",
    "clean - defective": "training on the clean half against the half spoilt on purpose",
}


def checks_text(checks: dict[str, list[dict]], metrics: dict[str, Metric]) -> str:
    """Whether each task can say anything about selection, as a Markdown list."""
    lines = []
    for task, made in checks.items():
        for check in made:
            gain = metrics[task].show_interval(check["gain"], check["low"], check["high"], signed=True)
            verdict = (
                "passed" if check["passed"] else "**failed: at this size the test does not tell them apart**"
            )
            lines.append(
                f"- {task_title(task)}, {CHECKED[check['name']]}: {gain} {metrics[task].unit}; {verdict}"
            )
    return "\n".join(lines)


def pipeline_counts(preset: Preset, recall: dict, selected: list[str], task: str) -> dict[str, int | str]:
    """The numbers that Figure 2 shows: sizes of the sets, and how many features each stage left of a task."""
    config = preset.tasks[task]
    return {
        "prior": config.sizes.prior,
        "features": recall["n_features_total"],
        "candidates": recall["n_candidates"],
        "tested": recall["n_candidates"] - recall["n_cut"],
        "validation": config.sizes.validation,
        "task_feature": ", ".join(selected),
        "pool": config.sizes.pool,
        "selected": selection_size(config.ratios[0], config.sizes.pool),
        "test": config.sizes.test,
    }


def model_facts(run: Run) -> dict[str, Any]:
    """A model's row of Table 6."""
    chosen = run.preset.chosen
    return {
        "identify": describe_ref(chosen.identify),
        "train": describe_ref(chosen.train),
        "layers": run.lm.n_layers,
        "width": run.lm.width,
        "sae_layers": run.saes.layers,
        "d_sae": run.saes.d_sae,
        "source": chosen.saes.name,
    }


def cost_text(facts: dict[str, Any]) -> str:
    """Minutes and peak memory of the notebooks before the report (Markdown); empty where nothing was recorded."""
    runs = {name: entries[-1] for name, entries in facts["notebooks"].items() if entries[-1]["complete"]}
    if not runs:
        return "This run was not made by the runner, so its time was not recorded."
    total = sum(entry["seconds"] for entry in runs.values())
    peak = max(entry["peak_bytes"] for entry in runs.values())
    each = ", ".join(f"{name} {duration(entry['seconds'])}" for name, entry in runs.items())
    return f"The notebooks took {duration(total)} in all ({each}); the largest held {peak / 1e9:.1f} GB."


def next_steps(preset: Preset, summary: dict[str, list[dict]]) -> str:
    """What a reader of this report would run next (Markdown list), derived from what this run left open."""
    unsure = [
        task_title(task)
        for task, records in summary.items()
        for record in records
        if record["selector"] == "igds"
        and record["vs_random_low"] is not None
        and record["vs_random_low"] <= 0 <= record["vs_random_high"]
    ]
    steps = []
    if unsure:
        steps.append(
            f"More test items and seeds, because IGDS and Random could not be told apart on {', '.join(unsure)}: "
            '`make reproduce SET="tasks.math.sizes.test=400 tasks.math.seeds=[0,1,2]"`.'
        )
    steps += [
        f"More candidates in the causal filter, to see whether a better feature was cut: "
        f'`make reproduce PRESET={preset.name} SET="tasks.math.max_candidates=64"`.',
        "Steering with another strength, to see whether the chosen feature stays the best: "
        f'`make reproduce PRESET={preset.name} SET="intervention.scale=2"`.',
    ]
    return "\n".join(f"- {step}" for step in steps)

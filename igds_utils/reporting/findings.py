"""The sentences of the report: what was found, how sure it is, and where the run departs from the paper."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.display import NOT_JUDGED, NOT_RUN, NOTHING, Metric, at_main_ratio, number, task_title
from igds_utils.tables.paper import MARK
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example, placeholders
from igds_utils.tasks.sourced import origins

VERDICTS = {
    "better": "better",
    "worse": "worse",
    "open": "not to be told apart, because the interval covers zero",
    "once": "not judged, because an arm was trained once",
}


def headline(summary: dict[str, list[dict]], metrics: dict[str, Metric], confidence: float = 0.95) -> str:
    """Does IGDS differ from Random at the same size? The difference, its interval and a verdict for every task.

    `summary[task]` = records of `summaries.summarise`. A difference counts only where its interval leaves out zero, and
    nothing is judged where an arm was trained once.
    """
    said, trainings = [], []
    for task, records in summary.items():
        igds = at_main_ratio(records).get("igds")
        if igds is not None and igds["vs_random"] is not None:
            verdict = VERDICTS[_verdict(igds, "random")]
            said.append(f"{task_title(task)} {_difference(igds, 'random', metrics[task])}, {verdict}")
            trainings += [len(igds["seeds"])] if igds["vs_random_judged"] else []
    if not said:
        return (
            "This run has no pair of IGDS and Random arms, so it cannot say whether IGDS selects better data."
        )
    covered = " and, where it is judged, training" if trainings else " alone, without the luck of training"
    rough = "; from two trainings a rough indication" if 2 in trainings else ""
    return (
        f"IGDS minus Random, both trained on the same number of samples: {'; '.join(said)} "
        f"({100 * confidence:g} % intervals, over test items{covered}{rough})."
    )


def unestablished(features: dict[str, dict]) -> str:
    """Which tasks have no established feature, and what IGDS uses there; empty where all have one.

    `features[task]` = task_features.json.
    """
    without = {task: found["selected"] for task, found in features.items() if not found["established"]}
    if not without:
        return ""
    first = (
        "No causal effect is established in this run"
        if len(without) == len(features)
        else f"On {_and(list(map(task_title, without)))} no causal effect is established"
    )
    used = "; ".join(f"{', '.join(names)} ({task_title(task)})" for task, names in without.items())
    return (
        f"{first}: on samples that had no part in choosing the feature, the interval of its effect does not lie above "
        f"zero. IGDS uses the best there is: {used}."
    )


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


FAILED = {
    "full - original": "Full does not lie above Original beyond its interval",
    "clean - corrupted": "the clean half does not lie above the spoilt one beyond its interval",
}


def overview(
    summary: dict[str, list[dict]], metrics: dict[str, Metric], checks: dict[str, list[dict]]
) -> pd.DataFrame:
    """One row per task: the score of IGDS, its paired differences, and whether data matter on the task at all.

    `checks[task]` = records of `summaries.checks`.
    """
    rows = []
    for task, records in summary.items():
        igds, show = at_main_ratio(records).get("igds"), metrics[task]
        row = {"Task": f"{task_title(task)}, {show.label}"}
        if igds is None:
            row |= {"Test items": NOTHING, "Pool kept": NOTHING, "Trainings": NOTHING, "IGDS": NOT_RUN}
        else:
            row |= {
                "Test items": number(igds["n"], 0),
                "Pool kept": f"{100 * igds['ratio']:g} %",
                "Trainings": number(len(igds["seeds"]), 0),
                "IGDS": show.show_interval(igds["score"], igds["low"], igds["high"]),
            }
        for reference in ("random", "full", "original"):
            values = (
                [None] * 3
                if igds is None
                else [igds[f"vs_{reference}{part}"] for part in ("", "_low", "_high")]
            )
            row[f"− {reference.capitalize()}"] = show.show_interval(*values, signed=True)
        failed = [FAILED[check["name"]] for check in checks.get(task, []) if check["passed"] is False]
        once = any(check["passed"] is None for check in checks.get(task, []))
        passed = NOT_JUDGED if once else "yes" if task in checks else NOTHING
        row["Do data matter here?"] = f"no: {', '.join(failed)}" if failed else passed
        rows.append(row)
    return pd.DataFrame(rows)


def caution(checks: dict[str, list[dict]]) -> str:
    """How far the headline can be trusted: on which tasks the data matter enough for a selection to show."""
    tasks: dict[str, list[str]] = {"failed": [], "once": [], "passed": [], "gained": []}
    for task, made in checks.items():
        found = {check["passed"] for check in made}
        against_spoilt = any(check["name"] == "clean - corrupted" for check in made)
        passed = "passed" if against_spoilt else "gained"
        kind = "failed" if False in found else "once" if None in found else passed
        tasks[kind] += [task_title(task)] if made else []
    sentences = {
        "failed": "How sure is that? Not very on {}: a check of the task itself failed there (below), so what looks "
        "like an effect of selection may be luck of training.",
        "once": "Whether data matter at all is not judged on {}, because an arm of its checks was trained once.",
        "passed": "Data good and bad lead to different models on {} (checks below).",
        "gained": "Training on the full pool lies above the untrained model on {} (check below).",
    }
    return " ".join(text.format(_and(tasks[kind])) for kind, text in sentences.items() if tasks[kind])


def _verdict(record: dict, reference: str) -> str:
    low, high = record[f"vs_{reference}_low"], record[f"vs_{reference}_high"]
    if not record[f"vs_{reference}_judged"]:
        return "once"
    if low is None or low <= 0 <= high:
        return "open"
    return "better" if low > 0 else "worse"


def _difference(record: dict, reference: str, show: Metric) -> str:
    low, high = record[f"vs_{reference}_low"], record[f"vs_{reference}_high"]
    text = f"{show.show(record[f'vs_{reference}'], signed=True)} {show.unit}"
    return text if low is None else f"{text} [{show.show(low, signed=True)}, {show.show(high, signed=True)}]"


def departures(preset: Preset, tasks: dict[str, Task], paper: dict, facts: dict) -> list[str]:
    """Where this run's setting differs from the paper's, one plain sentence each.

    facts: the run's column of Table 6 (`story.model_facts`).
    """
    chosen, notes, known = preset.chosen, [], paper["models"].get(preset.model)
    if not known:
        notes.append(
            f"The model is {preset.model}, not one of the paper's ({', '.join(paper['models'].values())})."
        )
    if chosen.identify == chosen.train:
        notes.append(
            "Features are found on the same model that is trained; the paper finds them on the instruction-tuned model "
            "and trains the base model."
        )
    notes += _sae_departures(facts, paper["table6"].get(preset.model))
    if preset.recall.tau != 0.8:
        notes.append(
            f"Recall asks for a share of {preset.recall.tau:g} of the prompts (paper, as an example: 0.8)."
        )
    if preset.intervention.k != 1:
        notes.append(
            f"IGDS sums the best {preset.intervention.k} features; the paper's main results use one."
        )
    if preset.scoring.units != "activation":
        notes.append("Scores weigh each activation by its direction's length; the paper sums activations.")
    configs = {name: config for name, config in preset.tasks.items() if name in tasks}
    for name, config in configs.items():
        title, task, theirs = task_title(name), tasks[name], paper["tasks"].get(name)
        if theirs is None:
            notes.append(f"{title} is not one of the paper's tasks.")
            continue
        if task.metric == "accuracy" and config.samples == 1:
            notes.append(
                f"{title} is scored by accuracy of one greedy answer; the paper reports {theirs['metric']}."
            )
        elif task.metric == "accuracy" and f"pass@{config.samples}" not in theirs["metric"]:
            notes.append(f"{title} is scored by pass@{config.samples}; the paper reports {theirs['metric']}.")
        elif task.metric not in ("accuracy", "rouge1", "comet"):
            notes.append(f"{title} is scored by {task.metric_label}; the paper reports {theirs['metric']}.")
        of, own, parts = origins(config), task.own_data(config), ("prior", "pool", "test")
        places = [f" ({of.get(part, own)})" if of else "" for part in parts]
        sizes = [number(getattr(config.sizes, part), 0) for part in parts]
        prior, pool, test = (f"{n} {part}{at}" for n, part, at in zip(sizes, parts, places, strict=True))
        notes.append(
            f"{title} reads {prior}, {pool} and {test} samples{'' if of else f' of {own}'}; "
            f"the paper {theirs['prior']}, {theirs['pool']} and {theirs['test']}."
        )

    def trained(config: TaskConfig) -> tuple:
        return config.sft.lr, config.sft.global_batch, config.sft.epochs

    printed = tuple(paper["settings"]["sft"][key] for key in ("lr", "global_batch", "epochs"))
    form = "learning rate {:g}, batch {}, epochs {:g}"
    for ours in sorted({trained(config) for config in configs.values()} - {printed}):
        text = f"training uses {form.format(*ours)} (paper: {form.format(*printed)})"
        notes += _shared(configs, lambda config, ours=ours: trained(config) == ours, text)
    usual = paper["settings"]["ratio"]
    for ratio in sorted({config.ratio for config in configs.values()} - {usual}):
        text = f"selectors keep {100 * ratio:g} % of the pool (paper: {100 * usual:g} %)"
        notes += _shared(configs, lambda config, ratio=ratio: config.ratio == ratio, text)
    shared = {
        "prompts of identification and test go through the chat template": lambda c: c.rendering == "chat",
        "training samples have the form of the test's prompt, not Table 9's records": lambda c: (
            c.sft.rendering == "evaluation"
        ),
        "general capabilities are asked for by other questions than MMLU and TruthfulQA": lambda c: (
            c.capabilities is not None and set(c.capabilities.benchmarks) != {"mmlu", "truthfulqa"}
        ),
        "general capabilities are measured on a part of the benchmarks' questions": lambda c: (
            c.capabilities is not None
            and c.capabilities.limit is not None
            and c.capabilities.benchmarks != ["mmlu_dev"]
        ),
        "not every candidate enters the causal filter (Table 1, Tested), but the most frequent, and among equally "
        "frequent ones those with the largest mean activation, which favours late layers": lambda c: (
            c.max_candidates is not None
        ),
        "one training seed, so intervals cover the choice of test items alone and no arm is judged": lambda c: (
            len(c.seeds) == 1
        ),
    }
    return notes + [note for text, holds in shared.items() for note in _shared(configs, holds, text)]


def _sae_departures(facts: dict, theirs: dict | None) -> list[str]:
    first, last = theirs["sae_layers"] if theirs else (0, facts["layers"] - 1)
    wanted, notes = list(range(first, last + 1)), []
    if facts["sae_layers"] != wanted:
        covered = f"SAEs cover {len(facts['sae_layers'])} of {facts['layers']} layers"
        beside = f"layers {first} to {last}" if theirs else "every layer of two of its three models"
        notes.append(f"{covered}; the paper's cover {beside}.")
    if theirs and theirs["d_sae"] != facts["d_sae"]:
        ours, printed = number(facts["d_sae"], 0), number(theirs["d_sae"], 0)
        notes.append(f"A layer's SAE has {ours} features; the paper prints {printed}.")
    return notes


def _shared(configs: dict[str, TaskConfig], condition: Callable, text: str) -> list[str]:
    names = [task_title(name) for name, config in configs.items() if condition(config)]
    if not names:
        return []
    who = "All tasks" if len(names) == len(configs) > 1 else ", ".join(names)
    return [f"{who}: {text}."]


def prompt_templates(
    tasks: dict[str, Task], configs: dict[str, TaskConfig]
) -> dict[str, dict[str, dict[str, str]]]:
    """What Table 9 shows of this run: prompts[task][stage][part], with fields left in braces (`tables.table9`).

    A mark follows the identification prompt's colon; the chat template, where one is used, is left out; shots are
    abridged.
    """
    from igds_utils.engine.prompts import evaluation_prompt, identification_prompt

    prompts = {}
    for name, config in configs.items():
        task = tasks[name]
        templates = (
            task.identification_template, task.records_instruction, task.records_input, task.few_shot_template,
            task.target_template,
        )  # fmt: skip
        fields = {f: f"{{{f}}}" for template in templates for f in placeholders(template)}
        target = task.target_template.format(**fields)
        example = Example(name, fields, target, ())
        if config.shots:
            test = task.few_shot_template.format(**fields | {"shots": f" {{{config.shots} shots}}"})
        else:
            test = evaluation_prompt(task, example, None, "bare")
        trained = {"Instruction": test, "Input": "", "Output": target}
        if config.sft.rendering == "records":
            parts = (task.records_instruction, task.records_input, task.records_output)
            filled = [part.format(**fields, target=target) for part in parts]
            trained = dict(zip(trained, filled, strict=True))
        identification = f"{identification_prompt(task, example, None, 'bare')}{MARK} {target}"
        prompts[name] = {
            "identification": {"Prompt": identification},
            "sft": trained,
            "evaluation": {"Prompt": test},
        }
    return prompts

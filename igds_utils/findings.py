"""The sentences of the report: what was found, how sure it is, and where the run departs from the paper."""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter

from igds_utils.display import Metric, at_ratio, number, task_title
from igds_utils.refs import HubRef, Ref, WheelRef
from igds_utils.settings import Preset, TaskConfig
from igds_utils.tasks.base import Example, Task


def headline(
    summary: dict[str, list[dict]], metrics: dict[str, Metric], ratio: float = 0.5, confidence: float = 0.95
) -> str:
    """Does IGDS differ from Random at the same size? One honest sentence with the interval of every task (Table 2).

    `summary[task]` = records of `stats.summarise`. A difference counts only where its interval leaves out zero.
    """
    verdicts, shown = [], []
    for task, records in summary.items():
        igds = at_ratio(records, ratio).get("igds")
        if igds is not None and igds["vs_random"] is not None:
            verdicts.append(_verdict(igds, "random"))
            shown.append(f"{task_title(task)} {_difference(igds, 'random', metrics[task])}")
    intervals = f"{100 * confidence:g} % interval{'s' if len(shown) > 1 else ''}"
    if not verdicts:
        return (
            "This run has no pair of IGDS and Random arms, so it cannot say whether IGDS selects better data."
        )
    if len(verdicts) == 1:
        says = {
            "better": "IGDS did better than Random with the same amount of data",
            "worse": "IGDS did worse than Random with the same amount of data",
            "open": "the interval covers zero, so this run does not tell IGDS from Random",
        }[verdicts[0]]
        return f"{shown[0]} ({intervals} over test items{_seeds_note(summary)}): {says}."
    better, worse, unclear = (verdicts.count(kind) for kind in ("better", "worse", "open"))
    return (
        f"With the same amount of data, IGDS did better than Random on {better} of {len(verdicts)} tasks, "
        f"worse on {worse}, and could not be told from it on {unclear}: {'; '.join(shown)} "
        f"({intervals} over test items; one that covers zero decides nothing{_seeds_note(summary)})."
    )


def _seeds_note(summary: dict[str, list[dict]]) -> str:
    """A caution where arms were trained once: intervals then leave out the luck of training."""
    once = all(len(record["seeds"]) == 1 for records in summary.values() for record in records)
    return "; one training seed, whose luck they leave out" if once else ""


def details(summary: dict[str, list[dict]], metrics: dict[str, Metric], ratio: float = 0.5) -> list[str]:
    """One sentence a task: the score of IGDS, and how it stands to Random and to Full."""
    sentences = []
    for task, records in summary.items():
        title, igds = task_title(task), at_ratio(records, ratio).get("igds")
        if igds is None:
            sentences.append(f"{title}: no IGDS arm was run with {100 * ratio:g} % of the pool.")
            continue
        show = metrics[task]
        words = {"better": "better than", "worse": "worse than", "open": "not distinguishable from"}
        versus = [
            f"{words[_verdict(igds, reference)]} {reference.capitalize()} ({_difference(igds, reference, show)})"
            for reference in ("random", "full", "original")
            if igds[f"vs_{reference}"] is not None
        ]
        score = show.show_interval(igds["score"], igds["low"], igds["high"])
        sentences.append(
            f"{title}: {show.label} {score} with {100 * ratio:g} % of the pool ({igds['n']} test items)"
            f"{': ' if versus else ''}{', '.join(versus)}."
        )
    return sentences


def _verdict(record: dict, reference: str) -> str:
    low, high = record[f"vs_{reference}_low"], record[f"vs_{reference}_high"]
    if low is None or low <= 0 <= high:
        return "open"
    return "better" if low > 0 else "worse"


def _difference(record: dict, reference: str, show: Metric) -> str:
    low, high = record[f"vs_{reference}_low"], record[f"vs_{reference}_high"]
    text = f"{show.show(record[f'vs_{reference}'], signed=True)} {show.unit}"
    return text if low is None else f"{text} [{show.show(low, signed=True)}, {show.show(high, signed=True)}]"


def departures(preset: Preset, tasks: dict[str, Task], paper: dict) -> list[str]:
    """Where this run's setting differs from the paper's, one plain sentence each, derived from the preset."""
    chosen, notes = preset.chosen, []
    if preset.model not in paper["models"]:
        notes.append(
            f"The model is {preset.model}, not one of the paper's ({', '.join(paper['models'].values())})."
        )
    if chosen.identify == chosen.train:
        notes.append(
            "Features are found on the same model that is trained; the paper finds them on the instruction-tuned model "
            "and trains the base model."
        )
    if chosen.saes.layers != "all":
        notes.append(f"SAEs cover layers {', '.join(map(str, chosen.saes.layers))} only.")
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
        size = {part: number(getattr(config.sizes, part), 0) for part in ("prior", "pool", "test")}
        notes.append(
            f"{title} reads {size['prior']} prior, {size['pool']} pool and {size['test']} test samples; "
            f"the paper {theirs['prior']}, {theirs['pool']} and {theirs['test']}."
        )

    def trained(config: TaskConfig) -> tuple:
        return config.sft.lr, config.sft.global_batch, config.sft.epochs

    printed = tuple(paper["settings"]["sft"][key] for key in ("lr", "global_batch", "epochs"))
    form = "learning rate {:g}, batch {}, epochs {:g}"
    for ours in sorted({trained(config) for config in configs.values()} - {printed}):
        text = f"training uses {form.format(*ours)} (paper: {form.format(*printed)})"
        notes += _shared(configs, lambda config, ours=ours: trained(config) == ours, text)
    shared = {
        "prompts of identification and test go through the chat template": lambda c: c.rendering == "chat",
        "training samples have the form of the test's prompt, not Table 9's records": lambda c: (
            c.sft.rendering == "evaluation"
        ),
        "not every candidate enters the causal filter (Table 1, Tested)": lambda c: (
            c.max_candidates is not None
        ),
        "one training seed, so intervals cover the choice of test items and not the luck of training": lambda c: (
            len(c.seeds) == 1
        ),
    }
    return notes + [note for text, holds in shared.items() for note in _shared(configs, holds, text)]


def _shared(configs: dict[str, TaskConfig], condition: Callable, text: str) -> list[str]:
    names = [task_title(name) for name, config in configs.items() if condition(config)]
    if not names:
        return []
    who = "All tasks" if len(names) == len(configs) > 1 else ", ".join(names)
    return [f"{who}: {text}."]


def describe_ref(ref: Ref) -> str:
    """A model's origin in words, for Table 6."""
    if isinstance(ref, HubRef):
        return ref.hub if ref.revision == "main" else f"{ref.hub} ({ref.revision[:12]})"
    if isinstance(ref, WheelRef):
        return f"{ref.wheel} {ref.version} (package)"
    return getattr(ref, "folder", None) or f"tiny random {ref.tiny}"


def prompt_templates(
    tasks: dict[str, Task], configs: dict[str, TaskConfig]
) -> dict[str, dict[str, tuple[str, str]]]:
    """What Table 9 shows, made by the very functions that render the run's prompts, with fields left in braces.

    `prompts[task][stage]` = (prompt, target); the chat template, where one is used, is left out; shots are abridged.
    """
    from igds_utils.prompts import evaluation_prompt, identification_prompt, sft_pair

    prompts = {}
    for name, config in configs.items():
        task = tasks[name]
        templates = (
            task.identification_template,
            task.records_instruction,
            task.records_input,
            task.few_shot_template,
        )
        fields = {field for text in templates for _, field, _, _ in Formatter().parse(text) if field}
        example = Example(name, {field: f"{{{field}}}" for field in sorted(fields)}, "{target}", ())
        if config.shots:
            test = task.few_shot_template.format(**example.fields | {"shots": f" {{{config.shots} shots}}"})
        else:
            test = evaluation_prompt(task, example, None, "bare")
        if config.sft.rendering == "evaluation":
            trained = (test, " {target}")
        else:
            trained = sft_pair(task, example, None, "records", config)
        prompts[name] = {
            "identification": (identification_prompt(task, example, None, "bare"), " {target}"),
            "sft": trained,
            "evaluation": (test, ""),
        }
    return prompts

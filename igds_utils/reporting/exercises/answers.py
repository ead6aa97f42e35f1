"""What the exercises ask for, computed from a run's stored products or by the package's own formula.

"The first task" of a question is the first that has what the question is about; where none has, `NotRun` is raised.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter

import numpy as np
import pandas as pd

from igds_utils.core.arms import Arm, arms, main_arms, selection_size
from igds_utils.core.experiment import Run
from igds_utils.display import at_main_ratio

DRAWS = 4000  # of a simulation: its last digit that counts is safe


class NotRun(Exception):
    """The exercise is about something that this run did not do."""


def first_task(run: Run, has: Callable[[str], bool], what: str) -> str:
    tasks = [task for task in run.tasks if has(task)]
    if not tasks:
        raise NotRun(f"no task has {what}")
    return tasks[0]


def first_arms(run: Run, *selectors: str) -> tuple[str, list[Arm]]:
    """The first task with an arm of each selector, and those arms: at the main ratio, of the first seed."""
    known = {task: {arm.selector: arm for arm in reversed(main_arms(run.config(task)))} for task in run.tasks}
    task = first_task(run, lambda t: set(selectors) <= set(known[t]), f"the arms {' and '.join(selectors)}")
    return task, [known[task][selector] for selector in selectors]


# ---- 01 to 05: the method ------------------------------------------------------------------------------


def recalled(run: Run, task: str) -> pd.DataFrame:
    return run.read(f"{task}/recall.parquet")


def on_every_prompt(run: Run) -> int:
    return int((recalled(run, run.tasks[0])["frequency"] == 1).sum())


def candidates_at_half(run: Run) -> int:
    from igds_utils.identification.recall import fires_often

    frequency = recalled(run, run.tasks[0])["frequency"]
    return int(fires_often(frequency, run.read(f"{run.tasks[0]}/recall.json")["n_prior"], 0.5).sum())


def shared_candidates(run: Run) -> set[str]:
    from igds_utils.identification.recall import candidates

    if len(run.tasks) < 2:
        raise NotRun("one task only")
    a, b = ({feature.name for feature in candidates(recalled(run, task))} for task in run.tasks[:2])
    return a & b


def shown_to_act(run: Run) -> int:
    tested = pd.DataFrame(run.read(f"{run.tasks[0]}/task_features.json")["features"])
    return int(((tested["delta_low"] > 0) | (tested["delta_high"] < 0)).sum())


def luckiest_effect(run: Run) -> float:
    """The largest delta to be expected where no candidate does anything: the sign of every sample's changes is drawn.

    One sign serves all candidates of a sample, whose changes go together.
    """
    rows = run.read(f"{run.tasks[0]}/effects_validation.parquet")
    rows["change"] = rows["score_amplified"] - rows["score_original"]
    change = rows.pivot(index="sample_id", columns=["layer", "feature"], values="change")
    change = change.to_numpy()  # (samples, candidates)
    signs = np.random.default_rng(run.preset.seed).choice([-1.0, 1.0], size=(DRAWS, len(change)))
    return float((signs @ change / len(change)).max(axis=1).mean())


def kept_by_both(run: Run) -> int:
    task, both = first_arms(run, "igds", "random")
    a, b = ({row["id"] for row in run.read(f"{task}/selected/{arm.name}.jsonl")} for arm in both)
    return len(a & b)


def let_through(run: Run) -> set[str]:
    """Kinds of defect of which IGDS kept a larger share than blind drawing would."""
    task = first_task(run, lambda t: run.config(t).quality is not None, "a pool of known quality")
    kept = run.read(f"{task}/quality/defects.parquet").query("selector == 'igds' and defect != 'clean'")
    return set(kept.loc[kept["share"] > kept["chance"], "defect"])


def target_tokens_of_full(run: Run) -> float:
    task, both = first_arms(run, "full", "igds")
    full, igds = (run.read(f"{task}/arms/{arm.name}/log.parquet")["target_tokens"].sum() for arm in both)
    return float(full / igds)


def steps_at_a_fifth(run: Run) -> int:
    from igds_utils.training.sft import global_batches

    config = run.config(run.tasks[0])
    return len(global_batches([0] * selection_size(0.2, config.sizes.pool), config.sft, run.preset.seed))


def easiest_start(run: Run) -> str:
    task = run.tasks[0]
    trained = [arm.name for arm in arms(run.config(task)) if arm.trained]
    first = {name: run.read(f"{task}/arms/{name}/log.parquet")["loss"].iloc[0] for name in trained}
    return min(first, key=first.get)


def items_needed(run: Run) -> float:
    """Test items until the interval of the observed difference of IGDS and Random would just touch zero."""
    task, _ = first_arms(run, "igds", "random")
    record = at_main_ratio(run.read(f"{task}/summary.json"))["igds"]
    difference = record["vs_random"]
    if not difference or record["vs_random_low"] is None:
        raise NotRun(f"IGDS and Random do not differ in {task}, or by no interval")
    reach = difference - record["vs_random_low" if difference > 0 else "vs_random_high"]
    return record["n"] * (reach / difference) ** 2


def pass_at_five(run: Run) -> float:
    from igds_utils.data.metrics import pass_at_k

    return pass_at_k(n=10, c=3, k=5)


def never_solved(run: Run) -> int:
    best = run.read(f"{run.tasks[0]}/evaluation.parquet").groupby("sample_id")["score"].max()
    return int((best == 0).sum())


# ---- 06 to 10: what follows from it --------------------------------------------------------------------


def stable_task(run: Run) -> str:
    return first_task(run, lambda task: run.config(task).stability is not None, "identification sources")


def in_every_top(run: Run) -> set[str]:
    task = stable_task(run)
    top = run.config(task).stability.top
    rankings = run.read(f"{task}/stability/summary.json")["rankings"].values()
    return set.intersection(*(set(names[:top]) for names in rankings))


def blind_jaccard(run: Run) -> float:
    from igds_utils.analysis.stability import chance_jaccard

    tested, top = set(range(20)), run.config(stable_task(run)).stability.top
    return chance_jaccard(tested, tested, top)


def better_windows(run: Run) -> int:
    """How many windows of layers of the first task beat all layers together on held-out samples."""
    table = run.read(f"{run.tasks[0]}/stability/coverage.parquet")
    return int((table["held_out"] > table["held_out"].iloc[-1]).sum())


def trained_medians(run: Run) -> pd.DataFrame:
    return run.read(f"{run.tasks[0]}/distributions.parquet").query("selector != 'original'")


def highest_median(run: Run) -> str:
    table = trained_medians(run)
    return table.loc[table["median"].idxmax(), "selector"]


def trained_rho(run: Run) -> float:
    return rank_correlation(*(trained_medians(run)[name] for name in ("median", "score")))


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    from igds_utils.data.stats import spearman

    rho = spearman(x, y, resamples=200).rho
    if np.isnan(rho):
        raise NotRun("too few arms for a rank correlation, or all alike")
    return rho


def first_alert(run: Run) -> str:
    watched = run.read(f"{run.tasks[0]}/monitoring.parquet")
    alerts = watched[watched["activation_alert"]]
    return "none" if alerts.empty else alerts["point"].iloc[0]


def igds_to_loss(run: Run) -> float:
    task = first_task(run, lambda t: {"loss", "igds"} <= set(run.config(t).selectors), "both Loss and IGDS")
    seconds = run.read(f"{task}/selection_costs.parquet").set_index("selector")["seconds"]
    if not seconds["loss"]:
        raise NotRun("Loss took no measurable time")
    return float(seconds["igds"] / seconds["loss"])


def share_in_last_layer(run: Run) -> float:
    found = recalled(run, run.tasks[0]).query("candidate")
    return float((found["layer"] == max(run.read(f"{run.tasks[0]}/recall.json")["layers"])).mean())


def unchanged_outputs(run: Run) -> float:
    from igds_utils.analysis.semantics import changed_outputs

    task = run.tasks[0]
    parts = [run.read(f"{task}/effects_{part}.parquet") for part in ("validation", "confirmation")]
    outputs = changed_outputs(pd.concat(parts), run.task_features(task)[0])
    return float((outputs["output_amplified"] == outputs["output_original"]).mean())


def rising_in_prompt(run: Run) -> set[str]:
    from igds_utils.analysis.semantics import words

    task = run.tasks[0]
    rising = run.read(f"{task}/words.parquet")["word"].head(10)
    own = " ".join(text for text, *_ in Formatter().parse(run.task(task).identification_template))
    return set(rising) & set(words(own))


def changed_questions(run: Run) -> int:
    task = first_task(run, lambda t: run.config(t).capabilities is not None, "general questions")
    before, after = (
        run.read(f"{task}/arms/{arm}/capabilities.parquet").set_index(["benchmark", "subject", "item"])[
            "score"
        ]
        for arm in ("original", "full")
    )
    return int((after.sub(before) != 0).sum())


def smallest_change(run: Run) -> float:
    """In points: of 14,042 questions, a tenth changes its answer, as often for the better as for the worse."""
    return 100 * 1.96 * float(np.sqrt(0.1 / 14_042))


def rouge_agreement(run: Run) -> float:
    task = first_task(run, lambda t: t == "summarization", "ROUGE")
    scored = run.read(f"{task}/evaluation.parquet")
    compared = [arm.name for arm in main_arms(run.config(task))]
    mean = scored[scored["arm"].isin(compared)].groupby("arm")[["rouge1", "rougeL"]].mean()
    return rank_correlation(mean["rouge1"], mean["rougeL"])

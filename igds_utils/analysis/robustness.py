"""What a run says about the robustness of IGDS: its ablations without training, and the cost of selection."""

from __future__ import annotations

from typing import Any

import pandas as pd

from igds_utils import plan, selectors
from igds_utils.core.experiment import Run
from igds_utils.display import ABLATIONS, NOT_JUDGED, Metric, task_title


def selection_costs(run: Run, task: str) -> pd.DataFrame:
    """What it took each selector to score and rank the pool, one row each (Table 4).

    Columns: selector; seconds, from the records of the stored products; tokens that the model read
    (`plan.measurement_tokens`); operations (`plan.measurement_operations`), nan where the preset states no shape of the
    model. A selector is charged in full for every measurement that it asks for, also where it shares it with another.
    Identification of the task features is not part of it, as in the paper.
    """
    from igds_utils.selection.pool import open_pool

    config, shape, rows = run.config(task), run.preset.chosen.shape, []
    blocks = max(feature.layer for feature in run.task_features(task)) + 1
    size, prompt, target = config.sizes.pool, config.prompt_tokens, config.target_tokens
    epochs = run.preset.selection.less.epochs
    pool = open_pool(run, task, config.seeds[0])
    for name in config.selectors:
        kind = selectors.get(name)
        products = {pool.measured(measured).product for measured in kind.measurements} - {""}
        ranking = f"{name}-s{config.seeds[0]}" if kind.seeded else name
        products.add(f"{task}/scores/{ranking}.parquet")
        row = {"selector": name, "seconds": sum(run.store.seconds(product) for product in products)}
        read = {
            measured: size * plan.measurement_tokens(measured, prompt, target, epochs)
            for measured in kind.measurements
        }
        row["tokens"] = sum(read.values())
        if shape is not None:
            row["operations"] = sum(
                plan.measurement_operations(measured, n, shape, blocks) for measured, n in read.items()
            )
        rows.append(row)
    return pd.DataFrame(rows, columns=["selector", "seconds", "tokens", "operations"])


def untrained_ablations(run: Run, task: str) -> pd.DataFrame:
    """What the ablations of IGDS choose from the pool of known quality, without training on it.

    One row an ablation that 03_data_scoring ranked there: selector, jaccard and spearman (of its selection and of its
    ranking with those of IGDS), prompt_precision with its interval and chance (share of its selection whose prompt
    was not spoilt). Empty where the task has no such pool or did not rank it with IGDS.
    """
    folder = f"{task}/quality"
    if not run.store.has(f"{folder}/summary.json"):
        return pd.DataFrame()
    overlap = run.read(f"{folder}/overlap.parquet").query("a == 'igds'").set_index("b")
    judged = {record["selector"]: record for record in run.read(f"{folder}/summary.json")["selectors"]}
    rows: list[dict[str, Any]] = []
    for selector in ABLATIONS:
        if selector in overlap.index:
            record = judged[selector]
            rows.append(
                {
                    "selector": selector,
                    **overlap.loc[selector, ["jaccard", "spearman"]].to_dict(),
                    **{f"prompt_{k}": record[f"prompt_{k}"] for k in ("precision", "low", "high", "chance")},
                }
            )
    return pd.DataFrame(rows)


def ratio_story(summary: dict[str, list[dict]], metrics: dict[str, Metric]) -> str:
    """One sentence per task: IGDS against Full at every ratio that was run, by its paired interval (Figure 4).

    Arms that were trained once are shown and not judged.
    """
    sentences = []
    for task, records in summary.items():
        show, parts = metrics[task], []
        of_igds = [record for record in records if record["selector"] == "igds"]
        for igds in sorted(of_igds, key=lambda record: record["ratio"]):
            if igds["vs_full"] is None:
                continue
            low, high = igds["vs_full_low"], igds["vs_full_high"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not distinguishable"
            verdict = verdict if igds["vs_full_judged"] else NOT_JUDGED
            gap = show.show_interval(igds["vs_full"], low, high, signed=True)
            parts.append(f"{gap} {show.unit} at {100 * igds['ratio']:g} % ({verdict})")
        sentences.append(f"{task_title(task)}: IGDS minus Full is {'; '.join(parts)}." if parts else "")
    return " ".join(filter(None, sentences)) or "No task has both IGDS and Full."

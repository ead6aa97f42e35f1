"""What a run says about the robustness of IGDS: its ablations without training, and the cost of selection."""

from __future__ import annotations

import pandas as pd

from igds_utils import plan, selectors
from igds_utils.core.experiment import Run


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

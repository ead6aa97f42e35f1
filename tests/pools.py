"""Pools of which everything is made up, and runs whose features are found already."""

import numpy as np

from igds_utils.identification import recall
from igds_utils.selection.measurements import Measured
from igds_utils.selection.pool import Pool
from igds_utils.tasks.examples import Example


def sample(name, target="t", instruction=""):
    return Example(name, {"instruction": instruction}, target, ())


def samples(*texts, target="t"):
    return [sample(f"s{i}", target, text) for i, text in enumerate(texts)]


def made_pool(members, seed=0, examples=(), of_examples=None, about=None, **measured):
    """A pool with these measurements and no others; of_examples: those of the target examples."""
    pool = Pool(None, "", list(members), "", seed)
    for name, values in measured.items():
        values = np.array(values) if isinstance(values, list) and name != "tags" else values
        pool._measured[name] = Measured(values, "", (about or {}).get(name, {}))
    if examples:
        pool.examples = made_pool(examples, **of_examples or {})
        pool._measured["target_examples"] = Measured(pool.examples.samples, "", {})
    return pool


def found_features(run, task="math"):
    """The run after recall on D_prior, with its first candidates as features in a made-up causal order."""
    table, layers = recall.measure(run, task), run.saes.layers
    counts = {"n_candidates": int(table["candidate"].sum()), "layers": layers}
    run.store.write(f"{task}/recall.json", counts | {"n_features_total": run.saes.d_sae * len(layers)})
    rows = [
        {"layer": one.layer, "feature": one.index, "name": one.name, "delta": None, "delta_loglik": -0.01 * i}
        for i, one in enumerate(recall.candidates(table)[:4])
    ]
    found = {"features": rows, "selected": [rows[0]["name"]], "established": True}
    run.store.write(f"{task}/task_features.json", found)
    return run


def ids(ranking, size=None):
    return ranking["sample_id"].tolist()[:size]

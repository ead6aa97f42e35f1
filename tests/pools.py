"""Pools of which everything is made up, for tests of selectors."""

import numpy as np

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


def ids(ranking, size=None):
    return ranking["sample_id"].tolist()[:size]

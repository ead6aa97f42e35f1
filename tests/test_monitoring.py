"""Monitoring: the alert rule on hand-made series, and how stored arms become one."""

import numpy as np
import pandas as pd
import pytest
from test_plots import POINTS

from igds_utils.analysis import monitoring
from igds_utils.core.arms import arms
from igds_utils.core.experiment import open_run

FEW_ARMS = {"tasks.math.selectors": ["random", "loss", "igds"], "tasks.math.curve": None}


def series(points, n=40):
    """(name, share of items answered right, shift of the activation): the same items and prompts at every point."""
    rows = []
    for name, right, shift in points:
        for i, activation in enumerate(np.linspace(9, 11, n)):
            rows.append((name, "score", f"t{i}", float(i < right * n)))
            rows.append((name, "l1_p2", f"p{i}", activation + shift))
    return pd.DataFrame(rows, columns=["point", "measure", "sample_id", "value"])


@pytest.mark.parametrize(
    ("values", "start", "score_alerts", "activation_alerts"),
    [
        ([(0.5, 0), (0.55, 0.2), (0.5, -0.2)], 0, [], []),
        ([(0.2, 0), (0.8, 0), (0.4, 0), (0.75, 0)], 0, [2], []),  # against the best so far
        ([(0.5, 0), (0.5, 0.8), (0.5, 1.5), (0.5, -3)], 0, [], [2, 3]),
        ([(0.5, 0), (0.5, 8), (0.5, 8.5), (0.5, 0)], 1, [], [3]),  # in the band of the second model
    ],
)
def test_alerts_follow_the_rule(values, start, score_alerts, activation_alerts):
    named = [(f"v{number}", *value) for number, value in enumerate(values)]
    watched = monitoring.watch(series(named), "l1_p2", resamples=300, start=start)
    assert watched.index[watched["score_alert"]].tolist() == score_alerts
    assert watched.index[watched["activation_alert"]].tolist() == activation_alerts
    best = np.maximum.accumulate([right for right, _ in values])[:-1]
    assert watched["lost"].tolist()[1:] == pytest.approx([right for right, _ in values[1:]] - best)
    told = monitoring.report(watched, POINTS).splitlines()
    alerts = sorted(score_alerts + activation_alerts)
    assert [line.split(":")[0] for line in told if ":" in line] == [f"v{number}" for number in alerts]


def test_seeds_of_a_point_count_as_such():
    """The median is the mean of the seeds' medians; a loss that depends on the seed is no alert."""
    first = pd.concat([series([("v1", 0.5, 0)]).assign(seed=seed) for seed in (0, 1)])
    lucky, unlucky = (series([("v2", right, by)]) for right, by in ((0.55, 0.0), (0.3, 4.0)))
    both = pd.concat([first, lucky.assign(seed=0), unlucky.assign(seed=1)])
    watched = monitoring.watch(both, "l1_p2", resamples=300)
    assert watched["activation"].tolist() == pytest.approx([10, 12])
    assert watched["lost"].iloc[1] == pytest.approx(-0.075) and not watched["score_alert"].iloc[1]
    assert watched["n"].tolist() == [40, 40]


def test_stored_arms_become_a_series(tmp_path):
    run, scored = open_run("smoke", tasks=["math"], overrides=FEW_ARMS, results=str(tmp_path)), []
    run.store.write("math/task_features.json", {"selected": ["l1_p2"]})
    read = pd.DataFrame({"sample_id": ["p0", "p1"], "layer": 1, "feature": 2, "activation": [1.0, 2.0]})
    answers = pd.DataFrame({"sample_id": ["t0", "t1"], "seed": 0, "score": [0.0, 1.0]})
    for arm in arms(run.config("math")):
        run.store.write(f"math/arms/{arm.name}/activations.parquet", read)
        scored.append(answers.assign(arm=arm.name))
    run.store.write("math/evaluation.parquet", pd.concat(scored, ignore_index=True))
    found = monitoring.of_arms(run, "math")
    assert found["point"].unique().tolist() == ["Original", "Full", "Random 50 %", "Loss 50 %", "IGDS 50 %"]
    assert found.groupby(["point", "measure"]).size().eq(2).all()

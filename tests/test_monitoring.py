"""Monitoring: the alert rule on hand-made series, and how stored arms become one."""

import numpy as np
import pandas as pd
import pytest
from test_plots import POINTS, assert_tidy, intervals, legend, points

from igds_utils import plots
from igds_utils.analysis import monitoring
from igds_utils.core.arms import arms
from igds_utils.core.experiment import open_run

FEW_ARMS = {"tasks.math.selectors": ["random", "loss", "igds"], "tasks.math.curve": None}


def series(points, n=40):
    """(name, share of items answered right, shift of the activation): the same items and prompts at every point."""
    activation = np.linspace(9, 11, n)
    rows = []
    for name, right, shift in points:
        for i in range(n):
            rows.append((name, "score", f"t{i}", float(i < right * n)))
            rows.append((name, "l1_p2", f"p{i}", activation[i] + shift))
    return pd.DataFrame(rows, columns=["point", "measure", "sample_id", "value"])


def watch(points):
    return monitoring.watch(series(points), "l1_p2", resamples=300)


def test_a_steady_series_raises_no_alert():
    watched = watch([("v1", 0.5, 0), ("v2", 0.55, 0.2), ("v3", 0.5, -0.2)])
    assert not watched[["score_alert", "activation_alert"]].any(axis=None)
    assert pd.isna(watched["lost"].iloc[0]) and watched["n"].tolist() == [40, 40, 40]
    assert monitoring.report(watched, POINTS) == "no alert in 3 models"


def test_a_score_that_falls_clearly_below_the_best_so_far_raises_an_alert():
    watched = watch([("v1", 0.2, 0), ("v2", 0.8, 0), ("v3", 0.4, 0), ("v4", 0.75, 0)])
    assert watched["score_alert"].tolist() == [False, False, True, False]
    assert watched["lost"].iloc[2] == pytest.approx(
        -0.4
    )  # against v2, not against the one before or the first
    assert watched["lost"].iloc[3] == pytest.approx(-0.05)
    assert monitoring.report(watched, POINTS).startswith("v3: the score is 40.0 [")


def test_an_activation_that_leaves_the_first_models_band_raises_an_alert():
    watched = watch([("v1", 0.5, 0), ("v2", 0.5, 0.8), ("v3", 0.5, 1.5), ("v4", 0.5, -3)])
    assert watched["activation_alert"].tolist() == [False, False, True, True]
    assert (
        watched["band_low"].nunique() == 1
        and 9 < watched["band_low"].iloc[0] < watched["band_high"].iloc[0] < 11
    )
    told = monitoring.report(watched, POINTS).splitlines()
    assert len(told) == 2 and "above its band" in told[0] and "below its band" in told[1]


def test_the_band_can_be_that_of_a_later_point():
    points = [("untrained", 0.5, 0), ("v1", 0.5, 8), ("v2", 0.5, 8.5), ("v3", 0.5, 0)]
    watched = monitoring.watch(series(points), "l1_p2", resamples=50, start=1)
    assert watched["activation_alert"].tolist() == [False, False, False, True]
    assert pd.isna(watched["band_low"].iloc[0]) and 17 < watched["band_low"].iloc[1] < 18
    figure = plots.monitor(watched, POINTS, "l1_p2", "models in order")
    assert "band of v1" in legend(figure)
    assert figure.axes[1].collections[0].get_datalim(figure.axes[1].transData).x0 == 1
    assert_tidy(figure)


def test_seeds_of_a_point_count_as_such():
    """The median is the mean of the seeds' medians; a loss that depends on the seed is no alert."""
    first = pd.concat([series([("v1", 0.5, 0)]).assign(seed=seed) for seed in (0, 1)])
    lucky, unlucky = (series([("v2", right, by)]) for right, by in ((0.55, 0.0), (0.3, 4.0)))
    watched = monitoring.watch(
        pd.concat([first, lucky.assign(seed=0), unlucky.assign(seed=1)]), "l1_p2", resamples=300
    )
    assert watched["activation"].tolist() == pytest.approx([10, 12])
    assert watched["lost"].iloc[1] == pytest.approx(-0.075) and not watched["score_alert"].iloc[1]
    assert watched["n"].tolist() == [40, 40]


def test_a_point_without_the_feature_is_refused_by_name():
    table = series([("v1", 0.5, 0)])
    with pytest.raises(ValueError, match="v1 has no l9_p9; it holds l1_p2, score"):
        monitoring.watch(table, "l9_p9")


def test_the_figure_marks_alerts():
    watched = watch([("Original", 0.2, 0), ("IGDS 50 %", 0.8, 0), ("Random 50 %", 0.3, 2)])
    figure = plots.monitor(watched, POINTS, "l1_p2", "models in order")
    assert_tidy(figure)
    assert [[x for x, _ in points(axis, "alert")] for axis in figure.axes] == [[2], [2]]
    assert len(intervals(figure.axes[0])) == 3
    assert "accuracy" in figure.axes[0].get_ylabel() and "l1_p2" in figure.axes[1].get_ylabel()


def test_stored_arms_become_a_series(tmp_path):
    run = open_run("smoke", tasks=["math"], overrides=FEW_ARMS, results=str(tmp_path))
    run.store.write("math/task_features.json", {"selected": ["l1_p2"]})
    scored = []
    for number, arm in enumerate(arms(run.config("math"))):
        read = pd.DataFrame(
            {"sample_id": ["p0", "p1"], "layer": 1, "feature": 2, "activation": [1.0, 2.0 + number]}
        )
        run.store.write(f"math/arms/{arm.name}/activations.parquet", read)
        scored.append(
            pd.DataFrame({"sample_id": ["t0", "t1"], "arm": arm.name, "seed": 0, "score": [0.0, 1.0]})
        )
    run.store.write("math/evaluation.parquet", pd.concat(scored, ignore_index=True))
    found = monitoring.of_arms(run, "math")
    assert list(dict.fromkeys(found["point"])) == [
        "Original",
        "Full",
        "Random 50 %",
        "Loss 50 %",
        "IGDS 50 %",
    ]
    assert found.groupby(["point", "measure"]).size().eq(2).all()

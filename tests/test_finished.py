"""The task feature in the arms (Figure 3), the alert rule on hand-made series, and how stored arms are read."""

import numpy as np
import pandas as pd
import pytest
from test_plots import POINTS, points, rows

from igds_utils import plots
from igds_utils.analysis import finished
from igds_utils.core.arms import arms
from igds_utils.core.experiment import open_run

SHIFTS = {"original": 0.0, "full": 1.0, "random@0.5": -0.5, "loss@0.5": 0.5, "igds@0.5": 2.0}


def shifted(shifts, n=40):
    """An arm for each shift of the same prompts' activations."""
    base = pd.DataFrame({"seed": 0, "sample_id": [f"s{i}" for i in range(n)]})
    read = np.random.default_rng(0).normal(10, 1, n)
    return pd.concat([base.assign(arm=arm, activation=read + by) for arm, by in shifts.items()], ignore_index=True)


def record(arm, score):
    selector, _, ratio = arm.partition("@")
    return {"arm": arm, "selector": selector, "ratio": float(ratio) if ratio else None, "main": ratio in ("", "0.5"),
            "score": score, "low": score - 0.1, "high": score + 0.1}  # fmt: skip


SUMMARY = [record(arm, score) for arm, score in zip(SHIFTS, (0.1, 0.4, 0.2, 0.3, 0.5), strict=True)]


@pytest.fixture(scope="module")
def compared():
    return finished.compare(shifted(SHIFTS), SUMMARY, resamples=200)


@pytest.fixture(scope="module")
def two_seeds():
    """IGDS trained twice: the medians lie 4 apart, so no pooled median lies where any of them does."""
    one, other = shifted({**SHIFTS, "igds@0.5": 1.0}), shifted({"igds@0.5": 5.0})
    return pd.concat([one, other.assign(seed=1)])


def ridges(read, table):
    return plots.activation_distributions({"math": read}, {"math": table}, {"math": POINTS}, {"math": "l1_p2"})


def test_arms_are_compared_with_the_untrained_model_prompt_by_prompt(compared):
    table = compared.set_index("arm")
    for arm, by in list(SHIFTS.items())[1:]:
        assert table.loc[arm, "moved"] == pytest.approx(by)
        assert table.loc[arm, "median"] == pytest.approx(table.loc["original", "median"] + by)
    assert table.loc["igds@0.5", "moved_low"] > 0
    assert pd.isna(table.loc["original", "moved"])


def test_seeds_of_an_arm_are_kept_apart_and_their_luck_is_in_the_interval(two_seeds):
    table = finished.compare(two_seeds, SUMMARY, resamples=200).set_index("arm")
    igds, base = table.loc["igds@0.5"], table.loc["original", "median"]
    assert igds["medians"] == pytest.approx([base + 1, base + 5])
    assert igds["median"] == pytest.approx(base + 3)
    assert igds["moved"] == pytest.approx(3) and igds["moved_low"] < 1.5 and igds["moved_high"] > 4.5


def test_the_correlation_is_over_arms_with_and_without_the_untrained_model(compared):
    rho = finished.correlation(compared, resamples=200)
    assert rho["all"]["n"] == 5 and rho["all"]["rho"] == pytest.approx(0.9)
    assert rho["trained"]["rho"] == pytest.approx(1.0) and rho["trained"]["p_value"] == pytest.approx(2 / 24)
    assert rho["all"]["low"] is None  # five arms have no interval
    few = finished.correlation(compared.head(2), resamples=50)
    assert few["all"]["rho"] is None and few["trained"]["rho"] is None


@pytest.mark.filterwarnings("error")
def test_the_figure_names_every_arm_and_draws_every_seed(compared, two_seeds):
    figure = ridges(shifted(SHIFTS), compared)
    assert rows(figure.axes[0]) == [
        "IGDS 50 %  50.0", "Full  40.0", "Loss 50 %  30.0", "Random 50 %  20.0", "Original  10.0",
    ]  # fmt: skip
    table = finished.compare(two_seeds, SUMMARY, resamples=50)
    (axis,) = ridges(two_seeds, table).axes
    marked = [x for x, y in points(axis, "median") if round(y) == 0]  # IGDS is in the first row
    assert sorted(marked) == pytest.approx(table["medians"].iloc[4])
    bodies = [body for body in axis.collections if len(body.get_paths()[0]) > 50]
    assert len(bodies) == 6  # five arms, one of them twice
    flat = shifted(SHIFTS).assign(activation=1.0)  # no density: its median alone
    figure = ridges(flat, finished.compare(flat, SUMMARY, resamples=50))
    assert set(points(figure.axes[0], "median")) == {(1, row) for row in range(5)}


# ---- a series of models ----------------------------------------------------------------------------------


def series(points, n=40):
    """(name, share of items answered right, shift of the activation): the same items and prompts at every point."""
    rows = []
    for name, right, shift in points:
        for i, activation in enumerate(np.linspace(9, 11, n)):
            rows.append((name, "score", f"t{i}", float(i < right * n)))
            rows.append((name, "l1_p2", f"p{i}", activation + shift))
    return pd.DataFrame(rows, columns=["point", "measure", "sample_id", "value"]).assign(seed=0)


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
    watched = finished.watch(series(named), "l1_p2", resamples=300, start=start)
    assert watched.index[watched["score_alert"]].tolist() == score_alerts
    assert watched.index[watched["activation_alert"]].tolist() == activation_alerts
    best = np.maximum.accumulate([right for right, _ in values])[:-1]
    assert watched["lost"].tolist()[1:] == pytest.approx([right for right, _ in values[1:]] - best)


def test_seeds_of_a_point_count_as_such():
    """The median is the mean of the seeds' medians; a loss that depends on the seed is no alert."""
    first = pd.concat([series([("v1", 0.5, 0)]).assign(seed=seed) for seed in (0, 1)])
    lucky, unlucky = (series([("v2", right, by)]) for right, by in ((0.55, 0.0), (0.3, 4.0)))
    both = pd.concat([first, lucky.assign(seed=0), unlucky.assign(seed=1)])
    watched = finished.watch(both, "l1_p2", resamples=300)
    assert watched["activation"].tolist() == pytest.approx([10, 12])
    assert watched["lost"].iloc[1] == pytest.approx(-0.075) and not watched["score_alert"].iloc[1]
    assert watched["n"].tolist() == [40, 40]


# ---- stored arms -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run with the stored products of its arms that are read: the top feature's activations, and answers."""
    few = {"tasks.math.selectors": ["random", "loss", "igds"], "tasks.math.curve": None}
    run, scored = open_run("smoke", tasks=["math"], overrides=few, results=str(tmp_path)), []
    run.store.write("math/task_features.json", {"selected": ["l1_p2"]})
    read = pd.DataFrame({"sample_id": ["p0", "p1"], "layer": 1, "feature": 2, "activation": [1.0, 2.0]})
    answers = pd.DataFrame({"sample_id": ["t0", "t1"], "seed": 0, "score": [0.0, 1.0]})
    for arm in arms(run.config("math")):
        run.store.write(f"math/arms/{arm.name}/activations.parquet", read)
        scored.append(answers.assign(arm=arm.name))
    run.store.write("math/evaluation.parquet", pd.concat(scored, ignore_index=True))
    return run


def test_stored_arms_are_read_without_the_checks(run):
    assert list(finished.arm_activations(run, "math")["arm"].unique()) == list(SHIFTS)


def test_stored_arms_become_a_series(run):
    found = finished.series_of_arms(run, "math")
    assert found["point"].unique().tolist() == ["Original", "Full", "Random 50 %", "Loss 50 %", "IGDS 50 %"]
    assert found.groupby(["point", "measure"]).size().eq(2).all()

"""Coverage of layers: windows, identification within them, and an estimate that luck cannot improve."""

import numpy as np
import pandas as pd
import pytest
from test_plots import POINTS, assert_tidy, intervals, points, rows

from igds_utils import plots
from igds_utils.analysis import sae_coverage
from igds_utils.identification.intervention import causal_effects, rank_features, task_features
from igds_utils.tables import coverage_table


def stored(changes, resamples=50):
    """effects, recalled, ranked from {(layer, feature): per-sample changes of the score}."""
    rows = [
        {"layer": layer, "feature": feature, "sample_id": f"s{i:03d}", "score_original": 0.0, "score_amplified": c,
         "loglik_original": 0.0, "loglik_amplified": 0.0, "output_original": "", "output_amplified": ""}
        for (layer, feature), values in changes.items()
        for i, c in enumerate(values)
    ]  # fmt: skip
    effects = pd.DataFrame(rows)
    keys = pd.DataFrame(list(changes), columns=["layer", "feature"])
    recalled = keys.assign(frequency=1.0, mean_activation=1.0, candidate=True)
    return effects, recalled, rank_features(causal_effects(effects, 0.95, resamples, 0), recalled)


def test_windows_are_neighbours_from_single_layers_to_all():
    assert sae_coverage.windows([6, 12, 18]) == [[6], [12], [18], [6, 12], [12, 18], [6, 12, 18]]
    assert sae_coverage.windows([3]) == [[3]]
    deep = sae_coverage.windows(list(range(26)))
    assert len(deep) == 10 and deep[-1] == list(range(26)) and deep[0] == list(range(7))


def test_a_window_finds_the_best_of_its_own_layers():
    table = sae_coverage.identify_on_layers(
        *stored({(1, 0): [0.1] * 8, (1, 5): [0.3] * 8, (2, 0): [0.2] * 8}), layers=[1, 2, 3], top=2
    )
    rows = {tuple(row["layers"]): row for row in table.to_dict("records")}
    assert (
        rows[1,]["feature"] == "l1_p5"
        and rows[2,]["feature"] == "l2_p0"
        and rows[1, 2, 3]["feature"] == "l1_p5"
    )
    assert rows[1,]["held_out"] == pytest.approx(0.3) and rows[2,]["delta"] == pytest.approx(0.2)
    assert pd.isna(rows[2,]["held_out"])  # one candidate: nothing was chosen
    assert rows[2,]["top_kept"] == 0.5 and rows[1, 2, 3]["top_kept"] == 1.0
    assert rows[3,]["tested"] == 0 and pd.isna(rows[3,]["feature"]) and pd.isna(rows[3,]["held_out"])


def test_held_out_effects_are_not_inflated_by_choosing_among_many_candidates():
    found = []
    for seed in range(12):  # 10 effects that are none, on 12 other sets of samples
        noise = np.random.default_rng(seed).normal(0, 1, (10, 24))
        effects, recalled, ranked = stored({(1, i): values for i, values in enumerate(noise)}, resamples=2)
        table = sae_coverage.identify_on_layers(effects, recalled, ranked, layers=[1], splits=200)
        found.append(table[["delta", "held_out"]].iloc[0])
    mean = pd.DataFrame(found).mean()
    assert mean["delta"] > 0.25 and abs(mean["held_out"]) < 0.1


def test_table_figure_and_sentence():
    effects, recalled, ranked = stored({(1, 0): [0.1, 0.2] * 4, (2, 0): [0.3] * 8})
    change = {"delta": [-0.1], "delta_low": [-0.2], "delta_high": [0.05]}
    loglik = {name.replace("delta", "delta_loglik"): [0.0] for name in change}
    chosen = pd.DataFrame({"layer": [2], "feature": [0], **change, **loglik})
    ranked = task_features(ranked, chosen, k=1)[
        "features"
    ]  # as stored, with the confirmation of the chosen one
    table = sae_coverage.identify_on_layers(effects, recalled, ranked, layers=[1, 2, 3])
    shown = coverage_table(table, POINTS).set_index("SAE layers")
    assert shown.loc["2", "δ, held out"] == "–" and shown.loc["3", "Top feature"] == "–"
    assert (
        shown.loc["2", "δ, confirmation"] == "−10.0 [−20.0, +5.0]"
        and shown.loc["1", "δ, confirmation"] == "–"
    )
    assert shown.loc["1 to 3", "Top feature"] == "l2_p0"
    figure = plots.sae_coverage(
        {"math": table, "translation": table}, {"math": POINTS, "translation": POINTS}
    )
    assert_tidy(figure)
    effects = points(figure.axes[0], "samples that chose")
    assert len(rows(figure.axes[0])) == 6 and np.isnan(effects[2]).all()  # none tested on layer 3
    assert len(intervals(figure.axes[0])) == 5
    told = sae_coverage.story(table, POINTS)
    assert "With all layers the best feature is l2_p0, +30.0 points on held-out samples" in told
    assert "−10.0 [−20.0, +5.0] on the confirmation samples; 3 of 5 smaller windows find the same one" in told
    again = [place for place in points(figure.axes[0], "confirmation") if not np.isnan(place[0])]
    assert again == [(-10.0, row) for row in (1, 3, 4, 5)]

"""Figures and the table of the comparison on a pool of known quality: tidy, and true to the data."""

import numpy as np
import pandas as pd
import pytest
from test_plots import assert_tidy, intervals, points, rows

from igds_utils import plots
from igds_utils.display import MORE_SELECTORS, selector_title
from igds_utils.selection import quality
from igds_utils.tables import selection_table
from igds_utils.tasks.examples import Example

PAPER = ["random", "loss", "ifd", "zip", "igds"]
KINDS = ["", "another sample's target", "truncated target"]
KINDS += ["garbled prompt", "missing numbers", "another task's prompt"]


@pytest.fixture(scope="module")
def known():
    kinds = [KINDS[i % 8] if i % 8 < len(KINDS) else "" for i in range(64)]
    return quality.labels(
        [Example(f"s{i:02d}", {}, "x" * i, (), {"corruption": d}) for i, d in enumerate(kinds)]
    )


def rankings(known, names):
    random, made = np.random.default_rng(0), {}
    for number, name in enumerate(names):
        score = random.normal(size=len(known)) - (number % 3) * (known["side"] == "prompt").to_numpy(float)
        table = pd.DataFrame({"sample_id": known["sample_id"], "score": score})
        made[name] = table.sort_values("score", ascending=False).assign(rank=range(1, len(known) + 1))
    return made


@pytest.fixture(scope="module", params=["the paper's", "all"])
def compared(request, known):
    ranked = rankings(known, PAPER if request.param == "the paper's" else [*PAPER, *MORE_SELECTORS])
    return {
        "rankings": ranked,
        "precision": quality.precision(ranked, known, 0.5),
        "length": quality.length_correlation(ranked, known, 0.95, 100),
    }


def test_the_figure_is_tidy_with_few_and_many_selectors(compared):
    assert_tidy(plots.precision_dots(compared["precision"], 0.5))


def test_dots_stand_at_the_precision_in_the_order_of_both_sides(compared):
    named, axis = plots.precision_dots(compared["precision"], 0.5).axes
    half = compared["precision"]
    order = half[half["side"] == "both"].sort_values("precision", ascending=False, kind="stable")["selector"]
    expected = half[half["side"] == "prompt"].set_index("selector").loc[order]
    drawn = sorted(points(axis), key=lambda place: place[1])
    assert drawn == [(pytest.approx(x), y) for y, x in enumerate(expected["precision"])]
    ends = sorted(expected[["low", "high"]].itertuples(index=False, name=None))
    assert sorted(intervals(axis)) == [pytest.approx(both) for both in ends]
    assert rows(named) == [selector_title(selector) for selector in order]


def test_the_table_puts_the_cleanest_first_and_chance_last(known, compared):
    records = quality.summary_records(compared["precision"], compared["length"])
    table = selection_table({"ratio": 0.5, "selectors": records})
    assert table["Selector"].iloc[-1] == "chance" and len(table) == len(records) + 1
    best = max(records, key=lambda record: record["both_precision"])
    assert table["Selector"].iloc[0] == selector_title(best["selector"])
    shown = table["Clean (%), prompt side"].iloc[0]
    assert shown.startswith(f"{100 * best['prompt_precision']:.0f} [") and shown.endswith("]")
    assert table["Recall (%)"].iloc[-1] == "50"

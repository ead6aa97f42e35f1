"""Cost and benefit: the arithmetic, where it breaks even, and how it is told."""

from dataclasses import replace

import numpy as np
import pytest
from test_plots import assert_tidy, legend

from igds_utils import plots
from igds_utils.analysis import benefit
from igds_utils.config.settings import Shape
from igds_utils.core.costs import Machine
from igds_utils.tables import benefit_table

MODEL = Shape(parameters=1_100_000_000, layers=20, width=2000, kv_width=500, vocabulary=50_000)
MACHINE = Machine(
    devices=2, teraflops=1000, terabytes=3, memory_gb=80, use={"read": 0.5, "train": 0.5, "decode": 0.3}
)
SCALE = benefit.Scale(
    pool=100_000, ratio=0.5, prompt_tokens=100, target_tokens=300, model=MODEL, machine=MACHINE, price=2.0,
    prior=500, validation=64, candidates=100, new_tokens=100,
)  # fmt: skip


def by_selector(scale):
    return benefit.estimate(scale).set_index("selector")


def test_training_costs_about_three_forward_passes_and_random_costs_nothing():
    table = by_selector(SCALE)
    assert (
        3 <= SCALE.training_hours / table.loc["loss", "scoring"] < 3.3
    )  # Loss needs no logits of the prompt
    assert SCALE.training_hours == pytest.approx(6 * 1.1e9 * 100_000 * 400 / 5e14 / 3600, rel=0.1)
    assert table.loc["random", "spent_price"] == 0 and table.loc["random", "break_even"] == 0
    assert table["saved"].nunique() == 1 and table["saved"].iloc[0] == pytest.approx(SCALE.training_hours / 2)


def test_gpu_hours_do_not_depend_on_how_many_gpus_share_the_work():
    one = replace(SCALE, machine=MACHINE.model_copy(update={"devices": 1}))
    assert one.training_hours == pytest.approx(SCALE.training_hours)
    assert one.identification_hours == pytest.approx(SCALE.identification_hours)


def test_igds_reads_the_prompt_alone_and_only_up_to_its_feature():
    whole = SCALE.scoring_hours("igds")
    assert whole / SCALE.scoring_hours("loss") < 100 / 400
    assert replace(SCALE, blocks=10).scoring_hours("igds") == pytest.approx(whole / 2)
    assert SCALE.scoring_hours("ifd") > 1.6 * SCALE.scoring_hours("loss")


def test_identification_is_a_fixed_cost_that_grows_with_what_is_tested():
    assert replace(SCALE, pool=10).identification_hours == SCALE.identification_hours
    assert replace(SCALE, candidates=203).identification_hours > 1.8 * SCALE.identification_hours
    table = by_selector(SCALE)["identification"]
    assert list(table[table > 0].index) == ["igds"]


def test_at_the_break_even_pool_nothing_is_won_or_lost():
    pool = by_selector(SCALE).loc["igds", "break_even"]
    assert by_selector(replace(SCALE, pool=round(pool))).loc["igds", "net"] == pytest.approx(0, abs=1e-3)
    assert by_selector(replace(SCALE, pool=round(2 * pool))).loc["igds", "net"] > 0
    assert by_selector(replace(SCALE, price=9.0)).loc["igds", "break_even"] == pytest.approx(pool)


def test_a_selector_that_costs_more_than_it_saves_never_pays():
    table = by_selector(replace(SCALE, ratio=0.8))
    assert table.loc["loss", "net"] < 0 and np.isnan(table.loc["loss", "break_even"])
    often = by_selector(replace(SCALE, ratio=0.8, trainings=3))  # one selection serves several trainings
    assert often.loc["loss", "net"] > 0 and often.loc["loss", "break_even"] == 0
    with pytest.raises(ValueError, match="at 1 nothing is saved"):
        replace(SCALE, ratio=1.0)


def test_table_story_and_figure():
    found = benefit.estimate(replace(SCALE, ratio=0.8))
    table = benefit_table(found, "€").set_index("Selector")
    assert (
        table.loc["Loss", "Pays from a pool of"] == "never"
        and table.loc["Random", "Pays from a pool of"] == "any"
    )
    assert table.loc["IGDS", "Pays from a pool of"].endswith(" samples") and "Net (€)" in table
    told = benefit.story(SCALE, benefit.estimate(SCALE), "8 x H100 80 GB")
    assert "Selecting 50 % of 100,000 samples" in told and "GPU hours of 8 x H100 80 GB (" in told
    assert "it pays from a pool of" in told
    curve = benefit.curve(SCALE, points=20)
    assert curve["net_share"].max() <= 0.5 + 1e-9
    assert (
        curve.groupby("selector")["net_share"].diff().dropna().ge(-1e-9).all()
    )  # a larger pool never pays less
    figure = plots.break_even(curve)
    assert_tidy(figure)
    assert set(legend(figure)) >= {"Random", "Loss", "IGDS"}

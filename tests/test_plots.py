"""Figures: written whole and repeatable, nothing overlaps, and what they show is what they were given."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from igds_utils import plots
from igds_utils.display import SELECTORS, Metric, arm_title, selector_of
from igds_utils.plots import style

POINTS = Metric("accuracy (%)", "points", 100, 1)


def texts(figure):
    """Every visible text of a figure with its box in pixels, tick labels aside."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = []
    for axis in figure.axes:
        ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
        for text in axis.findobj(matplotlib.text.Text):
            if text.get_visible() and text.get_text().strip() and text not in ticks:
                found.append((text.get_text(), matplotlib.text.Text.get_window_extent(text, renderer)))
    return found


def assert_tidy(figure):
    """No two texts overlap and none leaves the page."""
    boxes = texts(figure)
    page = figure.bbox
    for i, (name, box) in enumerate(boxes):
        assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, f"{name!r} leaves the page"
        assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, f"{name!r} leaves the page"
        for other, other_box in boxes[i + 1 :]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert width < 1.5 or height < 1.5, f"{name!r} overlaps {other!r}"


def features(n, seed=0):
    rng = np.random.default_rng(seed)
    deltas = np.sort(rng.normal(0, 0.05, n))[::-1]
    return [
        {"name": f"l14_p{i}", "delta": d, "delta_low": d - 0.06, "delta_high": d + 0.05, "delta_loglik": 2 * d,
         "confirmation_delta": 0.01 if i == 0 else None, "confirmation_low": -0.05, "confirmation_high": 0.07}
        for i, d in enumerate(deltas)
    ]  # fmt: skip


def recall_table():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"layer": rng.choice([6, 18], 300), "frequency": rng.beta(0.4, 1, 300).clip(0.02)})
    table["candidate"] = table["frequency"] >= 0.8
    n = int(table["candidate"].sum())
    facts = {
        "n_features_total": 9216,
        "n_prior": 48,
        "tau": 0.8,
        "n_candidates": n,
        "basis_points": 1e4 * n / 9216,
    }
    return table, facts | {"layers": [6, 12, 18]}


def record(selector, score, ratio=0.5):
    main = ratio in (None, 0.5)
    return {
        "selector": selector,
        "ratio": ratio,
        "main": main,
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
    }


SUMMARY = {
    "math": [
        record("original", 0.15, None),
        record("full", 0.6, None),
        record("random", 0.55),
        record("igds", 0.6),
    ],
    "translation": [record("full", 0.3, None), record("igds", 0.31), record("igds", 0.2, ratio=0.2)],
}
LOGS = {
    arm: pd.DataFrame({"step": np.arange(1, 5), "loss": [2.0, 1.5, 1.2, 1.0 + 0.01 * i]})
    for i, arm in enumerate(["full", "random@0.5", "loss@0.5", "ifd@0.5", "zip@0.5", "igds@0.5-s1"])
}
DRAWN = {
    "recall": lambda: plots.recall_frequency(*recall_table()),
    "effects": lambda: plots.causal_effects(features(16), ["l14_p0"], POINTS),
    "many effects": lambda: plots.causal_effects(features(200), ["l14_p0"], POINTS),
    "no effects": lambda: plots.causal_effects([], [], POINTS),
    "agreement": lambda: plots.effect_agreement(features(16), ["l14_p0"], POINTS, resamples=200),
    "no agreement": lambda: plots.effect_agreement(features(1), ["l14_p0"], POINTS, resamples=200),
    "main": lambda: plots.main_result(SUMMARY, dict.fromkeys(SUMMARY, POINTS)),
    "loss": lambda: plots.training_loss(LOGS),
    "figure 1": plots.concept_loop,
    "figure 2": plots.pipeline,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DRAWN)
def test_no_text_overlaps_or_leaves_the_page(name):
    figure = DRAWN[name]()
    assert figure.get_figwidth() <= 6.85
    assert_tidy(figure)


def test_the_overlap_check_can_fail():
    figure = plots.concept_loop()
    figure.axes[0].text(2.5, 1.27, "in the way", ha="center", va="center")
    with pytest.raises(AssertionError, match="overlaps"):
        assert_tidy(figure)


def test_names_stand_at_their_marks_as_far_as_they_fit_and_in_their_order():
    figure, axes = style.new_figure(3, 2)
    axes[0, 0].set(xlim=(1, 100), ylim=(0, 1), xscale="log")
    heights = {"alone": 0.9, "upper": 0.502, "lower": 0.5, "lowest": 0.0}
    style.name_marks(axes[0, 0], [style.Mark(10, y, name, "#000000") for name, y in heights.items()])
    assert_tidy(figure)
    placed = {text.get_text(): text.xyann[1] for text in axes[0, 0].texts}
    assert list(placed) == ["lowest", "lower", "upper", "alone"]
    assert placed["alone"] == pytest.approx(0.9) and 0 < placed["lowest"] < 0.1  # within the axes
    assert (placed["upper"] + placed["lower"]) / 2 == pytest.approx(0.501)  # both give way
    assert all(text.get_color() == style.INK for text in axes[0, 0].texts)


def test_axes_are_labelled_with_units():
    effects = plots.causal_effects(features(4), ["l14_p0"], POINTS).axes[0]
    assert "points" in effects.get_xlabel()
    assert "nats" in plots.training_loss(LOGS).axes[0].get_ylabel()


def test_the_selected_feature_stands_out_and_its_confirmation_is_drawn():
    axis = plots.causal_effects(features(5), ["l14_p0"], POINTS).axes[0]
    bold = [label.get_text() for label in axis.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["l14_p0"]
    assert "confirmation" in axis.get_title(loc="right")


def test_main_result_shows_scores_in_the_metrics_unit_and_says_what_was_not_run():
    math, translation = plots.main_result(SUMMARY, dict.fromkeys(SUMMARY, POINTS)).axes
    assert {"15.0", "60.0", "55.0"} <= {text.get_text() for text in math.texts}
    shown = [text.get_text() for text in translation.texts]
    assert shown.count("not run") == 2  # original and random
    assert "20.0" not in shown  # another ratio
    assert [label.get_text() for label in math.get_yticklabels()] == ["Original", "Full", "Random", "IGDS"]
    assert " Full" in [text.get_text() for text in math.texts]  # the dashed line has a name


def test_main_result_shows_the_main_ratio_whichever_it_is():
    records = [record("igds", 0.31, 0.3) | {"main": True}, record("igds", 0.2) | {"main": False}]
    (axis,) = plots.main_result({"math": records}, {"math": POINTS}).axes
    assert [text.get_text() for text in axis.texts] == ["31.0"]


def test_every_selector_has_one_distinct_colour():
    assert set(plots.SELECTOR_COLOURS) == set(SELECTORS)
    assert len(set(plots.SELECTOR_COLOURS.values())) == len(SELECTORS)
    assert plots.selector_colour("mona") == plots.selector_colour("mona")
    assert plots.selector_colour("igds") == plots.SELECTOR_COLOURS["igds"]


def test_an_arm_is_named_with_ratio_and_seed():
    assert arm_title("igds@0.5-s1") == "IGDS 50 %, seed 1"
    assert arm_title("full") == "Full"
    assert arm_title("full-s2") == "Full, seed 2"
    assert arm_title("sae-simscale@0.2") == "sae-simscale 20 %"
    assert selector_of("full-s2") == "full" and selector_of("igds@0.5-s1") == "igds"


def test_benchmarks_that_meet_their_target_lie_right_of_it_whichever_way_they_count():
    values = {"time": 0.5, "speed": 3.0, "just": 1.14, "slow": 2.0}
    targets = {"time": (1.0, True), "speed": (2.0, False), "just": (1.15, True), "slow": (1.0, True)}
    figure = plots.bench_ratios(values, targets, {name: name for name in values})
    assert_tidy(figure)
    axis = figure.axes[0]
    assert [dot.get_offsets()[0][0] for dot in axis.collections] == pytest.approx([2, 1.5, 1.15 / 1.14, 0.5])
    colours = [matplotlib.colors.to_hex(dot.get_facecolor()[0]).upper() for dot in axis.collections]
    assert colours == [style.ACCENT, style.ACCENT, style.ACCENT, style.AGAIN]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.5 ×", "0.75 ×", "1 ×", "1.5 ×", "2 ×"]


def test_figure_two_fits_its_boxes():
    counts = {
        "prior": 7473, "features": 425984, "candidates": 441, "tested": 441, "validation": 64,
        "task_feature": "l14_p11575", "pool": 93733, "selected": 46866, "test": 500,
    }  # fmt: skip
    figure = plots.pipeline(counts)
    assert_tidy(figure)
    boxes = [
        patch.get_window_extent() for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)
    ]
    for name, box in texts(figure):
        if name.startswith("Stage"):
            continue
        inside = [b for b in boxes if b.x0 <= box.x0 and box.x1 <= b.x1 and b.y0 <= box.y0 and box.y1 <= b.y1]
        assert inside, f"{name!r} sticks out of its box"
    shown = "\n".join(name for name, _ in texts(figure))
    assert "441 of 425,984" in shown and "93,733 samples" in shown
    assert "of 425,984" not in "\n".join(name for name, _ in texts(plots.pipeline({"candidates": 3})))


def test_saved_figures_are_repeatable_and_leave_nothing_else(tmp_path):
    first = plots.save_figure(DRAWN["effects"](), tmp_path / "a", "effects")
    second = plots.save_figure(DRAWN["effects"](), tmp_path / "b", "effects")
    assert [path.name for path in first] == ["effects.png", "effects.pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["effects.pdf", "effects.png"]
    assert Image.open(first[0]).info["dpi"][0] == pytest.approx(200, abs=1)


def test_a_figure_that_is_there_already_is_left_alone(tmp_path):
    png, pdf = plots.save_figure(DRAWN["effects"](), tmp_path, "figure")
    pdf.write_bytes(b"as it was")
    plots.save_figure(DRAWN["effects"](), tmp_path, "figure")
    assert pdf.read_bytes() == b"as it was"
    plots.save_figure(DRAWN["recall"](), tmp_path, "figure")  # another one
    other = png.read_bytes(), pdf.read_bytes()
    assert other[1].startswith(b"%PDF")
    pdf.unlink()
    plots.save_figure(DRAWN["recall"](), tmp_path, "figure")
    assert (png.read_bytes(), pdf.read_bytes()) == other


def test_a_figure_is_whole_after_a_kill_between_its_files(tmp_path, monkeypatch):
    """The PDF is written first, so that an old PNG has both made again."""
    plots.save_figure(DRAWN["recall"](), tmp_path, "figure")
    written = []
    monkeypatch.setattr(style, "write_whole", lambda path, content: written.append(path.suffix))
    plots.save_figure(DRAWN["effects"](), tmp_path, "figure")
    assert written == [".pdf", ".png"]

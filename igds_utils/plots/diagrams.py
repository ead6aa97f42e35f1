"""Figures 1 and 2 of the paper, redrawn by code: the concept loop and the pipeline."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from igds_utils.plots.style import ACCENT, INK, MUTED, use_style

BLUE, ORANGE, GREEN, GREY = "#dcebf5", "#fbe8d3", "#dcefe6", "#eeeeee"


def concept_loop() -> Figure:
    """Figure 1: from features to insight, from insight to action, from action to a better model, and round again."""
    figure, axis = _canvas(5.0, 2.6)
    left, right, top, bottom, width, height = 0.0, 2.9, 1.7, 0.0, 2.1, 0.85
    _box(
        axis,
        (left, top, width, height),
        BLUE,
        "1  Features",
        "Which sparse features fire\nwhen the model meets the task?",
    )
    _box(
        axis,
        (right, top, width, height),
        ORANGE,
        "2  Insight",
        "Which of them cause\nbetter answers if amplified?",
    )
    _box(
        axis,
        (right, bottom, width, height),
        GREEN,
        "3  Action",
        "Train on the data that\nmakes them resonate most.",
    )
    _box(
        axis,
        (left, bottom, width, height),
        GREY,
        "4  Better model?",
        "The same mechanism, reinforced\nwith less data.",
    )
    _arrow(axis, [(2.13, 2.12), (2.87, 2.12)])
    _arrow(axis, [(3.95, 1.67), (3.95, 0.88)])
    _arrow(axis, [(2.87, 0.42), (2.13, 0.42)])
    _arrow(axis, [(1.05, 0.88), (1.05, 1.67)])
    small = {"fontsize": 7, "color": MUTED}
    axis.text(2.5, 2.19, "causal\nfilter", ha="center", va="bottom", **small)
    axis.text(4.02, 1.27, "feature-resonant\nscore", ha="left", va="center", **small)
    axis.text(2.5, 0.49, "fine-\ntuning", ha="center", va="bottom", **small)
    axis.text(0.98, 1.27, "evaluate,\nlook again", ha="right", va="center", **small)
    axis.text(
        2.5, 1.27, "Insight2Action", ha="center", va="center", fontsize=10, fontweight="bold", color=ACCENT
    )
    return figure


def pipeline(counts: dict[str, int | str] | None = None) -> Figure:
    """Figure 2: the two stages of IGDS and what follows, with a run's own numbers where they are given.

    `counts` may hold prior, features, candidates, tested, validation, task_feature, pool, selected, test; a line
    whose numbers are missing is left out.
    """
    known = counts or {}

    def line(text: str, *keys: str) -> str:
        if any(key not in known for key in keys):
            return ""
        shown = (f"{known[key]:,}" if isinstance(known[key], int) else known[key] for key in keys)
        return "\n" + text.format(*shown)

    figure, axis = _canvas(6.65, 2.9)
    width, height, step, top, bottom = 1.12, 0.94, 1.3825, 1.72, 0.0
    stages = {
        top: [
            ("Prior set", "task prompts,\nread at the colon p" + line("{} prompts", "prior"), GREY),
            (
                "Recall",
                "features that fire\non ≥ τ of them" + line("{} of {}", "candidates", "features"),
                BLUE,
            ),
            ("Amplification", "h′ = h + aᵢ dᵢ,\nthen generate" + line("{} features", "tested"), ORANGE),
            ("Causal filter", "δᵢ = mean change\nof the score" + line("on {} prompts", "validation"), ORANGE),
            ("Task features", "the k best by δ" + line("{}", "task_feature"), ORANGE),
        ],
        bottom: [
            ("Pool", "training data\nto choose from" + line("{} samples", "pool"), GREY),
            ("Resonance", "S(x) = Σ aᵢ(x, p),\nthe prompt alone", BLUE),
            ("Selection", "best part\nof the ranking" + line("{} samples", "selected"), GREEN),
            ("Fine-tuning", "all parameters,\none epoch", GREEN),
            ("Evaluation", "held-out test" + line("{} items", "test"), GREY),
        ],
    }
    for row, boxes in stages.items():
        for index, (title, text, colour) in enumerate(boxes):
            _box(axis, (index * step, row, width, height), colour, title, text)
            if index:
                start = (index - 1) * step + width + 0.02
                _arrow(axis, [(start, row + height / 2), (index * step - 0.02, row + height / 2)])
    features, score, gap = 4 * step + width / 2, step + width / 2, (top + bottom + height) / 2
    _arrow(axis, [(features, top - 0.02), (features, gap), (score, gap), (score, bottom + height + 0.02)])
    for row, text in ((top, "Stage 1: find task features"), (bottom, "Stage 2: score and select")):
        axis.text(0, row + height + 0.07, text, color=MUTED, va="bottom")
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes whose data units are inches, so that boxes and text keep their proportions; a thin margin all round."""
    use_style()
    margin = 0.06
    figure = Figure(figsize=(width + 2 * margin, height + 2 * margin))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-margin, width + margin), ylim=(-margin, height + margin))
    axis.axis("off")
    return figure, axis


def _box(axis: Axes, place: tuple[float, float, float, float], colour: str, title: str, text: str) -> None:
    left, bottom, width, height = place
    style = "round,pad=0,rounding_size=0.07"
    axis.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle=style, facecolor=colour, edgecolor=MUTED, linewidth=0.8
        )
    )
    middle = left + width / 2
    axis.text(middle, bottom + height - 0.1, title, ha="center", va="top", fontweight="bold", fontsize=8.5)
    axis.text(middle, bottom + height - 0.34, text, ha="center", va="top", fontsize=7.5, linespacing=1.25)


def _arrow(axis: Axes, points: list[tuple[float, float]]) -> None:
    xs, ys = zip(*points[:-1], strict=True)
    axis.plot(xs, ys, color=INK, linewidth=1, solid_capstyle="butt")
    axis.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>",
            mutation_scale=8,
            color=INK,
            linewidth=1,
            shrinkA=0,
            shrinkB=0,
        )
    )

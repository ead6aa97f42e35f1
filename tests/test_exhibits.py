"""The exhibits of the report: each is really made by the notebook that is named, and shown as it was saved."""

import re

import nbformat
import pandas as pd
import pytest

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.experiment import Run
from igds_utils.display import NOT_RUN
from igds_utils.plots.style import empty_figure, save_figure
from igds_utils.reporting.exhibits import FOLD, exhibits, save_exhibit, show_exhibit
from igds_utils.running.runner import REPORT_STAGES, STAGES
from igds_utils.tables import load_table, save_table

SAVED = {  # how notebooks save: by the helpers of the package, or that of 11_report for figures
    "tables": re.compile(r'save_exhibit\(run, .*?, ("[\w{}]+")(?:, task)?\)'),
    "figures": re.compile(r'(?:save_figure\(.*?"figures",|\bfigure\(.*?,) (f?"[\w{}]+")\)', re.DOTALL),
}


def saved(stage: str) -> dict[str, set[str]]:
    """Names of the tables and figures that a notebook's cells save, with {task} left in them."""
    cells = nbformat.read(PROJECT / "notebooks" / f"{stage}.ipynb", as_version=4).cells
    found: dict[str, set[str]] = {kind: set() for kind in SAVED}
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        for kind, pattern in SAVED.items():
            for argument in pattern.findall(cell.source):
                found[kind] |= set(re.findall(r'"([\w{}]+)"', argument))
        if "notebooks/figures" in cell.source:
            found["figures"] |= {path.stem for path in (PROJECT / "notebooks/figures").glob("*.svg")}
    return found


MADE = {stage: saved(stage) for stage in STAGES}


@pytest.mark.parametrize("exhibit", exhibits().values(), ids=lambda exhibit: exhibit.name)
def test_the_named_notebook_saves_it(exhibit):
    made = MADE[exhibit.notebook]
    assert exhibit.name in made["tables"] | made["figures"]
    assert not exhibit.numbers or exhibit.name in made["tables"]
    assert exhibit.name not in made["figures"] or exhibit.alt, (
        "a figure needs words for those who cannot see it"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_notebook_saves_is_shown(stage):
    assert (MADE[stage]["tables"] | MADE[stage]["figures"]) - set(exhibits()) <= {"main_result"}


def test_a_report_makes_every_exhibit_again():
    assert {exhibit.notebook for exhibit in exhibits().values()} <= set(REPORT_STAGES) <= set(STAGES)
    first, *_, last = REPORT_STAGES  # before those that read it, and after all others
    assert (first, last) == ("05_evaluation", "11_report")


def test_the_paper_is_complete():
    assert {f"table{n}" for n in range(1, 10)} | {f"figure{n}" for n in range(1, 8)} <= set(exhibits())


def test_the_report_shows_every_exhibit_once():
    cells = nbformat.read(PROJECT / "notebooks" / "11_report.ipynb", as_version=4).cells
    calls = re.findall(
        r"^exhibit\((.*?)\)$", "\n".join(cell.source for cell in cells), re.MULTILINE | re.DOTALL
    )
    assert sorted(re.findall(r'"(.*?)"', " ".join(calls))) == sorted(exhibits())


FRAME = pd.DataFrame({
    "Arm": ["IGDS", "Random", "l14_p11575"], "Moved": ["−2.71 [−2.84, +1.00]", "–", "a-b (−1.0)"],
    "Prompt": ["{text}\nSolution:", "(−0.5), 0–25", "−0.5%"],
})  # fmt: skip


def test_a_table_read_back_equals_what_was_saved(tmp_path):
    save_table(FRAME, tmp_path, "table2", "Scores")
    pd.testing.assert_frame_equal(load_table(tmp_path, "table2"), FRAME)
    assert "-2.71 [-2.84" in (tmp_path / "table2.csv").read_text(encoding="utf8")


@pytest.mark.parametrize("name", exhibits())
def test_what_was_not_made_says_so_and_by_which_notebook(tmp_path, name):
    (note,) = show_exhibit(tmp_path, name, ["math", "translation"])
    assert (
        'class="note"' in note.data
        and NOT_RUN in note.data.lower()
        and exhibits()[name].notebook in note.data
    )


def test_a_figure_comes_with_its_numbers_task_by_task_and_explains_itself_once(tmp_path):
    for task in ("math", "translation"):
        save_figure(empty_figure("x"), tmp_path / "figures", f"quality_{task}")
    save_table(FRAME, tmp_path / "tables", "quality_math", "caption")
    save_table(pd.concat([FRAME] * FOLD), tmp_path / "tables", "quality_translation", "caption")
    one, two, short, long = (
        html.data for html in show_exhibit(tmp_path, "quality_{task}", ["math", "translation"])
    )
    explained = exhibits()["quality_{task}"].caption[:20]
    assert "<figure" in one and "known quality, math." in one and explained in one
    assert "<figure" in two and "known quality, translation." in two and explained not in two
    assert "<table" in short and "The numbers, math." in short and "<details" not in short
    assert long.startswith("<details><summary>The numbers, translation (24 rows)") and "<table" in long


def test_a_table_by_itself_says_what_it_shows_and_what_its_brackets_are(tmp_path):
    run = Run(load_preset("smoke", overrides={"confidence": 0.9}), tmp_path)
    frame = pd.DataFrame({"Arm": ["IGDS"], "Score": ["1.0 [0.5, 1.5]"]})
    save_exhibit(run, frame, "table2")
    written, exhibit = (run.root / "tables/table2.md").read_text(encoding="utf8"), exhibits()["table2"]
    assert written.startswith(
        f"**{exhibit.title}.** {exhibit.caption} {exhibit.setting} In square brackets: 90 %"
    )
    save_exhibit(run, frame[["Arm"]], "stability_{task}", "math")
    alone = (run.root / "tables/stability_math.md").read_text(encoding="utf8")
    assert alone.startswith("**How far the sources agree, math.** ") and "square brackets" not in alone

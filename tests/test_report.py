"""The report: self-contained and escaped, and every exhibit is made by the notebook that is named."""

import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from igds_utils.config.config import PROJECT, load_preset, preset_names
from igds_utils.core.experiment import Run
from igds_utils.plots.style import new_figure, save_figure
from igds_utils.reporting import report
from igds_utils.reporting.report import exhibits, save_table
from igds_utils.running.runner import STAGES

HOSTILE = "<script>alert(1)</script><img src=http://x.org/a.png>"
FRAME = pd.DataFrame({
    "Arm": ["IGDS", "Random", "l14_p11575"], "Moved": ["−2.71 [−2.84, +1.00]", "–", "a-b (−1.0)"],
    "Prompt": ["{text}\nSolution:", "(−0.5), 0–25", HOSTILE],
})  # fmt: skip

SAVED = {  # how notebooks save
    "tables": re.compile(r'save_exhibit\(run, .*?, ("[\w{}]+")(?:, task)?\)'),
    "figures": re.compile(r'save_figure\(.*?"figures", (f?"[\w{}]+")\)', re.DOTALL),
}


def saved(stage: str) -> dict[str, set[str]]:
    """Names of the tables and figures that a notebook's cells save, with {task} left in them."""
    cells = nbformat.read(PROJECT / "notebooks" / f"{stage}.ipynb", as_version=4).cells
    found: dict[str, set[str]] = {kind: set() for kind in SAVED}
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        for kind, pattern in SAVED.items():
            found[kind] |= {name.removeprefix("f").strip('"') for name in pattern.findall(cell.source)}
        if "notebooks/figures" in cell.source:
            found["figures"] |= {path.stem for path in (PROJECT / "notebooks/figures").glob("*.svg")}
    return found


MADE = {stage: saved(stage) for stage in STAGES}


@pytest.mark.parametrize("name", exhibits())
def test_the_named_notebook_saves_it(name):
    exhibit = exhibits()[name]
    made = MADE[exhibit["notebook"]]
    assert name in made["tables"] | made["figures"]
    assert "numbers" not in exhibit or name in made["tables"]
    assert ("alt" in exhibit) == (name in made["figures"])  # words for those who cannot see it


def test_what_notebooks_save_is_shown_once_and_a_report_makes_it_again():
    assert set.union(*(made[kind] for made in MADE.values() for kind in SAVED)) == set(exhibits())
    assert {exhibit["notebook"] for exhibit in exhibits().values()} <= set(STAGES)
    template = (PROJECT / "igds_utils/reporting/report.html.j2").read_text(encoding="utf8")
    assert sorted([*re.findall(r'\{\{ exhibit\("(.*?)"\)', template), "claims"]) == sorted(exhibits())
    assert {f"table{n}" for n in range(1, 10)} | {f"figure{n}" for n in range(1, 8)} <= set(exhibits())


@pytest.fixture
def run(tmp_path):
    """A run of which only the features and a few tables are stored, with hostile texts in all of them."""
    overrides = {"description": HOSTILE, "departures": [HOSTILE]}
    run = Run(load_preset("smoke", tasks=["math"], overrides=overrides), tmp_path)
    feature = {"name": "l1_p2", "layer": 1, "delta": 0.1, "confirmation_delta": 0.0}
    run.store.write("math/task_features.json", {"features": [feature], "selected": ["l1_p2"], "established": False})
    run.store.write("manifest.json", {
        "preset": run.preset.model_dump(), "commit": HOSTILE,
        "machine": {"gpus": 0, "threads": 2, "processor": HOSTILE},
        "notebooks": {"01": {"seconds": 60.0, "peak_bytes": 2e9}},
        "metrics": {"math": {"label": "accuracy (%)", "unit": "points", "factor": 100.0, "digits": 1}},
    })  # fmt: skip
    run.store.write("benefit.json", {"story": f"It costs $5 and saves $6. {HOSTILE}"})
    save_table(FRAME, tmp_path / "tables", "table9", "caption")
    save_figure(new_figure(2, 1)[0], tmp_path / "figures", "main_result")
    return run


def test_the_page_shows_what_is_stored_loads_nothing_and_escapes_everything(run):
    page = BeautifulSoup(report.write(run).read_text(encoding="utf8"), "html.parser")
    text = page.get_text()
    assert text.count(HOSTILE) >= 5 and not page.find_all("script")  # shown as they are written
    for tag in page.find_all(["img", "link"]):
        assert (tag.get("src") or tag.get("href")).startswith("data:")
    assert all(tag.get("alt") for tag in page.find_all("img")) and len(page.find_all("img")) == 1
    assert not re.search(r"@import|url\((?!data:)", page.style.string)
    assert all(page.find(id=link["href"][1:]) for link in page.find("nav").find_all("a"))
    assert all(table.find_parent(class_="scroll") for table in page.find_all("table"))
    assert page.find("math", attrs={"display": "block"})
    assert "no causal effect is established" in text and "the best there is: l1_p2" in text
    assert "01 1 min 00 s, 2.0 GB" in text
    absent = [note.get_text() for note in page.find_all(class_="note")]
    assert len(absent) == len(exhibits()) - 3  # all but the claims and what was saved
    assert any("Table 2: selections compared. Not run at this scale; 05_evaluation makes it" in note for note in absent)


def test_a_report_that_cannot_be_made_leaves_the_old_one(run):
    (run.root / "report.html").write_text("old")
    (run.store.root / "math/task_features.json").unlink()
    with pytest.raises(FileNotFoundError):
        report.write(run)
    assert (run.root / "report.html").read_text() == "old"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_where_it_departs_from_the_paper(name):
    preset = load_preset(name)
    assert preset.departures and all(text.endswith((".", ").")) for text in preset.departures)
    text = " ".join(preset.departures)
    named = {task for task in preset.tasks if f"{task.capitalize()}:" in text}
    assert name == "smoke" or named == set(preset.tasks)
    batch = preset.tasks["math"].sft.global_batch
    assert name == "smoke" or batch == 64 or f"batches of {batch}" in text

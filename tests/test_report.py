"""The report: self-contained, escaped, and every exhibit made by the notebook it names."""

import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.experiment import Run
from igds_utils.plots.style import new_figure, save_figure
from igds_utils.reporting import report
from igds_utils.reporting.report import exhibits, save_table

HOSTILE = "<script>alert(1)</script><img src=http://x.org/a.png>"
FRAME = pd.DataFrame({
    "Arm": ["IGDS", "Random", "l14_p11575"], "Moved": ["−2.71 [−2.84, +1.00]", "–", "a-b (−1.0)"],
    "Prompt": ["{text}\nSolution:", "(−0.5), 0–25", HOSTILE],
})  # fmt: skip


@pytest.mark.parametrize("name", exhibits())
def test_the_named_notebook_saves_it(name):
    file = PROJECT / "notebooks" / f"{exhibits()[name]['notebook']}.ipynb"
    cells = nbformat.read(file, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    drawn = (PROJECT / f"notebooks/figures/{name}.svg").is_file() and "notebooks/figures" in code
    assert f'"{name}"' in code or drawn


def test_what_a_run_saves_is_shown_once_and_pictures_have_words():
    template = (PROJECT / "igds_utils/reporting/report.html.j2").read_text(encoding="utf8")
    shown = [*re.findall(r'\{\{ exhibit\("(.*?)"\)', template), "claims"]
    assert sorted(shown) == sorted(exhibits())
    tables, pictures = set(), set()
    for name, exhibit in exhibits().items():
        for task in load_preset("quick").tasks:
            tables.add(exhibit.get("numbers", name).format(task=task))
            pictures |= {name.format(task=task)} if "alt" in exhibit else set()
    quick = PROJECT / "results/reference/quick"
    assert {file.stem for file in quick.glob("tables/*.md")} <= tables
    assert {file.stem for file in quick.glob("figures/*.png")} == pictures
    assert {f"table{n}" for n in range(1, 10)} | {f"figure{n}" for n in range(1, 8)} <= set(exhibits())


@pytest.fixture
def run(tmp_path):
    """A run of which the features and a few tables are stored, with hostile texts."""
    overrides = {"description": HOSTILE, "departures": [HOSTILE]}
    run = Run(load_preset("smoke", tasks=["math"], overrides=overrides), tmp_path)
    feature = {"name": "l1_p2", "layer": 1, "delta": 0.1, "confirmation_delta": 0.0}
    found = {"features": [feature], "selected": ["l1_p2"], "established": False}
    run.store.write("math/task_features.json", found)
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
    assert all(tag.get("alt") for tag in page.find_all("img"))
    assert len(page.find_all("img")) == 1
    assert not re.search(r"@import|url\((?!data:)", page.style.string)
    assert all(page.find(id=link["href"][1:]) for link in page.find("nav").find_all("a"))
    assert all(table.find_parent(class_="scroll") for table in page.find_all("table"))
    assert page.find("math", attrs={"display": "block"})
    assert "no causal effect is established" in text and "the best there is: l1_p2" in text
    assert "01 1 min 00 s, 2.0 GB" in text
    absent = [note.get_text() for note in page.find_all(class_="note")]
    assert len(absent) == len(exhibits()) - 3  # all but the claims and what was saved
    assert any("Not run at this scale; 05_evaluation makes it" in note for note in absent)

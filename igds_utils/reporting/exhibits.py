"""Every table and figure of a run: how a notebook saves a table, and all as they are shown in the report.

exhibits.yaml lists them in the paper's order. What a run did not make is shown as not run, with the notebook that
would make it, rather than left out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import yaml
from IPython.display import HTML

from igds_utils.config.refs import Strict
from igds_utils.core.experiment import Run
from igds_utils.display import NOT_RUN, task_title
from igds_utils.reporting.report import fold, show_figure, show_note, show_table
from igds_utils.tables import load_table, save_table

FOLD = 8  # a table of more rows than these is folded away where its figure already shows it


class Exhibit(Strict):
    """One entry of exhibits.yaml; {task} in a name stands for one file per task."""

    name: str
    title: str
    notebook: str
    caption: str
    alt: str = ""  # of its figure
    numbers: str = ""  # its table, where that has another name
    setting: str = ""  # where ours differs from the paper's
    strong: str = ""  # the rows of its table that stand out


@cache
def exhibits() -> dict[str, Exhibit]:
    """All exhibits by name, in the order of the report."""
    listed = yaml.safe_load((Path(__file__).parent / "exhibits.yaml").read_text(encoding="utf8"))
    return {entry["name"]: Exhibit.model_validate(entry) for entry in listed}


def save_exhibit(run: Run, frame: pd.DataFrame, name: str, task: str = "") -> None:
    """Write an exhibit's table under the run's tables/ (of one task, where it has one per task), fully explained."""
    exhibit = exhibits()[name]
    caption = _caption(exhibit, _about(task), whole=True)
    if frame.map(lambda cell: " [" in str(cell)).any(axis=None):
        caption += f" In square brackets: {100 * run.preset.confidence:g} % intervals."
    save_table(frame, run.root / "tables", (exhibit.numbers or exhibit.name).format(task=task), caption)


def show_exhibit(root: Path, name: str, tasks: list[str]) -> list[HTML]:
    """The tables and figures of one exhibit from the run's folder `root`; a note where this run made none.

    Figures come first, the tables behind them follow under "The numbers"; only the first of several explains itself.
    """
    exhibit, shown = exhibits()[name], []
    for stem, about in _files(root / "figures", exhibit.name, ".png", tasks):
        alt = f"{exhibit.alt or exhibit.title}{about}"
        shown.append(show_figure(root / "figures" / f"{stem}.png", _caption(exhibit, about, not shown), alt))
    behind = bool(shown)
    for stem, about in _files(root / "tables", exhibit.numbers or exhibit.name, ".csv", tasks):
        frame = load_table(root / "tables", stem)
        caption = f"The numbers{about}." if behind else _caption(exhibit, about, not shown)
        table = show_table(frame, caption, strong=exhibit.strong)
        shown.append(
            fold(table, f"{caption[:-1]} ({len(frame)} rows)") if behind and len(frame) > FOLD else table
        )
    absent = (
        f"{exhibit.title}. {NOT_RUN.capitalize()}; {exhibit.notebook} makes it where a preset asks for it."
    )
    return shown or [show_note(absent)]


def _caption(exhibit: Exhibit, about: str, whole: bool) -> str:
    explained = (exhibit.caption, exhibit.setting) if whole else ()
    return " ".join(filter(None, (f"{exhibit.title}{about}.", *explained)))


def _about(task: str) -> str:
    return f", {task_title(task).lower()}" if task else ""


def _files(folder: Path, name: str, suffix: str, tasks: list[str]) -> list[tuple[str, str]]:
    """(name without suffix, what it is about in words) of the files that `name` stands for and that are there."""
    found = {name.format(task=task): _about(task) for task in (tasks if "{task}" in name else [""])}
    return [(stem, about) for stem, about in found.items() if (folder / f"{stem}{suffix}").is_file()]

"""The exhibits of a run, that is every table and figure: how tables are written, and the report that shows them all.

exhibits.yaml lists the exhibits; report.html.j2 is the report, one HTML file, in which all text from outside is escaped
and nothing is loaded. `python -m igds_utils.reporting.report` writes the claims of all reference runs into
results/README.md.
"""

import base64
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import Strict
from igds_utils.core.experiment import Run
from igds_utils.core.store import Store, write_whole
from igds_utils.display import duration, task_title
from igds_utils.reporting.claims import AGAINST, CLAIMS, NOT_RUN, OPEN, SUPPORTED, claims, rule_of
from igds_utils.tables import MARK

FOLD = 8  # a table of more rows than these is folded away where its figure already shows it
NUMBER = re.compile(r"[<+−]?\d|–$|not (run at|judged|defined)")  # how the cells of a column of numbers begin
PAPER_PARAMETERS, PAPER_POOL = 2e9, 10_000  # the paper's smallest; what is smaller is a toy
LARGER = {"smoke": "quick", "quick": "laptop", "laptop": "gpu", "gpu": "paper"}
SIGNS = str.maketrans({  # of display text -> LaTeX, which `Styler.to_latex` leaves as they are
    "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "δ": r"$\delta$", "Δ": r"$\Delta$", "τ": r"$\tau$",
    "‱": r"\textpertenthousand{}", "⟨": r"$\langle$", "⟩": r"$\rangle$", "…": r"\dots{}", "→": r"$\rightarrow$",
    "↵": r"\newline ", "ρ": r"$\rho$", "≤": r"$\leq$", "≥": r"$\geq$",
})  # fmt: skip


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
    """All exhibits by name, in the paper's order."""
    listed = yaml.safe_load((Path(__file__).parent / "exhibits.yaml").read_text(encoding="utf8"))
    return {entry["name"]: Exhibit.model_validate(entry) for entry in listed}


def save_exhibit(run: Run, frame: pd.DataFrame, name: str, task: str = "") -> None:
    """Write an exhibit's table under the run's tables/ (of one task, where it has one per task), fully explained."""
    exhibit = exhibits()[name]
    caption = " ".join(filter(None, (f"{exhibit.title}{_about(task)}.", exhibit.caption, exhibit.setting)))
    if frame.map(lambda cell: " [" in str(cell)).any(axis=None):
        caption += f" In square brackets: {100 * run.preset.confidence:g} % intervals."
    save_table(frame, run.root / "tables", (exhibit.numbers or exhibit.name).format(task=task), caption)


def save_table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> list[Path]:
    """Write `name`.csv, .md and .tex into `folder`, each whole or not at all; returns their paths.

    The first sentence of `caption` is the title.
    """
    plain = frame.map(lambda cell: str(cell).replace("−", "-"))
    written = {
        "csv": plain.to_csv(index=False, lineterminator="\n"),
        "md": to_markdown(frame, caption),
        "tex": to_latex(frame, name, caption),
    }
    return [write_whole(Path(folder) / f"{name}.{suffix}", text) for suffix, text in written.items()]


def load_table(folder: Path, name: str) -> pd.DataFrame:
    """The display frame that `save_table` wrote, with true minus signs again."""
    frame = pd.read_csv(Path(folder) / f"{name}.csv", dtype=str, keep_default_na=False)
    return frame.map(lambda cell: re.sub(r"(?<![\w.)-])-(?=[\d.])", "−", cell))


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    cells = frame.map(lambda cell: str(cell).replace("|", "\\|").replace("\n", "<br>"))
    title, dot, rest = caption.partition(". ")
    table = cells.to_markdown(index=False, disable_numparse=True)
    return f"**{title}{dot.strip()}** {rest}".strip() + f"\n\n{table}\n"


def to_latex(frame: pd.DataFrame, name: str, caption: str) -> str:
    """A booktabs table; needs the packages booktabs and textcomp. Columns of long text become paragraphs."""
    cells = frame.astype(str).replace("\n", "↵", regex=True)
    long = [bool(cells[column].str.len().max() > 60) for column in cells]
    form = "".join(rf"p{{{0.6 / sum(long):g}\linewidth}}" if one else "l" for one in long)
    style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    title = re.sub(r"([%&#_$])", r"\\\1", caption)
    return style.to_latex(hrules=True, caption=title, label=f"tab:{name}", column_format=form).translate(SIGNS)


# ---- the report ------------------------------------------------------------------------------------------


def shown(root: Path, name: str, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of one exhibit from the run's folder `root`, then its tables, as the template shows them.

    The first explains itself; tables behind figures are "the numbers". Without any the template says so.
    """
    exhibit, found = exhibits()[name], []
    for path, about in _files(root / "figures", name, ".png", tasks):
        image = base64.b64encode(path.read_bytes()).decode()
        found.append({"title": f"{exhibit.title}{about}.", "alt": f"{exhibit.alt}{about}", "image": image})
    behind = bool(found)
    for path, about in _files(root / "tables", exhibit.numbers or name, ".csv", tasks):
        table = as_cells(load_table(path.parent, path.stem), exhibit.strong)
        folded = behind and len(table["rows"]) > FOLD
        title = f"The numbers{about}" if behind else f"{exhibit.title}{about}."
        found.append(table | {"title": title + f" ({len(table['rows'])} rows)" * folded, "folded": folded})
    return found


def _about(task: str) -> str:
    return f", {task_title(task).lower()}" if task else ""


def _files(folder: Path, name: str, suffix: str, tasks: Sequence[str]) -> list[tuple[Path, str]]:
    """(path, what it is about in words) of the files that `name` stands for and that are there."""
    named = {name.format(task=task): _about(task) for task in (tasks if "{task}" in name else [""])}
    found = {folder / f"{stem}{suffix}": about for stem, about in named.items()}
    return [(path, about) for path, about in found.items() if path.is_file()]


def as_cells(frame: pd.DataFrame, strong: str = "") -> dict[str, Any]:
    """A display frame for the template: columns and rows, each cell with its style classes.

    Columns of numbers stand to the right, the paper's columns and rows are tinted, rows with the cell `strong` bold.
    """
    cells = frame.astype(str)
    numeric = [all(map(NUMBER.match, cells[name])) for name in cells]
    paper = [name.startswith("Paper") or name.endswith("(paper)") for name in cells]
    styled = []
    for row in [list(cells), *cells.to_numpy()]:
        theirs, bold = row[0].endswith("(paper)"), bool(strong) and strong in row
        styled.append([])
        for cell, number, tinted in zip(row, numeric, paper, strict=True):
            flags = {"number": number, "paper": tinted or theirs, "strong": bold, "long": len(cell) > 60}
            styled[-1].append((cell, " ".join(name for name, on in flags.items() if on)))
    return {"columns": styled[0], "rows": styled[1:], "image": ""}


def write(run: Run) -> Path:
    """Write <root>/report.html of what the run stored, whole or not at all; it opens without a network."""
    folder = FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = Environment(loader=folder, **options).get_template("report.html.j2")
    found = {task: run.read(f"{task}/task_features.json") for task in run.tasks}
    table = claims(run.root)
    again, first = table["Claim"].duplicated(), table.groupby("Supported where")["Claim"].transform("first")
    rule = table["Supported where"].where(first == table["Claim"], "as for: " + first)
    once = table.assign(**{"Claim": table["Claim"].mask(again, ""), "Supported where": rule.mask(again, "")})
    page = template.render(
        preset=run.preset,
        facts=run.read("manifest.json"),
        glance=at_a_glance(run.root),
        claims=as_cells(once, SUPPORTED),
        undecided=table["Verdict"].eq(OPEN).any(),
        unestablished={task: one["selected"] for task, one in found.items() if not one["established"]},
        tasks=run.tasks,
        benefit=run.read("benefit.json")["story"] if run.store.has("benefit.json") else "",
        larger=LARGER.get(run.preset.name),
        exhibits=exhibits(),
        shown=lambda name: shown(run.root, name, run.tasks),
        task_title=task_title,
        duration=duration,
        mark=MARK,
    )
    return Path(os.path.relpath(write_whole(run.root / "report.html", page)))  # names no folder of this machine


# ---- several runs ----------------------------------------------------------------------------------------


def at_a_glance(root: Path | str) -> dict[str, str]:
    """A run, or a folder of results/reference, in four cells: scope, hardware, time and outcome."""
    scopes, machines, seconds = {}, {}, 0.0  # of each model
    for file in sorted(Path(root).glob("*/manifest.json")):
        facts = Store(file.parent).read(file.name)
        preset, machine = facts["preset"], facts["machine"]
        pools = {task: config["sizes"]["pool"] for task, config in preset["tasks"].items()}
        shape = preset["models"][preset["model"]].get("shape") or {"parameters": 0}
        toy = shape["parameters"] < PAPER_PARAMETERS or min(pools.values()) < PAPER_POOL
        sizes = ", ".join(f"{task} {pool:,}" for task, pool in pools.items())
        scopes[f"{preset['model']}, pools: {sizes}{'; a toy beside the paper' if toy else ''}"] = None
        threads = f"{machine['processor']}, threads: {machine['threads']}"
        machines[f"{machine['gpus']} x GPU" if machine["gpus"] else threads] = None
        seconds += sum(entry["seconds"] for entry in facts["notebooks"].values())
    counts = claims(root)["Verdict"].value_counts()
    outcome = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (SUPPORTED, AGAINST, OPEN, NOT_RUN))
    return {
        "Scope": "; ".join(scopes), "Hardware": "; ".join(machines), "Time": duration(seconds), "Outcome": outcome,
    }  # fmt: skip


def overview(folders: Sequence[Path]) -> str:
    """The claims of several runs side by side (Markdown): a row a claim, a column a run; and the rules."""
    glances, columns, claims_of = {}, {}, {}
    for folder in folders:
        table, glances[folder.name] = claims(folder), at_a_glance(folder)
        cells = (table["Task"] + ": " + table["Verdict"]).str.removeprefix("all: ")
        columns[folder.name] = cells.groupby(table["Claim"]).agg("; ".join)
    for claim in CLAIMS:
        claims_of.setdefault(rule_of(claim), []).append(claim)
    frames = (pd.DataFrame(glances).T, pd.DataFrame(columns, index=list(CLAIMS)))
    rules = "\n".join(f"- {'; '.join(names)}: {rule}" for rule, names in claims_of.items())
    return "\n\n".join([*(frame.to_markdown() for frame in frames), f"Supported where:\n\n{rules}"])


if __name__ == "__main__":
    readme = PROJECT / "results/README.md"
    before, _, after = re.split(r"(?<=<!-- claims -->)|(?=<!-- end of claims -->)", readme.read_text(encoding="utf8"))
    runs = sorted({file.parents[1] for file in (PROJECT / "results/reference").glob("*/*/manifest.json")})
    write_whole(readme, f"{before}\n{overview(runs)}\n{after}")

"""The exhibits of a run, that is every table and figure, and the report that shows them all.

exhibits.yaml lists the exhibits; report.html.j2 is the report, one HTML file, in which all
text from outside is escaped and nothing is loaded. `python -m igds_utils.reporting.report`
writes the claims of all reference runs into results/README.md.
"""

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from igds_utils.config.config import PROJECT
from igds_utils.core.experiment import Run
from igds_utils.core.store import Store, write_whole
from igds_utils.display import duration, task_title, visible
from igds_utils.reporting.claims import AGAINST, CLAIMS, NOT_RUN, OPEN, SUPPORTED, claims
from igds_utils.tables import MARK

NUMBER = re.compile(r"([<+−]?\d|–$|not (run at|judged|defined)).{0,30}$")  # a cell of numbers
PAPER_PARAMETERS, PAPER_POOL = 2e9, 10_000  # the paper's smallest; what is smaller is a toy
# what would be HTML, a link or another cell in Markdown
MARKUP = re.compile(r"<(?=[a-zA-Z/!?])|(?<=\])\(|\||&(?=#?\w+;)")
SIGNS = str.maketrans({  # to LaTeX
    "−": "$-$", "–": "--", "×": r"$\times$", "‱": r"\textpertenthousand{}", "ρ": r"$\rho$",
    "δ": r"$\delta$", "Δ": r"$\Delta$", "⟨": r"$\langle$", "⟩": r"$\rangle$", "↵": r"\newline ",
})  # fmt: skip


def exhibits() -> dict[str, dict[str, str]]:
    """The fields of all exhibits by name, in the paper's order."""
    file = Path(__file__).with_name("exhibits.yaml")
    return yaml.safe_load(file.read_text(encoding="utf8"))


def save_exhibit(run: Run, frame: pd.DataFrame, name: str, task: str = "") -> None:
    """Write an exhibit's table under the run's tables/ (of one task, where it has several)."""
    exhibit = exhibits()[name]
    caption = f"{exhibit['title']}{_about(task)}. {exhibit['caption']}"
    caption += " " * ("setting" in exhibit) + exhibit.get("setting", "")
    if frame.map(lambda cell: " [" in str(cell)).any(axis=None):
        confidence = f"{100 * run.preset.confidence:g} %"
        caption += f" In square brackets: {confidence} intervals."
    file = exhibit.get("numbers", name).format(task=task)
    save_table(frame, run.root / "tables", file, caption)


def save_numbers(run: Run, frame: pd.DataFrame, name: str) -> None:
    """Write the numbers behind exhibits, unrounded, to the run's tables/`name`.csv."""
    write_whole(run.root / "tables" / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))


def save_table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> None:
    """Write `name`.csv, .md and .tex into `folder`; the first sentence of `caption` is the title."""
    frame = frame.map(lambda cell: visible(str(cell)))
    plain = frame.replace("−", "-", regex=True)
    write_whole(folder / f"{name}.csv", plain.to_csv(index=False, lineterminator="\n"))
    write_whole(folder / f"{name}.md", to_markdown(frame, caption))
    write_whole(folder / f"{name}.tex", to_latex(frame, name, caption))


def load_table(folder: Path, name: str) -> pd.DataFrame:
    """The frame that `save_table` wrote, with true minus signs again."""
    frame = pd.read_csv(Path(folder) / f"{name}.csv", dtype=str, keep_default_na=False)
    return frame.replace(r"(?<![\w.)-])-(?=[\d.])", "−", regex=True)


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    cells = frame.map(lambda cell: MARKUP.sub(lambda sign: f"&#{ord(sign[0])};", str(cell)))
    cells = cells.replace("\n", "<br>", regex=True)
    title, dot, rest = caption.partition(". ")
    table = cells.to_markdown(index=False, disable_numparse=True)
    return f"**{title}{dot.strip()}** {rest}".strip() + f"\n\n{table}\n"


def to_latex(frame: pd.DataFrame, name: str, caption: str) -> str:
    """A booktabs table; needs booktabs and textcomp. Long texts become paragraphs."""
    cells = frame.astype(str).replace("\n", "↵", regex=True)
    long = [bool(cells[column].str.len().max() > 60) for column in cells]
    share = rf"p{{{0.6 / max(sum(long), 1):g}\linewidth}}"
    look = {"hrules": True, "column_format": "".join(share if one else "l" for one in long)}
    look["caption"] = re.sub(r"([%&#_$])", r"\\\1", caption)
    style = cells.style.hide().format(escape="latex").format_index(escape="latex", axis=1)
    text = style.to_latex(label=f"tab:{name}", **look).translate(SIGNS)
    return re.sub(r"(?<=\\\\\n)(?=\s*[\[*])", "{}", text)  # no argument of the line's end


def _about(task: str) -> str:
    return f", {task_title(task).lower()}" if task else ""


def shown(root: Path, name: str, tasks: Sequence[str]) -> tuple[dict, dict]:
    """Figures (base64) and tables of an exhibit in the run's folder, by what they are about."""
    images, tables, numbers = {}, {}, exhibits()[name].get("numbers", name)
    for task in tasks:
        image = root / "figures" / f"{name.format(task=task)}.png"
        if image.is_file():
            about = _about(task) * ("{task}" in name)
            images[about] = b64encode(image.read_bytes()).decode()
        table = numbers.format(task=task)
        if (root / "tables" / f"{table}.csv").is_file():
            tables[_about(task) * ("{task}" in numbers)] = load_table(root / "tables", table)
    return images, tables


def write(run: Run) -> Path:
    """Write <root>/report.html of what the run stored; it opens without a network."""
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, **options)
    found = {task: run.read(f"{task}/task_features.json") for task in run.tasks}
    benefit = run.read("benefit.json")["story"] if run.store.has("benefit.json") else ""
    judged = claims(run.root)
    page = environment.get_template("report.html.j2").render(
        preset=run.preset,
        facts=run.read("manifest.json"),
        glance=at_a_glance(run.root),
        claims=judged.drop(columns="Supported where"),
        rules=rules(judged),
        found=found,
        benefit=benefit,
        exhibits=exhibits(),
        shown=lambda name: shown(run.root, name, run.tasks),
        number=NUMBER.match,
        task_title=task_title,
        duration=duration,
        mark=MARK,
    )
    return Path(os.path.relpath(write_whole(run.root / "report.html", page)))


def at_a_glance(root: Path | str) -> dict[str, str]:
    """A run, or a folder of results/reference: scope, hardware, time and outcome."""
    scopes, machines, seconds = [], [], 0.0  # of each model
    for file in sorted(Path(root).glob("*/manifest.json")):
        facts = Store(file.parent).read(file.name)
        preset, machine = facts["preset"], facts["machine"]
        pools = {task: one["sizes"]["pool"] for task, one in preset["tasks"].items()}
        shape = preset["models"][preset["model"]].get("shape") or {"parameters": 0}
        toy = shape["parameters"] < PAPER_PARAMETERS or min(pools.values()) < PAPER_POOL
        sizes = ", ".join(f"{task} {pool:,}" for task, pool in pools.items())
        compared = "; a toy beside the paper" if toy else ""
        scopes.append(f"{preset['model']}, pools: {sizes}{compared}")
        threads = f"{machine['processor']}, threads: {machine['threads']}"
        machines.append(f"{machine['gpus']} x GPU" if machine["gpus"] else threads)
        seconds += sum(one["seconds"] for one in facts["notebooks"].values())
    counts = claims(root)["Verdict"].value_counts()
    verdicts = (SUPPORTED, AGAINST, OPEN, NOT_RUN)
    return {
        "Scope": "; ".join(scopes),
        "Hardware": "; ".join(dict.fromkeys(machines)),
        "Time": duration(seconds),
        "Outcome": ", ".join(f"{counts.get(one, 0)} {one}" for one in verdicts),
    }


def rules(table: pd.DataFrame) -> dict[str, str]:
    """Names of the claims by the rule under which they are supported, in order."""
    once = table.drop_duplicates("Claim").groupby("Supported where", sort=False)
    return once["Claim"].agg("; ".join).to_dict()


def overview(folders: Sequence[Path]) -> str:
    """The claims of several runs side by side (Markdown), a row a claim; and the rules."""
    columns = {}
    for folder in folders:
        table = claims(folder)
        cells = (table["Task"] + ": " + table["Verdict"]).str.removeprefix("all: ")
        columns[folder.name] = cells.groupby(table["Claim"], sort=False).agg("; ".join)
    glances = pd.DataFrame({folder.name: at_a_glance(folder) for folder in folders}).T
    judged = pd.DataFrame(columns, index=list(CLAIMS))
    listed = "\n".join(f"- {names}: {rule}" for rule, names in rules(table).items())
    tables = (glances.to_markdown(), judged.to_markdown())
    return "\n\n".join([*tables, "Supported where:", listed])


if __name__ == "__main__":
    readme = PROJECT / "results/README.md"
    marks = r"(?<=<!-- claims -->)|(?=<!-- end of claims -->)"
    before, _, after = re.split(marks, readme.read_text(encoding="utf8"))
    manifests = (PROJECT / "results/reference").glob("*/*/manifest.json")
    runs = sorted({file.parents[1] for file in manifests})
    write_whole(readme, f"{before}\n{overview(runs)}\n{after}")
    stored = []
    for run in runs:
        scale = "toy" if "a toy" in at_a_glance(run)["Scope"] else "paper"
        stored.append(claims(run).drop(columns="Supported where").assign(Run=run.name, Scale=scale))
    table = pd.concat(stored, ignore_index=True)
    ends = table["Numbers"].str.replace("−", "-").str.extract(r"\[([^,]+), ([^]]+)\]")
    table[["Low", "High"]] = ends.astype(float)  # of the first interval among the numbers
    table = table.rename(columns=lambda name: name.lower().replace(" ", "_"))
    numbers = table.to_csv(index=False, lineterminator="\n")
    write_whole(readme.parent / "reference/claims.csv", numbers)

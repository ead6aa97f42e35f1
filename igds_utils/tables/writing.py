"""A display frame as CSV, Markdown and LaTeX."""

import re
from pathlib import Path

import pandas as pd

from igds_utils.core.store import write_whole

SIGNS = str.maketrans({  # of display text -> LaTeX, which `Styler.to_latex` leaves as they are
    "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "δ": r"$\delta$", "Δ": r"$\Delta$", "τ": r"$\tau$",
    "‱": r"\textpertenthousand{}", "⟨": r"$\langle$", "⟩": r"$\rangle$", "…": r"\dots{}", "→": r"$\rightarrow$",
    "↵": r"\newline ", "ρ": r"$\rho$", "≤": r"$\leq$", "≥": r"$\geq$",
})  # fmt: skip


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

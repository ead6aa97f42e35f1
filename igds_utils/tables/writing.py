"""A display frame as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from igds_utils.core.store import write_whole


def save_table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> list[Path]:
    """Write `name`.csv, .md and .tex (booktabs) into `folder`, each whole or not at all; returns their paths.

    The first sentence of `caption` is the title.
    """
    folder = Path(folder)
    plain = frame.map(lambda cell: str(cell).replace("−", "-"))
    return [
        write_whole(folder / f"{name}.csv", plain.to_csv(index=False, lineterminator="\n")),
        write_whole(folder / f"{name}.md", to_markdown(frame, caption)),
        write_whole(folder / f"{name}.tex", to_latex(frame, name, caption)),
    ]


def load_table(folder: Path, name: str) -> pd.DataFrame:
    """The display frame that `save_table` wrote, with true minus signs again."""
    frame = pd.read_csv(Path(folder) / f"{name}.csv", dtype=str, keep_default_na=False)
    return frame.map(lambda cell: re.sub(r"(?<![\w.)-])-(?=[\d.])", "−", cell))


def to_markdown(frame: pd.DataFrame, caption: str) -> str:
    def cell(value) -> str:
        return str(value).replace("|", "\\|").replace("\n", "<br>")

    lines = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False)]
    body = "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
    title, dot, rest = caption.partition(". ")
    return f"**{title}{dot.strip()}** {rest}".strip() + f"\n\n{body}\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "δ": r"$\delta$", "Δ": r"$\Delta$", "τ": r"$\tau$",
    "‱": r"\textpertenthousand{}", "⟨": r"$\langle$", "⟩": r"$\rangle$", "…": r"\dots{}", "→": r"$\rightarrow$",
    "\n": r"\newline ",
}  # fmt: skip


def to_latex(frame: pd.DataFrame, name: str, caption: str) -> str:
    """A booktabs table; needs the packages booktabs and textcomp. Columns of long text become paragraphs."""

    def escape(value) -> str:
        return "".join(LATEX.get(character, character) for character in str(value))

    longest = {column: frame[column].astype(str).str.len().max() for column in frame}
    long = {column for column, length in longest.items() if length > 60}
    form = "".join(rf"p{{{0.6 / len(long):g}\linewidth}}" if column in long else "l" for column in frame)
    lines = [" & ".join(map(escape, row)) + r" \\" for row in frame.itertuples(index=False)]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{{form}}}", r"\toprule", " & ".join(map(escape, frame.columns)) + r" \\", r"\midrule",
        *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip

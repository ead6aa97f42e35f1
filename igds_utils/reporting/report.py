"""What the cells of the report notebook show: tables, figures, notes, and what is folded away."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from igds_utils.display import NOT_JUDGED, NOT_RUN, NOTHING
from igds_utils.tables.paper import MARK

NUMBER = re.compile(r"[<+−]?[\d,]+(\.\d+)?(e-?\d+)?( ?%|×)?(, [\d.]+)*( [\[(].*[\])])?")


def show_table(frame: pd.DataFrame, caption: str, strong: str = "") -> HTML:
    """A frame of display text as an HTML table that scrolls by itself.

    Columns of numbers stand to the right, the paper's columns and rows are tinted, and rows with the cell `strong` are
    bold. The first sentence of `caption`, which is plain text, is bold.
    """
    cells = frame.astype(str)
    numeric = cells.isin([NOTHING, NOT_RUN, NOT_JUDGED]) | cells.map(lambda cell: bool(NUMBER.fullmatch(cell)))
    paper = [str(column).startswith("Paper") or str(column).endswith("(paper)") for column in frame]

    def row(values: list[str], tag: str) -> str:
        theirs, bold = values[0].endswith("(paper)"), bool(strong) and strong in values
        flags = zip(values, numeric.all(), paper, strict=True)
        return "".join(
            f'<{tag} class="{"number " * number}{"paper " * (p or theirs)}{"strong " * bold}'
            f'{"long" * (len(value) > 60)}">{_cell(value)}</{tag}>'
            for value, number, p in flags
        )

    body = "".join(f"<tr>{row(list(values), 'td')}</tr>" for values in cells.itertuples(index=False))
    head = f"<thead><tr>{row(list(map(str, frame.columns)), 'th')}</tr></thead>"
    return HTML(f'<p class="caption">{_caption(caption)}</p>{_scroll(f"<table>{head}<tbody>{body}</tbody></table>")}')


def show_figure(png: Path | str, caption: str, alt: str) -> HTML:
    """A stored figure embedded with its caption; `alt` says what a reader who cannot see it needs."""
    if not alt.strip():
        raise ValueError("show_figure: give an alt text that says what the figure shows")
    source = f"data:image/png;base64,{base64.b64encode(Path(png).read_bytes()).decode()}"
    image = _scroll(f'<img src="{source}" alt="{escape(alt)}">')
    return HTML(f"<figure>{image}<figcaption>{_caption(caption)}</figcaption></figure>")


def show_note(text: str) -> HTML:
    """A line that stands where a table or figure would; its first sentence is bold."""
    return HTML(f'<p class="note">{_caption(text)}</p>')


def fold(content: HTML, title: str) -> HTML:
    """Something long behind its title: it opens on a click, and it is open on paper."""
    return HTML(f"<details><summary>{escape(title)}</summary>{content.data}</details>")


def _scroll(content: str) -> str:
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _cell(text: str) -> str:
    return escape(text).replace(MARK, f"<mark>{MARK}</mark>").replace("\n", "<br>")


def _caption(text: str) -> str:
    first, dot, rest = text.partition(". ")
    return f"<b>{escape(first + dot.strip())}</b>{' ' + escape(rest) if rest else ''}"

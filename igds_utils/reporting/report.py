"""The report: what a notebook shows becomes one HTML file that opens anywhere, offline, on paper and on a phone.

    export_html("results/quick/notebooks/11_report.ipynb", "results/quick/report.html")

`show_table`, `show_figure`, `show_note` and `fold` are for the cells of the report notebook.
"""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from IPython.display import HTML
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from igds_utils.core.store import write_whole
from igds_utils.display import NOT_JUDGED, NOT_RUN, NOTHING

SHOWN = {"text/html", "text/markdown", "image/png", "image/svg+xml"}
NUMBER = re.compile(r"[<+−]?[\d,]+(\.\d+)?(e-?\d+)?( ?%|×)?(, [\d.]+)*( [\[(].*[\])])?")
PROMPT_END = "⟨p⟩"  # marks the critical position in printed prompts


class ReportError(RuntimeError):
    """A notebook that cannot become a report; the message names the cell and the mend."""


# ---- for the cells of the report notebook ------------------------------------------------------------------


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
    return escape(text).replace(PROMPT_END, f"<mark>{PROMPT_END}</mark>").replace("\n", "<br>")


def _caption(text: str) -> str:
    first, dot, rest = text.partition(". ")
    return f"<b>{escape(first + dot.strip())}</b>{' ' + escape(rest) if rest else ''}"


# ---- from notebook to page ---------------------------------------------------------------------------------


def to_mathml(latex: str, display: bool = False) -> str:
    """LaTeX as MathML; raises `ReportError` where a command is not understood, instead of printing it raw."""
    math = convert(latex.strip(), display="block" if display else "inline")
    math = math.replace(r">\{<", ">{<").replace(r">\}<", ">}<")  # braces after \big and its like
    if unknown := re.search(r"\\[A-Za-z]*|(?<=<mi>)&(?=</mi>)", math):
        raise ReportError(f"no MathML for {unknown[0]} in ${latex.strip()}$; write the equation without it")
    return math


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown with equations as MathML, which needs no script."""

    def block_math(self, body: str) -> str:
        return f'<div class="scroll">{to_mathml(body, display=True)}</div>'

    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def table(self, text: str) -> str:
        return _scroll(f"<table>{text}</table>")


class _Exporter(HTMLExporter):
    def markdown2html(self, source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def export_html(notebook_path: Path | str, html_path: Path | str) -> Path:
    """Turn an executed notebook into one self-contained HTML file, written whole or not at all.

    Code, printed text and warnings stay out; nothing is loaded from anywhere. Raises `ReportError` for a failed cell,
    an equation without MathML, an image without alt text, and whatever a browser would fetch.
    """
    notebook_path = Path(notebook_path)
    if not notebook_path.is_file():
        raise ReportError(f"no notebook at {notebook_path}: run 11_report first")
    notebook = nbformat.read(notebook_path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise ReportError(
                    f"cell {number} failed with {output.ename}: {output.evalue}; run the notebook again, then export"
                )
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if SHOWN & set(output.get("data", ()))]
    exporter = _Exporter(
        template_name="report_template",
        extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input=True,
    )
    html, _ = exporter.from_notebook_node(notebook)
    page = BeautifulSoup(html, "html.parser")
    if page.h1:
        page.title.string = page.h1.get_text()
    _check(page, notebook_path.name)
    _add_contents(page)
    return write_whole(Path(html_path), str(page))


def _add_contents(page: BeautifulSoup) -> None:
    headings = page.find_all("h2")
    for number, heading in enumerate(headings, start=1):
        heading["id"] = f"part-{number}"
    entries = "".join(f'<li><a href="#{h["id"]}">{escape(h.get_text())}</a></li>' for h in headings)
    if len(headings) > 2:
        nav = f'<nav aria-label="Contents"><ol>{entries}</ol></nav>'
        headings[0].insert_before(BeautifulSoup(nav, "html.parser"))


def _check(page: BeautifulSoup, name: str) -> None:
    """Refuse what would not open offline or cannot be read aloud."""
    for image in page.find_all("img"):
        if not image.get("alt", "").strip() or image["alt"].startswith("No description"):
            raise ReportError(f"{name}: an image has no alt text; show it with show_figure")
    fetched = [
        value
        for tag in page.find_all(True)
        for attribute in ("src", "srcset", "data", "poster", *(["href"] if tag.name == "link" else []))
        if (value := tag.get(attribute)) and not value.startswith("data:")
    ]
    styles = " ".join([*(t.get_text() for t in page.find_all("style")), *(t["style"] for t in page.select("[style]"))])
    fetched += re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)", styles)
    if fetched:
        raise ReportError(f"{name}: the page would load {fetched[0][:80]!r}; embed it instead")

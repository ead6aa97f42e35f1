"""The report notebook as one HTML file that opens anywhere, offline, on paper and on a phone.

    export_html("results/quick/notebooks/11_report.ipynb", "results/quick/report.html")
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from igds_utils.core.store import write_whole

SHOWN = {"text/html", "text/markdown", "image/png", "image/svg+xml"}


class ReportError(RuntimeError):
    """A notebook that cannot become a report; the message names the cell and the mend."""


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
        return f'<div class="scroll" tabindex="0"><table>{text}</table></div>'


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

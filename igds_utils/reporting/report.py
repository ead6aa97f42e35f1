"""The report: what a notebook shows becomes one HTML file that opens anywhere, offline, on paper and on a phone.

    export_html("results/quick/notebooks/11_report.ipynb", "results/quick/report.html")

`show_table` and `show_figure` are for the report notebook's cells; `findings` has the sentences.
"""

from __future__ import annotations

import base64
import io
import re
import struct
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from bs4 import BeautifulSoup
from IPython.display import HTML
from latex2mathml.converter import convert
from matplotlib.figure import Figure

from igds_utils.core.store import write_whole
from igds_utils.display import NOT_JUDGED, NOT_RUN, NOTHING

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).resolve().parent
CODE_OR_MATH = re.compile(
    r"(?P<code>```.*?```|~~~.*?~~~|`[^`\n]+`|\\\$)"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|\$(?P<inline>[^\s$`](?:[^$`\n]*[^\s$`\\])?)\$(?!\d)",  # as pandoc: "$5 and $6" is money
    re.DOTALL,
)
SHOWN = ("text/html", "text/markdown", "image/png", "image/svg+xml")
UNBROKEN = "\u2011"  # a hyphen at which a narrow heading is not broken (ROUGE-1)
PIXELS_PER_INCH = 120  # on screen, of figures saved at 200 dpi
NUMBER = re.compile(r"[<+−]?[\d,]+(\.\d+)?(e-?\d+)?( ?%|×)?(, [\d.]+)*( [\[(].*[\])])?")


class ReportError(RuntimeError):
    """A notebook that cannot become a report; the message names the cell and the mend."""


# ---- for the cells of the report notebook ------------------------------------------------------------------


def show_table(frame: pd.DataFrame, caption: str, strong: str = "") -> HTML:
    """A display frame as an HTML table in a container that scrolls by itself.

    Equal cells of the first column are shown once; rows that hold the cell `strong` stand out; columns and rows
    that are the paper's are tinted. `caption` is plain text whose first sentence is set in bold.
    """
    paper = [str(column).startswith("Paper") or str(column).endswith("(paper)") for column in frame.columns]
    numeric = [_is_numeric(frame.iloc[:, i]) for i in range(frame.shape[1])]
    grouped = bool(frame.iloc[:, 0].duplicated().any())
    key = [i == int(grouped) for i in range(frame.shape[1])]  # the column that names a row stays in sight
    columns = list(zip(key, paper, numeric, strict=True))
    head = "".join(
        f'<th scope="col"{_classes(key=k, paper=p, number=n)}>{escape(str(column)).replace("-", UNBROKEN)}</th>'
        for column, (k, p, n) in zip(frame.columns, columns, strict=True)
    )
    rows, previous = [], None
    for cells in frame.astype(str).itertuples(index=False):
        whole = cells[0].endswith("(paper)")
        start = grouped and previous is not None and cells[0] != previous
        shown = ["" if cells[0] == previous else cells[0], *cells[1:]]
        body = "".join(
            f"<td{_classes(key=k, paper=p or whole, number=n, absent=cell == NOT_RUN, long=len(cell) > 60)}>"
            f"{_cell(cell)}</td>"
            for cell, (k, p, n) in zip(shown, columns, strict=True)
        )
        rows.append(f"<tr{_classes(start=start, strong=bool(strong) and strong in cells)}>{body}</tr>")
        previous = cells[0]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return HTML(f'<div class="table"><p class="caption">{_caption(caption)}</p>{_scroll(table)}</div>')


def show_figure(figure: Figure | Path | str, caption: str, alt: str) -> HTML:
    """A figure (or the path of its PNG) embedded with its caption; `alt` says what a reader who cannot see it needs."""
    if not alt.strip():
        raise ValueError("show_figure: give an alt text that says what the figure shows")
    if isinstance(figure, Figure):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        data = buffer.getvalue()
    else:
        data = Path(figure).read_bytes()
    width = round(struct.unpack(">I", data[16:20])[0] / 200 * PIXELS_PER_INCH)
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{escape(alt)}" style="--natural:{width}px">'
    kind = ' class="wide"' if width > 500 else ""
    return HTML(f"<figure{kind}>{_scroll(image)}<figcaption>{_caption(caption)}</figcaption></figure>")


def show_note(text: str) -> HTML:
    """A line that stands where a table or figure would; its first sentence is set in bold."""
    return HTML(f'<p class="note">{_caption(text)}</p>')


def fold(content: HTML, title: str) -> HTML:
    """Something long behind its title: it opens on a click, and it is open on paper."""
    return HTML(f"<details><summary>{escape(title)}</summary>{content.data}</details>")


def _scroll(content: str) -> str:
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _is_numeric(column: pd.Series) -> bool:
    return all(
        NUMBER.fullmatch(cell) for cell in column.astype(str) if cell not in (NOTHING, NOT_RUN, NOT_JUDGED)
    )


def _classes(**flags: bool) -> str:
    names = " ".join(name for name, on in flags.items() if on)
    return f' class="{names}"' if names else ""


def _cell(text: str) -> str:
    text = re.sub(r"(\[[^\[\]]*\])$", r'<span class="interval">\1</span>', escape(text))
    return text.replace("⟨p⟩", "<mark>⟨p⟩</mark>").replace("\n", "<br>")


def _caption(text: str) -> str:
    first, dot, rest = text.partition(". ")
    return f"<b>{escape(first + dot.strip())}</b>{' ' + escape(rest) if rest else ''}"


# ---- from notebook to page ---------------------------------------------------------------------------------


class Readable:
    """What of a notebook is meant to be read: no code, no streams, no bare values; equations become MathML.

    MathML is put in by `place` after Markdown has been rendered, so that Markdown cannot read `_` or `*` in it.
    """

    def __init__(self, notebook: NotebookNode):
        self.equations: dict[str, str] = {}
        for index, cell in enumerate(notebook.cells):
            self._keep(cell, index)

    def _keep(self, cell: NotebookNode, index: int) -> None:
        if cell.cell_type == "markdown":
            cell.source = self._equations_out(cell.source, f"cell {index}")
        if cell.cell_type == "code":
            kept = []
            for output in cell.outputs:
                if output.output_type == "error":
                    raise ReportError(
                        f"cell {index} failed with {output.ename}: {output.evalue}; run the notebook again, then export"
                    )
                data = output.get("data", {})
                if any(kind in data for kind in SHOWN):
                    if "text/markdown" in data and "text/html" not in data:
                        data["text/markdown"] = self._equations_out(
                            data["text/markdown"], f"output of cell {index}"
                        )
                    kept.append(output)
            cell.outputs = kept

    def place(self, html: str) -> str:
        html = re.sub(r"(?<=\d) (?=%)", "\u00a0", html)  # a number and its % stay on one line
        return re.sub(r"igdsmath\d+x", lambda match: self.equations[match[0]], html)

    def _equations_out(self, text: str, place: str) -> str:
        def replace(match: re.Match) -> str:
            if match["code"]:
                return match["code"]
            key = f"igdsmath{len(self.equations)}x"
            self.equations[key] = to_mathml(
                match["display"] or match["inline"], match["display"] is not None, place
            )
            return key

        return CODE_OR_MATH.sub(replace, text)


def to_mathml(latex: str, display: bool = False, place: str = "equation") -> str:
    """LaTeX as MathML; raises ReportError where a command is not understood, instead of printing it raw."""
    math = convert(latex.strip(), display="block" if display else "inline")
    math = math.replace(r">\{<", ">{<").replace(r">\}<", ">}<")  # braces after \big and its like
    # Only a text font has a raised prime at base size; as a superscript it needs a mathematical font to be seen.
    prime = r"<msup>(<m([ino])[^>]*>[^<]*</m\2>)<mi>&#x02032;</mi></msup>"
    math = re.sub(prime, r'<mrow>\1<mtext class="prime">&#x02032;</mtext></mrow>', math)
    if unknown := re.search(r"\\[A-Za-z]*|(?<=<mi>)&(?=</mi>)", math):
        raise ReportError(
            f"{place}: no MathML for {unknown[0]} in ${latex.strip()}$; write the equation without it"
        )
    return f'<span class="equation">{math}</span>' if display else math


def export_html(notebook_path: Path | str, html_path: Path | str) -> Path:
    """Turn an executed notebook into one self-contained HTML file, written whole or not at all.

    Code, printed text and warnings stay out; equations are MathML; nothing is loaded from anywhere. Raises
    ReportError for a failed cell, an equation without MathML, an image without alt text or a reference to the network.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook_path = Path(notebook_path)
    if not notebook_path.is_file():
        raise ReportError(f"no notebook at {notebook_path}: run 11_report first")
    notebook = nbformat.read(notebook_path, as_version=4)
    readable = Readable(notebook)
    exporter = HTMLExporter(
        template_name="report_template", extra_template_basedirs=[str(TEMPLATES)], embed_images=True,
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    resources = {
        "metadata": {"name": notebook_path.stem, "path": str(notebook_path.parent)},
        "report_title": _title(notebook),
    }
    html, _ = exporter.from_notebook_node(notebook, resources)
    page = _finish(BeautifulSoup(html, "html.parser"), notebook_path.name)
    return write_whole(Path(html_path), readable.place(page))


def _title(notebook) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^# +(.+)$", cell.source, re.MULTILINE)):
            return match[1].strip()
    return "Report"


def _finish(page: BeautifulSoup, name: str) -> str:
    """Add contents, let stray tables scroll, and refuse what would not open offline or cannot be read aloud."""
    for table in page.find_all("table"):
        if table.find_parent(class_="scroll") is None:
            table.wrap(page.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    headings = page.find_all("h2")
    if len(headings) > 2:
        contents = page.new_tag("nav", attrs={"class": "contents", "aria-label": "Contents"})
        entries = page.new_tag("ol")
        for number, heading in enumerate(headings, start=1):
            heading["id"] = f"part-{number}"
            link = page.new_tag("a", href=f"#part-{number}")
            link.string = heading.get_text()
            entry = page.new_tag("li")
            entry.append(link)
            entries.append(entry)
        contents.append(entries)
        headings[0].insert_before(contents)
    for image in page.find_all("img"):
        if not image.get("alt", "").strip():
            raise ReportError(f"{name}: an image has no alt text; show it with show_figure")
    if reference := _fetched(page):
        raise ReportError(f"{name}: the page would load {reference[:80]!r}; embed it instead")
    return str(page)


def _fetched(page: BeautifulSoup) -> str | None:
    """The first thing that a browser would fetch by itself to show the page, if there is any."""
    for tag in page.find_all(
        ["img", "script", "iframe", "link", "source", "video", "audio", "embed", "object"]
    ):
        for attribute in ("src", "srcset", "data", "href", "poster"):
            if (value := tag.get(attribute)) and not value.startswith("data:"):
                return value
    styles = " ".join(
        [tag.get_text() for tag in page.find_all("style")] + [t["style"] for t in page.find_all(style=True)]
    )
    if found := re.search(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)", styles):
        return found[0]
    return None

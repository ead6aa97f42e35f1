"""Reports and notebooks in a real browser: they show everything, ask nobody for anything, and complain of nothing."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from test_hostile import OUTSIDE, TEXTS

from igds_utils.config.config import load_preset
from igds_utils.core.experiment import Run
from igds_utils.reporting import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# The page itself has no script: this one is added to a copy, and writes down what the browser made of it.
LOOK = """<script>addEventListener("load", () => setTimeout(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  for (const fold of all("details")) fold.open = true;
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify({
    images: all("img").map(image => image.naturalWidth),
    rows: all("table").map(table => table.querySelectorAll("tbody tr").length),
    page: document.documentElement.scrollWidth, window: innerWidth,
  });
  document.body.append(note);
}, 0))</script></body>"""




def browse(page, *options):
    """The browser's output for a page: its DOM in the end, and what it says."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: no page was looked at; install one of {', '.join(BROWSERS)}")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=20000", "--dump-dom", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])  # a headless window is never narrower than 500 pixels
def test_the_report_is_whole_in_a_browser(smoke_run, tmp_path, width):
    copy, log = tmp_path / "page.html", tmp_path / "net.json"
    text = (smoke_run.root / "report.html").read_text(encoding="utf8")
    copy.write_text(text.replace("</body>", LOOK), encoding="utf8")
    network = ("--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}")
    done = browse(copy, f"--window-size={width},900", *network)
    note = BeautifulSoup(done.stdout, "html.parser").find(id="seen")
    assert note is not None, f"the browser did not show the page:\n{done.stderr[-3000:]}"
    seen = json.loads(note.get_text())
    assert len(seen["images"]) > 10 and min(seen["images"]) > 0
    assert len(seen["rows"]) > 10 and min(seen["rows"]) > 0
    assert seen["page"] <= seen["window"], "the page itself scrolls sideways"
    assert "CONSOLE" not in done.stderr, done.stderr
    # a browser asks for some addresses of its own, under no page's key
    events = (event.get("params", {}) for event in json.loads(log.read_text(encoding="utf8"))["events"])
    asked = (one["url"] for one in events if "file://" in one.get("network_isolation_key", ""))
    assert not [url for url in asked if re.match("https?:|wss?:", url)]


@pytest.fixture
def outside():
    """What a browser asks for anywhere, and the option that sends it all here."""
    asked = []

    class Anybody(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.headers['Host']}{self.path}")
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Anybody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked, f"--host-resolver-rules=MAP * 127.0.0.1:{server.server_port}"
        server.shutdown()


CELLS = [
    "import sys\nimport pandas as pd\nfrom IPython.display import display as show",
    "from igds_utils.core.experiment import open_run",
    "table = pd.DataFrame({'prompt': texts, 'score': 0.5})",
    "show(table.style.hide())\nshow(table.style.hide().format(precision=3))\nshow(table)",
    "print(*texts, sep='\\n')\nprint(*texts, file=sys.stderr)\ntexts",
    "raise ValueError(texts)",
]


def hostile_report(folder):
    """The report of a run in which everything that is stored comes from outside."""
    everything = " ".join(TEXTS)
    own = {"description": everything, "departures": TEXTS}
    run = Run(load_preset("smoke", tasks=["math"], overrides=own), folder)
    run.store.write("math/task_features.json", {"features": [], "selected": TEXTS, "established": False})
    run.store.write("benefit.json", {"story": everything})
    run.store.write("manifest.json", {
        "preset": run.preset.model_dump(), "commit": everything, "metrics": {},
        "machine": {"gpus": 0, "threads": 2, "processor": everything},
        "notebooks": {text: {"seconds": 1.0, "peak_bytes": 1e9} for text in TEXTS},
    })  # fmt: skip
    for name in ("table1", "table2", "table9"):
        report.save_table(pd.DataFrame({"Text": TEXTS}), folder / "tables", name, everything)
    return report.write(run).resolve()


def hostile_notebook(folder):
    """The page of an executed notebook that shows samples and answers in every way in which notebooks do."""
    cells = [nbformat.v4.new_code_cell(code) for code in [f"texts = {TEXTS!r}", *CELLS]]
    cells[-1].metadata["tags"] = ["raises-exception"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")
    execute = [sys.executable, "-m", "jupyter", "execute", "--inplace", "--kernel_name=python3", "notebook.ipynb"]
    subprocess.run(execute, cwd=folder, check=True)
    libraries = dict.fromkeys(("mathjax_url", "require_js_url", "jquery_url", "mermaid_js_url"), "data:,")
    text, _ = HTMLExporter(**libraries).from_filename(str(folder / "notebook.ipynb"))
    (folder / "notebook.html").write_text(text, encoding="utf8")
    return folder / "notebook.html"


def unguarded(folder):
    (folder / "page.html").write_text(f"<title>page</title>{' '.join(TEXTS)}", encoding="utf8")
    return folder / "page.html"


@pytest.mark.slow
@pytest.mark.parametrize("made", [hostile_report, hostile_notebook, unguarded])
def test_texts_from_outside_run_no_script_and_ask_nobody(made, tmp_path, outside):
    asked, here = outside
    page = BeautifulSoup(browse(made(tmp_path), here).stdout, "html.parser")
    ran = page.title.get_text() == "ran", any(OUTSIDE.removeprefix("http://") in one for one in asked)
    assert ran == ((True, True) if made is unguarded else (False, False))
    if made is not unguarded:
        assert TEXTS[0] in page.get_text()
        assert not page.find(["img", "iframe", "script"], src=re.compile("^http"))

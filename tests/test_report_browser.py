"""The report in a real browser: it shows everything, asks nobody for anything, and complains of nothing."""

import json
import re
import shutil
import subprocess

import pytest
from bs4 import BeautifulSoup

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
# The page itself has no script: this one is added to a copy, and writes down what the browser made of it.
LOOK = """<script>addEventListener("load", () => setTimeout(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  for (const fold of all("details")) fold.open = true;
  const seen = {
    images: all("img").map(image => image.naturalWidth),
    tables: all("table").map(table => table.querySelectorAll("tbody tr").length),
    equations: all("math").map(math => [math.namespaceURI, math.getBoundingClientRect().width]),
    page: document.documentElement.scrollWidth, window: innerWidth, height: document.body.scrollHeight,
  };
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify(seen);
  document.body.append(note);
}, 0))</script></body>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"NO BROWSER: the report was not looked at; install one of {', '.join(BROWSERS)}")
    return found


def look(browser, page, folder, width):
    """What the browser saw of a page, what it printed, and what it asked the network for."""
    copy, log = folder / "page.html", folder / "net.json"
    copy.write_text(page.read_text(encoding="utf8").replace("</body>", LOOK), encoding="utf8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", f"--log-net-log={log}",
        "--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    note = BeautifulSoup(done.stdout, "html.parser").find(id="seen")
    assert note is not None, f"{browser} did not show the page:\n{done.stderr[-3000:]}"
    return json.loads(note.get_text()), done.stderr, requests_of_the_page(log)


def requests_of_the_page(log):
    """Addresses that the page asked for; a browser asks for some of its own, under no page's key."""
    found = set()
    for event in json.loads(log.read_text(encoding="utf8"))["events"]:
        asked = event.get("params", {})
        if "file://" in asked.get("network_isolation_key", "") and re.match("https?:|wss?:", asked["url"]):
            found.add(asked["url"])
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])  # a headless window is never narrower than 500 pixels
def test_the_report_is_whole_in_a_browser(smoke_run, browser, tmp_path, width):
    seen, said, asked = look(browser, smoke_run.root / "report.html", tmp_path, width)
    assert len(seen["images"]) > 10 and min(seen["images"]) > 0
    assert len(seen["tables"]) > 10 and min(seen["tables"]) > 0
    assert seen["equations"] and all("MathML" in space and drawn > 0 for space, drawn in seen["equations"])
    assert seen["page"] <= seen["window"], "the page itself scrolls sideways"
    assert "CONSOLE" not in said, said
    assert asked == []

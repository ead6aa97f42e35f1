"""The report in a real browser: it shows everything, asks nobody for anything, and complains of nothing."""

import json
import re
import shutil
import subprocess

import pytest
from bs4 import BeautifulSoup

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


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])  # a headless window is never narrower than 500 pixels
def test_the_report_is_whole_in_a_browser(smoke_run, tmp_path, width):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: the report was not looked at; install one of {', '.join(BROWSERS)}")
    copy, log = tmp_path / "page.html", tmp_path / "net.json"
    text = (smoke_run.root / "report.html").read_text(encoding="utf8")
    copy.write_text(text.replace("</body>", LOOK), encoding="utf8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", f"--log-net-log={log}", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=20000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    note = BeautifulSoup(done.stdout, "html.parser").find(id="seen")
    assert note is not None, f"{browser} did not show the page:\n{done.stderr[-3000:]}"
    seen = json.loads(note.get_text())
    assert len(seen["images"]) > 10 and min(seen["images"]) > 0
    assert len(seen["rows"]) > 10 and min(seen["rows"]) > 0
    assert seen["page"] <= seen["window"], "the page itself scrolls sideways"
    assert "CONSOLE" not in done.stderr, done.stderr
    # a browser asks for some addresses of its own, under no page's key
    events = (event.get("params", {}) for event in json.loads(log.read_text(encoding="utf8"))["events"])
    asked = (one["url"] for one in events if "file://" in one.get("network_isolation_key", ""))
    assert not [url for url in asked if re.match("https?:|wss?:", url)]

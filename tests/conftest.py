"""Shared by all tests: slow ones, a model hub on loopback, one run of the smoke preset."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from box.server import Box
from filelock import FileLock

# No test may reach a hub but this one. The libraries read the environment when they are first imported, so it is set
# here, before any of them; the server costs nothing until it is asked.
HUB = Box.start()


def pytest_sessionfinish():
    HUB.close()


@pytest.fixture
def hub_box() -> Box:
    """The hub in a box, with the requests that it got in this test."""
    HUB.requests.clear()
    return HUB


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """A cache of the hub's files that holds nothing yet."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make test-all"))


def igds(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, in a folder; all that it says is in `stdout`."""
    command = [sys.executable, "-m", "igds_utils.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=folder, text=True, **pipes, **options)


@dataclass(frozen=True)
class SmokeRun:
    root: Path  # results/smoke: every product, notebooks/ and the report
    log: str  # what the user saw

    @property
    def results(self) -> Path:
        return self.root.parent


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> SmokeRun:
    """All notebooks of the smoke preset, run once from the command line.

    Workers of pytest-xdist share one run: the first makes it, and the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, log = shared / "smoke-run", shared / "smoke-run.log"
    with FileLock(shared / "smoke-run.lock"):
        if not log.exists():
            folder.mkdir()
            done = igds(folder, "run", "--preset", "smoke", "--results", str(folder), timeout=900)
            log.write_text(f"{done.stdout}\nexit code {done.returncode}")
    told = log.read_text()
    assert told.endswith("exit code 0"), f"the smoke run failed:\n{told[-5000:]}"
    return SmokeRun(folder / "smoke", told)


@pytest.fixture
def open_smoke(tmp_path):
    """Opens the math task of the smoke preset with changed fields, always in the same folder."""
    from igds_utils.core.experiment import open_run

    return lambda **fields: open_run("smoke", "", ["math"], fields, str(tmp_path))


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen3"])
def lm(request):
    """A tiny random model of each of the three architectures."""
    from igds_utils import tiny
    from igds_utils.engine.lm import LM

    return LM(tiny.model(request.param), tiny.tokenizer(), request.param)


@pytest.fixture(scope="module", params=["jumprelu", "topk"])
def saes(request):
    """An SAE after every layer of a tiny model, of two kinds."""
    from igds_utils import tiny

    return {layer: tiny.sae(request.param, seed=layer) for layer in range(tiny.LAYERS)}


def execute(stage: str, parameters: dict[str, Any]) -> None:
    """Execute the code cells of a notebook in this process, with other parameters."""
    import nbformat

    from igds_utils.config.config import PROJECT

    names: dict[str, Any] = {}
    for cell in nbformat.read(PROJECT / "notebooks" / f"{stage}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{stage}.ipynb", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters

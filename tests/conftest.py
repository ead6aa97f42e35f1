"""Shared by all tests: the switch for slow ones, and one run of the whole pipeline on the smoke preset."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: make test-all"))


@dataclass(frozen=True)
class SmokeRun:
    root: Path  # results/smoke: every product, notebooks/ and the report
    log: str  # what the user saw

    @property
    def results(self) -> Path:
        return self.root.parent


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> SmokeRun:
    """All notebooks of the smoke preset, run once through the command line, outside of the project's folder."""
    folder = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "igds_utils.cli", "run", "--preset", "smoke", "--results", str(folder)]
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900
    )
    assert done.returncode == 0, f"the smoke run failed:\n{done.stdout[-5000:]}"
    return SmokeRun(folder / "smoke", done.stdout)

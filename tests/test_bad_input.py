"""Malformed input ends in one message that names the place, before anything expensive begins."""

import re
import subprocess
import sys

import pytest
from faults.bad_input import CASES, refusal
from faults.bad_input import written as arguments
from faults.fuzz import fuzz

NAMED = [
    pytest.param(kind, words, [what, *file], id=f"{kind}-{name}")
    for kind, cases in CASES.items()
    for name, what, words, *file in cases
]


@pytest.mark.parametrize(("kind", "words", "written"), NAMED)
def test_it_is_refused_with_its_place(kind, words, written):
    code, message = refusal(kind, *written)
    assert code == 2 and re.search(words, message) and "Traceback" not in message, message
    assert len(re.findall("^igds", message, re.M)) == 1


@pytest.mark.parametrize(("kind", "what"), [("preset", "- x"), ("task", {"target": "{x"}), ("pool", b"[")])
def test_the_command_itself_ends_without_a_traceback(kind, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "igds_utils.cli", *arguments(kind, what)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("igds: "), done.stderr


@pytest.mark.slow
def test_random_damage_is_read_or_refused():
    counts = fuzz(seconds=60, seed=0)
    assert min(counts.values()) > 0 and counts.total() > 100

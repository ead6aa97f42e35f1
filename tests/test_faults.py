"""The kill harness itself, in its shortest form, on a run that the other tests share."""

import subprocess
import sys

import pandas as pd
import pytest

from igds_utils.config.config import PROJECT


@pytest.mark.slow
def test_a_run_killed_at_random_ends_as_one_that_was_left_alone(smoke_run, tmp_path):
    alone = tmp_path / "work/undisturbed"
    alone.mkdir(parents=True)
    (alone / "results").symlink_to(smoke_run.results)
    (alone / "run.log").write_text(smoke_run.log)
    command = [sys.executable, PROJECT / "tests/faults/kills.py", "--kills", "3", "--runs", "1"]
    command += ["--tasks", "", "--results", tmp_path, "--work", tmp_path / "work"]
    assert subprocess.run(command).returncode == 0
    rows = pd.read_csv(tmp_path / "kills.csv")
    assert len(rows) == 3 and rows["identical"].all() and not rows["made_again"].any()

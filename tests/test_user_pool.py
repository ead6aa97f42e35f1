"""A user's pool stays in its file: texts are read part by part, and the results are those of a list."""

from __future__ import annotations

import json
from itertools import pairwise

import pandas as pd
import pytest

from igds_utils import selectors
from igds_utils.core.experiment import open_run
from igds_utils.data import rows
from igds_utils.engine import activations
from igds_utils.selection import pool, tool
from igds_utils.selection.needs import Pool, critical
from igds_utils.selection.user_pool import PoolError, read_pool
from igds_utils.tasks import base, get

N, PART = 22, 4
RECORDS = [
    {
        "question": f"Ann has {i} apples and buys {i % 5} more. How many?",
        "target": f"{'so ' * (i % 7)}{i + i % 5}",
    }
    for i in range(N)
]


class Counted(base.Example):
    """A sample that is counted for as long as it is in memory."""

    alive = 0

    def __init__(self, **arguments):
        super().__init__(**arguments)
        Counted.alive += 1

    def __del__(self):
        Counted.alive -= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run("smoke", tasks=["math"], results=str(tmp_path_factory.mktemp("results")))


@pytest.fixture(params=["jsonl", "parquet"])
def file(request, tmp_path):
    path = tmp_path / f"pool.{request.param}"
    if request.param == "parquet":
        pd.DataFrame(RECORDS).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.fixture
def rows_read(monkeypatch):
    """Grows by one with every row that is read from a file."""
    read, of_file = [], rows._read

    def watched(*arguments):
        for row in of_file(*arguments):
            read.append(row[0])
            yield row

    monkeypatch.setattr(rows, "_read", watched)
    return read


def test_samples_are_read_when_they_are_asked_for(file, rows_read):
    samples = read_pool(str(file), get("math"))
    assert len(samples) == N == len(rows_read) - 1  # all were checked; the first one says which columns there are
    rows_read.clear()
    assert [e.fields["question"] for e in samples[2:5]] == [r["question"] for r in RECORDS[2:5]]
    assert [e.target for e in samples[5:6]] == [RECORDS[5]["target"]] and len(rows_read) == 6
    assert samples[-1].target == RECORDS[-1]["target"] and len(rows_read) == N
    assert samples[1].target == RECORDS[1]["target"] and len(rows_read) == N + 2
    assert [e.id for e in samples] == samples.ids and samples[30:] == []
    with pytest.raises(IndexError):
        samples[N]


def test_records_are_written_in_the_order_asked_for(file, tmp_path):
    read_pool(str(file), get("math")).write(tmp_path / "out.jsonl", [7, 0, 21])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [RECORDS[7], RECORDS[0], RECORDS[21]]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    samples = read_pool(str(path), get("math"))
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:9]))
    with pytest.raises(PoolError, match="pool.jsonl has changed while it was read: select again"):
        samples[8:12]


def test_no_more_than_one_part_is_read_ahead_or_kept(file, run, tmp_path, rows_read, monkeypatch):
    monkeypatch.setattr(critical, "PROMPTS", PART)
    monkeypatch.setattr(base, "Example", Counted)
    read_so_far, alive, scored, read = [], [], [], activations.critical_residuals

    def watched(lm, texts, *arguments):
        read_so_far.append(len(rows_read))
        alive.append(Counted.alive)
        scored.extend(texts)
        return read(lm, texts, *arguments)

    monkeypatch.setattr(activations, "critical_residuals", watched)
    made = tool.select(run, "math", str(file), tmp_path / "out", features="l2_p5")
    assert [after - before for before, after in pairwise(read_so_far)] == [PART] * 4 + [N % PART]
    assert len(scored) == N and max(alive) <= PART + 1
    assert len(made.records) == N // 2 == made.facts["selected"]


@pytest.mark.parametrize("selector", ["igds", "loss", "ifd", "longest", "zip"])
def test_the_results_are_those_of_a_list(selector, run, tmp_path, monkeypatch):
    monkeypatch.setattr(critical, "PROMPTS", PART)
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    features = "l2_p5,l3_p10"
    made = tool.select(run, "math", str(path), tmp_path / "out", selector=selector, features=features)
    own = tool.PoolRun(run, tool.read_features(features))
    examples = list(read_pool(str(path), get("math")))
    members = Pool(own, "math", examples, f"as_list/{selector}", run.preset.seed, (selector,))
    expected = selectors.rank_pool(selector, pool.context_of(members), N // 2)
    for name in ("sample_id", "score", "rank", "filled"):
        assert made.scores[name].tolist() == expected[name].tolist()
    numbers = {example.id: number for number, example in enumerate(examples)}
    assert made.records == [RECORDS[numbers[i]] for i in expected.nsmallest(N // 2, "rank")["sample_id"]]

"""A user's pool stays in its file: texts are read part by part, and the results are those of a list."""

import json

import pandas as pd
import pytest

from igds_utils import selectors
from igds_utils.core.experiment import open_run
from igds_utils.selection import features, pool, tool
from igds_utils.selection.user_pool import read_pool
from igds_utils.tasks import get

N, PART = 22, 4
RECORDS = [
    {
        "question": f"Ann has {i} apples and buys {i % 5} more. How many?",
        "target": f"{'so ' * (i % 7)}{i + i % 5}",
    }
    for i in range(N)
]


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


def test_samples_and_records_are_read_in_any_order(file, tmp_path):
    samples = read_pool(str(file), get("math"))
    assert len(samples) == N
    assert [e.fields["question"] for e in samples[2:5]] == [r["question"] for r in RECORDS[2:5]]
    assert [samples[i].target for i in (-1, 1)] == [RECORDS[i]["target"] for i in (-1, 1)]
    assert [e.id for e in samples] == samples.ids and samples[30:] == []
    assert samples.place(6) == f"{file.name} {'row' if file.suffix == '.parquet' else 'line'} 7"
    with pytest.raises(IndexError):
        samples[N]
    samples.write(tmp_path / "out.jsonl", [7, 0, 21])
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [RECORDS[7], RECORDS[0], RECORDS[21]]


@pytest.mark.parametrize("selector", ["igds", "loss", "ifd", "longest", "zip"])
def test_the_results_are_those_of_a_list(selector, run, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PROMPTS", PART)
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    named = "l2_p5,l3_p10"
    made = tool.select(run, "math", str(path), tmp_path / "out", selector=selector, features=named)
    examples = list(read_pool(str(path), get("math")))
    found = features.task_features(run, "math", named)
    own = pool.Pool(run, "math", examples, f"as_list/{selector}", run.preset.seed, task_features=found)
    expected = selectors.rank_pool(selector, own, N // 2)
    for name in ("sample_id", "score", "rank", "filled"):
        assert made.scores[name].tolist() == expected[name].tolist()
    numbers = {example.id: number for number, example in enumerate(examples)}
    assert made.records == [RECORDS[numbers[i]] for i in expected.nsmallest(N // 2, "rank")["sample_id"]]

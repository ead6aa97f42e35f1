"""A user's pool stays in its file: texts are read part by part, and the results are those of a list."""

import json

import pandas as pd
import pytest

from igds_utils import selectors
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations
from igds_utils.selection import features, pool, tool, user_pool
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

    def __init__(self, *values, **named):
        super().__init__(*values, **named)
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


def test_what_is_left_out_later_is_counted_with_what_could_not_be_read(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [{"question": ""}, *RECORDS]))
    with pytest.raises(PoolError, match=r"(?s)line 1: .*line 3: too long.*2 of 23 records cannot be used"):
        read_pool(str(path), get("math")).settled({1: "too long"})
    kept = read_pool(str(path), get("math")).settled({1: "too long"}, skip_bad=True)
    assert sorted(kept.left_out) == [0, 2] and kept.remarks[-1].startswith(
        "21 of 23 records are used, because 2"
    )
    assert [e.target for e in kept] == [r["target"] for i, r in enumerate(RECORDS) if i != 1]
    again = read_pool(str(path), get("math"), left_out=kept.left_out)
    assert again.ids == kept.ids and [*again] == [*kept]


def test_no_more_than_one_part_is_in_memory(file, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "PROMPTS", PART)
    for module in (base, user_pool):
        monkeypatch.setattr(module, "Example", Counted)
    alive, scored, read = [], [], activations.critical_residuals

    def watched(lm, texts, *arguments):
        alive.append(Counted.alive)
        scored.append(len(texts))
        return read(lm, texts, *arguments)

    monkeypatch.setattr(activations, "critical_residuals", watched)
    made = tool.select(run, "math", str(file), tmp_path / "out", features="l2_p5")
    assert scored == [PART] * 5 + [N % PART] and max(alive) <= PART + 1
    assert len(made.records) == N // 2 == made.facts["selected"]


@pytest.mark.parametrize("selector", ["igds", "loss", "ifd", "longest", "zip"])
def test_the_results_are_those_of_a_list(selector, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "PROMPTS", PART)
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

"""`igds select` and `igds explain`: what they write, and what they refuse."""

import json
import re

import pandas as pd
import pytest

from igds_utils import cli
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations
from igds_utils.selection import features, tool
from igds_utils.selection.pool import Samples
from igds_utils.selection.tool import explain, select
from igds_utils.tasks.examples import Example

QUESTIONS = [
    "Ann has 3 apples. Bob brings 4 more. How many apples are there?",
    "A bus with 20 passengers stops. Then 7 leave. How many stay?",
    "Write a short poem about rain.",
    "Mona reads 5 pages a day for 6 days. How many pages does she read?",
    "There are 9 rows of 4 flowers. Rabbits eat 11. How many are left?",
    "Suggest a name for a calm parrot. Say why it fits.",
]
RECORDS = [
    {"id": f"s{i}", "question": text, "target": f"Reply {i}.", "note": [i, "é\ud83d"]}
    for i, text in enumerate(QUESTIONS)
]


def write(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")
    return str(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run("smoke", tasks=["math"], results=str(tmp_path_factory.mktemp("results")))


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pool.jsonl", RECORDS)


@pytest.fixture(scope="module")
def acts(run):
    """Activations of all features of a layer at the critical position of every record."""
    examples = [Example(r["id"], {"question": r["question"]}, r["target"], ()) for r in RECORDS]
    h = activations.critical_residuals(run.lm, Samples(run, "math", examples).prompts, [2])[2]
    return run.saes[2].encode(h)


@pytest.fixture(scope="module")
def fires(acts):
    """Names of a feature that fires on some of the samples, and of one that fires on none."""
    count = (acts > 0).sum(0)
    some = int(((count > 1) & (count < len(RECORDS))).nonzero()[0, 0])
    return f"l2_p{some}", f"l2_p{int((count == 0).nonzero()[0, 0])}"


def test_a_selection_holds_the_records_best_first(run, file, acts, fires, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PROMPTS", 2)  # three parts
    made = select(run, "math", file, tmp_path / "out", features=fires[0], ratio=0.5)
    scores = {r["id"]: float(a) for r, a in zip(RECORDS, acts[:, int(fires[0][4:])], strict=True)}
    expected = sorted(RECORDS, key=lambda r: (-scores[r["id"]], r["id"]))
    assert made.records == expected[:3]
    lines = (tmp_path / "out/selection.jsonl").read_text(encoding="utf8").splitlines()
    assert [json.loads(line) for line in lines] == expected[:3] and "é" in lines[0]
    table = pd.read_csv(tmp_path / "out/scores.csv")
    pd.testing.assert_frame_equal(table, made.scores, check_dtype=False)
    assert table["sample_id"].tolist() == [r["id"] for r in expected]
    by_hand = pytest.approx([scores[i] for i in table["sample_id"]], rel=1e-3, abs=1e-5)
    assert table["score"].tolist() == by_hand and table[fires[0]].tolist() == by_hand
    assert table["selected"].sum() == 3
    assert table["place"].tolist() == [f"pool.jsonl line {RECORDS.index(r) + 1}" for r in expected]
    facts = json.loads((tmp_path / "out/selection.json").read_text())
    assert facts["made_by"]["name"] == "igds" and facts["made_by"]["direction"] == "highest"


def test_silent_samples_are_counted_and_ties_fall_to_the_smaller_id(run, file, fires, tmp_path):
    few = select(run, "math", file, tmp_path / "few", features=fires[0])
    silent = (few.scores["score"] == 0).sum()
    assert 0 < silent < 6
    assert few.facts["remarks"][0].startswith(f"{silent} of 6 samples do not fire {fires[0]}")
    made = select(run, "math", file, tmp_path / "none", features=fires[1])
    assert made.facts["remarks"][0].startswith("6 of 6 samples do not fire")
    assert [record["id"] for record in made.records] == ["s0", "s1", "s2"]


def test_a_selection_that_is_read_is_not_written_over(run, file, tmp_path):
    select(run, "math", file, tmp_path / "out", selector="longest")
    with pytest.raises(ConfigError, match="out/selection.jsonl would be written over"):
        select(run, "math", str(tmp_path / "out/selection.jsonl"), tmp_path / "out", "longest")


def test_half_a_selection_is_none(run, file, tmp_path, monkeypatch):
    select(run, "math", file, tmp_path / "out", "longest")
    explain(tmp_path / "out", "s0")

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        select(run, "math", file, tmp_path / "out", "longest", ratio=1.0)
    with pytest.raises(ConfigError, match="holds no selection: make one with `igds select`"):
        explain(tmp_path / "out", "s0")


def test_an_explanation_by_hand(run, file, fires, tmp_path):
    made = select(run, "math", file, tmp_path / "out", features=fires[0])
    best, _, last, out = made.scores["sample_id"][:4]
    text = explain(tmp_path / "out", best)
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == [best, last, out]
    score = made.scores["score"][0]
    assert text.splitlines()[-1].startswith(f"{fires[0]} is {score:.4g} at p; 83% of the pool")
    with pytest.raises(ConfigError, match="no sample 's9' in .*scores.csv"):
        explain(tmp_path / "out", "s9")


def changed(place=2, **fields):
    return [r | fields if i == place else r for i, r in enumerate(RECORDS)]


READ = "its prompt has [0-9,]+ tokens, the model reads 512: .*max_prompt"
TRAINED_ON = "its prompt alone has [0-9,]+ tokens, sft.max_length is 512"


@pytest.mark.parametrize(("selector", "expected"), [("igds", READ), ("loss", TRAINED_ON)])
def test_a_sample_that_is_too_long_is_refused_or_left_out(selector, expected, run, fires, tmp_path):
    file = write(tmp_path / "pool.jsonl", changed(question="word " * 600))
    asked = (run, "math", file, tmp_path / "out", selector, 0.5, fires[0])
    with pytest.raises(ConfigError, match=f"^pool.jsonl line 3: .*{expected}"):
        select(*asked)
    made = select(*asked, skip_bad=True)
    assert made.facts["remarks"][0].startswith("1 of 6 records cannot be used")
    assert sorted(made.scores["sample_id"]) == ["s0", "s1", "s3", "s4", "s5"]


def test_select_and_explain_from_the_command_line(run, file, fires, tmp_path, capsys):
    out = tmp_path / "out"
    shared = ["--preset", "smoke", "--task", "math", "--results", str(run.root.parent), "--out", str(out)]
    select_from = lambda pool, *more: cli.main(["select", pool, *shared, *more])  # noqa: E731
    twice = write(tmp_path / "twice.jsonl", [*RECORDS, RECORDS[1]])
    assert select_from(twice, "--selector", "zip") == 2 and not out.exists()
    assert "line 7: id 's1' is that of twice.jsonl line 2" in capsys.readouterr().err
    assert select_from(file, "--features", ",".join(fires), "--ratio", "0.3") == 0
    shown = capsys.readouterr()
    assert f"2 of 6 samples, best first: {out}/selection.jsonl" in shown.out
    assert "igds: note: " in shown.err and "do not fire" in shown.err
    assert cli.main(["explain", str(out), "s4"]) == 0
    assert re.search("s4 +pool.jsonl line 5", capsys.readouterr().out)
    assert cli.main(["explain", str(tmp_path), "s4"]) == 2

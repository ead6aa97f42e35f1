"""Rows from the hub's stand-in, a data mirror, JSONL and Parquet: what is read, drawn, left out and refused."""

import json
from collections import Counter
from random import Random

import pandas as pd
import pytest
from pydantic import ValidationError

from igds_utils.config.refs import Column, DataSource
from igds_utils.data import hub, huggingface, sources
from igds_utils.data.hub import SourceError
from igds_utils.data.sources import Reader

ROWS = [
    {
        "q": "How many?",
        "a": "2 + 3 = <<2+3=5>>5 eggs.\n#### 5",
        "level": 1,
        "pair": {"en": "one", "zh": "一"},
    },
    {
        "q": "How long is it?",
        "a": "It is 1,200 m.\n#### 1,200",
        "level": 2,
        "pair": {"en": "two", "zh": "二"},
    },
    {"q": "Who?", "a": "", "level": 2, "pair": {"en": "three", "zh": None}},
]
QUESTION = {"question": "q"}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.MIRROR, str(tmp_path))
    write(tmp_path / "some/data/main/train.jsonl", ROWS)
    return tmp_path


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")
    return str(file)


def read(fields, seed=0, **source):
    source = {"hub": "some/data", "config": "main", **source}
    return list(Reader(DataSource(**source), fields, "tasks.x.data.sources.pool").records(seed))


# ---- where rows come from --------------------------------------------------------------------------------


def test_a_mirror_replaces_the_hub_with_and_without_the_configurations_folder(mirror):
    assert read(["question"], columns=QUESTION) == [{"question": row["q"]} for row in ROWS]
    write(mirror / "other/data/test.jsonl", ROWS[:1])
    assert len(read(["question"], hub="other/data", config="main", split="test", columns=QUESTION)) == 1
    with pytest.raises(SourceError, match="holds no some/data/main/test.jsonl or some/data/test.jsonl"):
        read(["question"], split="test", columns=QUESTION)


def test_a_mirror_may_keep_a_source_elsewhere_under_other_columns(mirror, monkeypatch):
    write(mirror / "mine.jsonl", [{"text": "from the mirror"}])
    elsewhere = {"path": "mine.jsonl", "columns": {"question": "text"}}
    assert read(["question"], columns=QUESTION, mirror=elsewhere) == [{"question": "from the mirror"}]
    assert (
        len(read(["question"], hub=None, file=str(mirror / "some/data/main/train.jsonl"), columns=QUESTION))
        == 3
    )


def test_a_mirror_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(sources.MIRROR, "/no/such/folder")
    with pytest.raises(SourceError, match="IGDS_DATA_MIRROR names /no/such/folder, which is no folder"):
        read(["question"], columns=QUESTION)


def test_jsonl_and_parquet_files_give_the_same(tmp_path):
    jsonl = write(tmp_path / "rows.jsonl", ROWS)
    parquet = tmp_path / "rows.parquet"
    pd.DataFrame(ROWS).to_parquet(parquet)
    columns = {"question": "q", "target": "pair.zh"}
    both = [read(list(columns), hub=None, file=str(file), columns=columns) for file in (jsonl, parquet)]
    assert both[0] == both[1] == [{"question": r["q"], "target": r["pair"]["zh"]} for r in ROWS[:2]]


@pytest.mark.parametrize(
    ("hub_id", "config", "split", "column", "n"),
    [
        ("openai/gsm8k", "main", "train", "answer", 40),
        ("open-r1/OpenR1-Math-220k", "default", "train", "solution", 40),
        ("HuggingFaceH4/MATH-500", None, "test", "problem", 40),
        ("knkarthick/dialogsum", None, "test", "dialogue", 120),
        ("haoranxu/ALMA-Human-Parallel", "zh-en", "train", "translation.zh", 40),
        ("google/wmt24pp", "en-zh_CN", "train", "target", 40),
    ],
)
def test_the_papers_datasets_are_streamed_once(
    hub_box, tmp_path, monkeypatch, hub_id, config, split, column, n
):
    monkeypatch.delenv(sources.MIRROR, raising=False)
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    source = {"hub": hub_id, "config": config, "split": split, "columns": {"text": column}}
    first = read(["text"], **source)
    assert len(first) == n and all(record["text"] for record in first)
    (cached,) = tmp_path.glob("rows/*/rows.jsonl")
    assert set(json.loads(cached.read_text(encoding="utf8").splitlines()[0])) == {column.split(".")[0]}
    asked = len(hub_box.requests)
    assert read(["text"], **source) == first and len(hub_box.requests) == asked > 0


def test_what_the_hub_refuses_is_said_with_the_mend(hub_box, tmp_path, monkeypatch):
    monkeypatch.delenv(sources.MIRROR, raising=False)
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface, "PAUSE", 0.0)
    gsm8k = {"hub": "openai/gsm8k", "columns": QUESTION}
    for source, words in {
        "no column": (
            {**gsm8k, "config": "main"},
            "openai/gsm8k main train: no field 'q'; it has question, answer",
        ),
        "no split": ({**gsm8k, "config": "main", "split": "dev"}, "Correct `config` or `split`"),
        "no dataset": (
            {**gsm8k, "hub": "openai/gsm9k"},
            "'openai/gsm9k' doesn't exist on the Hub.*Correct `hub`.*set IGDS_DATA_MIRROR",
        ),
    }.values():
        with pytest.raises(SourceError, match=words):
            read(["question"], **source)
    assert not list(tmp_path.glob("rows/*/rows.jsonl"))


# ---- what is made of a row -------------------------------------------------------------------------------


def test_gsm8k_answers_are_taken_apart(mirror):
    columns = {
        "solution": {"column": "a", "take": "gsm8k_solution"},
        "answer": {"column": "a", "take": "gsm8k_answer"},
        "language": {"value": "English"},
    }
    assert read(["solution", "answer", "language"], columns=columns) == [
        {"solution": "2 + 3 = 5 eggs.", "answer": "5", "language": "English"},
        {"solution": "It is 1,200 m.", "answer": "1200", "language": "English"},
    ]


@pytest.mark.parametrize(
    ("how", "text", "taken"),
    [
        ("boxed", "so \\boxed{1} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("boxed", "no box", ""),
        ("gsm8k_answer", "no final answer", ""),
        ("gsm8k_solution", "a\n\nb <<1*2=2>>2\n#### -3 ", "a\n\nb 2"),
        ("text", " as it is ", " as it is "),
    ],
)
def test_what_a_column_asks_for(how, text, taken):
    assert sources.take(Column(column="x", take=how), text) == taken


def test_rows_are_filtered_and_counted(mirror):
    columns = {"question": "q", "answer": "pair.zh"}
    source = DataSource(
        hub="some/data", config="main", columns=columns, where={"level": [2]}, max_words={"question": 9}
    )
    reader = Reader(source, ["question", "answer"])
    assert [record["answer"] for record in reader.records(0)] == ["二"]
    assert reader.counts == {"rows": 3, "filtered": 1, "unusable": 1}
    assert [r["question"] for r in read(["question"], columns=QUESTION, max_words={"question": 2})] == [
        "How many?",
        "Who?",
    ]


def test_reading_is_lazy(mirror):
    file = mirror / "some/data/main/train.jsonl"
    file.write_text(json.dumps({"q": "fine"}) + "\n" + "not json\n")
    records = Reader(DataSource(hub="some/data", config="main", columns=QUESTION), ["question"]).records(0)
    assert next(records) == {"question": "fine"}
    with pytest.raises(SourceError, match="train.jsonl line 2: not valid JSON"):
        next(records)


# ---- drawing ---------------------------------------------------------------------------------------------


def test_some_rows_are_drawn_by_the_seed(mirror):
    write(mirror / "some/data/main/train.jsonl", [{"q": f"question {i}"} for i in range(50)])
    drawn = [
        [r["question"] for r in read(["question"], seed, columns=QUESTION, rows=10)] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 10
    assert len(read(["question"], columns=QUESTION, rows=80)) == 50


def test_a_reservoir_is_uniform():
    counts = Counter(item for seed in range(2000) for item in sources.reservoir(range(10), 3, Random(seed)))
    assert all(500 < counts[item] < 700 for item in range(10))


# ---- refusals --------------------------------------------------------------------------------------------


def test_a_missing_field_is_named_with_its_line_and_what_the_task_needs(mirror):
    write(mirror / "some/data/main/train.jsonl", [{"q": "x", "a": "y"}, {"q": "x"}])
    with pytest.raises(
        SourceError, match=r"train.jsonl line 2: no field 'a' \(for 'answer'; needed are question, answer\)"
    ):
        read(["question", "answer"], columns={"question": "q", "answer": "a"})
    with pytest.raises(
        SourceError, match=r"sources.pool: no column for 'answer' \(the task needs question, answer"
    ):
        read(["question", "answer"], columns=QUESTION)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"q": ["a"]}', "line 1: field 'q' holds a list, not a text"),
        ("[1]", "line 1: holds a list, not an object"),
        ('{"q": "a"}\n{"q"', "line 2: not valid JSON"),
    ],
)
def test_unreadable_rows_are_refused_with_file_and_line(tmp_path, lines, words):
    file = tmp_path / "pool.jsonl"
    file.write_text(lines)
    with pytest.raises(SourceError, match=f"pool.jsonl {words}"):
        read(["question"], hub=None, file=str(file), columns=QUESTION)


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no file .*gone.jsonl: correct `file`"):
        read(["question"], hub=None, file=str(tmp_path / "gone.jsonl"), columns=QUESTION)
    (tmp_path / "rows.csv").write_text("q\n")
    with pytest.raises(SourceError, match="rows.csv is neither .jsonl nor .parquet"):
        read(["question"], hub=None, file=str(tmp_path / "rows.csv"), columns=QUESTION)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hub": None}, "either on the `hub` or in a `file`"),
        ({"file": "x.jsonl"}, "either on the `hub` or in a `file`"),
        ({"max_words": {"answer": 3}}, "max_words of 'answer', which is no field"),
        ({"columns": {"question": {"column": "q", "value": "x"}}}, "either `column` or `value`"),
        ({"sets": ["dev"]}, "sets"),
    ],
)
def test_records_that_contradict_themselves_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        DataSource(**{"hub": "some/data", "columns": QUESTION, **wrong})


def test_the_cache_is_asked_by_what_is_read(tmp_path, monkeypatch):
    """Another split, revision or column is another copy; the same is fetched once."""
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    monkeypatch.delenv(sources.MIRROR, raising=False)
    fetches = []
    monkeypatch.setattr(
        sources, "stream_hub", lambda source, columns: fetches.append(source) or iter([ROWS[0]])
    )
    for change in ({}, {}, {"revision": "abc"}, {"split": "test"}, {"columns": {"question": "a"}}):
        assert len(read(["question"], **{"columns": QUESTION, **change})) == 1
    assert len(fetches) == 4
    assert hub.cache_root() == tmp_path

"""Rows from files, folders of shards, the hub's stand-in and a mirror, as plain JSON values."""

import datetime
import gzip
import json
import re
from decimal import Decimal

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from igds_utils.config.refs import DataSource
from igds_utils.data import rows
from igds_utils.data.hub import SourceError
from igds_utils.data.rows import find_rows

RECORDS = [{"id": f"s{i}", "q": f"Wie viele, {i}?\u2028", "n": {"en": "one", "zh": "一"}} for i in range(5)]
TEXT = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
FLAT = [{"id": f"s{i}", "q": f'"{i}",\nnew line'} for i in range(5)]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv(rows.MIRROR, str(tmp_path / "mirror"))
    (tmp_path / "mirror/some/data/main").mkdir(parents=True)
    (tmp_path / "mirror/some/data/main/train.jsonl").write_text(TEXT, encoding="utf8")
    return tmp_path / "mirror"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """No mirror, and nothing fetched yet."""
    monkeypatch.delenv(rows.MIRROR, raising=False)
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))


def records(*names):
    return [record for _, record in find_rows(list(map(str, names)))]


@pytest.mark.parametrize(("name", "content"), {
    "pool.jsonl": TEXT.encode(),
    "POOL.JSONL": TEXT.encode(),
    "list.json": json.dumps(RECORDS, indent=1).encode(),
    "a list.jsonl": json.dumps(RECORDS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
    "pool.jsonl.gz": gzip.compress(TEXT[:50].encode(), mtime=0) + gzip.compress(TEXT[50:].encode()),
    "pool.jsonl.zst": pa.compress(TEXT.encode(), codec="zstd", asbytes=True),
}.items())  # fmt: skip
def test_json_is_read_from_every_container(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert records(tmp_path / name) == RECORDS


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV.gz"])
def test_csv_gives_the_texts_as_they_stand_there(tmp_path, name):
    table = pd.DataFrame([*FLAT, {"id": "007", "q": ""}])
    compression = "gzip" if name.endswith("gz") else None
    separator = "\t" if "tsv" in name else ","
    table.to_csv(tmp_path / name, sep=separator, index=False, compression=compression)
    found = list(find_rows(str(tmp_path / name)))
    assert [record for _, record in found] == [*FLAT, {"id": "007", "q": ""}]
    assert found[1][0] == f"{name} line 4"
    (tmp_path / "ragged.csv").write_text("id,q\n1,2,3\n4,5\n6\n")
    (_, wide), (_, fine), (_, narrow) = find_rows(str(tmp_path / "ragged.csv"))
    assert wide == narrow == "has not as many fields as the header"
    assert fine == {"id": "4", "q": "5"}


def test_tables_are_read_from_files_shards_and_saved_datasets(tmp_path):
    frame, made = pd.DataFrame(RECORDS), datasets.Dataset.from_list(RECORDS)
    frame.to_parquet(tmp_path / "a.parquet")
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "shards").mkdir()
    for number in range(2):
        frame[3 * number : 3 * number + 3].to_parquet(tmp_path / f"shards/train-{number}-of-2.parquet")
    (tmp_path / "shards/README.md").write_text("what this is")
    some = tmp_path / "saved/data-00000-of-00002.arrow"
    for names in ("a.parquet", "saved", "shards"):
        assert records(tmp_path / names) == RECORDS
    assert records(some, tmp_path / "a.parquet") == RECORDS[:3] + RECORDS
    assert [place for place, _ in find_rows(str(tmp_path / "shards"))][3] == "train-1-of-2.parquet row 1"
    (tmp_path / "shards/test.csv").write_text("q\n1\n")
    (tmp_path / "splits/train").mkdir(parents=True)
    (tmp_path / "a.parquet").rename(tmp_path / "saved" / some.name.replace("00000", "00001"))
    for names, words in (
        (["shards"], "shards holds several kinds of data files: name the files or the folder"),
        (["splits"], "splits holds no data files"),
        (["saved/data-00000-of-00002.arrow", "shards/test.csv", "saved"], "cannot be read as a whole file"),
    ):
        with pytest.raises(SourceError, match=words):
            records(*(tmp_path / name for name in names))
    (tmp_path / "test.csv").write_text("q\n2\n")
    with pytest.raises(SourceError, match="two files are called test.csv: rename one"):
        records(tmp_path / "test.csv", tmp_path / "shards/test.csv")


def test_values_come_out_as_json_knows_them(tmp_path):
    when, image = datetime.datetime(2024, 5, 17, 9, 30), b"\x89PNG\xff"
    columns = {
        "time": [when], "day": [when.date()], "price": [Decimal("1.50")], "image": [{"bytes": image}],
        "id": [b"q0"], "nan": [float("nan")], "long": [2**62], "list": [[float("inf"), 0.1]],
    }  # fmt: skip
    pa.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    text = '{"nan": NaN, "more": [-Infinity, 0.1], "day": "2024-05-17", "n": 12345678901234567890}'
    (tmp_path / "a.jsonl").write_text(text)
    assert records(tmp_path / "a.parquet") == [{
        "time": "2024-05-17 09:30:00", "day": "2024-05-17", "price": "1.50", "id": "q0",
        "image": {"bytes": "\\x89PNG\\xff"}, "nan": None, "long": 2**62, "list": [None, 0.1],
    }]  # fmt: skip
    (found,) = records(tmp_path / "a.jsonl")
    assert found == {"nan": None, "more": [None, 0.1], "day": "2024-05-17", "n": 12345678901234567890}



def test_what_a_preset_calls_a_file_is_never_looked_up(monkeypatch):
    monkeypatch.setattr(rows, "fetched", None)
    with pytest.raises(SourceError, match="there is no file .*some/set"):
        rows.source_rows(DataSource(file="some/set"), None, "x")


def test_a_bad_line_stands_in_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + TEXT.encode() + b'{"q": "\xe9"}\n' + TEXT.encode())
    found = list(find_rows(str(tmp_path / "a.jsonl")))
    place, wrong = found[5]
    assert place == "a.jsonl line 7"
    assert re.search("is not JSON in UTF-8 .*byte 0xe9", wrong)
    assert [record for _, record in found[:5]] == [record for _, record in found[6:]] == RECORDS


def read(**source):
    made = DataSource(**{"hub": "some/data", "config": "main", **source})
    return list(rows.source_rows(made, ["q"], "tasks.x.data.sources.pool"))


def test_a_mirror_replaces_the_hub_with_and_without_the_configurations_folder(mirror, monkeypatch):
    assert [record for _, record in read()] == RECORDS == records("some/data:train@main")
    (mirror / "other/data").mkdir(parents=True)
    (mirror / "other/data/test.jsonl").write_text(TEXT)
    assert len(read(hub="other/data", split="test")) == 5
    with pytest.raises(SourceError, match="holds no some/data/main/test.jsonl: put it there"):
        read(split="test")
    (mirror / "mine.jsonl").write_text('{"text": "from the mirror"}')
    ((place, record),) = read(mirror={"path": "mine.jsonl", "columns": {}})
    assert (place, record) == ("mine.jsonl line 1", {"text": "from the mirror"})
    monkeypatch.setenv(rows.MIRROR, "/no/such/folder")
    with pytest.raises(SourceError, match="names /no/such/folder, which is no folder"):
        read()


def test_what_the_hub_refuses_is_said_with_the_mend(hub_box, no_cache):
    with hub_box.fault("gated", "openai/gsm8k"), pytest.raises(SourceError, match="hf auth login"):
        read(hub="openai/gsm8k")
    for source, words in (
        ({"split": "dev"}, "Correct `config` or `split`"),
        ({"hub": "openai/gsm9k"}, "gsm9k .*Correct its name.*set IGDS_DATA_MIRROR"),
    ):
        with pytest.raises(SourceError, match=words):
            read(**{"hub": "openai/gsm8k", **source})

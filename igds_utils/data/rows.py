"""Rows of data, one at a time and as often as they are asked for: from files, folders, the hub or a mirror of it.

Where the environment variable IGDS_DATA_MIRROR names a folder, it takes the hub's place:
`<mirror>/<hub id>/[<config>/]<split>.jsonl`. What comes from the hub is streamed once, into the cache
(`hub.cache_root`), and read from there ever after.

    for place, record in find_rows("pool.jsonl.gz"): ...
"""

import codecs
import csv
import hashlib
import io
import json
import math
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from tqdm import tqdm

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import DataSource
from igds_utils.data import hub
from igds_utils.data.hub import SourceError

MIRROR = "IGDS_DATA_MIRROR"
ROWS = 1024  # of a table or of the hub that are in memory at once
TABLES = (".parquet", ".arrow")
PACKED = {".gz": "gzip", ".zst": "zstd"}
# what ends so is no dataset of the hub
FILE = re.compile(r"(?i).*\.(jsonl?|ndjson|[ct]sv|parquet|pq|arrow|feather|gz|zst|bz2|xz|zip|tar|txt|xlsx?|xml|ya?ml)")
HUB_ID = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+))?(@(?P<config>[\w.-]+))?")
# behind its number a shard may have a hash: train-00000-of-00002-a1b2c3.parquet
COUNTED = re.compile(r"(?<=\d)[-_][0-9a-f-]{6,}(?=\.)|\d+")

Row = tuple[str, dict[str, Any] | str]  # where it stands ("pool.jsonl line 17"); its record, or what is wrong with it


@dataclass(frozen=True)
class Rows:
    """Rows of some files, in order; they are read anew, lazily, whenever they are iterated over.

    Records hold plain JSON values: those of JSON as they stand there, NaN and infinity as null; of tables, dates and
    times in ISO format, decimals as text, bytes as text where they are UTF-8 and in base64 elsewhere; of CSV, texts.
    """

    name: str  # what messages call all of them
    files: dict[str, Path]  # by what messages call one

    def __iter__(self) -> Iterator[Row]:
        for called, file in self.files.items():
            yield from _read(file, called)


def find_rows(names: str | Sequence[str]) -> Rows:
    """Rows of files, of a folder of shards (also one of `datasets.save_to_disk`), or of a dataset of the hub.

    names: one or several; a dataset of the hub as owner/name, owner/name:split or owner/name:split@configuration. What
    ends like a file is never looked up there. Raises `SourceError`.
    """
    name = names if isinstance(names, str) else names[0] if len(names) == 1 else ""
    path, found = Path(name).expanduser(), HUB_ID.fullmatch(name)
    if found and not FILE.fullmatch(name) and not path.exists():
        return source_rows(DataSource(**{k: v for k, v in found.groupdict().items() if v}), None, name)
    return _file_rows(names, Path())


def source_rows(source: DataSource, columns: Iterable[str] | None, name: str) -> Rows:
    """Rows of a source of a preset; name: what messages call it. columns: those fetched of the hub, by default all."""
    if source.file is not None:
        return _file_rows(source.file, PROJECT)
    mirror = mirror_folder()
    try:
        file = _mirrored(source, mirror) if mirror else _cached(source, columns)
    except SourceError as error:
        own = f", or, where the task has data of its own, read that: SET={name.rpartition('.')[0]}={{}}"
        raise SourceError(
            f"{name}: {error}. Without a hub, set {MIRROR} to a folder that holds the data"
            + own * name.startswith("tasks.")
        ) from error
    return Rows(name, {file.name if mirror else _title(source): file})


# ---- files -----------------------------------------------------------------------------------------------


def _file_rows(names: str | Sequence[str], root: Path) -> Rows:
    """Rows of files and folders of shards; a file is called by its name, and by as many folders as tell it apart."""
    names, files = [names] if isinstance(names, str) else names, {}
    for path in (root / Path(name).expanduser() for name in names):
        if not path.exists():
            raise SourceError(f"there is no file {path}: correct it, or give a dataset of the hub as owner/name")
        files |= dict.fromkeys(_shards(path) if path.is_dir() else [path])
    depth = 1
    while len(called := {Path(*file.parts[-depth:]).as_posix(): file for file in files}) < len(files):
        depth += 1
    return Rows(" and ".join(Path(name).name or name for name in names), called)


def _kind(file: Path) -> tuple[str, str | None]:
    """The suffix that says what a file holds, in lower case, and how it is packed."""
    packed = PACKED.get(file.suffix.lower())
    return (Path(file.stem) if packed else file).suffix.lower(), packed


def _shards(folder: Path) -> list[Path]:
    """The files of a folder of shards, in order."""
    if (folder / "dataset_dict.json").is_file():
        raise SourceError(f"{folder} holds several splits: name one of its folders, such as {folder / 'train'}")
    if (state := folder / "state.json").is_file():  # of `datasets.save_to_disk`
        return [folder / one["filename"] for one in json.loads(state.read_bytes())["_data_files"]]
    found = [file for file in folder.iterdir() if _kind(file)[0] in (*TEXTS, *TABLES) and file.is_file()]
    found = [file for file in found if file.name not in ("dataset_info.json", "dataset_infos.json")]
    kinds = sorted({COUNTED.sub("", file.name) for file in found})
    if len(kinds) != 1:
        held = f"several kinds of files ({', '.join(kinds[:4])})" if kinds else "no data file"
        raise SourceError(f"{folder} holds {held}: name those that are meant")
    return sorted(found, key=lambda file: ([int(n) for n in re.findall(r"\d+", file.name)], file.name))


def _read(file: Path, called: str) -> Iterator[Row]:
    from pyarrow import input_stream

    kind, packed = _kind(file)
    try:
        if kind in TABLES and not packed:
            rows = (row for batch in _batches(file, kind) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{called} row {number}", DECODER.decode(json.dumps(row, default=_as_text))
        elif kind in TEXTS:
            with io.BufferedReader(input_stream(str(file), compression=packed)) as stream:
                yield from TEXTS[kind](stream, called)
        else:
            known = f"{', '.join([*TEXTS, *TABLES])}; those of text may end in {' or '.join(PACKED)} too"
            raise SourceError(f"{called} is of no known kind: write it as {known}")
    except (OSError, csv.Error, ValueError, RecursionError) as error:  # pyarrow's are among them
        what = kind + file.suffix * bool(packed)
        raise SourceError(f"{called} cannot be read as a whole {what} file ({error}): write it again") from None


def _batches(file: Path, kind: str) -> Iterable[Any]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    if kind == ".parquet":
        return ParquetFile(file).iter_batches(batch_size=ROWS)
    source = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:  # the other of Arrow's two formats
        table = pa.ipc.open_file(source)
        return map(table.get_batch, range(table.num_record_batches))


def _read_json(stream: BinaryIO, called: str) -> Iterator[Row]:
    """JSON lines, or one list of records, which is read whole."""
    if stream.peek().removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        found = DECODER.decode(stream.read().decode("utf-8-sig"))
        yield from ((f"{called} record {at}", _object(record)) for at, record in enumerate(found, start=1))
        return
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            record = _object(DECODER.decode(line.decode("utf8")))
        except UnicodeDecodeError as error:
            wrong = f"byte {line[error.start]:#04x} at column {error.start + 1}"
            record = f"is not UTF-8 ({wrong}): save the file as UTF-8"
        except (ValueError, RecursionError) as error:  # the latter where it is nested too deep
            record = f"not valid JSON ({error}): mend or remove the line"
        yield f"{called} line {number}", record


def _object(record: Any) -> dict[str, Any] | str:
    return record if isinstance(record, dict) else f"holds a {type(record).__name__}, not an object with fields"


def _finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None


# not `datasets`, which makes timestamps of texts like dates, floats of long integers, and names a bad row by its number
# in a block
DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=lambda _: None)


def _read_csv(stream: BinaryIO, called: str, delimiter: str = ",") -> Iterator[Row]:
    """Texts as they stand there; of a record of several lines the first one is named."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(text, delimiter=delimiter, strict=True)
    wrong, line = f"has not the {len(rows.fieldnames or ())} columns of the header", rows.line_num + 1
    for row in rows:
        yield f"{called} line {line}", wrong if None in row or None in row.values() else row
        line = rows.line_num + 1


TEXTS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json),
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
}


def _as_text(value: Any) -> str:
    """A value of a table that JSON does not know: dates, decimals, durations, bytes."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf8")
        except UnicodeDecodeError:
            return b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)


# ---- the hub and its mirror ------------------------------------------------------------------------------


def _title(source: DataSource) -> str:
    return " ".join(filter(None, [source.hub, source.config, source.split]))


def mirror_folder() -> Path | None:
    """The folder that stands in for the hub, or None; raises `SourceError` if it is named but not there."""
    if not (name := os.environ.get(MIRROR)):
        return None
    if not (folder := Path(name).expanduser()).is_dir():
        raise SourceError(f"{MIRROR} names {name}, which is no folder: correct it, or unset it to use the hub")
    return folder


def _mirrored(source: DataSource, mirror: Path) -> Path:
    places = [f"{source.hub}/{source.config}"] * bool(source.config) + [source.hub]
    tried = [source.mirror.path] if source.mirror else [f"{place}/{source.split}.jsonl" for place in places]
    if found := next((mirror / path for path in tried if (mirror / path).is_file()), None):
        return found
    raise SourceError(f"the data mirror {mirror} holds no {' or '.join(tried)}: put it there")


def _cached(source: DataSource, columns: Iterable[str] | None) -> Path:
    """The rows of a hub dataset with these columns, as one JSONL file in the cache."""
    key = json.dumps([source.hub, source.config, source.split, source.revision, columns and sorted(columns)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    cached = hub.cache_root() / "rows" / f"{source.hub.replace('/', '--')}-{source.split}-{digest}"

    def fill(new: Path) -> None:
        with (new / "rows.jsonl").open("w", encoding="utf8") as lines:
            for row in tqdm(stream_hub(source, columns), desc=f"fetch {source.hub}", unit="row", delay=2):
                lines.write(json.dumps(row, default=_as_text, ensure_ascii=False) + "\n")

    return hub.whole(cached, lambda new: hub.fetched(source.hub, lambda: fill(new))) / "rows.jsonl"


def stream_hub(source: DataSource, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a dataset on the hub, these columns of it (by default all), as they arrive.

    A name with dots that is no column stands for the column in which it begins.
    """
    from datasets import load_dataset

    try:
        options = {"split": source.split, "revision": source.revision, "streaming": True}
        rows = load_dataset(source.hub, source.config, **options)
    except ValueError as error:  # an unknown configuration or split: the message lists the known ones
        said = f"{_title(source)}: {str(error).splitlines()[0]} Correct `config` or `split`"
        raise SourceError(said) from error
    if columns is not None:
        known = list(rows.features) if rows.features else list(next(iter(rows)))
        held = sorted({name if name in known else name.split(".")[0] for name in columns})
        if missing := [name for name in held if name not in known]:
            has = f"no field {missing[0]!r}; it has {', '.join(known)}"
            raise SourceError(f"{_title(source)}: {has}: correct `columns`")
        rows = rows.select_columns(held)
    for table in rows.with_format("arrow").iter(batch_size=ROWS):  # images stay bytes, nothing is decoded
        yield from table.to_pylist()


def reservoir(items: Iterable, n: int, random: Random) -> list:
    """`n` of the items drawn uniformly in one pass, all if there are fewer, in an order that the generator decides."""
    kept: list = []
    for seen, item in enumerate(items):
        if len(kept) < n:
            kept.append(item)
        elif (place := random.randrange(seen + 1)) < n:
            kept[place] = item
    random.shuffle(kept)
    return kept

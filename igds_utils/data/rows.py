"""Rows of data, one at a time: of files, folders, datasets of the hub, or a mirror of it.

Where the environment variable IGDS_DATA_MIRROR names a folder, it takes the hub's place:
`<mirror>/<hub id>/[<config>/]<split>.jsonl`.

    for place, record in find_rows("pool.jsonl.gz"): ...
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import DataSource
from igds_utils.data.hub import SourceError, cache_root, fetched

MIRROR = "IGDS_DATA_MIRROR"
ROWS = 16  # of a table that are in memory at once
UNPACKED = 2**28  # bytes that any file may become; a larger one 100 times its size
TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow")
PACKED = (".gz", ".zst")
HUB_ID = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)(:(?P<split>[\w.-]+))?(@(?P<config>[\w.-]+))?")
BOM = b"\xef\xbb\xbf"
BROKEN = (ValueError, RecursionError, OverflowError)  # what values without a meaning raise

# "pool.jsonl line 17"; its record, or what is wrong with it
Row = tuple[str, dict[str, Any] | str]

# Not `datasets`, which makes timestamps of texts like dates and floats of long integers, and names
# a bad row by its number in a block. NaN and infinity are read as null.
decode = partial(json.loads, parse_constant=lambda _: None)


@dataclass(frozen=True)
class Rows:
    """Rows of some files or of a dataset, read anew whenever they are iterated over.

    Records hold plain JSON values. Of JSON they are as they stand there, of CSV all are texts;
    dates, decimals and bytes of a table are texts too.
    """

    name: str  # what messages call all of them
    files: dict[str, Path]  # by what messages call one
    dataset: Any = None  # a `datasets.Dataset` in place of files

    def __iter__(self) -> Iterator[Row]:
        if self.dataset is not None:
            yield from _table(self.dataset.with_format("arrow").iter(ROWS), self.name)
        for called, file in self.files.items():
            yield from _read(file, called)


def find_rows(names: str | Sequence[str]) -> Rows:
    """Rows of files, of a folder of them, or of a dataset of the hub.

    names: one or several; a dataset as owner/name[:split[@configuration]]. What ends like a file is
    never looked up on the hub. Raises `SourceError`.
    """
    name = names if isinstance(names, str) else names[0] if len(names) == 1 else ""
    path, found = Path(name).expanduser(), HUB_ID.fullmatch(name)
    if not found or path.exists() or path.suffix.lower() in (*TEXTS, *TABLES, *PACKED):
        return _file_rows(names, Path())
    return source_rows(DataSource(**{k: v for k, v in found.groupdict().items() if v}), None, name)


def source_rows(source: DataSource, columns: Iterable[str] | None, name: str) -> Rows:
    """Rows of a source of a preset; name: what messages call it.

    columns: those that are read of a dataset of the hub, by default all; dots lead into a column.
    """
    if source.file is not None:
        return _file_rows(source.file, PROJECT)
    try:
        if mirror := mirror_folder():
            file = _mirrored(source, mirror)
            return Rows(name, {file.name: file})
        return Rows(name, {}, _dataset(source, columns))
    except SourceError as error:
        mend = f"Without a hub, set {MIRROR} to a folder that holds the data"
        raise SourceError(f"{name}: {error} {mend}") from error


def _file_rows(names: str | Sequence[str], root: Path) -> Rows:
    names, files = [names] if isinstance(names, str) else names, {}
    for path in (root / Path(name).expanduser() for name in names):
        if not path.exists():
            mend = "correct it, or give a dataset of the hub as owner/name"
            raise SourceError(f"there is no file {path}: {mend}")
        for file in _shards(path) if path.is_dir() else [path]:
            if files.setdefault(file.name, file) != file:
                raise SourceError(f"two files are called {file.name}: rename one of them")
    return Rows(" and ".join(Path(name).name or name for name in names), files)


def _kind(file: Path) -> str:
    """The suffix that says what a file holds, in lower case."""
    return Path(file.stem if file.suffix in PACKED else file).suffix.lower()


def _shards(folder: Path) -> list[Path]:
    """The data files of a folder, in order; also of one that `datasets.save_to_disk` wrote."""
    own = ("state.json", "dataset_info.json", "dataset_dict.json")
    found = [file for file in folder.iterdir() if _kind(file) in (*TEXTS, *TABLES)]
    found = sorted(file for file in found if file.name not in own)
    if len(set(map(_kind, found))) != 1:
        held = "several kinds of data files" if found else "no data files"
        raise SourceError(f"{folder} holds {held}: name the files or the folder that is meant")
    return found


def _read(file: Path, called: str) -> Iterator[Row]:
    kind, room = _kind(file), max(UNPACKED, 100 * file.stat().st_size)
    try:
        if kind == ".parquet":
            yield from _table(ParquetFile(file).iter_batches(ROWS), called, room)
        elif kind == ".arrow":
            yield from _table(pa.ipc.open_stream(pa.memory_map(str(file))), called, room)
        elif kind in TEXTS:
            with pa.input_stream(str(file)) as stream:  # unpacks .gz and .zst
                while part := stream.read(2**20):
                    room = _used(room, len(part))
            read = _csv if kind in (".csv", ".tsv") else _json
            with io.BufferedReader(pa.input_stream(str(file))) as stream:
                yield from read(stream, called)
        else:
            known = f"{', '.join([*TEXTS, *TABLES])}, those of text also in {' or '.join(PACKED)}"
            raise SourceError(f"{called} is of no known kind: write it as {known}")
    except (*BROKEN, OSError, csv.Error) as error:  # pyarrow's are among them
        wrong = f"{called} cannot be read as a whole file ({error})"
        raise SourceError(f"{wrong}: write it again") from None


def _used(room: float, size: int) -> float:
    """What is left of the room; `ValueError` where nothing is."""
    if size > room:
        raise ValueError("a small file that unpacks to a huge one")
    return room - size


def _table(batches: Iterable[Any], called: str, room: float = inf) -> Iterator[Row]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged one would end this process
        for start in range(0, len(batch), ROWS):
            for row in batch.slice(start, ROWS).to_pylist():
                number, text = number + 1, json.dumps(row, default=_text)
                room = _used(room, len(text))
                yield f"{called} row {number}", decode(text)


def _text(value: Any) -> str:
    """A value of a table that JSON does not know."""
    return value.decode("utf8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _json(stream: BinaryIO, called: str) -> Iterator[Row]:
    """JSON lines, or one list of records, which is read whole."""
    if stream.peek().lstrip(BOM + b" \t\r\n").startswith(b"["):
        for number, record in enumerate(decode(stream.read()), start=1):
            yield f"{called} record {number}", _object(record)
        return
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                record = _object(decode(line))
            except BROKEN as error:
                record = f"is not JSON in UTF-8 ({error}): mend or remove the line"
            yield f"{called} line {number}", record


def _object(record: Any) -> dict[str, Any] | str:
    held = f"holds a {type(record).__name__}, not an object with fields"
    return record if isinstance(record, dict) else held


def _csv(stream: BinaryIO, called: str) -> Iterator[Row]:
    """Texts as they stand there; of a record of several lines the first one is named."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    delimiter = "\t" if ".tsv" in called.lower() else ","
    rows, line = csv.DictReader(text, delimiter=delimiter, strict=True), 2
    if len({*(names := rows.fieldnames or [])}) < len(names):
        raise ValueError(f"two columns have the same name: {', '.join(names)}")
    for row in rows:
        ragged = None in row or None in row.values()
        yield f"{called} line {line}", "has not as many fields as the header" if ragged else row
        line = rows.line_num + 1


def mirror_folder() -> Path | None:
    """The folder in the hub's place, or None; `SourceError` if it is named but not there."""
    if not (name := os.environ.get(MIRROR)):
        return None
    if not (folder := Path(name).expanduser()).is_dir():
        raise SourceError(f"{MIRROR} names {name}, which is no folder: correct it, or unset it")
    return folder


def _mirrored(source: DataSource, mirror: Path) -> Path:
    below = [source.config or "", ""]
    places = [Path(source.hub, folder, f"{source.split}.jsonl") for folder in below]
    if source.mirror:
        places = [Path(source.mirror.path)]
    for place in places:
        if (mirror / place).is_file():
            return mirror / place
    raise SourceError(f"the data mirror {mirror} holds no {places[0]}: put it there.")


def _dataset(source: DataSource, columns: Iterable[str] | None):
    """A `datasets.Dataset` with those of the columns that it has; fetched once, into the cache."""
    from datasets import load_dataset

    options = {"split": source.split, "revision": source.revision}
    options["cache_dir"] = str(cache_root() / "datasets")
    try:
        dataset = fetched(source.hub, lambda: load_dataset(source.hub, source.config, **options))
    except ValueError as error:  # an unknown configuration or split; it lists the known ones
        said = str(error).splitlines()[0]
        raise SourceError(f"{source.hub}: {said} Correct `config` or `split`.") from error
    if columns is None:
        return dataset
    wanted = {*columns} | {name.split(".")[0] for name in columns}
    return dataset.select_columns([name for name in dataset.column_names if name in wanted])

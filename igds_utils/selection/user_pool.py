"""A pool of the user's own: read from a file or the hub, checked to the last record before anything is computed.

A record holds the fields of the task's prompt and its target; an "id" is optional, and whatever else it holds is kept.
Texts stay where they are and are read when they are asked for, so that a pool may be larger than memory. Every
problem is one `PoolError` that names file, line, field and mend.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from string import Formatter
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.core.store import written_whole
from igds_utils.data.sources import Reader, read_file
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example

Row = tuple[str, dict[str, Any]]  # where it stands, as in `pool.jsonl line 17`, and what it holds
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")  # owner/name, or owner/name:split


class PoolError(ConfigError):
    """A pool that cannot be used; the message names file, line, field and mend."""


class UserPool(Sequence[Example]):
    """Samples that stay where they are stored; of each only its id and its place are kept (about 100 bytes).

    To ask for samples in their order costs one pass over the rows; to ask for an earlier one begins them anew.
    """

    def __init__(self, name: str, rows: Callable[[], Iterator[Row]], task: Task, columns: dict[str, str]):
        """rows: gives all of them from the first one, as often as it is called; all are checked here."""
        self.name, self.ids = name, []
        self._rows, self._task, self._columns = rows, task, columns
        self._where, self._numbers = "", array("q")
        for place, _, example in self._read():
            self._where, _, number = place.rpartition(" ")
            self._numbers.append(int(number))
            self.ids.append(example.id)
        if len(self) < 2:
            raise PoolError(
                f"{name} holds one sample: there is nothing to select from; give it at least two"
                if self.ids
                else f"{name} holds no samples: write one record a line, with {', '.join(columns)}"
            )
        if (again := pd.Index(self.ids).duplicated()).any():
            number = int(again.argmax())
            sample_id = self.ids[number]
            raise PoolError(
                f"{self.place(number)}: id {sample_id!r} is that of {self.place(self.ids.index(sample_id))} too: every "
                "sample needs an id of its own"
            )
        self._going, self._next = self._read(), 0

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Example]:
        return (example for _, _, example in self._read())

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        if number < self._next:
            self._going, self._next = self._read(), 0
        _, _, example = next(islice(self._going, number - self._next, None), (None, None, None))
        self._next = number + 1
        if example is None or example.id != self.ids[number]:
            raise PoolError(f"{self.name} has changed while it was read: select again")
        return example

    def place(self, number: int) -> str:
        """Where a sample stands, for messages: `pool.jsonl line 17`."""
        return f"{self._where} {self._numbers[number]}"

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that the samples were made from, in one pass."""
        return (record for _, record, _ in self._read())

    def write(self, file: Path, chosen: Sequence[int]) -> None:
        """Write the records of some samples, in that order, as JSONL; one record at a time is in memory."""
        order = np.full(len(self), -1)
        order[chosen] = np.arange(len(chosen))
        places = np.empty((len(chosen), 2), dtype=int)  # where each begins in `unordered`, and its length
        with written_whole(file) as out, TemporaryFile(dir=file.parent) as unordered:
            for place, record in zip(order, self.records(), strict=True):
                if place >= 0:
                    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
                    places[place] = unordered.tell(), len(line)
                    unordered.write(line)
            for start, length in places.tolist():
                unordered.seek(start)
                out.write(unordered.read(length))

    def _read(self) -> Iterator[tuple[str, dict[str, Any], Example]]:
        for place, record in self._rows():
            fields = {
                field: _text(record, field, column, place, self._task, self._columns)
                for field, column in self._columns.items()
                if field != "id"
            }
            sample_id, target = _id(record, self._columns["id"], place), fields.pop("target")
            yield place, record, Example(sample_id, fields, target, ())


def prompt_fields(task: Task) -> list[str]:
    """Names of the fields that a task's prompt is made of."""
    found = (field for _, field, _, _ in Formatter().parse(task.identification_template) if field)
    return list(dict.fromkeys(found))


def read_pool(source: str, task: Task, columns: dict[str, str] | None = None) -> UserPool:
    """The pool in a JSONL or Parquet file, or of a dataset on the hub (`owner/name` or `owner/name:split`).

    columns: field of the task -> name of the column that holds it, where they differ. Raises `PoolError`.
    """
    columns, fields = dict(columns or {}), [*prompt_fields(task), "target"]
    if unknown := sorted(set(columns) - {*fields, "id"}):
        raise PoolError(f"task {task.name} has no field {unknown[0]!r}; it has {', '.join(fields)}, and id")
    columns = {field: columns.get(field, field) for field in [*fields, "id"]}
    path = Path(source).expanduser()
    if path.is_dir():
        raise PoolError(f"{source} is a folder: name the JSONL or Parquet file in it")
    if not path.is_file() and HUB_ID.fullmatch(source) and path.suffix not in (".jsonl", ".parquet", ".json"):
        return UserPool(source, partial(_hub_rows, source, columns, fields), task, columns)
    if not path.is_file():
        raise PoolError(
            f"there is no file {source}: correct the path, or give a dataset of the hub as owner/name"
        )
    return UserPool(path.name, _file_rows(path), task, columns)


def _file_rows(path: Path) -> Callable[[], Iterator[Row]]:
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_schema

        try:
            return partial(read_file, path, read_schema(path).names)
        except ArrowInvalid as error:
            raise PoolError(f"{path.name} is no Parquet file ({error}): write it again") from None
    if path.suffix != ".jsonl":
        raise PoolError(f"{path.name} is neither .jsonl nor .parquet: write one record a line as .jsonl")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf8")
            except UnicodeDecodeError as error:
                raise PoolError(
                    f"{path.name} line {number} is not UTF-8 (byte {error.object[error.start]:#04x} at column "
                    f"{error.start + 1}): save the file as UTF-8"
                ) from None
    return partial(read_file, path, ())


def _hub_rows(source: str, columns: dict[str, str], fields: list[str]) -> Iterator[Row]:
    from igds_utils.config.refs import DataSource

    hub, _, split = source.partition(":")
    wanted = {field: columns[field] for field in fields}
    reader = Reader(DataSource(hub=hub, split=split or "train", columns=wanted), fields, source)
    for number, record in enumerate(reader.records(seed=0), start=1):
        yield f"{source} row {number}", {columns[field]: text for field, text in record.items()}


def _text(
    record: dict[str, Any], field: str, column: str, place: str, task: Task, columns: dict[str, str]
) -> str:
    if column not in record:
        needed = ", ".join(known for known in columns if known != "id")
        called = f"{field!r}" if field == column else f"{column!r} for {field!r}"
        raise PoolError(
            f"{place}: no field {called} (task {task.name} needs {needed}; the record has "
            f"{', '.join(map(str, record)) or 'none'}): rename it, or say --column {field}=NAME"
        )
    value = record[column]
    if not isinstance(value, str):
        raise PoolError(
            f"{place}: field {column!r} holds {_kind(value)}, not text: write it in quotes, or remove the record"
        )
    if not value.strip():
        raise PoolError(f"{place}: field {column!r} is empty: fill it, or remove the record")
    try:
        value.encode("utf8")
    except UnicodeEncodeError as error:
        raise PoolError(
            f"{place}: field {column!r} holds half a character (\\u{ord(value[error.start]):04x}): write it out in full"
        ) from None
    return value.strip()  # as `data.sources` does: templates put the space around a text


def _id(record: dict[str, Any], column: str, place: str) -> str:
    """The record's id as text; a record without one is called by where it stands."""
    value = record.get(column)
    if value is None:
        return place.rpartition(" ")[0].rpartition(" ")[2] + "-" + place.rpartition(" ")[2].zfill(6)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise PoolError(f"{place}: field {column!r} holds {_kind(value)}: an id is text or a whole number")
    return str(value)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "empty text"

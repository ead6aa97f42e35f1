"""A pool of the user's own: read from a file or the hub, checked to the last record before anything is computed.

A record holds the fields of the task's prompt and its target; an "id" is optional, and whatever else it holds is kept.
Every problem is one `PoolError` that names file, line, field and mend.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from igds_utils.config import ConfigError
from igds_utils.sources import Reader, read_file
from igds_utils.tasks.base import Example, Task

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")  # owner/name, or owner/name:split


class PoolError(ConfigError):
    """A pool that cannot be used; the message names file, line, field and mend."""


@dataclass(frozen=True)
class UserPool:
    """Samples, the records that they were made from, and where each of these stands, all in the same order."""

    name: str
    examples: list[Example]
    records: list[dict[str, Any]]
    places: list[str]

    def place(self, sample_id: str) -> str:
        """Where a sample stands, for messages: `pool.jsonl line 17`."""
        return next(at for at, one in zip(self.places, self.examples, strict=True) if one.id == sample_id)


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
        return _checked(source, _hub_rows(source, columns, fields), task, columns)
    if not path.is_file():
        raise PoolError(
            f"there is no file {source}: correct the path, or give a dataset of the hub as owner/name"
        )
    return _checked(path.name, _file_rows(path), task, columns)


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_schema

        try:
            return read_file(path, read_schema(path).names)
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
    return read_file(path, ())


def _hub_rows(
    source: str, columns: dict[str, str], fields: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    from igds_utils.refs import DataSource

    hub, _, split = source.partition(":")
    wanted = {field: columns[field] for field in fields}
    reader = Reader(DataSource(hub=hub, split=split or "train", columns=wanted), fields, source)
    for number, record in enumerate(reader.records(seed=0), start=1):
        yield f"{source} row {number}", {columns[field]: text for field, text in record.items()}


def _checked(
    name: str, rows: Iterable[tuple[str, dict[str, Any]]], task: Task, columns: dict[str, str]
) -> UserPool:
    pool, seen = UserPool(name, [], [], []), {}
    for place, record in rows:
        fields = {
            field: _text(record, field, column, place, task, columns)
            for field, column in columns.items()
            if field != "id"
        }
        sample_id = _id(record, columns["id"], place)
        if (other := seen.setdefault(sample_id, place)) != place:
            raise PoolError(
                f"{place}: id {sample_id!r} is that of {other} too: every sample needs an id of its own"
            )
        target = fields.pop("target")
        pool.examples.append(Example(sample_id, fields, target, ()))
        pool.records.append(record)
        pool.places.append(place)
    if not pool.examples:
        raise PoolError(f"{name} holds no samples: write one record a line, with {', '.join(columns)}")
    if len(pool.examples) == 1:
        raise PoolError(f"{name} holds one sample: there is nothing to select from; give it at least two")
    return pool


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
    return value


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


def assert_fits(pool: UserPool, lengths: Iterable[tuple[int, int]], context: int, trained: int) -> None:
    """Raise `PoolError` unless every sample fits into the model's context, and its prompt into a training sample.

    lengths: tokens of prompt and target, and of the prompt alone, in the pool's order. trained: `sft.max_length`.
    """
    for place, (whole, prompt) in zip(pool.places, lengths, strict=True):
        if prompt >= trained:
            raise PoolError(
                f"{place}: its prompt alone has {prompt:,} tokens, a training sample at most {trained:,} "
                "(sft.max_length): shorten it, remove the record, or raise sft.max_length"
            )
        if whole > context:
            raise PoolError(
                f"{place}: prompt and target have {whole:,} tokens, the model reads at most {context:,}: shorten the "
                "target, or remove the record"
            )

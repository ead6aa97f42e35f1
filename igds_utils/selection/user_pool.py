"""A pool of the user's own: read from files or the hub, checked to the last record before anything is computed.

A record holds the fields of the task's prompt, and its target or what the task makes targets of; an "id" is optional,
and whatever else it holds is kept. Every problem is one `ConfigError` or `SourceError` that names file, line, field and
mend.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource
from igds_utils.core.store import written_whole
from igds_utils.data.hub import cache_root
from igds_utils.data.rows import find_rows
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example
from igds_utils.tasks.records import BadRecord, Records, refusal

SKIP = "mend or remove them, or leave them out with --skip-bad"


class PoolError(ConfigError):
    """A pool that cannot be used; the message names file, line, field and mend."""


class UserPool(Sequence[Example]):
    """Samples that are read from disk when they are asked for, so that a pool may be larger than memory.

    The rows are read once, into a temporary file; of each sample only its id and its place there are kept (about 100
    bytes). left_out: numbers of rows that are passed over; those of which no example can be made are among `problems`.
    """

    def __init__(self, records: Records, left_out: Iterable[int] = ()):
        self.name, self.files, self.left_out = records.rows.name, records.rows.files, set(left_out)
        self.ids: list[str] = []
        self.problems: dict[int, str] = {}  # of rows
        self.rows, self._rows, self._at = (
            0,
            array("q"),
            array("q"),
        )  # of all; of each sample; where it is stored
        (folder := cache_root()).mkdir(parents=True, exist_ok=True)
        self._stored = TemporaryFile(dir=folder)
        for row, (place, record, made) in enumerate(records.read()):
            self.rows += 1
            if row in self.left_out:
                continue
            if isinstance(made, BadRecord):
                self.problems[row] = f"{place}: {made}"
                continue
            self.ids.append(made.id)
            self._rows.append(row)
            self._at.append(self._stored.tell())
            one = [made.fields, made.target, place, record]
            self._stored.write(json.dumps(one).encode() + b"\n")
        records.check_columns()
        self._how = records.how
        self.left_out |= self.problems.keys()
        self._check()

    def settled(self, more: dict[int, str], skip_bad: bool = False) -> UserPool:
        """The pool without records of no use; without `skip_bad` they are a `PoolError`.

        more: number of a sample -> what else makes it useless.
        """
        found = self.problems | {self._rows[n]: f"{self.place(n)}: {said}" for n, said in more.items()}
        if found and not skip_bad:
            raise PoolError(refusal([found[row] for row in sorted(found)], self.rows, SKIP))
        self.problems, self.left_out = found, self.left_out | found.keys()
        kept = [number for number in range(len(self)) if number not in more]
        self.ids = [self.ids[number] for number in kept]
        self._rows, self._at = (array("q", (one[n] for n in kept)) for one in (self._rows, self._at))
        self._check()
        return self

    def _check(self) -> None:
        if len(self) < 2 and self.problems:
            raise PoolError(refusal([*self.problems.values()], self.rows, SKIP))
        if len(self) < 2:
            held = "one sample" if self.ids else "no samples"
            raise PoolError(
                f"{self.name} holds {held}: there is nothing to select from; give it at least two"
            )
        if (again := pd.Index(self.ids).duplicated()).any():
            number = int(again.argmax())
            sample_id = self.ids[number]
            raise PoolError(
                f"{self.place(number)}: id {sample_id!r} is that of {self.place(self.ids.index(sample_id))} too, and "
                f"{again.sum()} ids repeat: read another column (--column id=NAME), make one of two "
                "(--column 'id={source}-{id}'), or number the records (--column id=)"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        fields, target, _, _ = self._read(number)
        return Example(self.ids[number], fields, target, ())

    def place(self, number: int) -> str:
        """Where a sample stands, for messages: `pool.jsonl line 17`."""
        return self._read(number)[2]

    def _read(self, number: int) -> list:
        self._stored.seek(self._at[number])
        return json.loads(self._stored.readline())

    @property
    def remarks(self) -> list[str]:
        """How the records were read, where that is not as they are, and how many were left out."""
        out = f"{len(self)} of {self.rows} records are used, because {len(self.left_out)} cannot be (--skip-bad)"
        return [*filter(None, [self._how]), *[out] * bool(self.left_out)]

    def write(self, file: Path, chosen: Sequence[int]) -> None:
        """Write the records of some samples, in that order, as JSONL."""
        with written_whole(file) as out:
            for number in chosen:
                out.write(_line(self._read(number)[3]))


def _line(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character outside of the task's fields
        return json.dumps(record).encode() + b"\n"


def read_pool(
    source: str | Sequence[str],
    task: Task,
    columns: dict[str, Any] | None = None,
    left_out: Iterable[int] = (),
) -> UserPool:
    """The pool in some files, a folder of shards, or of a dataset on the hub (`rows.find_rows`).

    columns: field of the task -> the column that holds it, where they differ, or `{"value": text}` for all records, as
    in a preset's sources; `id` is one of them, and an empty name numbers the records. left_out: numbers of rows that
    are passed over. Raises `PoolError`, `ConfigError` or `SourceError`.
    """
    columns = {f: {"value": ""} if f == "id" and not c else c for f, c in (columns or {}).items()}
    rows = find_rows(source)
    made = DataSource.model_validate({"file": "", "columns": columns})
    return UserPool(Records(rows, task, made, scored=False), left_out)

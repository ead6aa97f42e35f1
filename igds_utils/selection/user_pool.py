"""A pool of the user's own: read from files or the hub, checked to the last record before anything is computed.

A record holds the fields of the task's prompt, and its target or what the task makes targets of; an "id" is optional,
and whatever else it holds is kept. Texts stay where they are and are read when they are asked for, so that a pool may
be larger than memory. Every problem is one `ConfigError` or `SourceError` that names file, line, field and mend.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource
from igds_utils.core.store import written_whole
from igds_utils.data.rows import find_rows
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example
from igds_utils.tasks.records import BadRecord, Records, refusal

SKIP = "mend or remove them, or leave them out with --skip-bad"


class PoolError(ConfigError):
    """A pool that cannot be used; the message names file, line, field and mend."""


class UserPool(Sequence[Example]):
    """Samples that stay where they are stored; of each only its id and its place are kept (about 100 bytes).

    To ask for samples in their order costs one pass over the rows; to ask for an earlier one begins them anew.
    left_out: numbers of rows that are passed over; those of which no example can be made are among `problems`.
    """

    def __init__(self, records: Records, left_out: Iterable[int] = ()):
        self.name, self.rows, self.left_out = records.rows.name, 0, set(left_out)
        self._records, self.problems = records, {}
        self._files: list[tuple[int, str]] = []  # number of the first sample of each file, and how its places begin
        self.ids, self._numbers, self._of_rows = [], array("q"), array("q")
        for row, (place, _, made) in enumerate(records.read()):
            self.rows += 1
            if row in self.left_out:
                continue
            if isinstance(made, BadRecord):
                self.problems[row] = f"{place}: {made}"
                continue
            where, _, number = place.rpartition(" ")
            if not self._files or self._files[-1][1] != where:
                self._files.append((len(self.ids), where))
            self._numbers.append(int(number))
            self._of_rows.append(row)
            self.ids.append(made.id)
        records.check_columns()
        self.left_out |= self.problems.keys()
        self._check()
        self._going, self._next = self._read(), 0

    def settled(self, more: dict[int, str], skip_bad: bool = False) -> UserPool:
        """The pool without records of no use; without `skip_bad` they are a `PoolError`.

        more: number of a sample -> what else makes it useless.
        """
        found = self.problems | {self._of_rows[n]: f"{self.place(n)}: {said}" for n, said in more.items()}
        if found and not skip_bad:
            raise PoolError(refusal([found[row] for row in sorted(found)], self.rows, SKIP))
        return UserPool(self._records, self.left_out | found.keys()) if more else self

    def _check(self) -> None:
        if len(self) < 2 and self.problems:
            raise PoolError(refusal([*self.problems.values()], self.rows, SKIP))
        if len(self) < 2:
            held = "one sample" if self.ids else "no samples"
            raise PoolError(f"{self.name} holds {held}: there is nothing to select from; give it at least two")
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

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self._read())

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        if number < self._next:
            self._going, self._next = self._read(), 0
        _, example = next(islice(self._going, number - self._next, None), (None, None))
        self._next = number + 1
        if example is None or example.id != self.ids[number]:
            raise PoolError(f"{self.name} has changed while it was read: select again")
        return example

    def place(self, number: int) -> str:
        """Where a sample stands, for messages: `pool.jsonl line 17`."""
        file = bisect_right(self._files, number, key=lambda one: one[0]) - 1
        return f"{self._files[file][1]} {self._numbers[number]}"

    @property
    def files(self) -> list[Path]:
        return self._records.rows.files

    @property
    def remarks(self) -> list[str]:
        """How the records were read, where that is not as they are, and how many were left out."""
        out = f"{len(self)} of {self.rows} records are used, because {len(self.left_out)} cannot be (--skip-bad)"
        return [*filter(None, [self._records.how]), *[out] * bool(self.left_out)]

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that the samples were made from, in one pass."""
        return (record for record, _ in self._read())

    def write(self, file: Path, chosen: Sequence[int]) -> None:
        """Write the records of some samples, in that order, as JSONL; one record at a time is in memory."""
        order = np.full(len(self), -1)
        order[chosen] = np.arange(len(chosen))
        places = np.empty((len(chosen), 2), dtype=int)  # where each begins in `unordered`, and its length
        with written_whole(file) as out, TemporaryFile(dir=file.parent) as unordered:
            for place, record in zip(order, self.records(), strict=True):
                if place >= 0:
                    line = _line(record)
                    places[place] = unordered.tell(), len(line)
                    unordered.write(line)
            for start, length in places.tolist():
                unordered.seek(start)
                out.write(unordered.read(length))

    def _read(self) -> Iterator[tuple[dict[str, Any], Example]]:
        for row, (_, record, made) in enumerate(self._records.read()):
            if row not in self.left_out:
                if isinstance(made, BadRecord):
                    raise PoolError(f"{self.name} has changed while it was read: select again")
                yield record, made


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

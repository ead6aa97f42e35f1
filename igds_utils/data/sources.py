"""Rows of data, read lazily: from the Hugging Face hub, from a JSONL or Parquet file, or from a data mirror.

Where the environment variable IGDS_DATA_MIRROR names a folder, it takes the hub's place:
`<mirror>/<hub id>/[<config>/]<split>.jsonl`. What comes from the hub is streamed once, only the columns that are
needed, into the cache (`igds_utils.data.hub.cache_root`), and read from there ever after.

    for record in Reader(source, ["question", "answer"]).records(seed=0): ...
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import Column, DataSource
from igds_utils.data import hub
from igds_utils.data.hub import SourceError
from igds_utils.data.huggingface import fetched
from igds_utils.data.metrics import boxed_answer

MIRROR = "IGDS_DATA_MIRROR"
ROWS = 1024  # of a Parquet file that are in memory at once
MARKS = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations
FINAL = re.compile(r"\n?####\s*(.+?)\s*$")


def mirror_folder() -> Path | None:
    """The folder that stands in for the hub, or None; raises `SourceError` if it is named but not there."""
    if not (name := os.environ.get(MIRROR)):
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"{MIRROR} names {name}, which is no folder: correct it, or unset it to use the hub"
        )
    return folder


class Reader:
    """One source, read for some fields; `counts` tells after reading how many rows there were and became of them."""

    def __init__(self, source: DataSource, fields: Sequence[str], name: str = "source"):
        mirrored = source.mirror and source.hub and mirror_folder()
        self.source, self.name = source, name
        self.columns = source.mirror.columns if mirrored else source.columns
        self.fields = list(fields)
        self.counts: Counter[str] = Counter()
        if missing := [field for field in fields if field not in self.columns]:
            raise SourceError(
                f"{name}: no column for {', '.join(map(repr, missing))} (the task needs {', '.join(fields)}; "
                f"columns has {', '.join(self.columns) or 'none'}): add it under `columns`"
            )

    def records(self, seed: int) -> Iterator[dict[str, str]]:
        """Field -> text of every usable row, in order; with `rows`, of that many drawn at random by the seed.

        A row without text in some field is left out and counted as `unusable`, one that `where` or `max_words`
        excludes as `filtered`. Raises `SourceError` naming file, line and field for what cannot be read.
        """
        self.counts.clear()
        found = self._usable()
        return found if self.source.rows is None else iter(reservoir(found, self.source.rows, Random(seed)))

    def _usable(self) -> Iterator[dict[str, str]]:
        for place, row in self._rows():
            self.counts["rows"] += 1
            if not all(_value(row, name, place) in values for name, values in self.source.where.items()):
                self.counts["filtered"] += 1
                continue
            record = {field: self._text(field, row, place) for field in self.fields}
            if not all(record.values()):
                self.counts["unusable"] += 1
            elif any(
                len(record[f].split()) > most for f, most in self.source.max_words.items() if f in record
            ):
                self.counts["filtered"] += 1
            else:
                yield record

    def _text(self, field: str, row: dict[str, Any], place: str) -> str:
        column = self.columns[field]
        if column.column is None:
            return column.value
        value = _value(row, column.column, place, f" (for {field!r}; needed are {', '.join(self.fields)})")
        if isinstance(value, list | dict):
            raise SourceError(f"{place}: field {column.column!r} holds a {type(value).__name__}, not a text")
        return "" if value is None else take(column, str(value)).strip()

    # ---- where the rows are ----

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(where it stands, row) of every row."""
        wanted = sorted(
            {c.column.split(".")[0] for c in self.columns.values() if c.column} | set(self.source.where)
        )
        if self.source.file is not None:
            file = (PROJECT / Path(self.source.file).expanduser()).resolve()
            if not file.is_file():
                raise SourceError(f"{self.name}: no file {file}: correct `file`")
            return read_file(file, wanted)
        if mirror := mirror_folder():
            return read_file(self._mirrored(mirror), wanted)
        return read_file(self._cached(wanted), wanted, called=_title(self.source))

    def _mirrored(self, mirror: Path) -> Path:
        source = self.source
        if source.mirror:
            tried = [mirror / source.mirror.path]
        else:
            folders = [mirror / source.hub / (source.config or ""), mirror / source.hub]
            tried = [folder / f"{source.split}.jsonl" for folder in dict.fromkeys(folders)]
        if found := next((file for file in tried if file.is_file()), None):
            return found
        places = " or ".join(str(file.relative_to(mirror)) for file in tried)
        raise SourceError(
            f"{self.name}: the data mirror {mirror} holds no {places}: put it there, or unset {MIRROR} to use "
            f"the hub{self._instead()}"
        )

    def _cached(self, columns: list[str]) -> Path:
        """The rows of a hub dataset with these columns, as one JSONL file in the cache."""
        source = self.source
        key = json.dumps([source.hub, source.config, source.split, source.revision, columns])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        cached = hub.cache_root() / "rows" / f"{source.hub.replace('/', '--')}-{source.split}-{digest}"

        def fill(new: Path) -> None:
            with (new / "rows.jsonl").open("w", encoding="utf8") as lines:
                for row in tqdm(stream_hub(source, columns), desc=f"fetch {source.hub}", unit="row", delay=2):
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")

        try:
            return hub.whole(cached, lambda new: fetched(source.hub, lambda: fill(new))) / "rows.jsonl"
        except SourceError as error:
            raise SourceError(
                f"{error}. Without a hub, set {MIRROR} to a folder that holds the data{self._instead()}"
            ) from error

    def _instead(self) -> str:
        """What a task of a preset can read without hub and mirror: data of its own, where it has some."""
        if not self.name.startswith("tasks."):
            return ""
        return f", or, where the task has data of its own, read that: SET={self.name.rpartition('.')[0]}={{}}"


def stream_hub(source: DataSource, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of a dataset on the hub, these columns of it, as they arrive."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(
            source.hub, source.config, split=source.split, revision=source.revision, streaming=True
        )
    except DatasetNotFoundError as error:
        raise SourceError(
            f"{str(error).splitlines()[0]} Correct `hub` and `revision`; where access is restricted, accept the terms "
            f"on https://huggingface.co/datasets/{source.hub} with your account, then `hf auth login`"
        ) from error
    except ValueError as error:  # an unknown configuration or split: the message lists the known ones
        raise SourceError(
            f"{_title(source)}: {str(error).splitlines()[0]} Correct `config` or `split`"
        ) from error
    known = list(rows.features) if rows.features else list(next(iter(rows)))
    if missing := [name for name in columns if name not in known]:
        raise SourceError(
            f"{_title(source)}: no field {missing[0]!r}; it has {', '.join(known)}: correct `columns`"
        )
    yield from rows.select_columns(columns)


def read_file(file: Path, columns: Sequence[str], called: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of every row of a JSONL or Parquet file; `called`: what messages call the file."""
    if file.suffix == ".parquet":
        yield from _read_parquet(file, columns, called or file.name)
        return
    if file.suffix != ".jsonl":
        raise SourceError(f"{file.name} is neither .jsonl nor .parquet: convert it")
    with file.open(encoding="utf8") as lines:  # str.splitlines would split at U+2028 too
        for number, line in enumerate(lines, start=1):
            place = f"{called or file.name} line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SourceError(f"{place}: not valid JSON ({error}): mend or remove the line") from None
            if not isinstance(row, dict):
                raise SourceError(f"{place}: holds a {type(row).__name__}, not an object with fields")
            yield place, row


def _read_parquet(file: Path, columns: Sequence[str], called: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    table, number = pq.ParquetFile(file), 0
    known = table.schema_arrow.names
    if missing := [name for name in columns if name not in known]:
        raise SourceError(f"{called}: no field {missing[0]!r}; it has {', '.join(known)}: correct `columns`")
    for batch in table.iter_batches(batch_size=ROWS, columns=list(columns)):
        for row in batch.to_pylist():
            number += 1
            yield f"{called} row {number}", row


# ---- values ----------------------------------------------------------------------------------------------


def take(column: Column, text: str) -> str:
    """What a column asks for of its text; empty where the text does not hold it."""
    match column.take:
        case "gsm8k_solution":
            return MARKS.sub("", FINAL.sub("", text))
        case "gsm8k_answer":
            return found[1].replace(",", "") if (found := FINAL.search(text)) else ""
        case "boxed":
            return boxed_answer(text) or ""
        case _:
            return text


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


def _value(row: dict[str, Any], name: str, place: str, why: str = "") -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(value) if isinstance(value, dict) else "none"
            raise SourceError(f"{place}: no field {name!r}{why}; it has {known}")
        value = value[part]
    return value


def _title(source: DataSource) -> str:
    return " ".join(filter(None, [source.hub, source.config, source.split]))

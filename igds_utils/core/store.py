"""Products of a run on disk: whole or not at all, made again only when what they depend on changed.

Beside every product lies `<product>.made.json` with the inputs that it was made from. A product is fresh if it is there
and its inputs are the same; otherwise it is made again and the log says which input changed. The record also holds a
hash of the code that made it (`code.code_version`). Where only that differs the product is kept, or every commit would
make all finished runs stale; the log says so, with the command that removes it, and a removed product is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from pydantic import BaseModel

from igds_utils import __version__
from igds_utils.config.config import PROJECT
from igds_utils.core.code import code_version
from igds_utils.engine import shards


class _NotStored(Exception):
    """A product that is not fresh, where none may be made."""


class Store:
    """A folder of products. Paths are relative to it; the suffix says how a product is written.

    .parquet: DataFrame; .json: any JSON value; .jsonl: list of records.
    """

    def __init__(self, root: Path, log: Callable[[str], None] = print):
        self.root, self.log = root, log
        self._only_reads = False

    def make(self, path: str, build: Callable[[], Any], **inputs: Any) -> Any:
        """The product at `path`, as it is read from disk; first made by `build()` if it is not fresh.

        inputs: everything that the product depends on: parameters, and `store.version(upstream)` of other products.
        Where several processes work together, all of them call `build` and the first one writes what it gives.
        """
        return self._made(path, lambda: _timed(build), inputs, build)

    def _made(
        self,
        path: str,
        build: Callable[[], tuple[Any, float]],
        inputs: dict[str, Any],
        stage: Callable[..., Any],
    ) -> Any:
        """`make` of a product that comes with the seconds that it took; stage: the function whose code makes it."""
        made_from = _plain(inputs | {"igds_utils": __version__})
        reason = shards.from_first(lambda: self._stale(path, made_from))
        if reason is not None and self._only_reads:
            raise _NotStored(path)
        if shards.is_first() and not self._only_reads:
            self.log(f"{path}: {reason or 'up to date' + self._by_other_code(path, stage)}")
        if reason is None:
            return self.read(path)
        # nothing here holds the product while it is read: it would be in memory twice
        shards.from_first(partial(self._keep, path, made_from, stage, *build()))
        return self.read(path)

    def _keep(
        self, path: str, made_from: dict, stage: Callable[..., Any], product: Any, seconds: float
    ) -> None:
        self._record(path).unlink(missing_ok=True)
        self.write(path, product)
        record = {"inputs": made_from, "seconds": round(seconds, 2), "sha256": _sha256(self.root / path)}
        record["code"] = code_version(stage)
        write_whole(self._record(path), json.dumps(record, indent=1).encode())

    def _by_other_code(self, path: str, stage: Callable[..., Any]) -> str:
        """What to say of a fresh product whose code has changed since; nothing where it has not, or is not known."""
        before = json.loads(self._record(path).read_text(encoding="utf8")).get("code")
        if before is None or code_version(stage) in (before, None):
            return ""
        file = (self.root / path).resolve()
        shown = file.relative_to(PROJECT) if file.is_relative_to(PROJECT) else file
        return f", but its code has changed since; `rm {shlex.quote(str(shown))}` and it is made again"

    def make_in_parts(
        self,
        path: str,
        parts: Sequence[Any],
        build: Callable[[Any], Any],
        label: str,
        together: Callable[[list[Any]], Iterable[Sequence[Any]]] | None = None,
        finish: Callable[[pd.DataFrame], Any] = lambda table: table,
        **inputs: Any,
    ) -> Any:
        """Like `make`, for what comes in parts, each a table: a killed run loses at most one call of `build`.

        parts: what `build` is called with; they and their order must depend on the inputs alone. together: cuts a list
        of parts that are missing into lists of neighbours, each of which `build` then gets at once and gives a table
        for every part; it may cut otherwise after a kill. Where several processes work together, each builds and stores
        its share. finish: makes the product of the rows of all parts, which come in the order of the parts; every
        process calls it, so it may share out what it does.
        """
        made_from = _plain(inputs | {"igds_utils": __version__})
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
        names = [f"{path}.parts-{key}/{number:05d}" for number in range(len(parts))]

        def missing() -> list[int]:
            return [number for number, name in enumerate(names) if not self.has(f"{name}.json")]

        def build_some(piece: Sequence[tuple[int, Any]]) -> None:
            some = [part for _, part in piece]
            tables, seconds = _timed(lambda: build(some) if together else [build(part) for part in some])
            for (number, _), table in zip(piece, tables, strict=True):
                self.write(f"{names[number]}.parquet", table)
                self.write(f"{names[number]}.json", seconds / len(piece))  # last: now the part is there

        def build_all() -> tuple[Any, float]:
            numbers = shards.from_first(missing)
            left, cut = iter(numbers), together or (lambda some: [[part] for part in some])
            pieces = [[(next(left), part) for part in piece] for piece in cut([parts[n] for n in numbers])]
            shards.map_in_order(build_some, pieces, desc=label, unit="part")
            table = pd.concat([self.read(f"{name}.parquet") for name in names], ignore_index=True)
            product, seconds = _timed(lambda: finish(table))
            return product, seconds + sum(self.read(f"{name}.json") for name in names)

        product = self._made(path, build_all, inputs, build)
        shards.from_first(lambda: self._remove_parts(path))
        return product

    def _remove_parts(self, path: str) -> None:
        for old in self.root.glob(f"{path}.parts-*"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()

    def write(self, path: str, product: Any) -> None:
        """Write a product that is made anew every time (summaries, manifests)."""
        with written_whole(self.root / path) as stream:
            _write(stream, product, Path(path).suffix)

    def read(self, path: str) -> Any:
        """A stored product; `FileNotFoundError` says what to run if it is missing."""
        file = self._existing(self.root / path)
        match file.suffix:
            case ".parquet":
                return pd.read_parquet(file)
            case ".jsonl":
                with file.open(encoding="utf8") as lines:  # str.splitlines would split at U+2028 too
                    return [json.loads(line) for line in lines]
            case _:
                return json.loads(file.read_text(encoding="utf8"))

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def version(self, path: str) -> str:
        """What identifies a product's content, for the inputs of those made from it."""
        return json.loads(self._existing(self._record(path)).read_text(encoding="utf8"))["sha256"]

    def seconds(self, path: str) -> float:
        """How long it took to make a product; the sum over its parts, whenever and wherever each was made."""
        return json.loads(self._existing(self._record(path)).read_text(encoding="utf8"))["seconds"]

    def fresh(self, path: str, **inputs: Any) -> bool:
        """Whether `make` with these inputs would read the product rather than build it."""
        fresh = self._stale(path, _plain(inputs | {"igds_utils": __version__})) is None
        if self._only_reads and not fresh:  # what would be done now prepares making it
            raise _NotStored(path)
        return fresh

    def holds(self, ask: Callable[[], Any]) -> bool:
        """Whether all products that `ask` makes are fresh; it is called, and ends where one would have to be made."""
        self._only_reads = True
        try:
            ask()
        except _NotStored:
            return False
        finally:
            self._only_reads = False
        return True

    def _existing(self, file: Path) -> Path:
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is not there: run the notebooks before this one first (or `make reproduce`)"
            )
        return file

    def _record(self, path: str) -> Path:
        return self.root / f"{path}.made.json"

    def _stale(self, path: str, made_from: dict) -> str | None:
        """Why a product must be made (again), or None."""
        if not self.has(path):
            return "making it"
        try:
            before = json.loads(self._record(path).read_text(encoding="utf8"))["inputs"]
        except (FileNotFoundError, json.JSONDecodeError):
            return "making it again, it was not finished"
        changed = [key for key in sorted({*before, *made_from}) if before.get(key) != made_from.get(key)]
        if not changed:
            return None
        return "making it again, changed: " + "; ".join(
            _difference(key, before.get(key), made_from.get(key)) for key in changed
        )


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
        return ", ".join(_difference(f"{key}.{k}", before.get(k), now.get(k)) for k in inner)
    short = [text if len(text := json.dumps(value)) <= 40 else "other content" for value in (before, now)]
    return key if short[0] == short[1] else f"{key} ({short[0]} -> {short[1]})"


def _plain(value: Any) -> Any:
    """Inputs as plain JSON values, so that they compare equal after a round trip."""
    return json.loads(json.dumps(value, default=_plain_object))


def _plain_object(value: Any) -> Any:
    """What JSON does not know by itself; anything else is refused rather than stored as its address in memory."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r:.60} cannot be stored as JSON: give plain values")


def fingerprint(records: Any) -> str:
    """A short hash of any JSON value (a data set's samples, a list of ids).

    That of an iterator is the hash of the list of what it gives, one record in memory at a time.
    """
    if not isinstance(records, Iterator):
        return hashlib.sha256(_canonical(records)).hexdigest()[:16]
    digest, between = hashlib.sha256(b"["), b""
    for record in records:
        digest.update(between + _canonical(record))
        between = b", "
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _canonical(records: Any) -> bytes:
    return json.dumps(_plain(records), sort_keys=True, ensure_ascii=False).encode()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _timed(build: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return build(), time.perf_counter() - start


def _write(stream: BinaryIO, product: Any, suffix: str) -> None:
    match suffix:
        case ".parquet":
            product.to_parquet(stream, index=False)
        case ".jsonl":
            for record in product:
                stream.write(json.dumps(_plain(record), ensure_ascii=False).encode() + b"\n")
        case _:
            stream.write(json.dumps(_plain(product), indent=1, ensure_ascii=False).encode())


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; see `written_whole`."""
    with written_whole(path) as stream:
        stream.write(content.encode("utf8") if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, there whole or not at all: a temporary name beside it, fsync, rename. Folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

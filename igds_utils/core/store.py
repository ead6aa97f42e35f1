"""Products of a run on disk: whole or not at all, made again only when what they depend on changed.

Beside every product lies `<product>.made.json` with the inputs that it was made from. A product is fresh if it is there
and its inputs are the same; otherwise it is made again and the log says which input changed. The record also holds a
hash of the code that made it (`code_version`). Where only that differs the product is kept, or every commit would
make all finished runs stale; the log says so, with the command that removes it, and a removed product is made again.
"""

import ast
import hashlib
import inspect
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from filelock import FileLock
from pydantic import TypeAdapter
from tqdm import tqdm

from igds_utils import __version__
from igds_utils.config.config import PROJECT, ConfigError
from igds_utils.engine import distributed

PACKAGE = Path(__file__).resolve().parents[1]
UNCOUNTED = ("core", "config")  # they open, store and configure whatever the product is


class OnlyPart(Exception):
    """This job has made its share of a product; the job without `part` joins the shares."""


class Store:
    """A folder of products. Paths are relative to it; the suffix says how a product is written.

    .parquet: DataFrame; .json: any JSON value; .jsonl: list of records.
    part: "3/8" makes the third of eight shares of every product that comes in parts (`make_in_parts`); jobs with other
    shares may work in the same folder.
    """

    def __init__(self, root: Path, log: Callable[[str], None] = print, part: str = ""):
        self.root, self.log, self.part = root, log, part
        self._alone = FileLock(root / ".make.lock", is_singleton=True) if part else nullcontext()
        self._share = _share(part) if part else (distributed.process_index(), distributed.processes())

    def make(self, path: str, build: Callable[[], Any], **inputs: Any) -> Any:
        """The product at `path`, as it is read from disk; first made by `build()` if it is not fresh.

        inputs: everything that the product depends on: parameters, and `store.version(upstream)` of other products.
        Where several processes work together, all of them call `build` and the main one writes what it gives.
        """
        return self._made(path, partial(_timed, build), inputs, build)

    def _made(self, path: str, timed: Callable[[], tuple], inputs: dict[str, Any], stage: Callable) -> Any:
        """`make` of what `timed` gives with its seconds; stage: the function whose code makes it."""
        with self._alone:
            record, made_from = distributed.on_main_process(lambda: self._record(path)), _made_from(inputs)
            reason = _stale(record, made_from)
            if distributed.is_main_process():
                self.log(f"{path}: {reason or 'up to date' + self._by_other_code(path, record, stage)}")
            if reason is not None:
                # nothing here holds the product while it is read: it would be in memory twice
                distributed.on_main_process(partial(self._keep, path, made_from, stage, *timed()))
        return self.read(path)

    def _keep(self, path: str, made_from: dict, stage: Callable, product: Any, seconds: float) -> None:
        (self.root / f"{path}.made.json").unlink(missing_ok=True)
        self.write(path, product)
        with (self.root / path).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        record = {"inputs": made_from, "seconds": round(seconds, 2), "sha256": content, "code": code_version(stage)}
        self.write(f"{path}.made.json", record)

    def _by_other_code(self, path: str, record: dict[str, Any], stage: Callable[..., Any]) -> str:
        """What to say of a fresh product whose code has changed since; nothing where it has not, or is not known."""
        if (before := record.get("code")) is None or code_version(stage) in (before, None):
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
        whole: bool = False,
        **inputs: Any,
    ) -> Any:
        """Like `make`, for what comes in parts, each a table: a killed run loses at most one call of `build`.

        parts: what `build` is called with; they and their order must depend on the inputs alone. together: cuts parts
        into lists of neighbours, for each of which `build` gives a table a part; it may cut otherwise after a kill.
        finish: makes the product of the rows of all parts, in the order of the parts.

        List k of parts belongs to share k modulo the number of shares, so that a share holds the batches that one job
        would make. A process of a launch makes its share, and the main one joins all. A job with `part` makes its share
        and raises `OnlyPart`, unless the product is fresh; whole: one such job makes all of it while the others wait.
        """
        key = hashlib.sha256(json.dumps(_made_from(inputs), sort_keys=True).encode()).hexdigest()[:12]
        files = [f"{path}.parts-{key}/{number:05d}.parquet" for number in range(len(parts))]
        first, step = (0, 1) if whole and self.part else self._share

        def build_share() -> None:
            there = distributed.on_main_process(lambda: {n for n, file in enumerate(files) if self.has(file)})
            # jobs of other shares must cut alike, whatever is there by now
            numbers = [n for n in range(len(parts)) if self.part or n not in there]
            left, cut = iter(numbers), together or (lambda some: [[part] for part in some])
            pieces = [[next(left) for _ in piece] for piece in cut([parts[n] for n in numbers])]
            for piece in tqdm(pieces[first::step], desc=label, unit="part"):
                if piece := [number for number in piece if number not in there]:
                    some = [parts[number] for number in piece]
                    made, seconds = _timed(partial(build, some if together else some[0]))
                    for number, table in zip(piece, made if together else [made], strict=True):
                        table.attrs["seconds"] = seconds / len(piece)  # kept in the file
                        self.write(files[number], table)

        def build_all() -> tuple[Any, float]:
            build_share()
            distributed.wait_for_everyone()
            if not distributed.is_main_process():
                return None, 0.0
            tables = [self.read(file) for file in files]
            spent = sum(table.attrs.pop("seconds") for table in tables)
            product, seconds = _timed(lambda: finish(pd.concat(tables, ignore_index=True)))
            return product, spent + seconds

        if self.part and not whole and not self.fresh(path, **inputs):
            self.log(f"{path}: making part {self.part}")
            build_share()
            raise OnlyPart(path)
        product = self._made(path, build_all, inputs, build)
        if not self.part or whole:
            for old in self.root.glob(f"{path}.parts-*") if distributed.is_main_process() else ():
                shutil.rmtree(old, ignore_errors=True)  # another job may do the same
        return product

    @contextmanager
    def until_part(self) -> Iterator[None]:
        """What needs a whole product of which this job made a part is left out: the context ends there."""
        try:
            yield
        except OnlyPart as made:
            self.log(f"{made}: the job without `part` goes on")

    def write(self, path: str, product: Any) -> None:
        """Write a product that is made anew every time (summaries, manifests)."""
        with written_whole(self.root / path) as stream:
            match Path(path).suffix:
                case ".parquet":
                    product.to_parquet(stream, index=False)
                case ".jsonl":
                    for record in product:
                        stream.write(json.dumps(_plain(record), ensure_ascii=False).encode() + b"\n")
                case _:
                    stream.write(json.dumps(_plain(product), indent=1, ensure_ascii=False).encode())

    def read(self, path: str) -> Any:
        """A stored product; `FileNotFoundError` says what to run if it is missing."""
        file = self.root / path
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: run the notebooks before this one first (`make reproduce`)")
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
        return self.read(f"{path}.made.json")["sha256"]

    def seconds(self, path: str) -> float:
        """How long it took to make a product; the sum over its parts, whenever and wherever each was made."""
        return self.read(f"{path}.made.json")["seconds"]

    def fresh(self, path: str, **inputs: Any) -> bool:
        """Whether `make` with these inputs would read the product rather than build it."""
        return _stale(self._record(path), _made_from(inputs)) is None

    def _record(self, path: str) -> dict[str, Any] | None:
        """The record of a product: None where there is no product, {} where it was not finished."""
        if not self.has(path):
            return None
        try:
            return self.read(f"{path}.made.json")
        except (FileNotFoundError, json.JSONDecodeError):
            return {}


def _share(part: str) -> tuple[int, int]:
    """Index, from 0, and number of shares of "3/8"."""
    number, slash, of = part.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"part must be NUMBER/OF, as 3/8, not {part!r}")
    return int(number) - 1, int(of)


def _timed(build: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return build(), time.perf_counter() - start


# ---- what a product depends on: inputs and code ----------------------------------------------------------


def _made_from(inputs: dict[str, Any]) -> dict[str, Any]:
    return _plain(inputs | {"igds_utils": __version__})


def _stale(record: dict[str, Any] | None, made_from: dict[str, Any]) -> str | None:
    """Why a product must be made (again), or None."""
    if not record:
        return "making it" if record is None else "making it again, it was not finished"
    changed = _differences("", record["inputs"], made_from)
    return "making it again, changed: " + "; ".join(changed) if changed else None


def _differences(key: str, before: Any, now: Any) -> list[str]:
    """What differs, by dotted name."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys, start = sorted({*before, *now}), f"{key}." if key else ""
        return [one for k in keys for one in _differences(f"{start}{k}", before.get(k), now.get(k))]
    short = [text if len(text := json.dumps(value)) <= 40 else "other content" for value in (before, now)]
    return [key if short[0] == short[1] else f"{key} ({short[0]} -> {short[1]})"]


def content_hash(records: Any) -> str:
    """A short hash of any JSON value (a data set's samples, a list of ids).

    That of an iterator is the hash of the list of what it gives, one record in memory at a time.
    """
    if not isinstance(records, Iterator):
        return hashlib.sha256(_canonical(records)).hexdigest()[:16]
    digest = hashlib.sha256(b"[")
    for number, record in enumerate(records):
        digest.update(b", " * (number > 0) + _canonical(record))
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _canonical(records: Any) -> bytes:
    return json.dumps(_plain(records), sort_keys=True, ensure_ascii=False).encode()


def _plain(value: Any) -> Any:
    """Records, arrays and paths as plain JSON values, which compare equal after a round trip."""
    return TypeAdapter(Any).dump_python(value, mode="json", fallback=_listed)


def _listed(value: Any) -> Any:
    """numpy's values; anything else is refused rather than stored as its address in memory."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r:.60} cannot be stored as JSON: give plain values")


def code_version(build: Callable[..., Any]) -> str | None:
    """Hash of the code behind `build`, without comments and docstrings; None where that is nothing of the package.

    It covers the module of `build` and every module of the package that it imports, directly or not, but for `core/`
    and `config/`. Of a function that a notebook defines, it covers what the function uses of the package.
    """
    reached, left = {}, _used(build, set())
    while left:
        name = left.pop()
        reached[name], imported = _parsed(name)
        left |= imported - reached.keys()
    counted = [name for name in sorted(reached) if name.split(".")[1] not in UNCOUNTED]
    text = "".join(f"{name}\n{reached[name]}\n" for name in counted)
    return hashlib.sha256(text.encode()).hexdigest()[:16] if reached else None


def _used(function: Any, seen: set[int]) -> set[str]:
    """The module of a function of the package; of another one, the modules of all that it uses of the package."""
    if str(getattr(function, "__module__", "")).startswith("igds_utils."):
        return {function.__module__}
    if not inspect.isfunction(function) or id(function) in seen:
        return set()
    seen.add(id(function))
    used = inspect.getclosurevars(function)
    values = [*used.globals.values(), *used.nonlocals.values()]
    names = {value.__name__ for value in values if inspect.ismodule(value)}
    return {name for name in names if name.startswith("igds_utils.")}.union(*(_used(value, seen) for value in values))


@cache
def _parsed(module: str) -> tuple[str, frozenset[str]]:
    """A module's code without comments and docstrings, and the modules of the package that it imports."""
    tree, imported = ast.parse(_file(module).read_text(encoding="utf8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    own = {name for name in imported if name.startswith("igds_utils.") and _file(name)}
    return ast.unparse(tree), frozenset(own)


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


# ---- files -----------------------------------------------------------------------------------------------


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

"""Products of a run on disk: whole or not at all, made again only when what they depend on changed.

Beside every product lies `<product>.made.json` with the inputs that it was made from, and a hash of
the code. A product is made again where its inputs differ. Where only the code does it is kept, or
every commit would make all finished runs stale; the log says so, and what is removed is made again.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from pydantic import TypeAdapter
from tqdm import tqdm

from igds_utils import __version__
from igds_utils.config.config import PROJECT
from igds_utils.data.hub import sha256
from igds_utils.engine import distributed

MAKE_NO_PRODUCT = ("core", "config", "plots", "tables", "reporting", "running")


class OnlyPart(Exception):
    """This job has made its share of a product; the job without `part` joins the shares."""


class Store:
    """A folder of products. Paths are relative to it; the suffix says how a product is written.

    .parquet: DataFrame; .json: any JSON value; .jsonl: list of records.
    part: "3/8" makes the third of eight shares of what comes in parts (`make_in_parts`); jobs with
    other shares may work in the same folder.
    """

    def __init__(self, root: Path, log: Callable[[str], None] = print, part: str = ""):
        self.root, self.log, self.part = root, log, part
        self._alone = nullcontext()
        self._share = distributed.process_index(), distributed.processes()
        if part:
            number, of = map(int, part.split("/"))
            self._share = number - 1, of
            self._alone = FileLock(root / ".make.lock", is_singleton=True)

    def make(self, path: str, build: Callable[[], Any], **inputs: Any) -> Any:
        """The product at `path`, read from disk; first made by `build()` if it is not fresh.

        inputs: all that it depends on: parameters, `version` of other products. Processes of a
        launch all call `build`, and the main one writes what it gives.
        """
        return self._made(path, partial(self._timed, build), inputs)

    def _made(self, path: str, timed: Callable[[], tuple], inputs: dict[str, Any]) -> Any:
        with self._alone:
            reason = distributed.on_main_process(lambda: self._stale(path, inputs))
            if distributed.is_main_process():
                same = reason or self._record(path).get("code") == code_version()
                self.log(f"{path}: {reason or 'up to date'}{'' if same else ', made by other code'}")
            if reason:
                distributed.on_main_process(partial(self._keep, path, inputs, *timed()))
        return self.read(path)

    def _stale(self, path: str, inputs: dict[str, Any]) -> str:
        """Why a product must be made; "" where it is fresh."""
        if not (self.has(path) and self.has(f"{path}.made.json")):
            return "making it"
        before, now = self._record(path)["inputs"], _made_from(inputs)
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if not changed and self.version(path) != sha256(self.root / path)[:16]:
            return "making it again, the file is not the one that was made"
        return f"making it again, changed: {', '.join(changed)}" if changed else ""

    def _keep(self, path: str, inputs: dict[str, Any], product: Any, seconds: float) -> None:
        (self.root / f"{path}.made.json").unlink(missing_ok=True)
        self.write(path, product)
        record = {"inputs": _made_from(inputs), "seconds": round(seconds, 2)}
        record |= {"sha256": sha256(self.root / path)[:16], "code": code_version()}
        self.write(f"{path}.made.json", record)

    def make_in_parts(
        self,
        path: str,
        parts: Sequence[Any],
        build: Callable[[Any], Any],
        label: str,
        together: Callable[[Sequence[Any]], Iterable[Sequence[Any]]] | None = None,
        finish: Callable[[pd.DataFrame], Any] = lambda table: table,
        whole: bool = False,
        **inputs: Any,
    ) -> Any:
        """Like `make`, for tables in parts: a killed run loses at most one call of `build`.

        parts: what `build` is called with; they and their order follow from the inputs alone.
        together: cuts them into lists of neighbours, of which `build` gives a table a part.
        finish: makes the product of the rows of all parts, in the order of the parts.

        List k of parts belongs to share k modulo the number of shares. A process of a launch makes
        its share, and the main one joins all. A job with `part` makes its share and raises
        `OnlyPart`, unless the product is fresh; whole: it makes all, while the others wait.
        """
        first, step = (0, 1) if whole and self.part else self._share
        folder = f"{path}.parts-{content_hash(_made_from(inputs))}"
        files = [f"{folder}/{number:05d}.parquet" for number in range(len(parts))]

        def stored(files: Sequence[str]) -> list[pd.DataFrame] | None:
            with suppress(OSError, ValueError):  # one is missing or damaged
                return [self.read(file) for file in files]

        def build_share() -> None:
            left, cut = iter(files), together(parts) if together else [[part] for part in parts]
            own = [[(part, next(left)) for part in some] for some in cut][first::step]
            shown = tqdm(own, label, unit="part") if distributed.is_main_process() else own
            for piece in shown:
                some, of = zip(*piece, strict=True)
                if not stored(of):  # all of them again, where a kill cut them: batches round
                    made, seconds = self._timed(partial(build, some if together else some[0]))
                    for file, table in zip(of, made if together else [made], strict=True):
                        table.attrs["seconds"] = seconds / len(of)  # kept in the file
                        self.write(file, table)

        def build_all() -> tuple[Any, float]:
            build_share()
            distributed.wait_for_everyone()
            tables = stored(files)
            spent = sum(table.attrs.pop("seconds") for table in tables)
            product, seconds = self._timed(lambda: finish(pd.concat(tables, ignore_index=True)))
            return product, spent + seconds

        if self.part and not whole and not self.fresh(path, **inputs):
            self.log(f"{path}: making part {self.part}; the job without `part` goes on")
            build_share()
            raise OnlyPart(path)
        product = self._made(path, build_all, inputs)
        for old in self.root.glob(f"{path}.parts-*"):
            shutil.rmtree(old, ignore_errors=True)  # another job may do the same
        return product

    def _timed(self, build: Callable[[], Any]) -> tuple[Any, float]:
        """What `build` gives, and its seconds; in half the batches once memory has run out."""
        start = time.perf_counter()
        try:
            return build(), time.perf_counter() - start
        except RuntimeError as error:
            from accelerate.utils import memory  # takes seconds

            from igds_utils.engine import batching

            if distributed.processes() > 1 or not memory.should_reduce_batch_size(error):
                raise
        self.log("out of memory: once more, with batches of half the size")
        memory.clear_device_cache(garbage_collection=True)
        batching.divisor = 2
        try:
            return build(), time.perf_counter() - start
        finally:
            batching.divisor = 1

    def until_part(self) -> AbstractContextManager[None]:
        """A context that ends where a product is asked for of which this job makes a part."""
        return suppress(OnlyPart)

    def write(self, path: str, product: Any) -> None:
        """Write a product that is made anew every time (summaries, manifests)."""
        match Path(path).suffix:
            case ".parquet":
                content = product.to_parquet(index=False)
            case ".jsonl":
                lines = (json.dumps(_plain(record), ensure_ascii=False) for record in product)
                content = "".join(f"{line}\n" for line in lines)
            case _:
                content = json.dumps(_plain(product), indent=1, ensure_ascii=False)
        write_whole(self.root / path, content)

    def read(self, path: str) -> Any:
        """A stored product; `FileNotFoundError` says what to run if it is missing."""
        file = self.root / path
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: run the notebooks before this one first")
        match file.suffix:
            case ".parquet":
                return pd.read_parquet(file)
            case ".jsonl":
                with file.open(encoding="utf8") as lines:  # splitlines splits at U+2028 too
                    return [json.loads(line) for line in lines]
            case _:
                return json.loads(file.read_text(encoding="utf8"))

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def fresh(self, path: str, **inputs: Any) -> bool:
        """Whether `make` with these inputs would read the product rather than build it."""
        return not self._stale(path, inputs)

    def version(self, path: str) -> str:
        """What identifies a product's content, for the inputs of those made from it."""
        return self._record(path)["sha256"]

    def seconds(self, path: str) -> float:
        """How long it took to make a product; the sum over its parts, whoever made them."""
        return self._record(path)["seconds"]

    def _record(self, path: str) -> dict[str, Any]:
        return self.read(f"{path}.made.json")


def _made_from(inputs: dict[str, Any]) -> dict[str, Any]:
    return _plain(inputs | {"igds_utils": __version__})


@cache
def code_version() -> str:
    """A hash of the package's code, but for what only opens, shows and runs."""
    files = sorted(PROJECT.glob("igds_utils/*/*.py"))
    made_by = [file.read_bytes() for file in files if file.parent.name not in MAKE_NO_PRODUCT]
    return hashlib.sha256(b"".join(made_by)).hexdigest()[:16]


def content_hash(records: Any) -> str:
    """A short hash of any JSON value: a data set's samples, a list of ids."""
    text = json.dumps(_plain(records), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Records, arrays and paths as plain JSON values, which compare equal after a round trip."""
    plain = TypeAdapter(Any).dump_python
    return plain(value, mode="json", fallback=lambda array: array.tolist())


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file, whole or not at all: a temporary name beside it, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode("utf8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # that of a full disk names none
        raise
    return path

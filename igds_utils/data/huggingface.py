"""Files from the Hugging Face hub: tried again while the network or the hub fails, and errors that say what to do.

Libraries that fetch by themselves (sae_lens, datasets, comet) are called through `fetched`; models come as a folder
from `snapshot`. `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they always mean.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from igds_utils.config.refs import HubRef
from igds_utils.data.hub import SourceError

T = TypeVar("T")
ATTEMPTS = 4
PAUSE = 5.0  # seconds before the second attempt; twice as long before each next one
BUSY = {429, 500, 502, 503, 504}
# What a model needs; repositories also hold the weights in other formats, some of them as large again.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLED = ["pytorch_model*.bin"]  # older repositories have weights in no other format
TOKENIZER = ["*.json", "*.model", "*.txt", "*.jinja"]
OTHER_FORMATS = ["original/*", "onnx/*", "gguf/*"]


def snapshot(ref: HubRef, patterns: list[str] = FILES) -> Path:
    """Folder with the files of a model's repository, fetched unless they are in the hub's cache.

    Only what is missing is fetched, and an interrupted file is continued. Where a repository has no safetensors, its
    `pytorch_model*.bin` are fetched, of which transformers reads tensors and runs nothing (`weights_only`). Raises
    `SourceError`, also for weights in neither format.
    """
    from huggingface_hub import snapshot_download

    options = {"ignore_patterns": OTHER_FORMATS, "tqdm_class": tqdm, "revision": ref.revision}

    def get(wanted: list[str]) -> Path:
        return Path(fetched(ref.hub, lambda: snapshot_download(ref.hub, allow_patterns=wanted, **options)))

    folder = get(patterns)
    if patterns is not FILES or any(folder.rglob("*.safetensors")):
        return folder
    if not any(get(PICKLED).glob(PICKLED[0])):
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

    A hub that is busy and a transfer that breaks off are tried again, `ATTEMPTS` times in all. Raises `SourceError`
    where that did not help, and at once where it could not: no access, no such repository, revision or file.
    Exceptions that have nothing to do with the hub pass through.
    """
    for attempt in range(ATTEMPTS):
        try:
            return get()
        except SourceError:  # says what to do already
            raise
        except Exception as error:
            if refusal := _first(partial(_refusal, name), error):
                raise SourceError(refusal) from error
            trouble = _first(_trouble, error)
            if trouble is None:
                raise
            last = error
        if attempt < ATTEMPTS - 1:
            seconds = PAUSE * 2**attempt
            print(f"{name}: {trouble}; trying again in {seconds:.0f} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
    raise SourceError(
        f"could not fetch {name} from the hub in {ATTEMPTS} attempts: {trouble}. What arrived is kept: give the same "
        "command again when the network or the hub is back."
    ) from last


def _first(say: Callable[[BaseException], str | None], error: BaseException | None) -> str | None:
    """What is said of an exception or of one that it was raised from: libraries wrap what the hub said."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if said := say(error):
            return said
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _refusal(name: str, error: BaseException) -> str | None:
    """What to do about an answer that will not change by asking again; None if it is none."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return None  # not the hub's answer: it could not be asked
    mends = {
        errors.GatedRepoError: "is gated and this machine has no access: accept its licence on "
        f"https://huggingface.co/{name} with your account, then `hf auth login` (or set HF_TOKEN)",
        errors.RepositoryNotFoundError: "is not on the hub (or it is private: `hf auth login`): correct its name",
        errors.RevisionNotFoundError: "has no such revision: correct `revision`, or leave it out for the newest",
        errors.EntryNotFoundError: f"has no such file: {(str(error).strip().splitlines() or [''])[-1]}",
        errors.OfflineModeIsEnabled: "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it once",
    }
    if mend := next((mend for kind, mend in mends.items() if isinstance(error, kind)), None):
        return f"{name} {mend}"
    if (status := _status(error)) in (401, 403):
        return f"the hub refuses access to {name} ({status}): `hf auth login`, or correct HF_TOKEN"
    return None


def _trouble(error: BaseException) -> str | None:
    """What went wrong on the way, in a few words; None if the error is of another kind."""
    from requests import exceptions

    if _status(error) in BUSY:
        return f"the hub is unavailable ({_status(error)})"
    if isinstance(error, exceptions.Timeout):
        return "the hub did not answer in time"
    if isinstance(error, exceptions.ChunkedEncodingError) or "Consistency check" in str(error):
        return "the connection ended in the middle of a file"
    if isinstance(error, exceptions.ConnectionError | ConnectionError):
        return "no connection to the hub"
    return None

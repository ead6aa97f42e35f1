"""Files from the Hugging Face hub: tried again while the network or the hub fails, and errors that say what to do.

Libraries that fetch by themselves (sae_lens, datasets, comet) are called through `fetched`; models come as a folder
from `snapshot`. `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they always mean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
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
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return get()
        except SourceError:  # says what to do already
            raise
        except Exception as error:
            if refusal := _refusal(name, error):
                raise SourceError(refusal) from error
            trouble = _trouble(error)
            if trouble is None:
                raise
            if attempt == ATTEMPTS:
                raise SourceError(
                    f"could not fetch {name} from the hub in {ATTEMPTS} attempts: {trouble}. What arrived is kept: "
                    "give the same command again when the network or the hub is back."
                ) from error
            seconds = PAUSE * 2 ** (attempt - 1)
            print(f"{name}: {trouble}; trying again in {seconds:.0f} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from or while handling: libraries wrap what the hub said."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _refusal(name: str, error: Exception) -> str | None:
    """What to do about an answer that will not change by asking again; None if it is none."""
    from huggingface_hub import errors

    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        match cause:
            case errors.GatedRepoError():
                return (
                    f"{name} is gated and this machine has no access: accept its licence on "
                    f"https://huggingface.co/{name} with your account, then `hf auth login` (or set HF_TOKEN)"
                )
            case errors.RepositoryNotFoundError():
                return (
                    f"the hub has no repository {name} (or it is private: `hf auth login`): correct its name"
                )
            case errors.RevisionNotFoundError():
                return f"{name} has no such revision: correct `revision`, or leave it out for the newest"
            case errors.LocalEntryNotFoundError():
                continue  # not the hub's answer: it could not be asked
            case errors.EntryNotFoundError():
                return f"{name} has no such file: {str(cause).strip().splitlines()[-1]}"
            case errors.OfflineModeIsEnabled():
                return f"{name} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it: unset it once"
        if status in (401, 403):
            return f"the hub refuses access to {name} ({status}): `hf auth login`, or correct HF_TOKEN"
    return None


def _trouble(error: Exception) -> str | None:
    """What went wrong on the way, in a few words; None if the error is of another kind."""
    import requests

    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in BUSY:
            return f"the hub is unavailable ({status})"
        if isinstance(cause, requests.exceptions.Timeout):
            return "the hub did not answer in time"
        if isinstance(cause, requests.exceptions.ChunkedEncodingError) or "Consistency check" in str(cause):
            return "the connection ended in the middle of a file"
        if isinstance(cause, requests.exceptions.ConnectionError | ConnectionError):
            return "no connection to the hub"
    return None

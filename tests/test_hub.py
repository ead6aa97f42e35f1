"""What is fetched, when things go right and wrong: toy wheels through pip, and models of the box,
where the hub says no, is away, or stops in the middle."""

import errno
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import HubRef, WheelRef
from igds_utils.data import hub
from igds_utils.engine.loading import load_lm, load_tokenizer
from igds_utils.engine.prompts import encode

FILES = {"toy/data.txt": "héllo\n" * 100, "toy/locale/fr.json": "{}", "toy/locale/deep/zh.json": "[]"}
METADATA = {
    "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
    "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> WheelRef:
    """A file of a toy wheel, in a folder that is all that pip looks at."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**FILES, **METADATA}.items():
            archive.writestr(name, text)
    return WheelRef(wheel="toy", version="1.0", sha256=hub.sha256(path), file="toy/data.txt")


def left_in(cache: Path) -> list[str]:
    """Everything in the cache but the locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_files_and_folders_of_a_wheel_are_fetched_once(cache, wheel, capsys):
    assert hub.wheel_file(wheel).read_text(encoding="utf8") == FILES["toy/data.txt"]
    folder = hub.wheel_file(wheel.model_copy(update={"file": "toy/locale/"}))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    assert found == ["deep/zh.json", "fr.json"]
    assert capsys.readouterr().err == "fetching toy 1.0 from the package index\n"


@pytest.mark.parametrize(("change", "words"), [
    ({"sha256": "0" * 64}, "DO NOT MATCH THE HASHES.* Expected sha256 000"),
    ({"file": "toy/other.txt"}, "toy holds no 'toy/other.txt': correct `file:`"),
    ({"wheel": "no-such-toy"}, "no-such-toy==1.0 .*No matching .*same command again"),
])  # fmt: skip
def test_a_wheel_that_is_not_what_was_pinned_is_one_clear_error(cache, wheel, change, words):
    with pytest.raises(hub.SourceError, match=words) as error:
        hub.wheel_file(wheel.model_copy(update=change))
    assert left_in(cache) == [] and "\n" not in str(error.value)


def test_a_wheel_that_reaches_out_of_its_folder_is_refused(cache, wheel, tmp_path):
    file = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../../../ran", "")
    with pytest.raises(hub.SourceError, match="could not fetch toy==1.0 .*outside"):
        hub.wheel_file(wheel.model_copy(update={"sha256": hub.sha256(file)}))
    assert left_in(cache) == [] and not list(tmp_path.rglob("ran"))


def test_a_full_disk_leaves_nothing_and_says_what_to_do(cache):
    def fill(folder):
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(hub.SourceError, match=f"cache {cache} .*No space.*set IGDS_CACHE"):
        hub.whole(cache / "made", fill)
    assert left_in(cache) == []


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from igds_utils.data import hub

folder, log, mode = sys.argv[1:]

def fill(new):
    with open(log, "a") as stream:
        stream.write("made ")
    (new / "half").write_text("half")
    time.sleep(0.5)
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    (new / "half").rename(new / "whole")

hub.whole(Path(folder), fill)
"""


def start(folder: Path, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(folder.with_name("log")), mode]
    return subprocess.Popen(command, cwd=PROJECT)


def test_a_killed_process_leaves_nothing_and_of_two_one_fetches(tmp_path):
    folder = tmp_path / "made"
    assert start(folder, "kill").wait(timeout=120) == -signal.SIGKILL
    assert not folder.exists() and left_in(tmp_path) == ["half", "log"]
    both = [start(folder, "make") for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert left_in(tmp_path) == ["log", "whole"]
    assert (tmp_path / "log").read_text() == "made made "


LLAMA, GEMMA = "meta-llama/Llama-3.1-8B", "google/gemma-2-2b-it"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def asked(hub_box, what: str) -> list[str]:
    return [request for request in hub_box.requests if what in request]


def test_only_the_files_that_are_read_are_fetched_and_only_once(hub_box, empty_cache):
    load_lm(HubRef(hub=LLAMA))
    files = {request.rsplit("/", 1)[1] for request in asked(hub_box, "GET /meta-llama")}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < files
    assert len([file for file in files if file.endswith(".safetensors")]) > 1
    hub_box.requests.clear()
    with hub_box.fault("unavailable", "/"):  # all is in the cache
        assert load_lm(HubRef(hub=LLAMA)).n_layers == 3
    assert not asked(hub_box, "/resolve/")


def test_a_revision_is_asked_for_and_a_tokenizer_comes_without_weights(hub_box, empty_cache):
    tokenizer = load_tokenizer(HubRef(hub=LLAMA, revision=REVISION))
    assert encode(tokenizer, "Solution:")[0] == tokenizer.bos_token_id
    assert asked(hub_box, "tokenizer.json") and not asked(hub_box, "model-0000")
    assert hub.snapshot(HubRef(hub=LLAMA, revision=REVISION)).name == REVISION
    assert asked(hub_box, f"/resolve/{REVISION}/model") and not asked(hub_box, "/main/")


@pytest.mark.parametrize(("ref", "fault", "words"), [
    ({"hub": GEMMA}, "gated", f"https://huggingface.co/{GEMMA} and log in .`hf auth login`"),
    ({"hub": GEMMA}, "missing", f"could not fetch {GEMMA} from the hub: .*Not Found"),
    ({"hub": LLAMA, "revision": "v9"}, None, "v9.* Correct its name and revision"),
    ({"hub": LLAMA}, "unavailable", "internet connection.*same command again"),
])  # fmt: skip
def test_what_the_hub_refuses_is_one_line_with_the_mend(hub_box, empty_cache, ref, fault, words):
    with hub_box.fault(fault or "none", ref["hub"]), pytest.raises(hub.SourceError) as error:
        load_lm(HubRef(**ref))
    assert re.search(words, str(error.value)) and "\n" not in str(error.value)


def test_a_file_that_breaks_off_is_continued_by_the_next_command(hub_box, empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    told = pytest.raises(hub.SourceError, match="same command again")
    with hub_box.fault("cut", "model-00001", times=1), told:
        load_lm(HubRef(hub=LLAMA))
    lm = load_lm(HubRef(hub=LLAMA))
    assert len(asked(hub_box, "bytes=")) == 1, "what had arrived was not used"
    whole = load_lm(HubRef(hub=LLAMA, revision=REVISION)).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in lm.model.state_dict().items())


def test_a_file_that_is_truncated_at_its_source_is_not_loaded(hub_box, empty_cache):
    with hub_box.fault("stub", "model-00001"), pytest.raises(hub.SourceError) as error:
        load_lm(HubRef(hub=LLAMA))
    folder = empty_cache / "models--meta-llama--Llama-3.1-8B"
    assert f"could not load {LLAMA}" in str(error.value)
    assert f"remove {folder}" in str(error.value)

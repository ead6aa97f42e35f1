"""pyproject.toml, requirements.lock, environment.yml and what is installed say the same; make builds it once."""

import os
import re
import shutil
import subprocess
import time
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from igds_utils.config import PROJECT

DESIGN_CARD = {
    *("jupyterlab", "papermill", "torch", "transformers", "sae-lens"),
    *("matplotlib", "seaborn", "pandas", "unbabel-comet", "math-verify"),
}


def pins_of(lines) -> dict[str, str]:
    """name -> version of every `name==version` line; any other requirement is an error."""
    found = {}
    for line in lines:
        if text := line.split("#")[0].strip():
            name, _, pin = text.partition("==")
            assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", canonicalize_name(name)) and pin, f"not a pin: {text}"
            found[canonicalize_name(name)] = pin
    return found


PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf8"))
LOCK_TEXT = (PROJECT / "requirements.lock").read_text(encoding="utf8")
LOCK = pins_of(LOCK_TEXT.splitlines())
DIRECT = [
    Requirement(text)
    for text in [
        *PYPROJECT["project"]["dependencies"],
        *PYPROJECT["project"]["optional-dependencies"]["test"],
        *PYPROJECT["build-system"]["requires"],
    ]
]


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_lock_satisfies_every_direct_requirement(requirement):
    pin = LOCK.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in requirements.lock: make lock"
    assert requirement.specifier.contains(pin), f"{requirement} but requirements.lock has {pin}: make lock"


def test_the_design_cards_packages_are_direct_requirements():
    assert {canonicalize_name(requirement.name) for requirement in DIRECT} >= DESIGN_CARD


def test_the_conda_door_installs_the_same_lock_and_names_the_same_pins():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf8"))
    python, pip, section = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    named = section["pip"]
    assert named[-2:] == ["-r requirements.lock", "-e ."]
    pins = pins_of(named[:-2])
    assert set(pins) == DESIGN_CARD
    assert pins == {name: LOCK[name] for name in DESIGN_CARD}


def test_the_lock_leaves_cuda_to_torch_and_names_no_place():
    assert not [name for name in LOCK if name.startswith(("nvidia", "cuda")) or name == "triton"]
    assert not re.search(r"://|--\w|^\s*-|\s@\s|(^|\s)/", LOCK_TEXT.split("\n", 2)[2], re.MULTILINE)
    assert not [pin for pin in LOCK.values() if Version(pin).local]


@pytest.mark.parametrize("name", sorted(LOCK))
def test_the_locked_version_is_installed(name):
    # torch's CPU build calls itself 2.13.0+cpu
    assert Version(version(name)).public == Version(LOCK[name]).public


# ---- make ------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def make(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, env=environment
    )


def test_make_alone_lists_the_targets(checkout):
    shown = make(checkout).stdout
    for target in ("reproduce", "test", "test-all", "plan", "report", "lab", "saes", "clean"):
        assert re.search(rf"^  {target} +\w", shown, re.MULTILINE)
    assert not (checkout / ".venv").exists()


def test_make_refuses_a_variable_that_it_does_not_know(checkout):
    done = make(checkout, "reproduce", "PRESETS=quick")
    assert done.returncode != 0
    assert "unknown variable PRESETS; known: PRESET TASKS MODEL SET RESULTS PYTHON" in done.stderr


def test_make_says_which_python_it_needs(checkout):
    done = make(checkout, "test", "PYTHON=false no-such-python")
    assert done.returncode != 0
    assert "Python 3.11 is needed, and none of these is it: false no-such-python" in done.stderr
    assert not (checkout / ".venv").exists()


def test_what_is_installed_is_not_installed_again(checkout):
    assert "pip" in make(checkout, "-n", "reproduce").stdout
    stamp = checkout / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert "pip" not in make(checkout, "-n", "reproduce").stdout
    later = time.time() + 10
    os.utime(checkout / "requirements.lock", (later, later))
    assert "pip" in make(checkout, "-n", "reproduce").stdout


def test_make_narrows_a_run(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").touch()
    shown = make(
        checkout, "-n", "reproduce", "PRESET=laptop", "TASKS=math", "MODEL=m", "SET=a=1 b.c=[1,2]"
    ).stdout
    assert (
        "--preset 'laptop' --tasks 'math' --model 'm' --set 'a=1' --set 'b.c=[1,2]' --results 'results'"
        in shown
    )


def test_ci_calls_the_test_command_of_the_readme_and_nothing_else():
    lines = (PROJECT / ".ci" / "run").read_text(encoding="utf8").splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "exec make test"]
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
    assert "make test" in (PROJECT / "README.md").read_text(encoding="utf8")

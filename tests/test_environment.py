"""What is declared, locked and installed is the same, and what make does with it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import igds_utils
from igds_utils.config.config import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf8"))
LOCK_TEXT = (PROJECT / "requirements.lock").read_text(encoding="utf8")
# `name==version`, its hashes, and a comment on what asks for it
HASHES = r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
ENTRY = re.compile(rf"([a-z0-9][a-z0-9-]*)==([\w.]+){HASHES}\n    # via .+\n")
LOCK = dict(ENTRY.findall(LOCK_TEXT))
TESTS = list(PROJECT.glob("tests/**/*.py"))
PACKAGES = PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["test"]
DIRECT = [Requirement(text) for text in PACKAGES + PYPROJECT["build-system"]["requires"]]


def test_the_lock_is_pins_with_hashes_and_names_no_place():
    """What is left beside the entries are comments: no unhashed pin, no index, no path."""
    assert not [line for line in ENTRY.sub("", LOCK_TEXT).splitlines() if line and line[0] != "#"]
    assert not re.search(r"://|\s@\s|(^|\s)/", LOCK_TEXT, re.MULTILINE)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_the_lock_satisfies_every_direct_requirement(requirement):
    if requirement.name == "torch":  # it has several builds, so pyproject pins it
        assert str(requirement.specifier).startswith("==")
        assert requirement.specifier.contains(version("torch"))
        return
    pin = LOCK.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in requirements.lock: make lock"
    assert requirement.specifier.contains(pin), f"{requirement} but requirements.lock has {pin}: make lock"


def imported_packages() -> dict[str, str]:
    """Third-party module -> one file of the project that imports it."""
    code = [*PROJECT.glob("igds_utils/**/*.py"), *TESTS]
    sources = {file: file.read_text(encoding="utf8") for file in code}
    for file in PROJECT.glob("notebooks/*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf8"))["cells"]
        sources[file] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    tests = {name for file in TESTS for name in (file.stem, file.parent.name)}
    ours = {"igds_utils", *tests} | sys.stdlib_module_names
    found = {}
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {top: file.name for name in names if (top := name.split(".")[0]) not in ours}
    return found


def test_what_the_code_imports_is_a_direct_requirement():
    """A package that only comes along with another one may go with the other's next release."""
    direct = {canonicalize_name(requirement.name) for requirement in DIRECT}
    packages = packages_distributions()
    missing = {
        module: file
        for module, file in imported_packages().items()
        if not direct & set(map(canonicalize_name, packages.get(module, [])))
    }
    assert not missing, f"not among pyproject's dependencies: {missing}"


def test_the_conda_door_names_the_pins_of_the_lock():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf8"))
    python, pip, section = environment["dependencies"]
    *pins, project = section["pip"]
    assert (python, pip, project) == ("python=3.11", "pip", "-e .")
    known = [f"{name}=={pin}" for name, pin in LOCK.items()] + list(map(str, DIRECT))
    assert len(pins) == 10 and not set(pins) - set(known)


def test_the_lock_leaves_torch_to_its_own_builds_and_cuda_to_torch():
    assert not [name for name in LOCK if name.startswith(("nvidia", "cuda", "torch-", "triton"))]
    assert "torch" not in LOCK
    assert not [pin for pin in LOCK.values() if Version(pin).local]


def test_the_locked_versions_are_installed():
    # torch's CPU build calls itself 2.13.0+cpu
    installed = {name: Version(version(name)).public for name in LOCK}
    assert installed == {name: Version(pin).public for name, pin in LOCK.items()}


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def make(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(["make", *arguments], **options)


def test_make_refuses_a_variable_that_it_does_not_know(checkout):
    done = make(checkout, "reproduce", "PRESETS=quick")
    assert done.returncode != 0
    assert "unknown variable PRESETS; known: PRESET TASKS MODEL SET RESULTS CHECKOUTS PYTHON" in done.stderr


def test_make_says_which_python_it_needs(checkout):
    done = make(checkout, "test", "PYTHON=false no-such-python")
    assert done.returncode != 0
    assert "Python 3.11 is needed, and none of these is it: false no-such-python" in done.stderr
    assert not (checkout / ".venv").exists()


def test_make_hands_on_what_it_was_given(checkout):
    igds = checkout / ".venv" / "bin" / "igds"
    igds.parent.mkdir(parents=True)
    igds.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    igds.chmod(0o755)
    given = ["laptop", "math", "m", """a={"b": "it's"} c=[1, 2]""", "o'neil {x}/my results"]
    names = ("PRESET", "TASKS", "MODEL", "SET", "RESULTS")
    asked = [f"{name}={value}" for name, value in zip(names, given, strict=True)]
    shown = make(checkout, "-s", "-o", ".venv/.installed", "reproduce", *asked).stdout.splitlines()
    assert shown[0] == "run" and shown[2::2] == given


def test_folders_import_one_way():
    table = (PROJECT / "README.md").read_text(encoding="utf8").partition("folder of `igds_utils/`")[2]
    floor = {}
    for number, row in enumerate(table.split("\n\n")[0].splitlines()[2:]):
        floor |= dict.fromkeys(re.findall(r"`(\w+)(?:/|\.py)`", row.split("|")[1]), number)
    package, upward = PROJECT / "igds_utils", []
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in floor, f"{own} stands in no row"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package.name:
                taken = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                above = [name for name in taken if floor.get(name, 0) > floor[own]]
                upward += [f"{path.name}: {ast.unparse(node)}"] * bool(above)
    assert not upward, upward


def test_the_package_is_loaded_lazily():
    code = "import sys, igds_utils; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
    assert all(getattr(igds_utils, name).__name__ == name for name in igds_utils.__all__)

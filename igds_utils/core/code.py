"""By which code a product was made: a hash of its stage's source, in which comments and docstrings do not count."""

import ast
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
UNCOUNTED = ("core", "config")  # they open, store and configure whatever the product is


def code_version(build: Callable[..., Any]) -> str | None:
    """Hash of the code behind `build`, without comments and docstrings; None where that is nothing of the package.

    It covers the module of `build` and every module of the package that it imports, directly or not, but for `core/`
    and `config/`. Of a function that a notebook defines, it covers what the function uses of the package.
    """
    stage = _used(build, set())
    return _version(frozenset(stage)) if stage else None


def _used(function: Any, seen: set[int]) -> set[str]:
    """The module of a function of the package; of another one, the modules of all that it uses of the package."""
    if str(getattr(function, "__module__", "")).startswith("igds_utils."):
        return {function.__module__}
    if not inspect.isfunction(function) or id(function) in seen:
        return set()
    seen.add(id(function))
    used = inspect.getclosurevars(function)
    values = [*used.globals.values(), *used.nonlocals.values()]
    modules = {value.__name__ for value in values if inspect.ismodule(value)}
    found = {name for name in modules if name.startswith("igds_utils.")}
    return found.union(*(_used(value, seen) for value in values))


@cache
def _version(stage: frozenset[str]) -> str:
    reached, left = set(), set(stage)
    while left:
        reached |= left
        left = {name for module in left for name in _parsed(module)[1]} - reached
    digest = hashlib.sha256()
    for module in sorted(reached):
        if module.split(".")[1] not in UNCOUNTED:
            digest.update(f"{module}\n{_parsed(module)[0]}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _parsed(module: str) -> tuple[str, frozenset[str]]:
    """A module's code without comments and docstrings, and the modules of the package that it imports."""
    tree, imported = ast.parse(_file(module).read_text(encoding="utf8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    own = {name for name in imported if name.startswith("igds_utils.") and _file(name)}
    return ast.unparse(tree), frozenset(own)


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)

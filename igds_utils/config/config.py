"""Reads presets: one YAML file describes one experiment, and an unknown key is refused.

`load_preset` reads the file, applies overrides ("sft.lr=1e-4"), those of the model first, keeps one model and some
tasks, and returns a frozen, typed record.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from igds_utils.config.refs import ConfigError
from igds_utils.config.settings import Preset

PROJECT = Path(__file__).resolve().parents[2]
PRESETS = Path(__file__).resolve().parents[1] / "presets"


# ---- what a caller gives ---------------------------------------------------------------------------------

FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")  # YAML 1.1 takes 5e-5 for text
NEXT_CHANGE = re.compile(r"\s+(?=[A-Za-z_][\w.@-]*=)")  # before what may be another FIELD=VALUE


def task_names(tasks: Any) -> list[str]:
    """Names of tasks from a list, or from text as `--tasks` and papermill's -p give it: "math,translation"."""
    if isinstance(tasks, str):
        return [name.strip() for name in tasks.split(",") if name.strip()]
    if not isinstance(tasks or [], (list, tuple)) or not all(isinstance(name, str) for name in tasks or []):
        raise ConfigError(f"tasks must be a list of names, with papermill -y 'tasks: [math]', not {tasks!r}")
    return list(tasks or [])


def changes(overrides: Any) -> dict[str, Any]:
    """Dotted fields of a preset and their values, from a dictionary, or from text: "recall.tau=0.5 sft.lr=5e-5".

    A value is read as YAML: 0.5 and 5e-5 are numbers, [a, b] is a list, {"a": "b c"} an object, chat is text. It ends
    where it is whole and the next FIELD= begins.
    """
    if not isinstance(overrides or "", str):
        if not isinstance(overrides, dict) or not all(isinstance(field, str) for field in overrides):
            raise ConfigError(
                f"overrides must name fields, with papermill -y 'overrides: {{recall.tau: 0.5}}', not {overrides!r}"
            )
        return dict(overrides)
    found, left = {}, (overrides or "").strip()
    while left:
        field, equals, left = left.partition("=")
        if not equals or not field:
            raise ConfigError(f"{field!r} is not FIELD=VALUE, as in recall.tau=0.5")
        for end in [*(match.start() for match in NEXT_CHANGE.finditer(left)), len(left)]:
            try:
                found[field] = yaml.load(left[:end], _Loader)
            except yaml.YAMLError:
                continue
            left = left[end:].lstrip()
            break
        else:
            raise ConfigError(f"{field}: {left!r} is no YAML: close its brackets and quotes")
    return found


# ---- reading ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known = set()
        for key, _ in node.value:
            if str(key.value) in known and key.tag != "tag:yaml.org,2002:merge":
                twice = f"line {key.start_mark.line + 1}: {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(problem=twice)
            known.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("+-0123456789"))


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset that is named, or named by its path."""
    return Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"


def load_preset(
    name: str | Path,
    model: str = "",
    tasks: list[str] | str | None = None,
    overrides: dict[str, Any] | str | None = None,
) -> Preset:
    """Read a preset by name or path, keep one model and the named tasks, and apply dotted overrides.

    The chosen model's own `overrides` come first, so that the caller's win. Text is read as by `task_names` and
    `changes`. A source that the caller names for the pool is used whole (`sizes.pool` none) unless the caller gives
    that size as well. Raises `ConfigError` for an unknown preset, key, model or task, with what is known in its place.
    """
    path, tasks, overrides = preset_file(str(name)), task_names(tasks), changes(overrides)
    raw = _read(path)
    asked = _changed(raw, overrides, "override")  # it names the chosen model, and what that one changes
    model = model or str(asked.get("model", ""))
    own = _at(asked, "models", model, "overrides")
    raw = _changed(raw, own, f"{path.name}: models.{model}.overrides:")
    raw = _changed(raw, overrides, "override") | {"model": model}
    for task, given in _at(_changed({}, overrides, "override"), "tasks").items():
        if _fills_pool(_at(given, "data", "sources")) and "pool" not in _at(given, "sizes"):
            raw = _changed(raw, {f"tasks.{task}.sizes.pool": None}, "override")
    if tasks:
        raw["tasks"] = {task: _known(raw, "tasks", task, path.name) for task in tasks}
    preset = Preset.read(raw, path.name)
    _known(raw, "models", model, path.name)
    return preset


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = ", ".join(preset_names())
        raise ConfigError(f"no preset {path.stem!r}: known are {names}, or give the path of a YAML file")
    try:
        raw = yaml.load(path.read_bytes(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} holds no fields: a preset starts with name, description, model")
    return raw


def _fills_pool(sources: dict[str, Any]) -> bool:
    """Whether one of `sources` is named anew for the pool."""
    named = {name: source for name, source in sources.items() if {"file", "hub"} & {*_at(source)}}
    return any("pool" in (source.get("sets") or [name]) for name, source in named.items())


def _known(raw: dict[str, Any], group: str, name: str, file: str) -> Any:
    """The model or task of that name."""
    known = _at(raw, group)
    if name not in known:
        raise ConfigError(f"{file}: no {group[:-1]} {name!r}; known: {', '.join(known)}")
    return known[name]


def _at(raw: Any, *keys: str) -> dict[str, Any]:
    """The fields at a place of a preset; none where it does not have that form."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else {}


def _changed(raw: dict, overrides: dict[str, Any], whose: str) -> dict[str, Any]:
    """A copy with other values at dotted places. whose: how a message begins."""
    raw = dict(raw)
    for dotted, value in overrides.items():
        *parents, last = str(dotted).split(".")
        node = raw
        for key in parents:
            below = node.get(key, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{whose} {dotted!r}: {key!r} has no fields of its own")
            node[key] = dict(below)  # an alias of the YAML stands at other places too, which stay as they are
            node = node[key]
        node[last] = value
    return raw

"""Reads presets: one YAML file describes one experiment, and an unknown key is refused.

`load_preset` reads the file, applies overrides ("sft.lr=1e-4"), those of the model first, keeps one
model and some tasks, and returns a frozen, typed record.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from igds_utils.config.refs import ConfigError
from igds_utils.config.settings import Preset

PROJECT = Path(__file__).resolve().parents[2]
PRESETS = Path(__file__).resolve().parents[1] / "presets"
NEXT = re.compile(r"\s+(?=[A-Za-z_][\w.@-]*=)")  # before another FIELD=VALUE


def task_names(tasks: Any) -> list[str]:
    """Names of tasks, from a list or from text: "math,translation"."""
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",") if name.strip()]
    return list(tasks or [])


def changes(overrides: Any) -> dict[str, Any]:
    """Dotted fields of a preset and their values, from a dictionary or from text.

    In "recall.tau=0.5 tasks.math.curve=null" values are YAML: [a, b] is a list, {"a": "b c"} an
    object, chat is text.
    """
    if not isinstance(overrides or "", str):
        return dict(overrides)
    found = {}
    for text in filter(None, NEXT.split((overrides or "").strip())):
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise ConfigError(f"{text!r} is not FIELD=VALUE, as in recall.tau=0.5")
        found[field] = read_yaml(value, field)
    return found


def read_yaml(text: str | bytes, name: str) -> Any:
    """What YAML holds. Raises `ConfigError`, with its line, where it is none or has a key twice."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # PyYAML lets out whatever a value of the wrong form raises
        mark = getattr(error, "problem_mark", None)
        line, said = f" line {mark.line + 1}" if mark else "", getattr(error, "problem", 0) or error
        raise ConfigError(f"{name}{line} is not valid YAML: {str(said).splitlines()[0]}") from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice; the plain loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known = []
        for key, _ in node.value:
            if key.value in known and key.tag != "tag:yaml.org,2002:merge":
                twice, place = f"{key.value!r} is given twice", key.start_mark
                raise yaml.constructor.ConstructorError(problem=twice, problem_mark=place)
            known.append(key.value)
        return super().construct_mapping(node, deep)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset that is named, or named by its path."""
    own = name.endswith((".yaml", ".yml"))
    return Path(name) if own else PRESETS / f"{name}.yaml"


def load_preset(
    name: str | Path,
    model: str = "",
    tasks: list[str] | str | None = None,
    overrides: dict[str, Any] | str | None = None,
) -> Preset:
    """Read a preset by name or path, and keep one model and the named tasks.

    Text is read as by `task_names` and `changes`. The chosen model's own `overrides` come before
    the caller's. Raises `ConfigError` for an unknown preset, key, model or task, with what is known
    in its place.
    """
    file, tasks = preset_file(str(name)), task_names(tasks)
    overrides = changes(overrides) | ({"model": model} if model else {})
    if not file.is_file():
        known = f"known are {', '.join(preset_names())}, or give the path of a YAML file"
        raise ConfigError(f"no preset {file.stem!r}: {known}")
    if not isinstance(raw := read_yaml(file.read_bytes(), file.name) or {}, dict):
        raise ConfigError(f"{file.name} holds a {type(raw).__name__}, not fields and their values")
    preset = Preset.read(_changed(raw, overrides, file.name), file.name)
    if own := preset.chosen.overrides:
        raw = _changed(_changed(raw, own, file.name), overrides, file.name)
        preset = Preset.read(raw, file.name)
    for task in tasks:
        if task not in preset.tasks:
            raise ConfigError(f"{file.name}: no task {task!r}; known: {', '.join(preset.tasks)}")
    kept = {task: preset.tasks[task] for task in tasks} or preset.tasks
    return preset.model_copy(update={"tasks": kept})


def _changed(raw: dict, overrides: dict[str, Any], file: str) -> dict[str, Any]:
    """A copy with other values at dotted places."""
    for dotted, value in overrides.items():
        first, _, rest = dotted.partition(".")
        if rest:
            if not isinstance(below := raw.get(first, {}), dict):
                raise ConfigError(f"{file}: {dotted}: {first!r} has no fields of its own")
            value = _changed(below, {rest: value}, file)
        raw = raw | {first: value}  # what an alias of the YAML shares stays as it is
    return raw

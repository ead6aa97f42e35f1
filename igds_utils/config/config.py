"""Reads presets: one YAML file describes one experiment, and an unknown key is refused.

`load_preset` reads the file, applies overrides ("sft.lr=1e-4"), those of the model first, keeps one model and some
tasks, and returns a frozen, typed record.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from igds_utils.config.settings import Preset

PROJECT = Path(__file__).resolve().parents[2]
PRESETS = Path(__file__).resolve().parents[1] / "presets"
DROPPED = (  # fields that presets of version 0.1 may hold
    "tasks.*.series",
    "tasks.*.max_candidates",
    "tasks.*.stability.max_candidates",
    "intervention.racing",
    "models.*.shape.tied",
    "sft.device_batch",
    "tasks.*.sft.device_batch",
)


class ConfigError(ValueError):
    """A preset or an override that cannot be used; the message names the file, the field and the mend."""


# ---- what a caller gives ---------------------------------------------------------------------------------

NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 takes 5e-5 for text
NEXT_CHANGE = re.compile(r"(\s+)(?=[A-Za-z_][\w.@-]*=)")  # where another FIELD=VALUE may begin


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
    found, parts = {}, NEXT_CHANGE.split((overrides or "").strip())
    while parts and parts != [""]:
        field, equals, value = parts.pop(0).partition("=")
        if not equals or not field:
            raise ConfigError(f"{field!r} is not FIELD=VALUE, as in recall.tau=0.5")
        while field not in found:
            try:
                found[field] = _value(value)
            except yaml.YAMLError:
                if not parts:
                    raise ConfigError(
                        f"{field}: {value!r} is no YAML: close its brackets and quotes"
                    ) from None
                value += parts.pop(0) + parts.pop(0)
        del parts[:1]  # the space before the next one
    return found


def _value(text: str) -> Any:
    read = yaml.load(text, _Loader)
    return float(read) if isinstance(read, str) and NUMBER.fullmatch(read) else read


# ---- reading ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the plain loader silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(problem="a key must be a plain name")
            if key.value in known and key.tag != "tag:yaml.org,2002:merge":
                place = f"line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=f"{place}: {key.value!r} is given twice")
            known.add(key.value)
        return super().construct_mapping(node, deep)


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
    chosen = str(model or asked.get("model"))
    own = {str(field): value for field, value in _at(asked, "models", chosen, "overrides").items()}
    raw = _changed(raw, own, f"{path.name}: models.{chosen}.overrides:")
    raw = _changed(raw, overrides, "override")
    for task in _at(raw, "tasks"):
        if _own_pool(f"tasks.{task}", overrides):
            _at(raw, "tasks", task, "sizes")["pool"] = None
    if model:
        raw["model"] = _known(model, raw.get("models", {}), "model", path.name)
    if tasks:
        raw["tasks"] = {task: raw["tasks"][_known(task, raw["tasks"], "task", path.name)] for task in tasks}
    try:
        preset = Preset.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, path.name)) from None
    _known(preset.model, preset.models, "model", path.name)
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
    listed = raw.get("tasks", {})
    if not isinstance(listed, dict) or not all(isinstance(task, dict) for task in listed.values()):
        raise ConfigError(f"{path.name}: tasks holds each task's name with fields below it, such as sizes")
    for place in DROPPED:
        if _drop(raw, *place.split(".")):
            print(f"{path.name}: {place} is left out: version 0.2 has no such field")
    return raw


def _own_pool(task: str, overrides: dict[str, Any]) -> bool:
    """Whether overrides name a source that fills a task's pool, and no size of it."""
    made = _changed(
        {}, {key: value for key, value in overrides.items() if f"{key}.".startswith(f"{task}.")}, ""
    )
    made = _at(made, *task.split("."))
    fills = [
        "pool" in (source.get("sets") or [name])
        for name, source in _at(made, "data", "sources").items()
        if {"file", "hub"} & {*_at(source)}
    ]
    return any(fills) and "pool" not in _at(made, "sizes")


def _known(name: str, known: Any, what: str, file: str) -> str:
    if name not in known:
        raise ConfigError(f"{file}: no {what} {name!r}; known: {', '.join(known)}")
    return name


def _at(raw: Any, *keys: str) -> dict[str, Any]:
    """The fields at a place of a preset; none where it does not have that form."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, dict) else {}


def _changed(raw: dict, overrides: dict[str, Any], whose: str) -> dict[str, Any]:
    """A copy with other values at dotted places. whose: how a message begins."""
    raw = copy.deepcopy(raw)
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        node = raw
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{whose} {dotted!r}: {key!r} has no fields of its own")
        node[last] = copy.deepcopy(value)  # what comes next may change a field of it
    return raw


def _drop(node: Any, key: str, *rest: str) -> bool:
    """Remove a field, under every name where a name is *; whether there was one."""
    if not isinstance(node, dict):
        return False
    if not rest:
        return node.pop(key, None) is not None
    return any([_drop(node.get(name), *rest) for name in (list(node) if key == "*" else [key])])


def _explain(error: ValidationError, file: str) -> str:
    problems = [
        (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()
    ]
    return "\n".join(": ".join(filter(None, (file, place, text))) for place, text in problems)

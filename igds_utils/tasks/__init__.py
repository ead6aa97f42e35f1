"""The tasks, by name: each is a YAML file, the built-in ones in presets/tasks/."""

from pathlib import Path

import yaml

from igds_utils.config.config import PRESETS, PROJECT, ConfigError
from igds_utils.config.refs import Metric, TaskSpec
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example, Sets


def get(name: str, spec: TaskSpec | str | None = None, metric: Metric | None = None) -> Task:
    """The task of that name: the built-in one, or the one that `spec`, its fields or its YAML file, describes.

    metric: in place of the one that the spec names. Raises `ConfigError` for an unknown name, with the known ones, and
    for a file that is no task.
    """
    if spec is None:
        if name not in (known := sorted(file.stem for file in (PRESETS / "tasks").glob("*.yaml"))):
            raise ConfigError(
                f"no task {name!r}; known: {', '.join(known)}. For one of your own, say in the preset "
                f"`tasks: {{{name}: {{task: path/to/it.yaml, ...}}}}`"
            )
        spec = str(PRESETS / "tasks" / f"{name}.yaml")
    spec = spec if isinstance(spec, TaskSpec) else read_spec(spec)
    return Task(name, spec.model_copy(update={"metric": metric}) if metric else spec)


def read_spec(path: str) -> TaskSpec:
    """A task's YAML file; a relative path is read from the project's root."""
    file = PROJECT / Path(path).expanduser()
    try:
        return TaskSpec.read(yaml.safe_load(file.read_text(encoding="utf8")), file.name)
    except OSError:
        raise ConfigError(f"no task file {file}: correct `task:` in the preset") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file.name} is not valid YAML: {error}") from None


__all__ = ["Example", "Sets", "Task", "get", "read_spec"]

"""The tasks, by name: each is a YAML file, the built-in ones in presets/tasks/."""

from pathlib import Path

from igds_utils.config.config import PRESETS, PROJECT, ConfigError, read_yaml
from igds_utils.config.refs import Metric, TaskSpec
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example, Sets


def get(name: str, spec: TaskSpec | str | None = None, metric: Metric | None = None) -> Task:
    """The task of that name: the built-in one, or the one of `spec`, its fields or its file.

    A relative path is read from the project's root. metric: in place of the spec's. Raises
    `ConfigError` for an unknown name, with the known ones, and for a file that is no task.
    """
    known = {file.stem: file for file in sorted((PRESETS / "tasks").glob("*.yaml"))}
    if spec is None and name not in known:
        raise ConfigError(
            f"no task {name!r}; known: {', '.join(known)}. For one of your own, say in the preset "
            f"`tasks: {{{name}: {{task: path/to/it.yaml, ...}}}}`"
        )
    if not isinstance(spec, TaskSpec):
        file = PROJECT / Path(spec or known[name]).expanduser()
        try:
            spec = TaskSpec.read(read_yaml(file.read_bytes(), file.name), file.name)
        except OSError as error:
            raise ConfigError(f"no task can be read from {file}: {error}") from None
    return Task(name, spec.model_copy(update={"metric": metric}) if metric else spec)


__all__ = ["Example", "Sets", "Task", "get"]

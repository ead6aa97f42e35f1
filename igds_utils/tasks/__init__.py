"""The tasks, by name. A new one is a file with a subclass of `base.Task` and a line here."""

from igds_utils.tasks.base import Example, Task
from igds_utils.tasks.math import MathTask
from igds_utils.tasks.summarization import SummarizationTask
from igds_utils.tasks.translation import TranslationTask

TASKS: dict[str, Task] = {task.name: task for task in (MathTask(), SummarizationTask(), TranslationTask())}


def get(name: str) -> Task:
    """The task of that name; raises `ValueError` with the known names."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["TASKS", "Example", "Task", "get"]

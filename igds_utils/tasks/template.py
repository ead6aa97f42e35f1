"""A task of a user's own: templates and a metric from YAML, rows from the `sources` of its preset."""

from __future__ import annotations

from igds_utils.config.refs import TaskSpec
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import placeholders


class TemplateTask(Task):
    """A task that a `TaskSpec` describes completely.

    spec.prompt: "{question}\\nAnswer:"; its SFT record, unless the spec has another, asks with the part before the
    cue and answers with the cue and the target, as the paper's math records do.
    """

    def __init__(self, name: str, spec: TaskSpec):
        body, cue = spec.prompt.rsplit("\n", 1)
        self.name, self.title, self.scoring = name, spec.title, spec.metric
        self.identification_template, self.target_template = spec.prompt, spec.target
        self.reference, self.stops = spec.reference, tuple(spec.stops)
        self.optional = tuple(placeholders(spec.prompt + spec.target))
        self.records_instruction = body if spec.instruction is None else spec.instruction
        self.records_input = spec.input
        self.records_output = f"{cue} {{target}}" if spec.output is None else spec.output

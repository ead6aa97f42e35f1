"""What a notebook works with: a preset opened as a run, with its models, SAEs, data and products.

run = open_run("quick", tasks=["math"])
table = run.make("math/recall.parquet", build, **run.inputs("math", "prior"), tau=0.8)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igds_utils import store, tasks
from igds_utils.config import PROJECT, load_preset
from igds_utils.settings import Preset, TaskConfig
from igds_utils.tasks.base import Example, Task

if TYPE_CHECKING:
    from igds_utils.sae import Feature


def open_run(
    preset: str,
    model: str = "",
    tasks: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    results: str = "",
) -> Run:
    """Open a preset; its products live under <results>/<preset>/<model>/ (results: "" is the project's own folder)."""
    chosen = load_preset(preset, model, tasks, overrides)
    return Run(chosen, (Path(results) if results else PROJECT / "results") / chosen.name)


class Run:
    """A preset with everything that is loaded or stored for it; models and data are loaded when first used."""

    def __init__(self, preset: Preset, root: Path):
        self.preset, self.root = preset, root
        self.store = store.Store(root / preset.model)
        self.make, self.make_in_parts, self.read = self.store.make, self.store.make_in_parts, self.store.read
        self._sets: dict[str, dict[str, list[Example]]] = {}

    # ---- tasks and their data ----

    @property
    def tasks(self) -> list[str]:
        return list(self.preset.tasks)

    def config(self, task: str) -> TaskConfig:
        return self.preset.tasks[task]

    def task(self, task: str) -> Task:
        return tasks.get(task)

    def sets(self, task: str) -> dict[str, list[Example]]:
        """The sets prior, validation, confirmation, pool and test, no two with a text in common."""
        if task not in self._sets:
            self._sets[task] = self.task(task).sets(self.config(task), self.preset.seed)
        return self._sets[task]

    def examples(self, task: str, name: str) -> list[Example]:
        return self.sets(task)[name]

    def prompts(self, task: str, name: str) -> list[str]:
        """Identification prompts of a set, rendered, each ending in its critical colon."""
        from igds_utils.prompts import identification_prompt

        rendering = self.config(task).rendering
        return [
            identification_prompt(self.task(task), example, self.lm.tokenizer, rendering)
            for example in self.examples(task, name)
        ]

    def training_records(self, task: str, examples: list[Example]) -> list[dict[str, str]]:
        """Samples in the SFT rendering, in the order given: id, prompt, completion."""
        from igds_utils.prompts import sft_pair

        config, tokenizer = self.config(task), self.lm.tokenizer
        records = []
        for example in examples:
            prompt, completion = sft_pair(self.task(task), example, tokenizer, config.sft.rendering, config)
            records.append({"id": example.id, "prompt": prompt, "completion": completion})
        return records

    def training_pairs(self, records: list[dict[str, str]]) -> list[tuple[list[int], int]]:
        """Token ids of prompt + completion + end of each record, and how many of them are the prompt's."""
        from igds_utils.prompts import encode_pair

        return [encode_pair(self.lm.tokenizer, record["prompt"], record["completion"]) for record in records]

    def samples(self, task: str, ids: list[str]):
        """Samples of any set, by id, with the token ids that the causal filter reads."""
        from igds_utils.intervention import Sample
        from igds_utils.prompts import encode_pair, identification_prompt

        config, tokenizer = self.config(task), self.lm.tokenizer
        known = {example.id: example for members in self.sets(task).values() for example in members}
        made = []
        for example in (known[sample_id] for sample_id in ids):
            prompt = identification_prompt(self.task(task), example, tokenizer, config.rendering)
            tokens, n_prompt = encode_pair(tokenizer, prompt, f" {example.target}")
            made.append(Sample(example.id, tokens[:n_prompt], tokens, example))
        return made

    def score(self, task: str) -> Callable[[str, Example], float]:
        """The task's own metric of one output: the first of those that it reports."""
        measure = self.task(task)
        return lambda output, example: measure.score(output, example)[measure.metric]

    # ---- models ----

    @cached_property
    def lm(self):
        """The model whose features are read and steered."""
        from igds_utils.lm import load_lm

        return load_lm(self.preset.chosen.identify, self.preset.chosen.dtype)

    def trainable_lm(self):
        """A fresh copy of the model that is fine-tuned."""
        from igds_utils.lm import load_lm

        return load_lm(self.preset.chosen.train, self.preset.chosen.dtype)

    @cached_property
    def saes(self):
        from igds_utils.sae import Saes

        return Saes(self.preset.chosen.saes, self.lm.n_layers, self.lm.width, self.lm.device)

    def task_features(self, task: str) -> list[Feature]:
        """F_task: the features that the causal filter chose."""
        from igds_utils.sae import Feature

        return [Feature.parse(name) for name in self.read(f"{task}/task_features.json")["selected"]]

    # ---- what products depend on ----

    def inputs(self, task: str, *sets: str) -> dict[str, Any]:
        """What every product of the identification model depends on: model, SAEs, rendering, these sets' samples."""
        chosen = self.preset.chosen
        return {
            "model": chosen.identify,
            "dtype": chosen.dtype,
            "saes": {**chosen.saes.model_dump(), "content": self.sae_version},
            "rendering": self.config(task).rendering,
            "data": {name: self.data_version(task, name) for name in sets},
        }

    def training_inputs(self, task: str) -> dict[str, Any]:
        """What everything that reads pool samples as training samples depends on."""
        config = self.config(task)
        return {
            "model": self.preset.chosen.train,
            "dtype": self.preset.chosen.dtype,
            "rendering": [config.sft.rendering, config.rendering, config.shots],
            "data": self.data_version(task, "pool"),
        }

    def data_version(self, task: str, name: str) -> str:
        return store.fingerprint(
            [(e.id, e.fields, e.target, e.references) for e in self.examples(task, name)]
        )

    @cached_property
    def sae_version(self) -> str:
        """A hash of the SAE files of a local folder; releases and tiny SAEs are fixed by their name."""
        from igds_utils.hub import sha256

        if self.preset.chosen.saes.source != "folder":
            return self.preset.chosen.saes.name
        files = sorted((PROJECT / self.preset.chosen.saes.name).glob("layer_*/*"))
        return store.fingerprint([(path.parent.name, path.name, sha256(path)) for path in files])

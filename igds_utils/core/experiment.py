"""What a notebook works with: a preset opened as a run, with its models, SAEs, data and products.

run = open_run("quick", tasks=["math"])
table = run.make("math/recall.parquet", build, **run.inputs("math", "prior"), tau=0.8)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from igds_utils import tasks
from igds_utils.config.config import PROJECT, ConfigError, load_preset
from igds_utils.config.refs import FolderRef, Ref
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.core import store
from igds_utils.core.launch import claim
from igds_utils.data.hub import FILES, local_folder, sha256
from igds_utils.engine import prompts
from igds_utils.engine.features import Feature, sae_folders
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example, Sets
from igds_utils.tasks.sourced import describe


def open_run(
    preset: str | Path,
    model: str = "",
    tasks: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    results: str = "",
    part: str = "",
    count: bool = True,
) -> Run:
    """Open a preset; its products live under <results>/<preset>/<model>/ (results: "" is the project's own folder).

    part: "3/8" makes the third of eight shares of products that come in parts (`store.Store`). count: whether the pools
    that are used whole (`sizes.pool` none) are read and counted. Raises `ConfigError` where another preset file of the
    same name has its results there.
    """
    chosen = load_preset(preset, model, tasks, overrides)
    root = Path(results or PROJECT / "results").resolve() / chosen.name
    claim(root, str(preset))
    run = Run(chosen, root, part)
    return counted(run) if count else run


def counted(run: Run) -> Run:
    """A run whose preset knows the size of every pool: one that is to be used whole is read and counted."""
    for name, config in run.preset.tasks.items():
        if config.sizes.pool is None:
            sizes = config.sizes.model_copy(update={"pool": len(run.sets(name)["pool"])})
            tasks = run.preset.tasks | {name: config.model_copy(update={"sizes": sizes})}
            run.preset = run.preset.model_copy(update={"tasks": tasks})
    return run


class Run:
    """A preset with everything that is loaded or stored for it; models and data are loaded when first used."""

    def __init__(self, preset: Preset, root: Path, part: str = ""):
        self.preset, self.root, self.part = preset, root, part
        self.store = store.Store(root / preset.model, part=part)
        self.make, self.make_in_parts, self.read = self.store.make, self.store.make_in_parts, self.store.read
        self.until_part = self.store.until_part
        self._tasks: dict[str, Task] = {}
        self._sets: dict[str, Sets] = {}
        self._versions: dict[tuple[str, str], str] = {}
        self._models: dict[Ref, Any] = {}  # at most one

    # ---- tasks and their data ----

    @property
    def tasks(self) -> list[str]:
        return list(self.preset.tasks)

    def config(self, task: str) -> TaskConfig:
        return self.preset.tasks[task]

    def folder(self, task: str) -> str:
        """Where a task's products are, in the store."""
        return task

    def task(self, task: str) -> Task:
        """The task of that name, under the metric that the preset asks for."""
        if task not in self._tasks:
            config = self.config(task)
            self._tasks[task] = tasks.get(task, config.task, config.metric)
        return self._tasks[task]

    def sets(self, task: str) -> Sets:
        """The sets of a task by name (`Task.sets`), no two with a text in common."""
        if task not in self._sets:
            self._sets[task] = self.task(task).sets(self.config(task), self.preset.seed)
            if dropped := describe(self._sets[task].facts):
                print(f"{task}: {dropped}")
        return self._sets[task]

    def data_facts(self, task: str) -> dict[str, Any]:
        """What was left out to make the sets, and whether the test references fit into `max_new_tokens`.

        Where they do not, that is printed.
        """
        sets, limit = self.sets(task), self.config(task).max_new_tokens

        def build() -> dict[str, Any]:
            test = sets["test"]
            room = prompts.answer_room(self.train_tokenizer, test, limit) if test else {"longer": 0}
            return {**sets.facts, "test_references": room}

        inputs = {name: self.data_version(task, name) for name in ("pool", "test")}
        inputs |= {"facts": sets.facts, "max_new_tokens": limit, "model": stamped(self.preset.chosen.train)}
        made = self.make(f"{task}/data.json", build, **inputs)
        if (found := made["test_references"])["longer"]:
            print(
                f"{task}: {found['longer']:.0%} of the test references are longer than {limit} tokens (90 % at most "
                f"{found['most']}, longest {found['longest']}): raise tasks.{task}.max_new_tokens"
            )
        return made

    def examples(self, task: str, name: str) -> list[Example]:
        """A set of `sets`; "quality" is the pool of known quality, where the task has one."""
        if name == "quality" and not self.config(task).quality:
            raise ConfigError(f"tasks.{task}.quality is not set: give it a size to make a pool of known quality")
        return self.sets(task)[name]

    def prompts(self, task: str, name: str) -> list[str]:
        """Identification prompts of a set, rendered, each ending in its critical colon."""
        return [self.prompt(task, example) for example in self.examples(task, name)]

    def prompt(self, task: str, example: Example) -> str:
        """The identification prompt of one example, rendered and cut as the preset says."""
        own, config = self.task(task), self.config(task)
        return prompts.identification_prompt(own, example, self.tokenizer, config.rendering, config.max_prompt_tokens)

    def training_records(self, task: str, examples: list[Example]) -> list[dict[str, str]]:
        """Samples in the SFT rendering, in the order given: id, prompt, completion."""
        own, config, records = self.task(task), self.config(task), []
        for example in examples:
            prompt, completion = prompts.sft_pair(own, example, self.train_tokenizer, config.sft.rendering, config)
            records.append({"id": example.id, "prompt": prompt, "completion": completion})
        return records

    def training_pairs(self, records: list[dict[str, str]]) -> list[tuple[list[int], int]]:
        """Token ids of prompt + completion + end of each record, and how many of them are the prompt's."""
        texts = [[record[part] for record in records] for part in ("prompt", "completion")]
        return prompts.encode_pairs(self.train_tokenizer, *texts)

    def samples(self, task: str, ids: list[str]) -> list[prompts.Sample]:
        """Samples of any set, by id, with the token ids that the causal filter reads."""
        known = {example.id: example for members in self.sets(task).values() for example in members}
        made = []
        for example in (known[sample_id] for sample_id in ids):
            tokens, n_prompt = prompts.encode_pair(self.tokenizer, self.prompt(task, example), f" {example.target}")
            made.append(prompts.Sample(example.id, tokens[:n_prompt], tokens, example))
        return made

    def score(self, task: str) -> Callable[[Sequence[str], Sequence[Example]], list[float]]:
        """The task's own metric, the first of those that it reports, of outputs and their examples."""
        measure = self.task(task)
        return lambda outputs, examples: [s[measure.metric] for s in measure.score_all(outputs, examples)]

    # ---- models ----

    @property
    def lm(self):
        """The model whose features are read and steered."""
        return self._model(self.preset.chosen.identify)

    @property
    def train_lm(self):
        """The model that is fine-tuned, before its training; to be read only."""
        return self._model(self.preset.chosen.train)

    def _model(self, ref: Ref):
        if ref not in self._models:
            self._models[ref] = self.load(ref)
        return self._models[ref]

    def load(self, ref: Ref):
        """Load a model for the caller to keep and to change.

        The model that this run holds is unloaded first: a GPU with room for one is enough.
        """
        from igds_utils.engine.loading import load_lm

        self.unload()
        return load_lm(ref, self.preset.chosen.dtype)

    def unload(self) -> None:
        """Drop the model and the SAE in memory, and free what nobody else holds."""
        import torch

        self._models.clear()
        if "saes" in vars(self):
            self.saes.drop()
        gc.collect()  # adapters and trainers leave models in reference cycles
        torch.cuda.empty_cache()  # what is free decides where the next model is put

    @cached_property
    def lm_config(self):
        """The configuration of the model whose features are read, without loading the model."""
        from igds_utils.engine.loading import load_config

        return load_config(self.preset.chosen.identify)

    @cached_property
    def tokenizer(self):
        """The tokenizer of the model whose features are read, without loading the model."""
        from igds_utils.engine.loading import load_tokenizer

        return load_tokenizer(self.preset.chosen.identify)

    @cached_property
    def train_tokenizer(self):
        """The tokenizer of the model that is fine-tuned, without loading the model."""
        from igds_utils.engine.loading import load_tokenizer

        chosen = self.preset.chosen
        return self.tokenizer if chosen.identify == chosen.train else load_tokenizer(chosen.train)

    @cached_property
    def saes(self):
        from igds_utils.engine.loading import first_device
        from igds_utils.engine.sae import Saes

        config = self.lm_config
        return Saes(self.preset.chosen.saes, config.num_hidden_layers, config.hidden_size, first_device())

    def task_features(self, task: str) -> list[Feature]:
        """F_task: the features that the causal filter chose."""
        return [Feature.parse(name) for name in self.read(f"{task}/task_features.json")["selected"]]

    # ---- what products depend on ----

    def inputs(self, task: str, *sets: str) -> dict[str, Any]:
        """What every product of the identification model depends on: model, SAEs, rendering, these sets' samples."""
        saes = {**self.preset.chosen.saes.model_dump(), "content": self.sae_version}
        data = {name: self.data_version(task, name) for name in sets}
        return self._read_by(task, self.preset.chosen.identify) | {"saes": saes, "data": data}

    def training_inputs(self, task: str) -> dict[str, Any]:
        """What everything that reads samples as training samples depends on, beside the samples."""
        config = self.config(task)
        rendering = [config.sft.rendering, config.rendering, config.shots]
        read = self._read_by(task, self.preset.chosen.train)
        return read | {"rendering": rendering, "max_length": config.sft.max_length}

    def _read_by(self, task: str, model: Ref) -> dict[str, Any]:
        """A model, and how a task is put to it."""
        config = self.config(task)
        return {
            "model": stamped(model),
            "dtype": self.preset.chosen.dtype,
            "rendering": config.rendering,
            "max_prompt_tokens": config.max_prompt_tokens,
            "wording": store.content_hash(self.task(task).wording),
        }

    def data_version(self, task: str, name: str) -> str:
        """A hash of all samples of a set."""
        if (task, name) not in self._versions:
            versions = [example.version for example in self.examples(task, name)]
            self._versions[task, name] = store.content_hash(versions)
        return self._versions[task, name]

    @cached_property
    def sae_version(self) -> str:
        """A hash of the SAE files of a local folder; releases and tiny SAEs are fixed by their name."""
        saes = self.preset.chosen.saes
        if saes.source != "folder":
            # by which rule their features fire, which is not sae_lens's
            rule = "; thresholds by decoder norms" if saes.name.startswith("llama_scope") else ""
            return saes.name + rule
        files = sorted(path for folder in sae_folders(saes).values() for path in folder.iterdir() if path.is_file())
        return store.content_hash([(path.parent.name, path.name, sha256(path)) for path in files])


def stamped(ref: Ref | None) -> Any:
    """A model as an input of products.

    Of a folder the sizes and times of its files are part of it: another model may have been saved under the same path.
    """
    if not isinstance(ref, FolderRef):
        return ref
    files = sorted(file for pattern in FILES for file in local_folder(ref).glob(pattern))
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return {**ref.model_dump(), "content": store.content_hash(stats)}

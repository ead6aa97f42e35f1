"""What a notebook works with: a preset opened as a run, with models, SAEs, data and products.

run = open_run("quick", tasks=["math"])
table = run.make("math/recall.parquet", build, **run.inputs("math", "prior"), tau=0.8)
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partialmethod
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

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

# in notebooks' tables, samples and answers stay text: neither HTML nor formulas
pd.set_option("styler.format.escape", "html", "styler.html.mathjax", False)
pd.set_option("display.html.use_mathjax", False)
Styler.format = partialmethod(Styler.format, escape="html")


def open_run(
    preset: str | Path,
    model: str = "",
    tasks: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    results: str = "",
    part: str = "",
    count: bool = True,
) -> Run:
    """Open a preset; its products live under <results>/<preset>/<model>/.

    results: by default the project's. part: as of `store.Store`. count: whether to count the pools
    that are used whole. Raises `ConfigError` where another preset has its results there.
    """
    chosen = load_preset(preset, model, tasks, overrides)
    root = Path(results or PROJECT / "results").resolve() / chosen.name
    claim(root, str(preset))
    run = Run(chosen, root, part)
    return counted(run) if count else run


def counted(run: Run) -> Run:
    """A run whose preset knows the size of every pool: one that is used whole is read."""
    for name, config in run.preset.tasks.items():
        if config.sizes.pool is None:
            sizes = config.sizes.model_copy(update={"pool": len(run.sets(name)["pool"])})
            run.preset.tasks[name] = config.model_copy(update={"sizes": sizes})
    return run


class Run:
    """A preset with its data, models and products; models and data are loaded when first used."""

    def __init__(self, preset: Preset, root: Path, part: str = ""):
        self.preset, self.root, self.part, self.tasks = preset, root, part, list(preset.tasks)
        self.store = own = store.Store(root / preset.model, part=part)
        self.make, self.make_in_parts, self.read = own.make, own.make_in_parts, own.read
        self.until_part = own.until_part
        self._models: dict[Ref, Any] = {}  # at most one
        self.task, self.sets = cache(self.task), cache(self.sets)
        self.data_version = cache(self.data_version)

    def config(self, task: str) -> TaskConfig:
        return self.preset.tasks[task]

    def folder(self, task: str) -> str:
        """Where a task's products are, in the store."""
        return task

    def task(self, task: str) -> Task:
        """The task of that name, under the metric that the preset asks for."""
        config = self.config(task)
        own = tasks.get(task, config.task, config.metric)
        if config.shots > len(own.shots):
            raise ConfigError(f"tasks.{task}.shots: {config.shots}, the task has {len(own.shots)} worked examples")
        return own

    def sets(self, task: str) -> Sets:
        """The sets of a task by name (`Task.sets`), no two with a text in common."""
        sets = self.task(task).sets(self.config(task), self.preset.seed)
        if dropped := describe(sets.facts):
            print(f"{task}: {dropped}")
        return sets

    def data_facts(self, task: str) -> dict[str, Any]:
        """What was left out to make the sets, and whether the test references fit into
        `max_new_tokens`, which is printed where they do not: `data.json`."""
        sets, limit = self.sets(task), self.config(task).max_new_tokens

        def build() -> dict[str, Any]:
            texts = [f" {max((one.target, *one.references), key=len)}" for one in sets["test"]]
            read = self.train_tokenizer(texts, add_special_tokens=False)["input_ids"]
            longer = fmean(len(ids) > limit for ids in read)
            room = {"limit": limit, "longer": longer, "longest": max(map(len, read))}
            return {**sets.facts, "test_references": room}

        inputs = {name: self.data_version(task, name) for name in ("pool", "test")}
        inputs |= {"facts": sets.facts, "model": stamped(self.preset.chosen.train)}
        made = self.make(f"{task}/data.json", build, max_new_tokens=limit, **inputs)
        if longer := made["test_references"]["longer"]:
            mend = f"raise tasks.{task}.max_new_tokens to {made['test_references']['longest']}"
            print(f"{task}: {longer:.0%} of the test references exceed {limit} tokens: {mend}")
        return made

    def examples(self, task: str, name: str) -> list[Example]:
        """A set of `sets`; "quality" is the pool of known quality, where the task has one."""
        return self.sets(task)[name]

    def prompts(self, task: str, name: str) -> list[str]:
        """Identification prompts of a set, rendered, each ending in its critical colon."""
        return [self.prompt(task, example) for example in self.examples(task, name)]

    def prompt(self, task: str, example: Example) -> str:
        """The identification prompt of one example, rendered and cut as the preset says."""
        own, config, tokenizer = self.task(task), self.config(task), self.tokenizer
        how = config.rendering, config.max_prompt_tokens
        return prompts.identification_prompt(own, example, tokenizer, *how)

    def training_records(self, task: str, examples: list[Example]) -> list[dict[str, str]]:
        """Samples in the SFT rendering, in the order given: id, prompt, completion."""
        own, config, records = self.task(task), self.config(task), []
        how = self.train_tokenizer, config.sft.rendering, config
        for example in examples:
            prompt, completion = prompts.sft_pair(own, example, *how)
            records.append({"id": example.id, "prompt": prompt, "completion": completion})
        return records

    def training_pairs(self, records: list[dict[str, str]]) -> list[tuple[list[int], int]]:
        """Token ids of prompt + completion + end of each record, and how many are the prompt's."""
        texts = [[record[part] for record in records] for part in ("prompt", "completion")]
        return prompts.encode_pairs(self.train_tokenizer, *texts)

    def samples(self, task: str, ids: list[str]) -> list[prompts.Sample]:
        """Samples of any set, by id, with the token ids that the causal filter reads."""
        known = {example.id: example for members in self.sets(task).values() for example in members}
        asked = [known[one] for one in ids]
        return prompts.samples(self.tokenizer, asked, [self.prompt(task, one) for one in asked])

    def score(self, task: str) -> Callable[[Sequence[str], Sequence[Example]], list[float]]:
        """The task's own metric, the first of those that it reports."""
        own = self.task(task)
        return lambda outputs, of: [found[own.metric] for found in own.score_all(outputs, of)]

    def task_features(self, task: str) -> list[Feature]:
        """F_task: the features that the causal filter chose."""
        return [Feature.parse(name) for name in self.read(f"{task}/task_features.json")["selected"]]

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
        """A model for the caller to keep and change; that of the run is unloaded first."""
        self.unload()
        return _loading().load_lm(ref, self.preset.chosen.dtype)

    def unload(self) -> None:
        """Drop the model and the SAE in memory, and free what nobody else holds."""
        import torch

        self._models.clear()
        if "saes" in vars(self):
            self.saes.drop()
        gc.collect()  # adapters and trainers leave models in reference cycles
        torch.cuda.empty_cache()  # what is free decides where the next model is put

    # what is known of the model whose features are read, and of the fine-tuned one, unloaded
    lm_config = cached_property(lambda s: _loading().load_config(s.preset.chosen.identify))
    tokenizer = cached_property(lambda s: _loading().load_tokenizer(s.preset.chosen.identify))
    train_tokenizer = cached_property(lambda s: _loading().load_tokenizer(s.preset.chosen.train))

    @cached_property
    def saes(self):
        """The SAEs of the preset by layer (`engine.sae.Saes`), read when they are asked for."""
        from igds_utils.engine.sae import Saes

        depth, width = self.lm_config.num_hidden_layers, self.lm_config.hidden_size
        return Saes(self.preset.chosen.saes, depth, width, _loading().first_device())

    def inputs(self, task: str, *sets: str) -> dict[str, Any]:
        """What products of the identification model depend on: it, SAEs, rendering, these sets."""
        saes = {**self.preset.chosen.saes.model_dump(), "content": self.sae_version}
        data = {name: self.data_version(task, name) for name in sets}
        return self._read_by(task, self.preset.chosen.identify) | {"saes": saes, "data": data}

    def training_inputs(self, task: str) -> dict[str, Any]:
        """What all that reads samples as training samples depends on, beside the samples."""
        config = self.config(task)
        rendering = [config.sft.rendering, config.rendering, config.shots]
        read = self._read_by(task, self.preset.chosen.train)
        return read | {"rendering": rendering, "max_length": config.sft.max_length}

    def _read_by(self, task: str, model: Ref) -> dict[str, Any]:
        """A model, and how a task is put to it."""
        config, wording = self.config(task), store.content_hash(self.task(task).wording)
        read = {"model": stamped(model), "dtype": self.preset.chosen.dtype, "wording": wording}
        return read | {name: getattr(config, name) for name in ("rendering", "max_prompt_tokens")}

    def data_version(self, task: str, name: str) -> str:
        """A hash of all samples of a set."""
        return store.content_hash([example.version for example in self.examples(task, name)])

    @cached_property
    def sae_version(self) -> str:
        """A hash of the SAE files of a folder; releases and tiny SAEs are fixed by their name."""
        saes = self.preset.chosen.saes
        if saes.source != "folder":
            return saes.name
        files = [path for folder in sae_folders(saes).values() for path in folder.iterdir()]
        files = sorted(path for path in files if path.is_file())
        return store.content_hash([(path.parent.name, path.name, sha256(path)) for path in files])


def stamped(ref: Ref | None) -> Any:
    """A model as an input of products: of a folder, where another may be saved, with its files."""
    if not isinstance(ref, FolderRef):
        return ref
    folder = local_folder(ref)
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return {**ref.model_dump(), "content": store.content_hash(stats)}


def _loading():
    """What loads models: with torch and transformers, whose imports take seconds."""
    from igds_utils.engine import loading

    return loading

"""A pool of a task as selectors see it, with everything that is measured on it.

context = pool.context(run, "math", pool="quality")
ranking = selectors.rank_pool("igds", context, size=48)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.selection.needs import MEASUREMENTS, Pool
from igds_utils.tasks.examples import Example

Name = Literal["pool", "quality"]


class Shown(Sequence[selectors.PoolSample]):
    """Samples as selectors see them, each made when it is asked for."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[selectors.PoolSample]:
        return map(self._shown, self._examples)

    def __getitem__(self, number: int) -> selectors.PoolSample:
        return self._shown(self._examples[number])

    @staticmethod
    def _shown(example: Example) -> selectors.PoolSample:
        return selectors.PoolSample(example.id, example.target, example.text)


def open_pool(run: Run, task: str, seed: int = 0, pool: Name = "pool") -> Pool:
    """The pool that a task trains on, or its pool of known quality; measurements are stored apart.

    Raises `ConfigError` where the preset is strict (`intervention.strict`) and the task feature is not established.
    """
    config = run.config(task)
    if pool == "pool":
        if run.preset.intervention.strict and any(name.startswith("igds") for name in config.selectors):
            _refuse_unestablished(run, task)
        return Pool(run, task, run.examples(task, "pool"), f"{task}/needs", seed, tuple(config.selectors))
    asked = config.quality.selectors if config.quality else "all"
    every = selectors.names() if asked == "all" else asked
    return Pool(run, task, run.examples(task, pool), f"{task}/{pool}/needs", seed, tuple(every))


def _refuse_unestablished(run: Run, task: str) -> None:
    found = run.read(f"{task}/task_features.json")
    if not found["established"]:
        config = run.config(task)
        others = [name for name in config.selectors if not name.startswith("igds")]
        change = f"tasks.{task}.selectors=[{','.join(others)}]" + f" tasks.{task}.curve=null" * bool(
            config.curve
        )
        raise ConfigError(
            f"{task}: the effect of {', '.join(found['selected'])} is not established on the confirmation set, and "
            f'intervention.strict asks for no IGDS arm then: leave it out (SET="{change}"), or set strict to false'
        )


def context(run: Run, task: str, seed: int = 0, pool: Name = "pool") -> selectors.Context:
    """What the selectors of a task may know of a pool; labels of the samples are not part of it."""
    return context_of(open_pool(run, task, seed, pool))


def context_of(pool: Pool, ids: Sequence[str] = ()) -> selectors.Context:
    """The same for any pool, for instance one of a user; ids: of its samples, where they are known already."""
    return selectors.Context(
        Shown(pool.examples),
        seed=pool.seed,
        ids=ids or pool.samples.ids,
        examples=Shown(pool.target_examples),
        about=lambda need: {} if need == "examples" else pool.measured(need).about,
        **{need: partial(_values, pool, need) for need in MEASUREMENTS},
    )


def version(run: Run, task: str, need: str, pool: Name = "pool", seed: int = 0) -> str:
    """What identifies one measurement of a pool, made first if it is not stored; part of a ranking's inputs."""
    return open_pool(run, task, seed, pool).version(need)


def measure(run: Run, task: str, pool: Name = "pool") -> None:
    """All that the selectors of a pool need of it."""
    for seed in run.config(task).seeds:
        open_pool(run, task, seed, pool).measure_all()


def _values(pool: Pool, need: str):
    return pool.measured(need).values

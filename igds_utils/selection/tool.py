"""Selecting from a pool of one's own, on the command line (`igds select`) or in a notebook.

run = open_run("quick", tasks=["math"])
chosen = tool.select(run, "math", "pool.jsonl", "selection", selector="igds", ratio=0.5)
print(explain.explain("selection", "line-000017"))

What is measured on a pool is stored with the run's results, so another selector or ratio costs little, and a call that
was killed goes on where it was.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core import store
from igds_utils.core.arms import selection_size
from igds_utils.core.experiment import Run
from igds_utils.core.store import content_hash
from igds_utils.data.hub import temporary_folder
from igds_utils.engine.sae import Feature
from igds_utils.selection import pool as pools
from igds_utils.selection.needs import Pool
from igds_utils.selection.readable import FIRES, check_readable
from igds_utils.selection.user_pool import PoolError, UserPool, read_pool

FACTS = "selection.json"
FILES = ("scores.parquet", "scores.csv", "selection.jsonl", FACTS)  # in the order in which they are written


@dataclass(frozen=True)
class Selection:
    """What `select` wrote: every sample's score and rank, and what to know of the selection."""

    folder: Path
    scores: pd.DataFrame  # sample_id, place, score, rank, selected, filled
    facts: dict[str, Any]  # selection.json

    @property
    def records(self) -> list[dict[str, Any]]:
        """The selected records as they were, best first; read from the folder."""
        return store.Store(self.folder).read("selection.jsonl")


class PoolRun(Run):
    """A run that reads features which the caller names, where it names any, in place of those of the causal filter."""

    def __init__(self, run: Run, features: list[Feature] | None):
        super().__init__(run.preset, run.root)
        self._models = run._models
        self.store.log = lambda text: None
        self._features = features

    def task_features(self, task: str) -> list[Feature]:
        if self._features is not None:
            return self._features
        if not self.store.has(f"{task}/task_features.json"):
            raise ConfigError(
                f"no task features of {task} are stored in {self.store.root}: run notebooks 1 and 2 (make reproduce "
                f"TASKS={task} PRESET={self.preset.name}), or name features as l<layer>_p<index>"
            )
        return super().task_features(task)


def select(
    run: Run,
    task: str,
    source: str | Sequence[str],
    folder: str | Path,
    selector: str = "igds",
    ratio: float = 0.5,
    features: str = "",
    columns: dict[str, Any] | None = None,
    skip_bad: bool = False,
) -> Selection:
    """Rank a pool of the user's own and write its best `ratio` into a folder; nothing is written if anything is wrong.

    source, columns: as for `user_pool.read_pool`. skip_bad: leave out records that cannot be used. features: names
    joined by commas, or a task_features.json; by default those that the causal filter chose.

    Texts are read, scored and written part by part, so that they may be larger than memory. What is measured is held
    for the whole pool: a number a sample for IGDS, Loss and IFD, a vector for RDS+, LESS and embeddings, the features
    that fire for MONA and the coverage selectors. ZIP, BM25 and #InsTag hold all texts, or their words.

    Written are selection.jsonl (the records as they were, best first), scores.parquet and scores.csv (all samples) and
    selection.json (what was asked for, and what to know). Raises `ConfigError` (a pool's problems are `PoolError`).
    """
    folder = Path(folder)
    _check_request(run, task, selector, ratio, folder)
    own = PoolRun(run, read_features(features) if features else None)
    pool = read_pool(source, own.task(task), columns)
    _keep_what_is_given(folder, [*pool.files, Path(features)])
    pool, cut = check_readable(own, task, pool, selector, skip_bad)
    members = members_of(own, task, pool, selector)
    size, left_out = selection_size(ratio, len(pool)), sorted(pool.left_out)
    try:
        ranking = selectors.rank_pool(selector, pools.context_of(members, pool.ids), size)
    except FileNotFoundError as error:  # what a control needs of the earlier notebooks
        raise ConfigError(f"selector {selector!r}: {error}") from None
    except selectors.UnusableScores as error:
        raise PoolError(f"{pool.place(pool.ids.index(error.ids[0]))}: {error}") from None
    names = [source] if isinstance(source, str) else source
    where = [str(path.resolve()) if (path := Path(name).expanduser()).exists() else name for name in names]
    request = {
        "preset": run.preset.name, "model": run.preset.model, "task": task, "selector": selector, "ratio": ratio,
        "source": where[0] if len(where) == 1 else where, "features": features, "columns": columns or {},
        "data": members.samples.data_version, "left_out": left_out,
    }  # fmt: skip
    facts = request | {
        "samples": len(ranking),
        "selected": size,
        "made_by": ranking.attrs["selector"],
        "remarks": [*pool.remarks, *cut, *remarks(ranking, size, members)],
    }
    return _write(folder, pool, ranking, size, facts)


def members_of(run: Run, task: str, pool: UserPool, selector: str) -> Pool:
    """A user's pool as selectors see it."""
    key = content_hash((e.id, e.fields, e.target) for e in pool)
    return Pool(run, task, pool, f"{task}/pools/{key}", run.preset.seed, (selector,))


def read_features(text: str) -> list[Feature]:
    """Features by name, joined by commas, or those that a task_features.json selected."""
    names = [name.strip() for name in text.split(",")]
    if text.endswith(".json"):
        try:
            names = json.loads(Path(text).read_text(encoding="utf-8-sig"))["selected"]
        except OSError:
            raise ConfigError(f"there is no file {text}: correct the path of the task features") from None
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{text} is no task_features.json: it must hold a list `selected` of names l<layer>_p<index>"
            ) from None
    found = []
    for name in names:
        try:
            found.append(Feature.parse(name))
        except ValueError:
            raise ConfigError(f"{name!r} is no feature: write l<layer>_p<index>") from None
    if not found:
        raise ConfigError(f"{text} selects no feature: name some as l<layer>_p<index>")
    return found


def remarks(ranking: pd.DataFrame, size: int, members: Pool) -> list[str]:
    """What a reader of a selection has to know: features that are silent, and ties that decided."""
    made, said = ranking.attrs["selector"], []
    if FIRES in selectors.get(made["name"]).needs:
        names = ", ".join(feature.name for feature in members.run.task_features(members.task))
        silent = int((members.measured(FIRES).values.sum(axis=1) == 0).sum())
        if silent == len(ranking):
            said.append(f"no sample of this pool fires {names}: the scores say nothing about it")
        elif silent:
            said.append(f"{silent} of {len(ranking)} samples do not fire {names}: their score is 0")
    if not isinstance(selectors.get(made["name"]), selectors.Procedure):
        kept = ranking["rank"] <= size
        tied = ranking["score"] == ranking.loc[ranking["rank"] == size, "score"].item()
        if (tied & ~kept).any():
            said.append(
                f"{(tied & kept).sum()} of the {size} selected have the same score as {(tied & ~kept).sum()} that were "
                "left out: ties decided, by sample id"
            )
    elif made["facts"]["filled"]:
        said.append(
            f"{made['facts']['filled']} of the {size} selected only fill the budget: the rule left them out"
        )
    return said


def _check_request(run: Run, task: str, selector: str, ratio: float, folder: Path) -> None:
    if task not in run.tasks:
        raise ConfigError(f"preset {run.preset.name} has no task {task!r}; known: {', '.join(run.tasks)}")
    if selector not in selectors.names():
        close = difflib.get_close_matches(selector, selectors.names(), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"no selector {selector!r}{hint}; known: {', '.join(selectors.names())}")
    if not 0 < ratio <= 1:  # also refuses nan
        raise ConfigError(f"a ratio must lie in (0, 1], not {ratio}: 0.5 keeps the better half")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder for the selection")


def _keep_what_is_given(folder: Path, given: list[Path]) -> None:
    """Refuse to write over a file that is read, or that no selection wrote."""
    written = [folder / name for name in FILES]
    taken = next((file for file in given if file.resolve() in [path.resolve() for path in written]), None)
    there = [file for file in written if file.exists()]
    if there and not {*written[:-1]} <= {*there}:  # no whole selection; its facts go first when it is replaced
        taken = taken or there[0]
    if taken:
        raise ConfigError(f"{taken} would be overwritten by the selection: name another folder with --out")


def _write(
    folder: Path, pool: UserPool, ranking: pd.DataFrame, size: int, facts: dict[str, Any]
) -> Selection:
    numbers = pd.Index(pool.ids).get_indexer(ranking["sample_id"])  # (N,) of the pool, in the ranking's order
    scores = pd.DataFrame(
        {
            "sample_id": ranking["sample_id"],
            "place": [pool.place(number) for number in numbers],
            "score": ranking["score"],
            "rank": ranking["rank"],
            "selected": ranking["rank"] <= size,
            "filled": ranking["filled"],
        }
    )
    best = numbers[np.argsort(ranking["rank"].to_numpy())][:size]
    try:
        with temporary_folder(folder / "selection") as new:  # an earlier selection stays until this one is whole
            out = store.Store(new)
            out.write("scores.parquet", scores)
            scores.to_csv(new / "scores.csv", index=False, lineterminator="\n")
            pool.write(new / "selection.jsonl", best)
            out.write(FACTS, facts)
            (folder / FACTS).unlink(missing_ok=True)
            for name in FILES:
                (new / name).replace(folder / name)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): name another folder") from None
    return Selection(folder, scores, facts)

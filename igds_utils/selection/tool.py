"""Selecting from a pool of one's own, on the command line (`igds select`) or in a notebook: `select`.

A record holds the fields of the task's prompt, and its target or what the task makes targets of; an "id" is optional,
and whatever else it holds is kept. Records are read from files or the hub and checked to the last one before anything
is computed: problems are one error that names file, line, field and mend.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pandas as pd

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource
from igds_utils.core import store
from igds_utils.core.arms import selection_size
from igds_utils.core.experiment import Run
from igds_utils.data.hub import cache_root, temporary_folder
from igds_utils.data.rows import find_rows
from igds_utils.engine import prompts
from igds_utils.engine.loading import load_config
from igds_utils.selection.features import task_features
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selection.pool import Pool, Samples
from igds_utils.tasks.base import Task
from igds_utils.tasks.examples import Example
from igds_utils.tasks.records import Records

FACTS = "selection.json"
FILES = ("scores.parquet", "scores.csv", "selection.jsonl", FACTS)  # in the order in which they are written
FIRES = "task_feature_activations"


class PoolError(ConfigError):
    """A pool that cannot be used; the message names file, line, field and mend."""


class UserPool(Sequence[Example]):
    """Samples that are read from disk when they are asked for, so that a pool may be larger than memory.

    source: files, a folder of shards, or a dataset on the hub (`rows.find_rows`). They are read once, into a temporary
    file; of each sample only its id and its place there are kept. columns: field of the task, or `id`, -> the column
    that holds it, where they differ, or `{"value": text}` for all records, as in a preset's sources; an empty name of
    `id` numbers the records. left_out: places of records that are passed over. check: raises `ValueError` for a sample
    of no use. Raises `PoolError`, `ConfigError` or `SourceError`.
    """

    def __init__(
        self,
        source: str | Sequence[str],
        task: Task,
        columns: dict[str, Any] | None = None,
        left_out: Collection[str] = (),
        check: Callable[[Example], None] = lambda example: None,
        skip_bad: bool = False,
    ):
        columns = {f: {"value": ""} if f == "id" and not c else c for f, c in (columns or {}).items()}
        made = DataSource.model_validate({"file": "", "columns": columns})
        self.records = records = Records(find_rows(source), task, made, scored=False)
        self.name, self.ids = records.rows.name, []
        self._at: list[int] = []  # of each sample, where it is stored
        (folder := cache_root()).mkdir(parents=True, exist_ok=True)
        self._stored = TemporaryFile(dir=folder)
        for example, place, record in records.read({*left_out}):
            try:
                check(example)
            except ValueError as error:
                records.problems[place] = f"{place}: {error}"
                continue
            self.ids.append(example.id)
            self._at.append(self._stored.tell())
            self._stored.write(json.dumps([example.fields, example.target, place, record]).encode() + b"\n")
        self.left_out = [*left_out, *records.problems]
        if records.problems and not skip_bad:
            raise PoolError(records.refusal("mend or remove them, or leave them out with --skip-bad"))
        if len(self) < 2:
            held = "one sample" if self.ids else "no samples"
            raise PoolError(f"{self.name} holds {held}: there is nothing to select from; give it at least two")
        if (again := pd.Index(self.ids).duplicated()).any():
            number = int(again.argmax())
            sample_id = self.ids[number]
            raise PoolError(
                f"{self.place(number)}: id {sample_id!r} is that of {self.place(self.ids.index(sample_id))} too, and "
                f"{again.sum()} ids repeat: read another column (--column id=NAME), make one of two "
                "(--column 'id={source}-{id}'), or number the records (--column id=)"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        fields, target, *_ = self._read(number)
        return Example(self.ids[number], fields, target, ())

    def place(self, number: int) -> str:
        """Where a sample stands, for messages: `pool.jsonl line 17`."""
        return self._read(number)[2]

    def _read(self, number: int) -> list:
        self._stored.seek(self._at[number])
        return json.loads(self._stored.readline())

    def write(self, file: Path, chosen: Sequence[int]) -> None:
        """Write the records of some samples, in that order, as JSONL."""
        with store.written_whole(file) as out:
            for record in (self._read(number)[3] for number in chosen):
                line = json.dumps(record, ensure_ascii=False)
                try:
                    out.write(f"{line}\n".encode())
                except UnicodeEncodeError:  # half a character outside of the task's fields
                    out.write(f"{json.dumps(record)}\n".encode())


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
    """Rank training samples of your own by a selector, and write the best of them into a folder.

        run = open_run("quick", tasks=["math"])
        chosen = select(run, "math", "pool.jsonl", "selection", selector="igds", ratio=0.5)
        chosen.records[0]  # the best sample, as it stands in the file
        print(explain(run, "selection", chosen.scores["sample_id"][0]))

    run: which models and SAEs read the samples. task: how they are put to them; one of the preset's. source: files, a
    folder of them, or a dataset of the hub. folder: where the selection goes; nothing is written if anything is wrong.
    selector: by name (`selectors.names()`). ratio: the share of the samples that is kept. features: task features as
    "l14_p11575,l9_p3" or the path of a task_features.json; by default those that the run found in notebooks 1 and 2.
    columns: as of `UserPool`. skip_bad: leave out samples that cannot be used, instead of refusing the pool.

    Written are selection.jsonl (the records as they were, best first), scores.parquet and scores.csv (all samples) and
    selection.json (what was asked for, and what to know). What is measured is stored with the run's results, so that
    another selector or ratio costs little, and a call that was killed goes on where it was. Raises `ConfigError`;
    problems of the samples are `PoolError`, with file and line.

    Texts are read, scored and written part by part and need not fit into memory. What is measured must: a number a
    sample for IGDS, Loss and IFD, a vector for RDS+, LESS and embeddings, the features that fire for MONA and the
    coverage selectors. ZIP, BM25 and #InsTag hold all texts, or their words.
    """
    folder = Path(folder)
    _check_request(run, task, selector, ratio, folder)
    _keep_what_is_given(folder, [*find_rows(source).files.values(), Path(features)])
    asked, cut = selectors.get(selector).measurements, Counter()
    found = task_features(run, task, features) if features or FIRES in asked else None
    check = _readable(run, task, asked, cut)
    samples = UserPool(source, run.task(task), columns, check=check, skip_bad=skip_bad)
    pool = pool_of(run, task, samples, selector, found)
    size = selection_size(ratio, len(samples))
    try:
        ranking = selectors.rank_pool(selector, pool, size)
    except FileNotFoundError as error:  # what a control needs of the earlier notebooks
        raise ConfigError(f"selector {selector!r}: {error}") from None
    except selectors.UnusableScores as error:
        raise PoolError(f"{samples.place(samples.ids.index(error.ids[0]))}: {error}") from None
    names = [source] if isinstance(source, str) else source
    where = [str(path.resolve()) if (path := Path(name).expanduser()).exists() else name for name in names]
    facts = {
        "preset": run.preset.name, "model": run.preset.model, "task": task, "selector": selector, "ratio": ratio,
        "source": where[0] if len(where) == 1 else where, "features": features, "columns": columns or {},
        "data": pool.data_version, "left_out": samples.left_out, "samples": len(ranking), "selected": size,
        "made_by": ranking.attrs["selector"],
        "remarks": _remarks(ranking, size, pool, cut),
    }  # fmt: skip
    return _write(folder, samples, ranking, size, facts)


def pool_of(run: Run, task: str, samples: UserPool, selector: str, found: list | None) -> Pool:
    """A user's samples as a selector sees them; found: task features, by default the run's own."""
    key = store.content_hash((sample.id, sample.fields, sample.target) for sample in samples)
    return Pool(run, task, samples, f"{task}/pools/{key}", run.preset.seed, (selector,), found)


def _readable(run: Run, task: str, measurements: Sequence[str], cut: Counter) -> Callable[[Example], None]:
    """A check of a sample: `ValueError` if a model cannot read it for some measurements; `cut` counts what is cut."""
    limits = {}  # rendering of a sample that is read -> the tokens that its model reads at most
    for what in {MEASUREMENTS[name][1] for name in measurements if "." not in name} - {""}:
        chosen = run.preset.chosen
        model = load_config(chosen.train if what == "training_pairs" else chosen.identify)
        limits[what] = model.get_text_config().max_position_embeddings

    def check(sample: Example) -> None:
        one = Samples(run, task, [sample])
        cut.update({kind for what, most in limits.items() for kind in _cut(one, what, most)})

    return check


def _cut(one: Samples, what: str, most: int) -> set[str]:
    """Whether `prompts` or `targets` of one sample are not read to their end; `ValueError` where it cannot be read."""
    run, training = one.run, what == "training_pairs"
    tokenizer = run.train_tokenizer if training else run.tokenizer
    if what == "prompts":
        whole = ids = prompts.encode(tokenizer, one.prompts[0])
    else:
        (ids, _), (whole, _) = getattr(one, what)[0], getattr(one, f"uncut_{what}")[0]
    if len(ids) > most:
        setting = "max_prompt_tokens" if what == "prompts" else "sft.max_length"
        raise ValueError(
            f"{len(ids):,} tokens of it are read, the model reads at most {most:,}: shorten it, or lower {setting}"
        )
    found = {"targets"} if len(whole) > len(ids) else set()
    if run.config(one.task).max_prompt_tokens:
        shown = one.training_records[0]["prompt"] if training else one.prompts[0]
        longest = max(one.samples[0].fields.values(), key=len)
        found |= {"prompts"} if prompts.as_text(longest, tokenizer) not in shown else set()
    return found


def _remarks(ranking: pd.DataFrame, size: int, pool: Pool, cut: Counter) -> list[str]:
    """What to know of a selection: how records were read, what of them is not, silent features, ties that decided."""
    made, config, records = ranking.attrs["selector"], pool.run.config(pool.task), pool.samples.records
    selector, n = selectors.get(made["name"]), len(ranking)
    said = [records.how] if records.how else []
    if out := len(pool.samples.left_out):
        said.append(f"{n} of {records.count} records are used, because {out} cannot be (--skip-bad)")
    for kind, setting in (
        ("targets", f"sft.max_length {config.sft.max_length}"),
        ("prompts", f"tasks.{pool.task}.max_prompt_tokens {config.max_prompt_tokens}"),
    ):
        if cut[kind]:
            said.append(f"{cut[kind]} of {n} {kind} are longer than what is read of them ({setting})")
    if FIRES in selector.measurements:
        names = ", ".join(feature.name for feature in pool.task_features)
        silent = int((pool.task_feature_activations.sum(axis=1) == 0).sum())
        if silent == n:
            said.append(f"no sample of this pool fires {names}: the scores say nothing about it")
        elif silent:
            said.append(f"{silent} of {n} samples do not fire {names}: their score is 0")
    if not selector.chooses:
        kept = ranking["rank"] <= size
        tied = ranking["score"] == ranking.loc[ranking["rank"] == size, "score"].item()
        if (tied & ~kept).any():
            said.append(
                f"{(tied & kept).sum()} of the {size} selected have the same score as {(tied & ~kept).sum()} that were "
                "left out: ties decided, by sample id"
            )
    elif filled := made["facts"]["filled"]:
        said.append(f"{filled} of the {size} selected only fill the budget: the rule left them out")
    return said


def _check_request(run: Run, task: str, selector: str, ratio: float, folder: Path) -> None:
    if task not in run.tasks:
        raise ConfigError(f"preset {run.preset.name} has no task {task!r}; known: {', '.join(run.tasks)}")
    try:
        selectors.get(selector)
        selection_size(ratio, 1)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder for the selection")


def _keep_what_is_given(folder: Path, given: list[Path]) -> None:
    """Refuse to write over a file that is read, or that no selection wrote."""
    written = [folder / name for name in FILES]
    taken = [file for file in given if file.resolve() in [path.resolve() for path in written]]
    there = [file for file in written if file.exists()]
    if not {*written[:-1]} <= {*there}:  # no whole selection; its facts go first when it is replaced
        taken += there
    if taken:
        raise ConfigError(f"{taken[0]} would be overwritten by the selection: name another folder with --out")


def _write(folder: Path, samples: UserPool, ranking: pd.DataFrame, size: int, facts: dict[str, Any]) -> Selection:
    numbers = pd.Index(samples.ids).get_indexer(ranking["sample_id"])  # (N,) of the pool, in the ranking's order
    places = [samples.place(number) for number in numbers]
    scores = ranking.assign(place=places, selected=ranking["rank"] <= size)
    scores = pd.DataFrame(scores, columns=["sample_id", "place", "score", "rank", "selected", "filled"])
    scores.attrs = {}
    best = numbers[np.argsort(ranking["rank"].to_numpy())][:size]
    try:
        # an earlier selection stays until this one is whole
        with temporary_folder(folder / "selection") as new:
            out = store.Store(new)
            out.write("scores.parquet", scores)
            scores.to_csv(new / "scores.csv", index=False, lineterminator="\n")
            samples.write(new / "selection.jsonl", best)
            out.write(FACTS, facts)
            (folder / FACTS).unlink(missing_ok=True)
            for name in FILES:
                (new / name).replace(folder / name)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): name another folder") from None
    return Selection(folder, scores, facts)

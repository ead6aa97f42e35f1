"""Selecting from a pool of one's own, on the command line (`igds select`) or in a notebook: `select`."""

import difflib
from collections import Counter
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
from igds_utils.data.hub import temporary_folder
from igds_utils.engine import prompts
from igds_utils.engine.loading import load_config
from igds_utils.selection.features import task_features
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selection.pool import Pool, Samples
from igds_utils.selection.user_pool import PoolError, UserPool, read_pool

FACTS = "selection.json"
FILES = ("scores.parquet", "scores.csv", "selection.jsonl", FACTS)  # in the order in which they are written
FIRES = "task_feature_activations"


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

    run: which models and SAEs read the samples (`open_run` of a preset). task: how they are put to them; one of the
    preset's. source: files, a folder of them, or a dataset of the hub; what is in them need not fit into memory.
    folder: where the selection goes; nothing is written if anything is wrong.

    selector: by name (`selectors.names()`). ratio: the share of the samples that is kept. features: for IGDS, task
    features as "l14_p11575,l9_p3" or the path of a task_features.json; by default those that the run found in notebooks
    1 and 2. columns: field of the task -> the column that holds it, where they differ (`read_pool`). skip_bad: leave
    out samples that cannot be used, instead of refusing the pool.

    Written are selection.jsonl (the records as they were, best first), scores.parquet and scores.csv (all samples) and
    selection.json (what was asked for, and what to know). What is measured is stored with the run's results, so that
    another selector or ratio costs little, and a call that was killed goes on where it was. Raises `ConfigError`;
    problems of the samples are `PoolError`, with file and line.

    Texts are read, scored and written part by part. What is measured is held for all samples: a number each for IGDS,
    Loss and IFD, a vector for RDS+, LESS and embeddings, the features that fire for MONA and the coverage selectors.
    ZIP, BM25 and #InsTag hold all texts, or their words.
    """
    folder = Path(folder)
    _check_request(run, task, selector, ratio, folder)
    asked = selectors.get(selector).measurements
    samples = read_pool(source, run.task(task), columns)
    _keep_what_is_given(folder, [*samples.files, Path(features)])
    found = task_features(run, task, features) if features or FIRES in asked else None
    samples, cut = check_readable(run, task, samples, asked, skip_bad)
    pool = pool_of(run, task, samples, selector, found)
    size, left_out = selection_size(ratio, len(samples)), sorted(samples.left_out)
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
        "data": pool.data_version, "left_out": left_out, "samples": len(ranking), "selected": size,
        "made_by": ranking.attrs["selector"],
        "remarks": [*samples.remarks, *cut, *remarks(ranking, size, pool)],
    }  # fmt: skip
    return _write(folder, samples, ranking, size, facts)


def pool_of(run: Run, task: str, samples: UserPool, selector: str, found: list | None) -> Pool:
    """A user's samples as a selector sees them; found: task features, by default the run's own."""
    key = store.content_hash((sample.id, sample.fields, sample.target) for sample in samples)
    return Pool(run, task, samples, f"{task}/pools/{key}", run.preset.seed, (selector,), found)


def check_readable(
    run: Run, task: str, pool: UserPool, measurements: Sequence[str], skip_bad: bool
) -> tuple[UserPool, list[str]]:
    """A user's pool whose samples the models can read for some measurements, and how many are cut.

    Others are left out by `skip_bad`; without it they are a `PoolError`. Nothing is computed before all are checked.
    """
    read = {MEASUREMENTS[name][1] for name in measurements if "." not in name} - {""}
    problems, cut, config, chosen = {}, Counter(), run.config(task), run.preset.chosen
    limits = {}
    for what in read:
        model = load_config(chosen.train if what == "training_pairs" else chosen.identify)
        limits[what] = model.get_text_config().max_position_embeddings
    for number, sample in enumerate(pool if read else ()):
        one = Samples(run, task, [sample])
        try:
            cut.update({kind for what, most in limits.items() for kind in _cut(one, what, most)})
        except ValueError as error:
            problems[number] = str(error)
    pool = pool.settled(problems, skip_bad)
    settings = {
        "targets": f"sft.max_length {config.sft.max_length}",
        "prompts": f"tasks.{task}.max_prompt_tokens {config.max_prompt_tokens}",
    }
    return pool, [
        f"{cut[kind]} of {len(pool)} {kind} are longer than what is read of them ({setting})"
        for kind, setting in settings.items() if cut[kind]
    ]  # fmt: skip


def _cut(one: Samples, what: str, most: int) -> set[str]:
    """Whether `prompts` or `targets` of one sample are not read to their end; `ValueError` where it cannot be read."""
    run, training = one.run, what == "training_pairs"
    tokenizer = run.train_tokenizer if training else run.tokenizer
    if what == "prompts":
        ids, whole, setting = prompts.encode(tokenizer, one.prompts[0]), [], "max_prompt_tokens"
    else:
        ids, whole = getattr(one, what)[0][0], getattr(one, f"uncut_{what}")[0][0]
        setting = "sft.max_length"
    if len(ids) > most:
        raise ValueError(
            f"{len(ids):,} tokens of it are read, the model reads at most {most:,}: shorten it, or lower {setting}"
        )
    found = {"targets"} if len(whole) > len(ids) else set()
    if run.config(one.task).max_prompt_tokens:
        shown = one.training_records[0]["prompt"] if training else one.prompts[0]
        longest = max(one.samples[0].fields.values(), key=len)
        found |= {"prompts"} if prompts.as_text(longest, tokenizer) not in shown else set()
    return found


def remarks(ranking: pd.DataFrame, size: int, pool: Pool) -> list[str]:
    """What a reader of a selection has to know: features that are silent, and ties that decided."""
    made, said = ranking.attrs["selector"], []
    selector = selectors.get(made["name"])
    if FIRES in selector.measurements:
        names = ", ".join(feature.name for feature in pool.task_features)
        silent = int((pool.task_feature_activations.sum(axis=1) == 0).sum())
        if silent == len(ranking):
            said.append(f"no sample of this pool fires {names}: the scores say nothing about it")
        elif silent:
            said.append(f"{silent} of {len(ranking)} samples do not fire {names}: their score is 0")
    if not selector.chooses:
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
    if there and not {*written[:-1]} <= {
        *there
    }:  # no whole selection; its facts go first when it is replaced
        taken = taken or there[0]
    if taken:
        raise ConfigError(f"{taken} would be overwritten by the selection: name another folder with --out")


def _write(
    folder: Path, samples: UserPool, ranking: pd.DataFrame, size: int, facts: dict[str, Any]
) -> Selection:
    numbers = pd.Index(samples.ids).get_indexer(
        ranking["sample_id"]
    )  # (N,) of the pool, in the ranking's order
    scores = pd.DataFrame(
        {
            "sample_id": ranking["sample_id"],
            "place": [samples.place(number) for number in numbers],
            "score": ranking["score"],
            "rank": ranking["rank"],
            "selected": ranking["rank"] <= size,
            "filled": ranking["filled"],
        }
    )
    best = numbers[np.argsort(ranking["rank"].to_numpy())][:size]
    try:
        with temporary_folder(
            folder / "selection"
        ) as new:  # an earlier selection stays until this one is whole
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

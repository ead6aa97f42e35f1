"""Selecting from a pool of one's own: `select` and `explain`, which the command `igds` calls too.

A record holds the fields of the task's prompt, and its target or what the task makes targets of; an
"id" is optional, and whatever else it holds is kept. Records are checked to the last one before
anything is computed: problems are one error that names file, line, field and mend.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource
from igds_utils.core.arms import selection_size
from igds_utils.core.experiment import Run
from igds_utils.core.store import Store, content_hash, write_whole
from igds_utils.data.rows import Rows, find_rows
from igds_utils.display import visible
from igds_utils.engine import prompts
from igds_utils.selection.features import task_features
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selection.pool import Pool, Samples
from igds_utils.tasks.examples import Example
from igds_utils.tasks.records import Records

WRITTEN = RECORDS, SCORES, FACTS = "selection.jsonl", "scores.csv", "selection.json"
FIRES = "task_feature_activations"
COLUMNS = ["sample_id", "place", "score", "rank", "selected", "filled"]


class Selection(NamedTuple):
    """What `select` wrote into its folder."""

    records: list[dict[str, Any]]  # the selected records as they were, best first
    scores: pd.DataFrame  # of all samples: COLUMNS, and the activation of each task feature
    facts: dict[str, Any]  # what was asked for, and remarks on the result


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
        print(explain("selection", chosen.scores["sample_id"][0]))

    run: which models and SAEs read the samples. task: how they are put to them; one of the
    preset's. source: files, a folder of them, or a dataset of the hub (`rows.find_rows`). folder:
    where the selection goes. selector: by name (`selectors.names()`). ratio: the share of the
    samples that is kept. features: task features as "l14_p11575,l9_p3" or the path of a
    task_features.json; by default those that the run found in notebooks 1 and 2. columns: field of
    the task, or `id`, -> the column that holds it, where they differ, or `{"value": text}` for all
    records, as in a preset's sources; an empty name of `id` numbers the records. skip_bad: leave
    out samples that cannot be used, instead of refusing the pool.

    Written are selection.jsonl (the records as they were, best first), scores.csv (all samples) and
    selection.json (what was asked for, and remarks). What is measured is stored with the run's
    results, so that another selector or ratio costs little, and a call that was killed goes on
    where it was. Raises `ConfigError` and `SourceError`.
    """
    asked = selectors.get(selector).measurements
    selection_size(ratio, 1)  # refuses a ratio that is none
    rows, folder = find_rows(source), Path(folder)
    given = [file.resolve() for file in rows.files.values()]
    if taken := [file for name in WRITTEN if (file := folder.resolve() / name) in given]:
        raise ConfigError(f"{taken[0]} would be written over: name another folder with --out")
    found = task_features(run, task, features) if features or FIRES in asked else []
    read, remarks = _read(run, task, asked, rows, columns or {}, skip_bad)
    samples, places, records = zip(*read, strict=True)
    products = f"{task}/pools/{content_hash([one.version for one in samples])}"
    pool = Pool(run, task, samples, products, run.preset.seed)
    if found:
        pool.task_features = found
    size = selection_size(ratio, len(samples))
    try:
        ranking = selectors.rank_pool(selector, pool, size)
    except (FileNotFoundError, ValueError) as error:  # no product of a notebook; no score
        raise ConfigError(f"selector {selector!r}: {error}") from error
    order = pd.Index(pool.ids).get_indexer(ranking["sample_id"])  # (N,) best first
    scores = ranking.assign(place=[places[i] for i in order], selected=ranking["rank"] <= size)
    names = [feature.name for feature in found] if FIRES in asked else []
    if names:
        scores[names] = pool.task_feature_activations[order]
        if silent := int((scores[names] == 0).all(axis=1).sum()):
            which = f"{silent} of {len(scores)} samples do not fire {', '.join(names)}"
            remarks.append(f"{which}: their score is 0")
    facts = {
        "preset": run.preset.name, "model": run.preset.model, "task": task, "source": source,
        "ratio": ratio, "samples": len(scores), "selected": size,
        "made_by": ranking.attrs["selector"], "remarks": remarks,
    }  # fmt: skip
    made = Selection([records[i] for i in order[:size]], scores[COLUMNS + names], facts)
    _write(folder, made)
    return made


def _read(
    run: Run, task: str, measurements: Sequence[str], rows: Rows, columns: dict, skip_bad: bool
) -> tuple[list[tuple[Example, str, dict]], list[str]]:
    """Every sample with its place ("pool.jsonl line 17") and its record, and remarks."""
    columns = {f: {"value": ""} if f == "id" and not c else c for f, c in columns.items()}
    source = DataSource.read({"file": "", "columns": columns})
    records, read, seen = Records(rows, run.task(task), source, scored=False), [], {}
    for example, place, record in tqdm(records.read(), "read", unit=" records", delay=2):
        try:
            _check(run, task, measurements, example)
        except ConfigError:  # not the sample's fault
            raise
        except ValueError as error:
            records.problems[place] = f"{place}: {error}"
        else:
            read.append((example, place, record))
    if (bad := len(records.problems)) and not skip_bad:
        raise ConfigError(records.refusal("mend or remove them, or leave them out with --skip-bad"))
    if len(read) < 2:
        raise ConfigError(f"{rows.name} holds {len(read)} samples: give it at least two")
    for example, place, _ in read:
        if (first := seen.setdefault(example.id, place)) != place:
            raise ConfigError(
                f"{place}: id {example.id!r} is that of {first} too: read another column "
                "(--column id=NAME), or number the records (--column id=)"
            )
    said = f"{bad} of {records.count} records cannot be used and are left out (--skip-bad)"
    return read, [*filter(None, [records.how, said * bool(bad)])]


def _check(run: Run, task: str, measurements: Sequence[str], sample: Example) -> None:
    """Raises `ValueError` for a sample that is too long for what is measured on it."""
    one = Samples(run, task, [sample])
    read = {MEASUREMENTS[name.rpartition(".")[2]][1] for name in measurements} - {""}
    for rendering in read:
        getattr(one, rendering)  # pairs are refused where nothing is left of the target
    if "prompts" in read:
        most = run.lm_config.get_text_config().max_position_embeddings
        if len(one.prompts[0].encode()) < most:  # a token is a byte at least
            return
        if (n := len(prompts.encode(run.tokenizer, one.prompts[0]))) > most:
            mend = "shorten it, or lower max_prompt_tokens"
            raise ValueError(f"its prompt has {n:,} tokens, the model reads {most:,}: {mend}")


def _write(folder: Path, made: Selection) -> None:
    """A selection is whole once it has its facts."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made.records)
    table = made.scores.to_csv(index=False, lineterminator="\n")
    try:
        (folder / FACTS).unlink(missing_ok=True)
        write_whole(folder / SCORES, table)
        # half a character, outside of the task's fields, is written as JSON writes it
        write_whole(folder / RECORDS, lines.encode(errors="backslashreplace"))
        Store(folder).write(FACTS, made.facts)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder} ({error.strerror}): name another") from None


def explain(folder: str | Path, sample_id: str) -> str:
    """Why a sample ranks where it does in a selection that `select` wrote into `folder`, to print.

        print(explain("selection", "line-000017"))

    Beside its row of scores.csv stand those of the last sample that was selected and of the first
    one that was not; for IGDS, how strongly its prompt fires each task feature at the critical
    position, and which share of the pool fires it less. Raises `ConfigError` where the folder holds
    no selection or the sample is not in it.
    """
    folder = Path(folder)
    try:
        cut = int(json.loads((folder / FACTS).read_text(encoding="utf8"))["selected"])
        texts = {"sample_id": str, "place": str}
        how = {"dtype": texts, "keep_default_na": False, "lineterminator": "\n"}
        scores = pd.read_csv(folder / SCORES, **how).set_index("sample_id")
    except (OSError, ValueError, LookupError, TypeError):
        raise ConfigError(f"{folder} holds no selection: make one with `igds select`") from None
    if sample_id not in scores.index:
        raise ConfigError(f"no sample {sample_id!r} in {folder}: the ids are those of {SCORES}")
    shown = scores.loc[[*dict.fromkeys([sample_id, *scores.index[cut - 1 : cut + 1]])]]
    lines = [shown.reset_index().to_string(index=False, float_format="{:.4g}".format)]
    for name in scores.columns.drop(COLUMNS, errors="ignore"):
        activation = scores.at[sample_id, name]
        less = (scores[name] < activation).mean()
        lines.append(f"{name} is {activation:.4g} at p; {less:.0%} of the pool fire it less")
    return visible("\n".join(lines))

"""Why a sample of a selection stands where it does (`igds explain`): its score beside the cut, and what changes it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regex

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.data.metrics import UNSPACED
from igds_utils.engine.features import Feature
from igds_utils.selection.features import at_critical, in_units
from igds_utils.selection.pool import Pool
from igds_utils.selection.tool import FACTS, FIRES, UserPool, pool_of
from igds_utils.selectors.scores import feature_resonant_score
from igds_utils.tasks.corruptions import own_field
from igds_utils.tasks.examples import Example

PIECES = 8  # into which a text of one sentence is cut
PLACE = "where it stands, and the last one selected and the first one left out"
FIRED = "what fires at the critical position (percentile: share of the pool that fires it less)"
CHANGES = "what would change it: the score without a part of the text"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` it, or look at its tables.

    around: the sample's row of the scores, and those at the cut. features: activation of each task feature at the
    critical position, and its percentile in the pool. changes: the score without each part of the sample's text. The
    last two are empty for selectors that read no task features.
    """

    around: pd.DataFrame
    features: pd.DataFrame
    changes: pd.DataFrame
    remarks: list[str]

    def __str__(self) -> str:
        lines = []
        for title, table in ((PLACE, self.around), (FIRED, self.features), (CHANGES, self.changes)):
            if len(table):
                lines += [title, table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), ""]
        return "\n".join([*lines, *self.remarks])


def explain(run: Run, folder: str | Path, sample_id: str) -> Explanation:
    """Why a sample ranks where it does in a selection that `select` wrote into `folder`.

        print(explain(run, "selection", "line-000017"))

    run: of the preset and model that the selection was made with. sample_id: as in scores.csv. For IGDS it shows which
    task features the sample's prompt fires, and the score without each sentence of it; for other selectors the place
    in the ranking alone. Raises `ConfigError` where the folder holds no selection, the sample is not in it, or the
    samples have changed since.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf8"))
        scores = pd.read_parquet(folder / "scores.parquet").sort_values("rank").set_index("sample_id")
    except (OSError, ValueError):
        raise ConfigError(f"{folder} holds no selection: make one with `igds select`") from None
    for what, used in (("preset", run.preset.name), ("model", run.preset.model)):
        if facts[what] != used:
            raise ConfigError(f"{folder} was made with {what} {facts[what]}, not {used}: say --{what} {facts[what]}")
    if sample_id not in scores.index:
        shown = ", ".join(scores.index[:3])
        raise ConfigError(f"no sample {sample_id!r} in {folder}: the ids are those of scores.csv ({shown}, ...)")
    cut = scores.index[facts["selected"] - 1 : facts["selected"] + 1]
    around = scores.loc[list(dict.fromkeys([sample_id, *cut]))].reset_index()
    if FIRES not in selectors.get(facts["selector"]).measurements:
        said = f"{facts['selector']} is not a score of the task features: there is no more to show"
        return Explanation(around, pd.DataFrame(), pd.DataFrame(), [*facts["remarks"], said])
    samples = UserPool(facts["source"], run.task(facts["task"]), facts["columns"], facts["left_out"])
    found = [Feature.parse(name) for name in facts["made_by"]["measured"][FIRES]["features"]]
    pool = pool_of(run, facts["task"], samples, facts["selector"], found)
    if pool.data_version != facts["data"]:
        raise ConfigError(f"{samples.name} has changed since {folder} was made from it: select again")
    number = pool.ids.index(sample_id)
    values = pool.task_feature_activations  # (N, k)
    fires = pd.DataFrame(
        {
            "feature": [feature.name for feature in found],
            "activation": values[number] + 0.0,  # no negative zero
            "percentile": 100 * (values < values[number]).mean(axis=0),
        }
    )
    changes = _changes(pool, samples[number], facts, scores["score"])
    said = "the target is not read: no change of it moves this score"
    return Explanation(around, fires, changes, [*facts["remarks"], said])


def _changes(pool: Pool, sample: Example, facts: dict[str, Any], scores: pd.Series) -> pd.DataFrame:
    """Score and rank of the sample without each part of its own text, the largest change first."""
    run, own = pool.run, own_field(sample)
    parts = _parts(sample.fields[own])
    if len(parts) < 2:
        return pd.DataFrame()
    texts = ["".join(parts[:i] + parts[i + 1 :]).strip() for i in range(len(parts))]
    shortened = [replace(sample, fields=sample.fields | {own: text}) for text in texts]
    values = at_critical(run, [run.prompt(pool.task, one) for one in shortened], pool.task_features)
    made = feature_resonant_score(in_units(run, values, pool.task_features)) + 0.0
    sign = 1 if facts["made_by"]["direction"] == "highest" else -1
    others = scores.drop(sample.id)
    ahead = others.index < sample.id  # whose id wins a tie
    by = sign * (others.to_numpy() - made[:, None])  # (parts, N - 1)
    table = pd.DataFrame({"without": [part.strip() for part in parts], "score": made})
    table["change"] = made - scores[sample.id]
    table["rank"] = 1 + ((by > 0) | ((by == 0) & ahead)).sum(axis=1)
    table["selected"] = np.where(table["rank"] <= facts["selected"], "yes", "no")
    return table.sort_values("change", key=lambda change: -change.abs(), kind="stable", ignore_index=True)


def _parts(text: str) -> list[str]:
    """Sentences of a text with the space after them; of a single one, up to `PIECES` runs of words.

    Joined they are the text. Where a script puts no spaces between words, a character counts as one.
    """
    sentences = regex.findall(r"(?s).+?(?:[.!?؟।]+(?=\s)|[。！？]+[”’」』）]*|\n|$)\s*", text)
    if len(sentences) > 1:
        return sentences
    words = regex.findall(rf"\s*(?:[{UNSPACED}]\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+)\s*", text)
    return ["".join(piece) for piece in np.array_split(words, min(PIECES, len(words)) or 1)]

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
from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selection.features import at_critical, in_units
from igds_utils.selection.pool import Pool
from igds_utils.selection.tool import FACTS, FIRES, pool_of
from igds_utils.selection.user_pool import read_pool
from igds_utils.tasks.corruptions import own_field
from igds_utils.tasks.examples import Example

PIECES = 8  # into which a text of one sentence is cut


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` it, or look at its tables.

    place: facts of the ranking. features: activation of each task feature at the critical position, and its percentile
    in the pool. changes: the score without each part of the sample's text. Both tables are empty for selectors that
    read no task features.
    """

    place: dict[str, Any]
    features: pd.DataFrame
    changes: pd.DataFrame

    def __str__(self) -> str:
        at = self.place
        first_out = at["first_out"]
        lines = [
            f"{at['sample_id']} ({at['place']}): rank {at['rank']} of {at['samples']}, score {at['score']:.4g}; "
            f"{'selected' if at['selected'] else 'left out'}",
            f"the {at['size']} best are selected; the last of them has {at['last_in']:.4g}"
            + (f", the first one left out {first_out:.4g}" if first_out is not None else ""),
        ]
        fires = "what fires at the critical position (percentile: share of the pool that fires it less)"
        moves = "what would change it: the score without a part of the text"
        for title, table in ((fires, self.features), (moves, self.changes)):
            if len(table):
                lines += ["", title, table.to_string(index=False, float_format=lambda value: f"{value:.4g}")]
        return "\n".join([*lines, "", *at["remarks"]])


def explain(run: Run, folder: str | Path, sample_id: str) -> Explanation:
    """Why a sample ranks where it does in a selection that `select` wrote into `folder`.

        print(explain(run, "selection", "line-000017"))

    run: of the preset and model that the selection was made with. sample_id: as in scores.csv. For IGDS it shows which
    task features the sample's prompt fires, and the score without each sentence of it; for other selectors the place
    in the ranking alone. Raises `ConfigError` where the folder holds no selection, the sample is not in it, or the
    samples have changed since.
    """
    facts, scores = read_selection(folder)
    for what, used in (("preset", run.preset.name), ("model", run.preset.model)):
        if facts[what] != used:
            raise ConfigError(
                f"{folder} was made with {what} {facts[what]}, not {used}: say --{what} {facts[what]}"
            )
    if sample_id not in set(scores["sample_id"]):
        shown = ", ".join(scores["sample_id"].head(3))
        raise ConfigError(
            f"no sample {sample_id!r} in {folder}: the ids are those of scores.csv ({shown}, ...)"
        )
    row = scores.set_index("sample_id").loc[sample_id]
    of_chosen, of_others = scores.loc[scores["selected"], "score"], scores.loc[~scores["selected"], "score"]
    place = {
        "sample_id": sample_id, "place": row["place"], "rank": int(row["rank"]), "samples": len(scores),
        "score": float(row["score"]), "selected": bool(row["selected"]), "size": int(facts["selected"]),
        "last_in": float(of_chosen.iloc[-1]), "first_out": float(of_others.iloc[0]) if len(of_others) else None,
    }  # fmt: skip
    if FIRES not in selectors.get(facts["selector"]).measurements:
        said = f"{facts['selector']} is not a score of the task features: there is no more to show"
        return Explanation(place | {"remarks": [*facts["remarks"], said]}, pd.DataFrame(), pd.DataFrame())
    samples = read_pool(facts["source"], run.task(facts["task"]), facts["columns"], facts.get("left_out", ()))
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
    said = "the target is not read: no change of it moves this score"
    changes = _changes(pool, samples[number], facts, scores)
    return Explanation(place | {"remarks": [*facts["remarks"], said]}, fires, changes)


def read_selection(folder: str | Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """selection.json and the scores, in the order of the ranks; raises `ConfigError` where they are not there."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf8"))
        scores = pd.read_parquet(folder / "scores.parquet")
    except (OSError, ValueError):
        raise ConfigError(f"{folder} holds no selection: make one with `igds select`") from None
    return facts, scores.sort_values("rank", ignore_index=True)


def _changes(pool: Pool, sample: Example, facts: dict[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """Score and rank of the sample without each part of its own text, the largest change first."""
    run, field = pool.run, own_field(sample)
    parts = _parts(sample.fields[field])
    if len(parts) < 2:
        return pd.DataFrame()
    shortened = [
        replace(sample, fields=sample.fields | {field: "".join(parts[:i] + parts[i + 1 :]).strip()})
        for i in range(len(parts))
    ]
    values = at_critical(run, [run.prompt(pool.task, one) for one in shortened], pool.task_features)
    made = feature_resonant_score(in_units(run, values, pool.task_features)) + 0.0
    sign = 1 if facts["made_by"]["direction"] == "highest" else -1
    others = scores[scores["sample_id"] != sample.id]
    first = (others["sample_id"] < sample.id).to_numpy()  # whose id wins a tie
    beaten = [sign * (score - others["score"].to_numpy()) for score in made]
    ranks = [1 + int(((by < 0) | ((by == 0) & first)).sum()) for by in beaten]
    now = scores.loc[scores["sample_id"] == sample.id, "score"].item()
    without = [part.strip() for part in parts]
    table = pd.DataFrame({"without": without, "score": made, "change": made - now, "rank": ranks})
    table["selected"] = np.where(table["rank"] <= facts["selected"], "yes", "no")
    return table.iloc[np.argsort(-np.abs(table["change"].to_numpy()), kind="stable")].reset_index(drop=True)


def _parts(text: str) -> list[str]:
    """Sentences of a text with the space after them; of a single one, up to `PIECES` runs of words.

    Joined they are the text. Where a script puts no spaces between words, a character counts as one.
    """
    sentences = regex.findall(r"(?s).+?(?:[.!?؟।]+(?=\s)|[。！？]+[”’」』）]*|\n|$)\s*", text)
    if len(sentences) > 1:
        return sentences
    words = regex.findall(rf"\s*(?:[{UNSPACED}]\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+)\s*", text)
    return ["".join(piece) for piece in np.array_split(words, min(PIECES, len(words)) or 1)]

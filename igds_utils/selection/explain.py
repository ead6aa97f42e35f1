"""Why a sample of a selection stands where it does: its score beside the cut, what fires, and what would change it."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regex
import torch

from igds_utils import selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import Run
from igds_utils.data.metrics import UNSPACED
from igds_utils.engine import activations, prompts
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import residuals
from igds_utils.engine.sae import Feature, FeatureSet
from igds_utils.identification.scoring import feature_resonant_score
from igds_utils.selection.needs import Pool
from igds_utils.selection.needs.critical import feature_norms
from igds_utils.selection.readable import FIRES
from igds_utils.selection.tool import FACTS, PoolRun, members_of
from igds_utils.selection.user_pool import UserPool, read_pool
from igds_utils.tasks.corruptions import own_field
from igds_utils.tasks.examples import Example

PIECES = 8  # into which a text of one sentence is cut


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` it, or look at its tables.

    place: facts of the ranking. features: activation at the critical position, percentile. tokens: where in its own
    text the first feature fires most. changes: the score without each part of that text. The last three are empty
    for selectors that read no task features.
    """

    place: dict[str, Any]
    features: pd.DataFrame
    tokens: pd.DataFrame
    changes: pd.DataFrame

    def __str__(self) -> str:
        at = self.place
        lines = [
            f"{at['sample_id']} ({at['place']}): rank {at['rank']} of {at['samples']}, score {at['score']:.4g}; "
            f"{'selected' if at['selected'] else 'left out'}",
            f"the {at['size']} best are selected; the last of them has {at['last_in']:.4g}"
            + (f", the first one left out {at['first_out']:.4g}" if at["first_out"] is not None else ""),
        ]
        for title, table in (
            (
                "what fires at the critical position (percentile: share of the pool that fires it less)",
                self.features,
            ),
            (
                "where the first feature fires most (p: the critical position; text: the sample's own)",
                self.tokens,
            ),
            ("what would change it: the score without a part of the text", self.changes),
        ):
            if len(table):
                lines += ["", title, table.to_string(index=False, float_format=lambda value: f"{value:.4g}")]
        return "\n".join([*lines, "", *at["remarks"]])


def explain(run: Run, folder: str | Path, sample_id: str) -> Explanation:
    """Why a sample of the selection in `folder` (see `tool.select`) ranks where it does.

    run: the preset that the selection was made with. Raises `ConfigError` where the folder holds no selection, the
    sample is not in it, or the pool has changed since.
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
    place = {
        "sample_id": sample_id, "place": row["place"], "rank": int(row["rank"]), "samples": len(scores),
        "score": float(row["score"]), "selected": bool(row["selected"]), "size": int(facts["selected"]),
        "last_in": float(scores.loc[scores["selected"], "score"].iloc[-1]), "first_out": None,
        "remarks": list(facts["remarks"]),
    }  # fmt: skip
    if not scores["selected"].all():
        place["first_out"] = float(scores.loc[~scores["selected"], "score"].iloc[0])
    if FIRES not in selectors.get(facts["selector"]).needs:
        place["remarks"].append(
            f"{facts['selector']} is not a score of the task features: there is no more to show"
        )
        return Explanation(place, pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    place["remarks"].append("the target is not read: no change of it moves this score")
    found = [Feature.parse(name) for name in facts["made_by"]["measured"][FIRES]["features"]]
    own = PoolRun(run, found)
    pool = read_pool(facts["source"], own.task(facts["task"]), facts["columns"], facts.get("left_out", ()))
    members = members_of(own, facts["task"], pool, facts["selector"])
    if members.samples.data_version != facts["data"]:
        raise ConfigError(f"{pool.name} has changed since {folder} was made from it: select again")
    example = pool[pool.ids.index(sample_id)]
    return Explanation(
        place,
        _features(members, pool, found, sample_id),
        _tokens(own, facts["task"], example, found[0]),
        _changes(own, facts, example, found, scores),
    )


def read_selection(folder: str | Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """selection.json and the scores, in the order of the ranks; raises `ConfigError` where they are not there."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf8"))
        scores = pd.read_parquet(folder / "scores.parquet")
    except (OSError, ValueError):
        raise ConfigError(f"{folder} holds no selection: make one with `igds select`") from None
    return facts, scores.sort_values("rank", ignore_index=True)


def _features(members: Pool, pool: UserPool, found: list[Feature], sample_id: str) -> pd.DataFrame:
    values = members.measured(FIRES).values  # (N, k)
    mine = values[pool.ids.index(sample_id)]
    return pd.DataFrame(
        {
            "feature": [feature.name for feature in found],
            "activation": mine + 0.0,  # no negative zero
            "percentile": 100 * (values < mine).mean(axis=0),
        }
    )


def _tokens(run: Run, task: str, example: Example, feature: Feature, most: int = 5) -> pd.DataFrame:
    """The critical token, and those of the sample's own text on which a feature fires at all, most first.

    Tokens that share a character, as those of emoji and Chinese do, are one piece of the text, with their highest
    activation.
    """
    prompt = run.prompt(task, example)
    ids = prompts.encode(run.tokenizer, prompt)
    inputs = pad([ids], run.tokenizer.pad_token_id, "right", run.lm.device)
    with torch.inference_mode():
        h = residuals(run.lm, [feature.layer], **inputs)[feature.layer][0]
        acts = FeatureSet(run.saes[feature.layer], [feature.index]).encode(h)[:, 0].cpu().numpy()  # (T,)
    offsets = run.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    acts = acts[len(ids) - len(offsets) :]  # without the BOS that `encode` adds
    pieces = _pieces(prompt, offsets)
    text = prompts.as_text(example.fields[own_field(example)], run.tokenizer)
    start = prompt.find(text) if text in prompt else len(prompt)  # the rendering may have cut it
    rows = []
    for number, (a, b, tokens) in enumerate(pieces):
        before = prompt[pieces[max(0, number - 6)][0] : a]
        where = "p" if b == len(prompt) else "text" if start <= a < b <= start + len(text) else ""
        rows.append((where, _quoted(prompt[a:b]), float(acts[tokens].max()), _quoted(before)))
    table = pd.DataFrame(rows, columns=["where", "token", "activation", "after"])
    own = table[(table["where"] == "text") & (table["activation"] > 0)]
    top = own.sort_values("activation", ascending=False, kind="stable").head(most)
    return pd.concat([table[table["where"] == "p"], top], ignore_index=True)


def _pieces(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """Tokens by pieces of whole characters as a reader sees them: (start, end) in the text, and the tokens' numbers."""
    ends = [0, *(match.end() for match in regex.finditer(r"\X", text))]
    pieces: list[tuple[int, int, list[int]]] = []
    for token, (a, b) in enumerate(offsets):
        start = ends[bisect_right(ends, a) - 1]
        end = ends[bisect_left(ends, max(b, a + 1))]
        if pieces and start < pieces[-1][1]:
            start, last, tokens = pieces.pop()
            pieces.append((start, max(end, last), [*tokens, token]))
        else:
            pieces.append((start, end, [token]))
    return pieces


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _changes(
    run: Run, facts: dict[str, Any], example: Example, found: list[Feature], scores: pd.DataFrame
) -> pd.DataFrame:
    """Score and rank of the sample without each part of its own text, the largest change first."""
    task, field = facts["task"], own_field(example)
    parts = _parts(example.fields[field])
    if len(parts) < 2:
        return pd.DataFrame()
    shortened = [
        replace(example, fields={**example.fields, field: "".join(parts[:i] + parts[i + 1 :]).strip()})
        for i in range(len(parts))
    ]
    texts = [run.prompt(task, one) for one in shortened]
    residual = activations.critical_residuals(
        run.lm, texts, sorted({f.layer for f in found}), run.preset.batch_tokens
    )
    values = activations.feature_activations(residual, run.saes, found).numpy()
    norms = feature_norms(run, found) if run.preset.scoring.units == "residual" else None
    made, sign = feature_resonant_score(values, norms) + 0.0, 1 if _highest(facts) else -1
    others = scores[scores["sample_id"] != example.id]
    first = (others["sample_id"] < example.id).to_numpy()  # whose id wins a tie
    beaten = [sign * (score - others["score"].to_numpy()) for score in made]
    ranks = [1 + int(((by < 0) | ((by == 0) & first)).sum()) for by in beaten]
    now = scores.loc[scores["sample_id"] == example.id, "score"].item()
    without = [part.strip() for part in parts]
    table = pd.DataFrame({"without": without, "score": made, "change": made - now, "rank": ranks})
    table["selected"] = np.where(table["rank"] <= facts["selected"], "yes", "no")
    return table.iloc[np.argsort(-np.abs(table["change"].to_numpy()), kind="stable")].reset_index(drop=True)


def _highest(facts: dict[str, Any]) -> bool:
    return facts["made_by"]["direction"] == "highest"


def _parts(text: str) -> list[str]:
    """Sentences of a text with the space after them; of a single one, up to `PIECES` runs of words.

    Joined they are the text. Where a script puts no spaces between words, a character counts as one.
    """
    sentences = regex.findall(r"(?s).+?(?:[.!?؟।]+(?=\s)|[。！？]+[”’」』）]*|\n|$)\s*", text)
    if len(sentences) > 1:
        return sentences
    words = regex.findall(rf"\s*(?:[{UNSPACED}]\p{{M}}*\p{{P}}*|[^\s{UNSPACED}]+)\s*", text)
    return ["".join(piece) for piece in np.array_split(words, min(PIECES, len(words)) or 1)]

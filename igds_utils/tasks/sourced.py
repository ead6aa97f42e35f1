"""The sets of a task from rows of data, one source dealt into several sets or a source for each.

What a preset writes under `tasks.<task>.data`:

    sources:
      identification: {sets: [prior, validation, confirmation], hub: openai/gsm8k, columns: {...}}
      pool: {hub: open-r1/OpenR1-Math-220k, columns: {...}}
      test: {hub: HuggingFaceH4/MATH-500, split: test, columns: {...}}

Sets that no source names come from the task's own data; the pool of known quality, unless named, from
where the pool comes from. What one set says no other does: sets are dealt in the order of `SETS`, so
the test set stays whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource, Strict
from igds_utils.config.settings import TaskConfig
from igds_utils.data.hub import SourceError
from igds_utils.data.rows import mirror_folder, source_rows
from igds_utils.tasks.examples import (
    SETS,
    Example,
    Sets,
    data_parameters,
    normalize,
    number,
    random_stream,
)
from igds_utils.tasks.records import Records

if TYPE_CHECKING:
    from igds_utils.tasks.base import Task

KNOWN = (*SETS, "quality")
REPEATING = ("pool", "test")  # what repeats inside these stays, as the benchmark has it


class Sourced(Strict):
    """The `sources` of a `data` section."""

    sources: dict[str, DataSource]

    @model_validator(mode="after")
    def _one_source_a_set(self):
        taken: dict[str, str] = {}
        for name, sets in self.given.items():
            for one in sets:
                if one not in KNOWN:
                    known = ", ".join(KNOWN)
                    raise ValueError(f"source {name!r} is no set; say with `sets` which of {known} it fills")
                if (other := taken.setdefault(one, name)) != name:
                    raise ValueError(f"sources {other!r} and {name!r} both fill {one}")
        return self

    @property
    def given(self) -> dict[str, list[str]]:
        """Source -> which sets it fills: those that it lists, or the one that it is named after."""
        named = {name: source.sets or [name] for name, source in self.sources.items()}
        if "quality" not in named:
            named = {name: [*sets, *["quality"] * ("pool" in sets)] for name, sets in named.items()}
        return named


@dataclass
class _Stream:
    """The usable examples of a source, dealt one after the other, and what was left out of its rows."""

    name: str
    left: Iterator[Example]
    facts: dict[str, Any] = field(default_factory=lambda: {"left out": {}})


def deal_sets(task: Task, config: TaskConfig, seed: int) -> Sets:
    """The sets of a preset, from `sources` and from the task's own data.

    A set comes out smaller than its size where its source ends, and by the examples that another set
    has or that repeat (pool and test keep repeats); an empty one is a `ConfigError`. The pool of known
    quality takes what the pool leaves, and where that is less than half of its size, samples of the
    pool itself. facts, where there are `sources` or a set is smaller: `sources` -> name -> rows, used,
    left out (reason -> rows), read as; `sets` -> name -> size, asked, repeats, overlaps (set ->
    examples that the set did without because that one has them), of_pool.
    """
    sourced = data_parameters(Sourced, {"sources": config.data.get("sources", {})}, task.name)
    asked, read, streams = config.set_sizes, {}, {}
    for name, fills in sourced.given.items():
        if any(asked.get(one, 0) != 0 for one in fills):
            read[name] = _read(task, sourced.sources[name], name, seed)
            streams |= dict.fromkeys(fills, read[name])
    if own := [name for name, size in asked.items() if size != 0 and name not in streams]:
        sizes = {name: size if name in own else 0 for name, size in asked.items()}
        examples = task.own_examples(config, sizes, seed)
        streams |= dict.fromkeys(own, _Stream("the task's own data", iter(examples)))
    sets: dict[str, list[Example]] = {}
    counts: dict[str, dict[str, Any]] = {}
    owner: dict[str, str] = {}  # normalized text -> the set that has it
    for name in (name for name in KNOWN if name in asked):
        stream = streams.get(name) if asked[name] != 0 else None
        sets[name], counts[name] = _deal(name, asked[name], stream, owner) if stream else ([], {})
        if name == "quality" and 2 * len(sets[name]) < asked[name]:
            sets[name] = sets["pool"][: asked[name]]
            counts[name] |= {"size": len(sets[name]), "of_pool": True}
        if stream and not sets[name]:
            overlaps = counts[name]["overlaps"].items()
            out = stream.facts["left out"] | {f"in {other}": n for other, n in overlaps}
            raise ConfigError(
                f"task {task.name}: no {name} example is left of {stream.name} ({_counted(out)}): correct "
                f"tasks.{task.name}.data, or lower the sizes of the sets before it"
            )
        if stream and not counts[name].get("of_pool"):
            stream.facts["used"] = stream.facts.get("used", 0) + len(sets[name])
    short = any(found["size"] < found["asked"] for found in counts.values() if found)
    facts = {"sources": {name: stream.facts for name, stream in read.items()}, "sets": counts}
    numbered = {name: number(members, task.name, name) for name, members in sets.items()}
    return Sets(numbered, facts if read or short else {})


def _read(task: Task, source: DataSource, name: str, seed: int) -> _Stream:
    """The examples of one source, shuffled and without id.

    Rows that lack a text are left out; others that cannot be read are a `SourceError` that lists them.
    """
    if source.mirror and mirror_folder():
        source = source.model_copy(update={"columns": source.mirror.columns})
    place = f"tasks.{task.name}.data.sources.{name}"
    named = {name for column in source.columns.values() for name in column.names} | set(source.where)
    known = named if {*task.row_fields} <= {*source.columns} else None
    records = Records(source_rows(source, known, place), task, source)
    examples = [example for example, _, _ in records.read()]
    if records.problems:
        raise SourceError(records.refusal(f"mend or remove them, or correct {place}"))
    out = Counter(records.left_out)
    if source.join_repeats:
        joined = join_repeats(examples)
        out["joined"], examples = len(examples) - len(joined), joined
    random_stream(task.name, f"sets/{name}", seed).shuffle(examples)
    facts = {"rows": records.count, "left out": dict(+out), "read as": records.how}
    return _Stream(name, iter(examples), facts)


def _deal(
    name: str, size: int | None, stream: _Stream, owner: dict[str, str]
) -> tuple[list[Example], dict[str, Any]]:
    """The next set from its stream, and the counts of what was passed over."""
    members, met = [], Counter()  # met: the set that has a text -> how often it came again
    while size is None or len(members) < size:
        if (example := next(stream.left, None)) is None:
            break
        text = normalize(example.text)
        other = owner.get(text)
        met[other] += 1
        if other is None or (other == name and name in REPEATING):
            members.append(example)
            owner[text] = name
    overlaps = {other: n for other, n in met.items() if other not in (None, name)}
    asked = len(members) if size is None else size
    counts = {"size": len(members), "asked": asked, "repeats": met[name], "overlaps": overlaps}
    return members, counts


def join_repeats(examples: Iterable[Example]) -> list[Example]:
    """One example for each normalized text: the first of its kind, with the references of all."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(normalize(example.text), []).append(example)
    return [
        replace(same[0], references=tuple(r for example in same for r in example.references))
        for same in kinds.values()
    ]


def describe(facts: dict[str, Any]) -> str:
    """One line on what was left out, for the log; empty where nothing was."""
    parts = []
    for name, counts in facts.get("sets", {}).items():
        said = [f"{n} in {other}" for other, n in counts.get("overlaps", {}).items()]
        if repeats := counts.get("repeats"):
            said.append(f"{repeats} repeats {'kept' if name in REPEATING else 'dropped'}")
        if "of_pool" in counts:
            said.append("samples of the pool itself, of whose source too few are left")
        if said or counts.get("size", 0) < counts.get("asked", 0):
            parts.append(f"{name} {counts['size']} of {counts['asked']}" + f" ({', '.join(said)})" * bool(said))
    for name, source in facts.get("sources", {}).items():
        out = f" ({_counted(source['left out'])})" * bool(source["left out"])
        parts.append(f"{name}: {source['used']} of {source['rows']} rows are used{out}")
        parts += filter(None, [source["read as"]])
    return "; ".join(parts)


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} ({n:,})" for reason, n in reasons.items())

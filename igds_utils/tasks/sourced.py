"""The sets of a task from rows of data, one source dealt into several sets or a source for each, or from its own data.

What a preset writes under `tasks.<task>.data`:

    sources:
      identification: {sets: [prior, validation, confirmation], hub: openai/gsm8k, config: main, columns: {...}}
      pool: {hub: open-r1/OpenR1-Math-220k, columns: {...}}
      test: {hub: HuggingFaceH4/MATH-500, split: test, columns: {...}}

Sets that no source names come from the task's own data; the pool of known quality, unless named, from where the pool
comes from. What one set says no other does: sets are dealt in the order of `SETS`, so the test set stays whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource, Strict
from igds_utils.config.settings import TaskConfig
from igds_utils.data.hub import SourceError
from igds_utils.data.metrics import words
from igds_utils.data.rows import mirror_folder, reservoir, source_rows
from igds_utils.tasks.examples import SETS, Example, Sets, data_parameters, normalize, number, random_stream
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
                    raise ValueError(f"sources {other!r} and {name!r} both fill {one}: take it from one of them")
        return self

    @property
    def given(self) -> dict[str, list[str]]:
        """Source -> which sets it fills: those that it lists, or the one that it is named after."""
        named = {name: source.sets or [name] for name, source in self.sources.items()}
        quality = ["quality"] * ("quality" not in sum(named.values(), []))
        return {name: [*sets, *quality * ("pool" in sets)] for name, sets in named.items()}


def deal_sets(task: Task, config: TaskConfig, seed: int) -> Sets:
    """The sets of a preset, from `sources` and from the task's own data, and what was left out to make them.

    A set may come out smaller than its size by the examples that were dropped: another set has them, they repeat (pool
    and test keep repeats, counted) or are joined, or a row lacks a text. Otherwise too few rows are a `ConfigError`,
    and so is an empty set. The pool of known quality takes what is left, and where that is less than half of its size,
    samples of the pool itself. facts, where there are `sources` or too few samples of known quality: `sources` -> name
    -> rows, used, left out (reason -> rows); `sets` -> name -> size, asked, repeats, overlaps (set -> examples that the
    set did without because that one has them), of_pool.
    """
    sourced = data_parameters(Sourced, {"sources": config.data.get("sources", {})}, task.name)
    asked, filled = config.set_sizes, sum(sourced.given.values(), [])
    streams = []
    if own := [name for name, size in asked.items() if size != 0 and name not in filled]:
        try:
            examples = task.own_examples(config, asked | dict.fromkeys(filled, 0), seed)
        except ConfigError as error:
            if not filled:
                raise
            wanted = f"no source of tasks.{task.name}.data.sources fills {', '.join(own)}"
            raise ConfigError(f"{wanted}, nor can the task itself: {error}") from None
        streams = [_Stream("the task's own data", own, examples)]
    for name, fills in sourced.given.items():
        if fills := [one for one in fills if asked.get(one, 0) != 0]:
            streams.append(_read(task, sourced.sources[name], name, fills, seed))
    sets: dict[str, list[Example]] = {}
    counts: dict[str, dict[str, Any]] = {}
    owner: dict[str, str] = {}  # normalized text -> the set that has it
    of = {one: stream for stream in streams for one in stream.fills}
    for name in (name for name in KNOWN if name in asked):
        sets[name], counts[name] = _deal(task.name, name, asked[name], of.get(name), sets, owner)
    for stream in streams:
        stream.facts["used"] = sum(len(sets[one]) for one in stream.fills if "of_pool" not in counts[one])
        if left := sum(1 for _ in stream.left):
            sizes = ["quality.size" if one == "quality" else f"sizes.{one}" for one in stream.fills]
            reason = f"beyond {', '.join(sizes)}" + " (null takes all)" * ("pool" in stream.fills)
            stream.facts["left out"][reason] = left
    few = counts.get("quality", {})
    told = "sources" in config.data or "of_pool" in few or few.get("size", 0) < few.get("asked", 0)
    read = {stream.name: stream.facts for stream in streams if stream.name in sourced.sources}
    numbered = {name: number(members, task.name, name) for name, members in sets.items()}
    return Sets(numbered, {"sources": read, "sets": counts} if told else {})


class _Stream:
    """The usable examples of one source, dealt into the sets that it fills; facts: what was left out of its rows."""

    def __init__(self, name: str, fills: list[str], examples: list[Example], facts: dict[str, Any] | None = None):
        self.name, self.fills, self.left = name, fills, iter(examples)
        self.facts = facts or {"left out": {}}
        out = self.facts["left out"].items()
        # by so many, and those that are passed over in dealing, a set may be smaller than it should be
        self.dropped = sum(n for reason, n in out if not reason.startswith(("filtered", "not drawn")))


def _read(task: Task, source: DataSource, name: str, fills: list[str], seed: int) -> _Stream:
    """The examples of one source, shuffled and without id, and how many of its rows were left out for which reason.

    Rows that lack a text are; other rows that cannot be read are a `SourceError` that lists them.
    """
    if source.mirror and mirror_folder():
        source = source.model_copy(update={"columns": source.mirror.columns})
    place = f"tasks.{task.name}.data.sources.{name}"
    named = {name for column in source.columns.values() for name in column.names} | set(source.where)
    known = sorted(named) if set(task.row_fields) <= set(source.columns) else None
    records = Records(source_rows(source, known, place), task, source)
    usable = (example for example, _, _ in records.read())
    examples = list(usable) if source.rows is None else reservoir(usable, source.rows, Random(seed))
    if records.problems:
        raise SourceError(records.refusal(f"mend or remove them, or correct {place}"))
    out = records.left_out
    out["not drawn (rows)"] = records.count - out.total() - len(examples)
    if source.join_repeats:
        joined = join_repeats(examples)
        out["joined"], examples = len(examples) - len(joined), joined
    random_stream(task.name, f"sets/{name}", seed).shuffle(examples)
    return _Stream(name, fills, examples, {"rows": records.count, "left out": dict(+out), "read as": records.how})


def _deal(
    task: str,
    name: str,
    size: int | None,
    stream: _Stream | None,
    sets: dict[str, list[Example]],
    owner: dict[str, str],
) -> tuple[list[Example], dict[str, Any]]:
    """The next set from its stream, and the counts of what was passed over; sets: those that are filled already."""
    members, repeats, overlaps = [], 0, Counter()
    while (size is None or len(members) < size) and (example := next(stream.left, None)) is not None:
        text = normalize(example.text)
        other = owner.get(text)
        if other is None or (other == name and name in REPEATING):
            members.append(example)
        else:
            stream.dropped += 1
        repeats += other == name
        overlaps.update({other} - {None, name})
        owner.setdefault(text, name)
    if of_pool := name == "quality" and 2 * len(members) < size:
        members = [example for example in sets["pool"] if not example.meta.get("off_task")][:size]
    few = name != "quality" and size and size - len(members) > stream.dropped
    if few or (size != 0 and not members):
        out = stream.facts["left out"] | {f"in {other}": n for other, n in overlaps.items()}
        found = f"{len(members)} of {size} {name} examples are" if members else f"no {name} example is"
        raise ConfigError(
            f"task {task}: {found} left of {stream.name} ({_counted(out) or 'all others are dealt'}): correct "
            f"tasks.{task}.data, or lower tasks.{task}.sizes.{name} or those of the sets before it"
        )
    asked = len(members) if size is None else size
    counts = {"size": len(members), "asked": asked, "repeats": repeats, "overlaps": dict(overlaps)}
    return members, counts | ({"of_pool": True} if of_pool else {})


def join_repeats(examples: Iterable[Example]) -> list[Example]:
    """One example for each normalized text: the first of its kind, with the references of all."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(normalize(example.text), []).append(example)
    return [
        replace(first, references=tuple(r for e in (first, *others) for r in e.references))
        for first, *others in kinds.values()
    ]


# ---- what the pool shares with the test set ----------------------------------------------------------------


def shared_with_test(pool: Iterable[Example], test: Iterable[Example], n: int = 13) -> list[str]:
    """Ids of the pool samples that have `n` consecutive words (`metrics.words`) in common with a test example.

    Prompt and target are searched on both sides, as in decontamination by 13-grams (Brown et al. 2020). Of Chinese,
    whose words are characters here, 13 are a shorter text than of English.
    """

    def ngrams(example: Example) -> Iterable[tuple[str, ...]]:
        for found in map(words, {example.text, example.target, *example.references}):
            yield from zip(*(found[start:] for start in range(n)), strict=False)

    known = {gram for example in test for gram in ngrams(example)}
    return [example.id for example in pool if not known.isdisjoint(ngrams(example))] if known else []


def describe(facts: dict[str, Any]) -> str:
    """One line on what was left out, for the log; empty where nothing was."""
    parts = []
    for name, counts in facts.get("sets", {}).items():
        said = [f"{n} in {other}" for other, n in counts["overlaps"].items()]
        if counts["repeats"]:
            said.append(f"{counts['repeats']} repeats {'kept' if name in REPEATING else 'dropped'}")
        if counts.get("of_pool"):
            said.append("samples of the pool itself, of whose source too few are left")
        if said or counts["size"] < counts["asked"]:
            parts.append(f"{name} {counts['size']} of {counts['asked']}" + f" ({', '.join(said)})" * bool(said))
    for name, source in facts.get("sources", {}).items():
        parts += [f"{name}: {source['read as']}"] if source["read as"] else []
        if out := _counted(source["left out"]):
            parts.append(f"{name}: {source['used']} of {source['rows']} rows are used, because {out}")
    return "; ".join(parts)


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} ({n:,})" for reason, n in reasons.items())

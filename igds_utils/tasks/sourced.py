"""The sets of a task from rows of data, one source dealt into several sets or a source for each.

What a preset writes under `tasks.<task>.data`:

    sources:
      identification: {sets: [prior, validation, confirmation], hub: openai/gsm8k, columns: {...}}
      pool: {hub: open-r1/OpenR1-Math-220k, columns: {...}}
      test: {hub: HuggingFaceH4/MATH-500, split: test, columns: {...}}

Sets that no source names come from the task's own data; the pool of known quality, unless named,
from where the pool comes from. What one set says no other does: sets are dealt in the order of
`SETS`, so the test set stays whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import DataSource
from igds_utils.config.settings import TaskConfig
from igds_utils.data.hub import SourceError
from igds_utils.data.rows import mirror_folder, source_rows
from igds_utils.tasks.examples import SETS, Example, Sets, normalize, number, random_stream
from igds_utils.tasks.records import Records

if TYPE_CHECKING:
    from igds_utils.tasks.base import Task

KNOWN = (*SETS, "quality")
REPEATING = ("pool", "test")  # what repeats inside these stays, as the benchmark has it


def deal_sets(task: Task, config: TaskConfig, seed: int) -> Sets:
    """The sets of a preset, from `sources` and from the task's own data.

    A set comes out smaller than its size where its source ends, and by the examples that another
    set has or that repeat (pool and test keep repeats); an empty one is a `ConfigError`. The pool of
    known quality takes what the pool leaves, and where that is less than half of its size, samples
    of the pool itself. facts: of sets and sources of which not all is used: used, of, because
    (reason -> how many).
    """
    sources, streams, facts = config.data.get("sources", {}), {}, {}
    asked = config.sizes.model_dump() | ({"quality": config.quality.size} if config.quality else {})
    if not isinstance(sources, dict):
        raise ConfigError(f"tasks.{task.name}.data.sources must hold a name and fields for each source")
    for name, raw in sources.items():
        place = ("tasks", task.name, "data", "sources", name)
        source = DataSource.read(raw, place=place)
        fills = source.sets or [name]
        if wrong := [one for one in fills if one not in KNOWN or one in streams]:
            raise ConfigError(
                f"{'.'.join(place)}: {wrong[0]!r} is no set, or another source fills it; say with "
                f"`sets` which of {', '.join(KNOWN)} it fills"
            )
        if "pool" in fills and "quality" not in sources:
            fills = [*fills, "quality"]
        if any(asked.get(one, 0) != 0 for one in fills):
            examples, facts[f"rows of {name}"] = _read(task, source, ".".join(place), seed)
            streams |= dict.fromkeys(fills, (f"rows of {name}", iter(examples)))
    if own := [name for name, size in asked.items() if size != 0 and name not in streams]:
        sizes = {name: size if name in own else 0 for name, size in asked.items()}
        examples = task.own_data(config).examples(sizes, random_stream(task.name, "sets", seed))
        streams |= dict.fromkeys(own, ("", iter(examples)))
    sets: dict[str, list[Example]] = {}
    owner: dict[str, str] = {}  # normalized text -> the set that has it
    for name in (name for name in KNOWN if name in asked):
        if (size := asked[name]) == 0:
            sets[name] = []
            continue
        rows, left = streams[name]
        members, because = _deal(name, size, left, owner)
        if name == "quality" and 2 * len(members) < size:
            members = sets["pool"][:size]
            because = {"of the pool itself": len(members)}
        elif rows:
            facts[rows]["used"] += len(members)
        if not members:
            out = _counted(because | (facts[rows]["because"] if rows else {}))
            raise ConfigError(
                f"task {task.name}: no {name} example is left ({out}): correct "
                f"tasks.{task.name}.data, or lower the sizes of the sets before it"
            )
        sets[name] = members
        facts[name] = {"used": len(members), "of": size or len(members), "because": because}
    for rows, left in streams.values():
        if rows and (more := sum(1 for _ in left)):
            facts[rows]["because"][f"beyond tasks.{task.name}.sizes"] = more
    told = {name: n for name, n in facts.items() if n["used"] < n["of"] or n["because"]}
    return Sets({name: number(members, task.name, name) for name, members in sets.items()}, told)


def _read(
    task: Task, source: DataSource, place: str, seed: int
) -> tuple[list[Example], dict[str, Any]]:
    """The examples of one source, shuffled and without id, and how many of its rows are left out.

    Rows that lack a text are; others that cannot be read are a `SourceError` that lists them.
    """
    if source.mirror and mirror_folder():
        source = source.model_copy(update={"columns": source.mirror.columns})
    named = {name for column in source.columns.values() for name in column.names} | {*source.where}
    known = named if {*task.row_fields} <= {*source.columns} else None
    records = Records(source_rows(source, known, place), task, source)
    examples, out = [example for example, _, _ in records.read()], Counter(records.left_out)
    if records.problems:
        raise SourceError(records.refusal(f"mend or remove them, or correct {place}"))
    if source.join_repeats:
        joined = join_repeats(examples)
        out["joined"], examples = len(examples) - len(joined), joined
    random_stream(task.name, f"sets/{place.rpartition('.')[2]}", seed).shuffle(examples)
    return examples, {"used": 0, "of": records.count, "because": dict(+out)}


def _deal(
    name: str, size: int | None, left: Iterator[Example], owner: dict[str, str]
) -> tuple[list[Example], dict[str, int]]:
    """The next set, and what was passed over for it because a set has its text already."""
    members, met = [], Counter()
    while size is None or len(members) < size:
        if (example := next(left, None)) is None:
            break
        text = normalize(example.text)
        new, other = text not in owner, owner.setdefault(text, name)
        if new or (other == name and name in REPEATING):
            members.append(example)
        else:
            met["repeats" if other == name else f"in {other}"] += 1
    return members, dict(met)


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
    for name, told in facts.items():
        because = f" ({_counted(told['because'])})" if told["because"] else ""
        parts.append(f"{name}: {told['used']:,} of {told['of']:,} are used{because}")
    return "; ".join(parts)


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {n:,}" for reason, n in reasons.items())

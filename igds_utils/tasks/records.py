"""Examples of a task from rows: which column fills which field, and which records can be used.

A field is filled by the column that is named for it, by one of its own name, or as a known format
has it: Alpaca (instruction, input, output), chats (messages, conversations), prompt and completion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import PIECE, Column, DataSource
from igds_utils.data.rows import Rows
from igds_utils.tasks.examples import Example, placeholders

if TYPE_CHECKING:
    from igds_utils.tasks.base import Task

FORMAT = ("prompt", "completion")
CHATS = ("messages", "conversations")
USER, ASSISTANT = ("user", "human"), ("assistant", "gpt")
MARKS = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations
FINAL = re.compile(r"\n?####\s*(.+?)\s*$")
HALF = re.compile("[\ud800-\udfff]")  # of a character that UTF-16 writes as two
SHOWN = 20  # problems that a message lists
MISSING = object()


class BadRecord(ValueError):
    """A record of which no example can be made."""


class LeftOut(BadRecord):
    """A record without one of its texts, or one that a preset filters."""


class Records:
    """The examples that rows make, read anew whenever they are asked for.

    source: how fields are made of columns, and what is left out (`columns`, `where`, `max_words`).
    scored: whether outputs are scored against the examples; if not, a record may hold the `target`
    itself and its `id`, and one without its texts is a problem. Known of the last pass: `count` of
    the rows, `problems` by place, `left_out` by reason. how: what of a known format is read.
    """

    def __init__(self, rows: Rows, task: Task, source: DataSource, scored: bool = True):
        self.rows, self.task, self.source, self.scored = rows, task, source, scored
        self.count, self.problems, self.left_out = 0, {}, Counter()
        prompt = placeholders(task.identification_template)
        parts = placeholders(task.target_template)
        known = [*prompt, *parts, *([task.reference] if scored else ["target", "id"])]
        if unknown := sorted({*source.columns, *source.max_words} - {*known}):
            has = ", ".join(dict.fromkeys(known))
            raise ConfigError(f"task {task.name} has no field {unknown[0]!r}; it has {has}")
        first = next((record for _, record in rows if isinstance(record, dict)), {})
        self._first, self.how = _unified(first)
        given = {*source.columns, *self._first}
        bare = task.target_template == f"{{{parts[0]}}}"  # what fills its field is the target
        made = scored or "target" not in given and (bare or {*parts} <= given)
        self.targets = parts if made else ["target"]
        self.fields = list(dict.fromkeys([*prompt, *self.targets, *[task.reference] * scored]))
        self._columns = {field: Column(column=field) for field in [*self.fields, "id"]}
        self._columns |= source.columns
        fixed = {field for field, column in source.columns.items() if column.value is not None}
        varied = [[f for f in some if f not in fixed] for some in (prompt, self.targets)]
        if {*FORMAT} <= {*self._first}:
            for some, own, alone in zip(varied, FORMAT, ("instruction", "output"), strict=True):
                columns = [Column(column=name) for name in (*CHATS, alone)]
                if len(some) == 1 and (some[0] not in given or self._columns[some[0]] in columns):
                    self._columns[some[0]] = Column(column=own)
        checked = [*self.fields, *({"id"} & {*source.columns})]
        self._unseen = {name: field for field in checked for name in self._columns[field].names}
        # fields of which one must not be empty
        alone = [*(f for f in self.fields if f not in task.optional), *[task.reference] * scored]
        self._needed = [*filter(None, varied), *([field] for field in alone)]

    def read(self) -> Iterator[tuple[Example, str, dict]]:
        """The examples, each with the place of its record and the record, in their order.

        Raises `ConfigError` after the last record for a column that is named and that no record has.
        """
        self.count, self.problems, self.left_out = 0, {}, Counter()
        for place, record in self.rows:
            self.count += 1
            try:
                if isinstance(record, str):
                    raise BadRecord(record)
                example = self._example(place, _unified(record)[0])
            except BadRecord as problem:
                if self.scored and isinstance(problem, LeftOut):
                    self.left_out[str(problem)] += 1
                else:
                    self.problems[place] = f"{place}: {problem}"
            else:
                yield example, place, record
        for name, field in self._unseen.items():
            if self._first and find(self._first, name) is MISSING:
                missing = self._missing(name, field, self._first)
                raise ConfigError(f"{self.rows.name}, all records: {missing}")

    def refusal(self, mend: str) -> str:
        """One message for all records that cannot be used, the first ones listed."""
        said, n = [*self.problems.values()][:SHOWN], len(self.problems)
        more = [f"... and {n - SHOWN} more"] if n > SHOWN else []
        return "\n".join([*said, *more, f"{n} of {self.count} records cannot be used: {mend}"])

    def _example(self, place: str, record: dict[str, Any]) -> Example:
        for name, values in self.source.where.items():
            if find(record, name) not in values:
                raise LeftOut("filtered by where")
        texts = {field: self._text(record, field) for field in self.fields}
        for needed in self._needed:
            if not any(texts[field] for field in needed):
                names = " and ".join(repr(self._columns[field].column) for field in needed)
                raise LeftOut(f"field {names} is empty")
        if any(len(texts[field].split()) > most for field, most in self.source.max_words.items()):
            raise LeftOut("filtered by max_words")
        return self.task.example(texts, "" if self.scored else self._id(place, record))

    def _id(self, place: str, record: dict[str, Any]) -> str:
        """The record's id as text; one without is called by where it stands."""
        if text := self._text(record, "id"):
            return text
        file, kind, number = place.rsplit(" ", 2)
        return f"{file}-" * (len(self.rows.files) > 1) + f"{kind}-{number.zfill(6)}"

    def _text(self, record: dict[str, Any], field: str) -> str:
        column = self._columns[field]
        if column.value is not None:
            return column.value
        optional = len(column.names) > 1 or field in (*self.task.optional, "id")
        pieces = {name: self._piece(record, name, field, optional) for name in column.names}
        if column.names == [column.column]:
            text = pieces[column.column]
        else:
            text = PIECE.sub(lambda name: pieces[name[1]], column.column)
        if HALF.search(text):
            raise BadRecord(f"field {column.column!r} holds half a character: write it out in full")
        return take(column, text).strip()  # templates put the space around it

    def _piece(self, record: dict[str, Any], name: str, field: str, optional: bool) -> str:
        if (value := find(record, name)) is MISSING:
            if optional:
                return ""
            raise BadRecord(self._missing(name, field, record))
        self._unseen.pop(name, None)
        if isinstance(value, bool | list | dict):
            raise BadRecord(f"field {name!r} holds a {type(value).__name__}: write it as text")
        return "" if value is None else str(value)

    def _missing(self, name: str, field: str, record: dict[str, Any]) -> str:
        called = f"no field {name!r}" + f" for {field!r}" * (field != name)
        return (
            f"{called} (task {self.task.name} needs {', '.join(self.fields)}; the record has "
            f"{', '.join(record) or 'none'}): rename it, or name its column: --column {field}=NAME, "
            "or `columns` in a preset"
        )


def find(record: dict[str, Any], name: str) -> Any:
    """What stands under a name, whose dots lead into nested records and lists, or `MISSING`."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (LookupError, TypeError, ValueError):
            return MISSING
    return value


def take(column: Column, text: str) -> str:
    """What a column asks for of its text; empty where the text does not hold it."""
    match column.take:
        case "gsm8k_solution":
            return MARKS.sub("", FINAL.sub("", text))
        case "gsm8k_answer":
            return found[1].replace(",", "") if (found := FINAL.search(text)) else ""
    return text


def _unified(record: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A record with the `prompt` and `completion` of a known format, and what of that is read."""
    chats = [record.get(name) for name in CHATS]
    if all(isinstance(record.get(name), list) for name in FORMAT):
        chats.append(record["prompt"] + record["completion"])
    for chat in chats:
        if not isinstance(chat, list) or not all(isinstance(turn, dict) for turn in chat):
            continue
        turns = [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in chat]
        asked = next((i for i, (role, _) in enumerate(turns) if role in USER), len(turns))
        prompt = next((text for _, text in turns[asked:]), None)
        answer = next((text for role, text in turns[asked:] if role in ASSISTANT), None)
        how = "of a chat the first user's turn and the answer to it are read"
        return record | {"prompt": prompt, "completion": answer}, how
    if {"instruction", "output"} <= record.keys():
        parts = [str(record[name]) for name in ("instruction", "input") if record.get(name)]
        made = {"prompt": "\n".join(parts), "completion": record["output"]}
        return made | record, "instruction and input are joined"
    return record, ""

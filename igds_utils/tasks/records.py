"""Examples of a task from rows of data: which column fills which field, and which records can be used.

A field is filled by the column that is named for it, by one of its own name, or as a known format has it: Alpaca
(instruction, input, output), chats (messages, conversations), prompt and completion.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import PIECE, Column, DataSource
from igds_utils.data.metrics import boxed_answer
from igds_utils.data.rows import Rows
from igds_utils.tasks.examples import Example, placeholders

if TYPE_CHECKING:
    from igds_utils.tasks.base import Task

ALPACA = "{instruction}\n{input}"
# columns of a record -> what fills the only field of a prompt, and the target
FORMATS = {
    ("messages",): ("messages", "messages"),
    ("conversations",): ("conversations", "conversations"),
    ("prompt", "completion"): ("prompt", "completion"),
    ("instruction", "output"): (ALPACA, "output"),
}
USER, ASSISTANT = ("user", "human"), ("assistant", "gpt", "model", "chatgpt", "bing")
MARKS = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations
FINAL = re.compile(r"\n?####\s*(.+?)\s*$")
SHOWN = 20  # problems that a message lists
MISSING = object()
KINDS = {bool: "true or false", list: "a list", dict: "an object"}


class BadRecord(ValueError):
    """A record of which no example can be made."""


class LeftOut(BadRecord):
    """A record without one of its texts, or one that a preset filters."""


class Records:
    """The examples that rows make, read anew whenever they are asked for.

    source: how fields are made of columns, and what is left out (`columns`, `where`, `max_words`); its place is not
    read. scored: whether outputs are scored against the examples; if not, a record may hold the `target` itself, and
    its `id`, and one without its texts is a problem. Known of the last pass: `count` of the rows, `problems` by place,
    `left_out` by reason.
    """

    def __init__(self, rows: Rows, task: Task, source: DataSource, scored: bool = True):
        self.rows, self.task, self.source, self.scored = rows, task, source, scored
        self.count, self.problems, self.left_out, self._chats = 0, {}, Counter(), False
        self._first = next((record for _, record in rows if isinstance(record, dict)), {})
        prompt, parts = placeholders(task.identification_template), placeholders(task.target_template)
        known, columns = dict.fromkeys([*prompt, "target", *parts, "id"]), source.columns
        if unknown := [] if scored else sorted({*columns} - {*known}):
            raise ConfigError(f"task {task.name} has no field {unknown[0]!r}; it has {', '.join(known)}")
        asks, answers = next((f for has, f in FORMATS.items() if {*has} <= {*self._first}), (None, None))
        free = [field for field in known if field not in columns and field not in self._first]
        if asks == ALPACA and len(prompt) == 1:  # the instruction alone would lose the input
            free += [field for field in prompt if columns.get(field) == Column(column="instruction")]
        bare = task.target_template == f"{{{parts[0]}}}" and "target" in free  # what fills its field is the target
        self.targets = parts if scored or "target" in free and (bare or not {*parts} & {*free}) else ["target"]
        self.format = {}  # fields that a known format fills
        if asks and len(asked := [field for field in prompt if field in free]) == 1:
            self.format[asked[0]] = Column(column=asks)
        if answers and len(self.targets) == 1 and self.targets[0] in free and (bare or not scored):
            self.format[self.targets[0]] = Column(column=answers)
        self.fields = list(dict.fromkeys([*prompt, *self.targets, *[task.reference] * scored]))
        self._columns = {field: Column(column=field) for field in [*self.fields, "id"]} | columns | self.format
        checked = [f for f in [*self.fields, *({"id"} & {*columns})] if f not in self.format]
        self._unseen = {name: field for field in checked for name in self._columns[field].names}
        if wrong := sorted({*source.max_words} - {*self.fields}):
            raise ConfigError(f"max_words of {wrong[0]!r}, which is no field of task {task.name}")
        varied = [[f for f in some if self._columns[f].value is None] for some in (prompt, self.targets)]
        self._needed = [*filter(None, varied), *([f] for f in self.fields if f not in task.optional)]
        self._needed += [[task.reference]] * scored

    def read(self, passed_over: Collection[str] = ()) -> Iterator[tuple[Example, str, dict[str, Any]]]:
        """The examples, each with the place of its record and the record, in their order.

        passed_over: places of records that are not looked at. Raises `ConfigError` after the last record for a column
        that is named and that no record has.
        """
        self.count, self.problems, self.left_out = 0, {}, Counter()
        for place, record in self.rows:
            self.count += 1
            if place in passed_over:
                continue
            try:
                if isinstance(record, str):
                    raise BadRecord(record)
                example = self._example(place, record)
            except BadRecord as problem:
                if self.scored and isinstance(problem, LeftOut):
                    self.left_out[str(problem)] += 1
                else:
                    self.problems[place] = f"{place}: {problem}"
            else:
                yield example, place, record
        for name, field in self._unseen.items():
            if self._first and find(self._first, name) is MISSING:
                raise ConfigError(f"{self.rows.name}, all records: {self._missing(name, field, self._first)}")

    def refusal(self, mend: str) -> str:
        """One message for all records that cannot be used, the first ones listed."""
        said, n = [*self.problems.values()][:SHOWN], len(self.problems)
        more = [f"... and {n - SHOWN} more"] if n > SHOWN else []
        return "\n".join([*said, *more, f"{n} of {self.count} records cannot be used: {mend}"])

    @property
    def how(self) -> str:
        """What stands for the fields where a known format was recognized, and what of it is not read."""
        said = [", ".join(f"{field} is {column.column!r}" for field, column in self.format.items())]
        if self._chats:
            said.append("of a chat the first user's turn and the answer to it are read, no system and no further turns")
        return "; ".join(filter(None, said))

    def _example(self, place: str, record: dict[str, Any]) -> Example:
        for name, values in self.source.where.items():
            if self._value(record, name, name) not in values:
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
        column = self._columns["id"].column
        if column and self._columns["id"].names != [column]:  # a template
            return self._text(record, "id")
        value = self._value(record, column, "id", optional=True) if column else None
        if value is None:
            file, kind, number = place.rsplit(" ", 2)
            return f"{file}-" * (len(self.rows.files) > 1) + f"{kind}-{number.zfill(6)}"
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            held = KINDS.get(type(value), repr(value))
            more = f" (write {value:.0f}, which an export made a decimal)" if isinstance(value, float) else ""
            raise BadRecord(
                f"field {column!r} holds {held}: an id is text or a whole number{more}; --column id=NAME reads another "
                "column, --column id= numbers the records"
            )
        return _whole(str(value), column)

    def _text(self, record: dict[str, Any], field: str) -> str:
        column = self._columns[field]
        if column.value is not None:
            return column.value
        pieces = {name: self._piece(record, name, field, len(column.names) > 1) for name in column.names}
        text = pieces.get(column.column)  # else a template
        text = PIECE.sub(lambda name: pieces[name[1]], column.column) if text is None else text
        return take(column, _whole(text, column.column)).strip()  # templates put the space around it

    def _piece(self, record: dict[str, Any], name: str, field: str, optional: bool) -> str:
        value = self._value(record, name, field, optional or field in self.task.optional)
        if isinstance(value, list) and (turns := _turns(value)):
            value = self._turn(turns, name, field)
        if isinstance(value, bool | list | dict):
            raise BadRecord(f"field {name!r} holds {KINDS[type(value)]}, not text: write it as text")
        return "" if value is None else str(value)

    def _value(self, record: dict[str, Any], name: str, field: str, optional: bool = False) -> Any:
        if (value := find(record, name)) is not MISSING:
            self._unseen.pop(name, None)
            return value
        if optional:
            return None
        raise BadRecord(self._missing(name, field, record))

    def _missing(self, name: str, field: str, record: dict[str, Any]) -> str:
        called = f"no field {name!r}" + f" for {field!r}" * (field != name)
        return (
            f"{called} (task {self.task.name} needs {', '.join(self.fields)}; the record has "
            f"{', '.join(map(str, record)) or 'none'}): rename it, or name its column: --column {field}=NAME, or "
            "`columns` in a preset"
        )

    def _turn(self, turns: list[tuple[Any, Any]], name: str, field: str) -> Any:
        """What the user says, or the answer to it; a prompt that stands alone ends in what is answered."""
        self._chats = True
        asked, answers = ([i for i, (role, _) in enumerate(turns) if role in names] for names in (USER, ASSISTANT))
        at = asked[0 if self._columns[self.targets[0]].column == name else -1] if asked else -1
        found = [i for i in answers if i > at] if field in self.targets else [at] * bool(asked)
        if not found:
            who = "assistant" if field in self.targets else "user"
            raise LeftOut(f"chat {name!r} has no turn of the {who}")
        return turns[found[0]][1]


def find(record: Any, name: str) -> Any:
    """What stands under a name, whose dots lead into nested records and lists; `MISSING` where there is none."""
    if name in record:
        return record[name]
    value = record
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return MISSING
    return value


def take(column: Column, text: str) -> str:
    """What a column asks for of its text; empty where the text does not hold it."""
    match column.take:
        case "gsm8k_solution":
            return MARKS.sub("", FINAL.sub("", text))
        case "gsm8k_answer":
            return found[1].replace(",", "") if (found := FINAL.search(text)) else ""
        case "boxed":
            return boxed_answer(text) or ""
    return text


def _whole(text: str, name: str) -> str:
    """`text` of a field, if it is whole characters."""
    try:
        text.encode("utf8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BadRecord(f"field {name!r} holds half a character ({half}): write it out in full") from None
    return text


def _turns(value: list) -> list[tuple[Any, Any]]:
    """(role, text) of a chat's turns; none for another list."""
    chat = all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value)
    return [(t.get("role", t.get("from")), t.get("content", t.get("value"))) for t in value] if chat else []

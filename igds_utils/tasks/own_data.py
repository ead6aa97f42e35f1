"""Data that tasks have without a dataset: word problems, leads of articles, interface messages.

Each kind is the record of a task's `data` section and knows how its examples are made. A task's
YAML file names its kind (`data: word_problems`); the stories are in word_problems.yaml.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count, islice
from operator import add, floordiv, mul, sub
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import Strict, WheelRef
from igds_utils.data import hub
from igds_utils.data.metrics import words
from igds_utils.tasks.examples import SETS, Example, normalize, unique

OPERATORS = {"+": add, "-": sub, "*": mul, "/": floordiv}
LARGEST_RESULT = 99
# of stories in word_problems.yaml
Family = Literal[
    "gift", "loss", "packing", "shopping", "sharing", "ages", "reading", "bus", "garden", "savings"
]  # fmt: skip
Steps = Annotated[int, Field(ge=1, le=3)]  # processes of a launch read it as text, of JSON
LANGUAGES = {"fr": "French", "zh": "Chinese"}
MESSAGE_WORDS = (4, 30)  # English words of an interface message: without placeholders, with them
PLACEHOLDER = re.compile(r"%\d|%s|\{\w*\}|<[^>]*>")
DESCRIPTION_WORDS = 4  # of an article's short description, at least
# "(1924–2018)" after a person: as a rule the lead does not say it, so it cannot be learnt.
YEARS = re.compile(r"\s*\([^()]*\d[^()]*\)$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")


class OwnData(Strict):
    """The `data` section of a task that needs no `sources`; `load` yields its examples, without id."""

    def examples(self, sizes: dict[str, int | None], random: Random) -> list[Example]:
        """All of them, shuffled, in the order in which sets of these sizes are dealt."""
        made = list(self.load())
        random.shuffle(made)
        return made


class WordProblems(OwnData):
    """Arithmetic word problems with worked solutions, and requests that are none."""

    steps: dict[Steps, PositiveFloat] = Field({1: 0.5, 2: 0.4, 3: 0.1}, min_length=1)  # weights
    max_number: int = Field(20, ge=5)  # the largest given in a question
    families: list[Family] | None = None  # of stories; none: all
    off_task: float = Field(0.25, ge=0, lt=1)  # share of the pool that is no problem

    def examples(self, sizes: dict[str, int | None], random: Random) -> list[Example]:
        """The requests, mixed in, all fall into the pool; the pool of known quality has none."""
        if (size := sizes["pool"]) is None:
            raise ConfigError("generated problems have no end: give tasks.math.sizes.pool a number")
        total, requests = sum(sizes[name] for name in SETS), round(self.off_task * size)
        made = self._draw(total - requests, requests, random)
        pool = made[total - size :]
        random.shuffle(pool)
        seen = {normalize(example.text) for example in made}
        return made[: total - size] + pool + self._draw(sizes.get("quality", 0), 0, random, seen)

    def _draw(
        self, problems: int, requests: int, random: Random, seen: Iterable[str] = ()
    ) -> list[Example]:
        levels, weights = list(self.steps), list(self.steps.values())
        drawn = (
            draw_problem(random, random.choices(levels, weights)[0], self.max_number, self.families)
            for _ in count()
        )
        asked = (draw_request(random) for _ in count())
        return [*islice(unique(drawn, seen), problems), *islice(unique(asked, seen), requests)]


@cache
def stories() -> dict[str, Any]:
    """The stories by family (`problems`, `requests`) and the words that fill them (`cast`)."""
    return yaml.safe_load(Path(__file__).with_name("word_problems.yaml").read_text(encoding="utf8"))


def draw_problem(
    random: Random, steps: int, max_number: int, families: list[str] | None = None
) -> Example:
    """One problem of `steps` calculations (1-3) whose given numbers lie in 2..max_number.

    Numbers are drawn until every result is a whole number from 1 to 99. The target is the worked
    solution (`12 + 7 = 19. 19 * 2 = 38.`) and the answer in a box.
    """
    family = random.choice(families or list(stories()["problems"]))
    chosen = next(story for story in stories()["problems"][family] if len(story["work"]) == steps)
    letters = sorted(set(re.findall(r"\b[a-d]\b", " ".join(chosen["work"]))))
    worked = None
    while worked is None:
        numbers = {letter: random.randint(2, max_number) for letter in letters}
        worked = _work(chosen["work"], numbers)
    solution, answer = worked
    question = chosen["story"].format(**_cast(random), **numbers)
    target = f"{solution}\nThe final answer is \\boxed{{{answer}}}."
    meta = {"family": family, "steps": steps, "off_task": 0}
    return Example("", {"question": question}, target, (answer,), meta)


def draw_request(random: Random) -> Example:
    """One request that asks for no calculation, with a short reply; neither holds a number."""
    family = random.choice(list(stories()["requests"]))
    chosen, cast = random.choice(stories()["requests"][family]), _cast(random)
    question, reply = chosen["story"].format(**cast), chosen["reply"].format(**cast)
    meta = {"family": family, "steps": 0, "off_task": 1}
    return Example("", {"question": question}, reply, (), meta)


def _work(calculations: list[str], numbers: dict[str, int]) -> tuple[str, str] | None:
    """The solution and its last result; None if some result is no whole number from 1 to 99."""
    known, lines = dict(numbers), []
    for i, calculation in enumerate(calculations, start=1):
        left, operator, right = calculation.split()
        x, y = known[left], known[right]
        result = OPERATORS[operator](x, y)
        if not 1 <= result <= LARGEST_RESULT or (operator == "/" and x % y):
            return None
        known[f"r{i}"] = result
        lines.append(f"{x} {operator} {y} = {result}.")
    return " ".join(lines), str(result)


def _cast(random: Random) -> dict[str, str]:
    """Persons and things of a story; those that it does not name are drawn all the same."""
    cast = stories()["cast"]
    name, friend = random.sample(cast["name"], 2)
    drawn = {key: random.choice(choices) for key, choices in cast.items() if key != "name"}
    return {"name": name, "friend": friend, **drawn}


class ArticleLeads(OwnData):
    """The lead of a Wikipedia article into one line, `{title}: {short description}`.

    The description alone ("Country in Central America") is terse, and the untrained model beats it
    by overlap when it just continues at length. Leaving out the rest is what is learnt.
    """

    wheel: WheelRef  # `file` is the JSON file of the article leads
    min_words: int = 30  # of the text, cut at a sentence's end
    max_words: int = 80

    def load(self) -> Iterator[Example]:
        """Left out: leads with holes where formulas or names were stripped, that do not name their
        title or are too short, too short descriptions, and repeated texts or lines.
        """
        seen = set()
        for article in self.articles():
            lead, title = article["extract"].strip(), article["title"]
            description = YEARS.sub("", article["description"] or "").strip()
            name = re.sub(r"\s*\(.*\)$", "", title)  # "Mercury (planet)"
            if re.search(r"  |\n| ,|\(\)", lead) or name.lower() not in lead.lower():
                continue
            text, line = whole_sentences(lead, self.max_words), f"{name}: {description}"
            said = {normalize(text), normalize(line)}
            short = len(text.split()) < self.min_words
            if not short and len(description.split()) >= DESCRIPTION_WORDS and not said & seen:
                seen |= said
                yield Example("", {"text": text}, line, (line,), {"title": title})

    def articles(self) -> list[dict[str, str]]:
        """The articles of the source: title, extract (the lead), description."""
        return list(json.loads(hub.wheel_file(self.wheel).read_text(encoding="utf8")).values())


def whole_sentences(text: str, max_words: int) -> str:
    """As many whole sentences as fit in `max_words` words; none if the first alone is longer."""
    kept = SENTENCE_END.split(text)
    while len(" ".join(kept).split()) > max_words:
        kept.pop()
    return " ".join(kept)


class InterfaceMessages(OwnData):
    """English interface messages and their translations, of JupyterLab's language packs."""

    language: Literal["fr", "zh"] = "fr"
    wheels: dict[str, WheelRef]  # by language; `file` is the folder of a pack's catalogs

    def load(self) -> Iterator[Example]:
        """The catalogs map `context \\x04 message` to a list of plural forms (the first is taken).

        Left out: messages of several lines (settings with code in them), untranslated ones, too
        short or too long ones, and those whose English or translation already occurred.
        """
        if self.language not in self.wheels:
            raise ConfigError(f"tasks.translation.data.wheels: none for language {self.language!r}")
        folder, seen = hub.wheel_file(self.wheels[self.language]), set()
        language, (least, most) = LANGUAGES[self.language], MESSAGE_WORDS
        for catalog in sorted(folder.glob("*.json")):
            for key, forms in json.loads(catalog.read_text(encoding="utf8")).items():
                source, target = key.rpartition("\x04")[2].strip(), forms[0].strip() if key else ""
                if "\n" in source + target or not target or len(source.split()) > most:
                    continue
                plain = {("source", *words(source)), ("target", *words(target))}
                same = words(source) == words(target)
                if same or plain & seen or len(PLACEHOLDER.sub(" ", source).split()) < least:
                    continue
                seen |= plain
                target = " ".join(target.split())
                fields = {"source_text": " ".join(source.split()), "target_language": language}
                yield Example("", fields, target, (target,))


KINDS: dict[str, type[OwnData]] = {
    "word_problems": WordProblems,
    "article_leads": ArticleLeads,
    "interface_messages": InterfaceMessages,
}

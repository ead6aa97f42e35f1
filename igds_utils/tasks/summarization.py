"""Summarization: the lead of a Wikipedia article into one line, `{title}: {short description}`; ROUGE-1.

Why this shape: the short description alone is a terse fragment ("Country in Central America") that the untrained
model beats by overlap when it just continues at length. With the title in front the line says what the text is about
and what that is; both are to be found in the lead, and leaving out the rest is what fine-tuning has to teach.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from igds_utils.config.refs import RougeMetric, Strict, WheelRef
from igds_utils.config.settings import TaskConfig
from igds_utils.data import hub
from igds_utils.tasks.base import CorpusTask
from igds_utils.tasks.examples import HELD_OUT, Example, data_parameters, normalize, random_stream

# "(1924–2018)" after a person: as a rule the lead does not say it, so it cannot be learnt.
YEARS = re.compile(r"\s*\([^()]*\d[^()]*\)$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")


class SummarizationData(Strict):
    """The `data` section of the summarization task."""

    wheel: WheelRef = Field(description="`file` is the JSON file of the article leads")
    min_words: int = Field(30, description="words of the text, cut at a sentence's end")
    max_words: int = Field(80, description="words of the text, cut at a sentence's end")
    min_description_words: int = Field(4, description="words of the short description")


class SummarizationTask(CorpusTask):
    name = "summarization"
    title = "Summarization"
    scoring = RougeMetric()
    identification_template = "Use a sentence to summarize this following text:\n{text}\nSummarization:"
    records_instruction = "Use a sentence to summarize this following text."
    records_input = "{text}"
    records_output = "{target}"
    target_template = "{summary}"
    reference = "summary"

    def own_data(self, config: TaskConfig) -> str:
        return "leads of Wikipedia articles with their one-line descriptions"

    def english(self, config: TaskConfig, seed: int) -> list[str]:
        """Every whole lead of the source as general English text, except those of test, validation, confirmation.

        In a shuffled order; also leads that are too short, too long or too poor for the task.
        """
        data = data_parameters(SummarizationData, config, self.name)
        sets = self.own_sets(config, seed)
        held_out = {example.meta["title"] for name in HELD_OUT for example in sets[name]}
        texts = [a["extract"] for a in articles(hub.wheel_file(data.wheel)) if a["title"] not in held_out]
        random_stream(self.name, "english", seed).shuffle(texts)
        return texts

    def load(self, config: TaskConfig) -> list[Example]:
        data = data_parameters(SummarizationData, config, self.name)
        return [
            Example("", {"text": text}, line, (line,), {"title": title, "topic": topic})
            for title, topic, text, line in read_leads(hub.wheel_file(data.wheel), data)
        ]


def read_leads(file: Path, data: SummarizationData) -> Iterator[tuple[str, str, str, str]]:
    """(title, topic, text, `title: description`) of every usable article.

    Left out: leads with holes where formulas or names were stripped, leads that do not name their title, those too
    short for `min_words`, descriptions below `min_description_words`, and repeated texts or lines.
    """
    seen: set[str] = set()
    for article in articles(file):
        lead, description = article["extract"].strip(), YEARS.sub("", article["description"] or "").strip()
        name = re.sub(r"\s*\(.*\)$", "", article["title"])  # "Mercury (planet)"
        if re.search(r"  |\n| ,|\(\)", lead) or name.lower() not in lead.lower():
            continue
        if len(description.split()) < data.min_description_words:
            continue
        text, line = _cut(lead, data.max_words), f"{name}: {description}"
        if len(text.split()) < data.min_words or {normalize(text), normalize(line)} & seen:
            continue
        seen |= {normalize(text), normalize(line)}
        yield article["title"], article["topic"], text, line


def articles(file: Path) -> list[dict[str, str]]:
    """The articles of the source: title, extract (the lead), description, topic."""
    return list(json.loads(file.read_text(encoding="utf8")).values())


def _cut(text: str, max_words: int) -> str:
    """As many whole sentences as fit in `max_words` words; none if the first alone is longer."""
    kept: list[str] = []
    for sentence in SENTENCE_END.split(text):
        if len(" ".join([*kept, sentence]).split()) > max_words:
            break
        kept.append(sentence)
    return " ".join(kept)

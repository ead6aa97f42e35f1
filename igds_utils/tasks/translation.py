"""Translation: English user-interface messages and their human translations from JupyterLab's language packs.

The metric is chrF (sacrebleu), a comparison of characters, unless a preset asks for COMET.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import ChrfMetric, Strict, WheelRef
from igds_utils.config.settings import TaskConfig
from igds_utils.data import hub
from igds_utils.data.metrics import words
from igds_utils.tasks.base import CorpusTask
from igds_utils.tasks.examples import Example, data_parameters

LANGUAGES = {"fr": "French", "zh": "Chinese"}
PLACEHOLDER = re.compile(r"%\d|%s|\{\w*\}|<[^>]*>")


class TranslationData(Strict):
    """The `data` section of the translation task."""

    language: str = "fr"
    wheels: dict[str, WheelRef] = Field(
        description="language -> language pack; `file` is the folder of its catalogs, with a slash at the end"
    )
    min_words: int = Field(4, ge=1, description="English words without placeholders")
    max_words: int = Field(30, description="English words")


class TranslationTask(CorpusTask):
    name = "translation"
    title = "Translation"
    scoring = ChrfMetric()
    identification_template = (
        "Please translate the following text into {target_language}.\nText:{source_text}\nTranslation:"
    )
    records_instruction = "Please translate the following text into {target_language}."
    records_input = "{source_text}"
    records_output = "{target}"
    target_template = "{target_text}"
    reference = "target_text"

    def own_data(self, config: TaskConfig) -> str:
        language = LANGUAGES.get(config.data.get("language", "fr"), "another language")
        return f"JupyterLab's interface messages, English to {language}"

    def load(self, config: TaskConfig) -> list[Example]:
        data = data_parameters(TranslationData, config, self.name)
        for known, what in ((LANGUAGES, "name of the language"), (data.wheels, "wheel")):
            if data.language not in known:
                raise ConfigError(
                    f"tasks.translation.data.language: no {what} for {data.language!r}; known: {', '.join(known)}"
                )
        folder = hub.wheel_file(data.wheels[data.language])
        language = LANGUAGES[data.language]
        return [
            Example(
                id="",
                fields={"source_text": source, "target_language": language},
                target=target,
                references=(target,),
                meta={"catalog": catalog},
            )
            for catalog, source, target in read_catalogs(folder, data.min_words, data.max_words)
        ]


def read_catalogs(folder: Path, min_words: int, max_words: int) -> Iterator[tuple[str, str, str]]:
    """(catalog, English, translation) of every usable message of the `*.json` catalogs of a folder.

    The catalogs map `context \\x04 message` to a list of plural forms (the first is taken). Left out: messages of
    several lines (settings with code in them), untranslated ones, those outside min_words..max_words, and those
    whose English or translation already occurred word by word.
    """
    sources, targets = set(), set()
    catalogs = sorted(folder.glob("*.json"))
    if not catalogs:
        raise ConfigError(f"no *.json catalogs in {folder}: correct `file:` in tasks.translation.data.wheels")
    for catalog in catalogs:
        for key, forms in json.loads(catalog.read_text(encoding="utf8")).items():
            if not key:  # the catalog's header
                continue
            source, target = key.rpartition("\x04")[2].strip(), forms[0].strip()
            length = len(source.split())
            if "\n" in source + target or not target or length > max_words:
                continue
            if len(PLACEHOLDER.sub(" ", source).split()) < min_words:
                continue
            plain_source, plain_target = tuple(words(source)), tuple(words(target))
            if plain_source == plain_target or plain_source in sources or plain_target in targets:
                continue
            sources.add(plain_source)
            targets.add(plain_target)
            yield catalog.stem, " ".join(source.split()), " ".join(target.split())

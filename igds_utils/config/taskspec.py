"""What a task is scored by, and what a task of a user's own consists of, as presets write them down."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from igds_utils.config.refs import FolderRef, HubRef, Strict


class AccuracyMetric(Strict):
    """Whether the answer is mathematically equal to the reference (math-verify); pass@k with several samples."""

    name: Literal["accuracy"] = "accuracy"
    answer: Literal["box_else_number", "box"] = Field(
        "box_else_number",
        description="the last \\boxed{}, or where there is none what math-verify or else the last number gives; or the "
        "box alone",
    )
    timeout: int | None = Field(5, ge=1, description="seconds for parsing and for comparing one answer")


class RougeMetric(Strict):
    """ROUGE-1 F1, the mean over an example's references, with ROUGE-2 and ROUGE-L beside it (rouge-score)."""

    name: Literal["rouge1"] = "rouge1"
    stemming: bool = Field(False, description="Porter stemming, rouge-score's use_stemmer")


class ChrfMetric(Strict):
    """Sentence chrF2, with sentence BLEU beside it (sacrebleu); the scores of the corpus are in corpus.json."""

    name: Literal["chrf"] = "chrf"


class CometMetric(Strict):
    """COMET x 100 on source, hypothesis and reference, with chrF and BLEU beside it (unbabel-comet)."""

    name: Literal["comet"] = "comet"
    checkpoint: HubRef | FolderRef = HubRef(
        hub="Unbabel/wmt22-comet-da", revision="2760a223ac957f30acfb18c8aa649b01cf1d75f2"
    )
    batch: int = Field(64, ge=1, description="translations scored together")


class ExactMetric(Strict):
    """Whether the output is the reference, apart from case, spaces, kind of quotes and a full stop at the end."""

    name: Literal["exact_match"] = "exact_match"


METRICS = {
    kind.model_fields["name"].default: kind
    for kind in (AccuracyMetric, RougeMetric, ChrfMetric, CometMetric, ExactMetric)
}
Metric = Annotated[
    AccuracyMetric | RougeMetric | ChrfMetric | CometMetric | ExactMetric, Field(discriminator="name")
]


class TaskSpec(Strict):
    """A task: templates over the fields that its sources fill, and a metric."""

    title: str
    data: Literal["word_problems", "article_leads", "interface_messages"] | None = Field(
        None, description="what is read or made where a preset names no `sources` (tasks/own_data.py)"
    )
    prompt: str = Field(description="identification prompt; its last line is the cue and ends in a colon")
    target: str = Field(description="what is learnt, over the fields")
    reference: str = Field(description="the field that outputs are scored against")
    metric: Metric
    instruction: str | None = Field(None, description="SFT record; by default the prompt without its cue")
    input: str = Field("", description="SFT record")
    output: str | None = Field(
        None, description="SFT record, over {target}; by default the cue and the target"
    )
    stops: list[str] = Field([], description="an output ends before the first of these")
    optional: list[str] | None = Field(
        None,
        description="fields that a row may leave empty, but not all of the prompt's or of the target's; by default any",
    )
    few_shot: str = Field("", description="the prompt with worked examples, over {shots} and the fields")
    shot: str = Field("", description="how one worked example is written, over its fields")
    shots: list[dict[str, str]] = Field([], description="the worked examples")

    @model_validator(mode="after")
    def _ends_in_a_cue(self):
        if not re.search(r"\n[^\n]+:$", self.prompt):
            raise ValueError(
                f"prompt must end in a line of its own with the colon ':' (U+003A), the critical position "
                f"(\\nAnswer:), not in {self.prompt[-20:]!r}{_last_character(self.prompt)}"
            )
        return self


def _last_character(text: str) -> str:
    """The code point of a text's end, where it may be taken for an ASCII character."""
    return f" (U+{ord(text[-1]):04X})" if text and not text[-1].isascii() else ""

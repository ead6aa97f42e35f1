"""What presets point to: models and SAEs, files, rows of data, metrics, and tasks of a user's own."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator


class Strict(BaseModel):
    """A record that refuses unknown keys and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, fields: Any):
        known = list(cls.model_fields)
        for key in [key for key in fields if key not in known] if isinstance(fields, dict) else []:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown key {key!r}{hint}; known here: {', '.join(known)}")
        return fields


class HubRef(Strict):
    """A Hugging Face repository, pinned to a revision."""

    hub: str
    revision: str = "main"


class FolderRef(Strict):
    """A folder on this machine; a relative path is read from the project's root."""

    folder: str


class WheelRef(Strict):
    """One file inside a pinned wheel of the Python package index."""

    wheel: str = Field(description="name of the package")
    version: str
    sha256: str = Field(description="of the wheel file")
    file: str = Field(description="path inside the wheel")


class TinyRef(Strict):
    """A tiny random model of a true architecture, made on the spot (tests and the smoke preset)."""

    tiny: Literal["llama", "gemma2", "qwen3"]
    seed: int = 0


KINDS = {"hub": HubRef, "folder": FolderRef, "wheel": WheelRef, "tiny": TinyRef}


def _kind_of_ref(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else type(value).model_fields
    return next((kind for kind in KINDS if kind in keys), None)


Ref = Annotated[
    Annotated[HubRef, Tag("hub")]
    | Annotated[FolderRef, Tag("folder")]
    | Annotated[WheelRef, Tag("wheel")]
    | Annotated[TinyRef, Tag("tiny")],
    Discriminator(_kind_of_ref),
]


def describe(ref: Ref) -> str:
    """A short name of a model reference, for tables and messages."""
    match ref:
        case HubRef():
            return ref.hub
        case FolderRef():
            return Path(ref.folder).name
        case WheelRef():
            return Path(ref.file).stem.split(".")[0]
        case TinyRef():
            return f"tiny random {ref.tiny}"


# ---- models and SAEs -------------------------------------------------------------------------------------


class SaeConfig(Strict):
    """A set of SAEs, one a layer: a sae_lens release, a local folder with one `layer_NN` folder each, or tiny."""

    source: Literal["release", "folder", "tiny"]
    name: str = Field(description="release name, or the folder (relative to the project's root)")
    id: str | None = Field(
        None,
        description="release: the SAE of a layer, with {layer} for its number (layer_{layer}/width_16k/canonical); "
        "needed where a release has several a layer",
    )
    layers: list[int] | Literal["all"] = "all"


class Shape(Strict):
    """The size of a model, for what the plan says about time, memory and disk; nothing else reads it."""

    parameters: int
    layers: int
    width: int = Field(description="of the residual stream")
    kv_width: int = Field(description="key heads times head size")
    vocabulary: int
    d_sae: int = Field(0, description="features of one layer's SAE; 0 leaves SAEs out of the plan")


class ModelConfig(Strict):
    identify: Ref = Field(description="the instruction-tuned model whose features are read and steered")
    train: Ref = Field(description="the model that is fine-tuned and evaluated")
    saes: SaeConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shape: Shape | None = None
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of the preset that change where this model is chosen, by dotted name (launch.processes)",
    )


# ---- rows of data ----------------------------------------------------------------------------------------


PIECE = re.compile(r"\{([^{}]+)\}")  # the name of a column in a template


class Column(Strict):
    """What a field of a task is filled with: a column of the row, several in a template, or a fixed text."""

    column: str | None = Field(
        None,
        description="its name; dots lead into nested records and lists (translation.en, messages.0.content); names in "
        "braces make a template ({instruction}\n{input})",
    )
    take: Literal["text", "gsm8k_solution", "gsm8k_answer", "boxed"] = Field(
        "text",
        description="gsm8k_solution: without the last line `#### N` and the marks <<...>>; gsm8k_answer: that N; "
        "boxed: what the last \\boxed{} holds",
    )
    value: str | None = Field(None, description="the same text for every row, in place of a column")

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.column is None) == (self.value is None):
            raise ValueError("give either `column` or `value`")
        return self

    @property
    def names(self) -> list[str]:
        """The columns of the row that it reads."""
        return PIECE.findall(self.column or "") or [self.column] * (self.column is not None)


def _named(columns: Any) -> Any:
    """`question: problem` is short for `question: {column: problem}`."""
    if not isinstance(columns, dict):
        return columns
    return {field: {"column": c} if isinstance(c, str) else c for field, c in columns.items()}


Columns = Annotated[dict[str, Column], BeforeValidator(_named)]
SetName = Literal["test", "validation", "confirmation", "prior", "pool"]


class MirrorFile(Strict):
    """Where a data mirror keeps a source that does not lie there under its hub id."""

    path: str = Field(description="of a JSONL file, from the mirror's folder")
    columns: Columns


class DataSource(Strict):
    """Rows of a dataset on the hub or of files, and how fields are made of their columns."""

    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str = "main"
    file: str | list[str] | None = Field(
        None, description="JSON, CSV, Parquet, Arrow, or a folder of such; relative to the project's root"
    )
    mirror: MirrorFile | None = None
    columns: Columns = Field(
        {}, description="field -> column of the row; by default of the same name, or as a known format has it"
    )
    sets: list[SetName] | None = Field(
        None, description="which sets it fills; by default the one it is named after"
    )
    where: dict[str, list[str | int | bool]] = Field(
        default_factory=dict, description="column -> the values of which a row must have one"
    )
    max_words: dict[str, int] = Field(
        default_factory=dict, description="field -> most words; longer rows are left out"
    )
    rows: int | None = Field(
        None, ge=1, description="draw so many at random in one pass, for sources beyond memory"
    )
    join_repeats: bool = Field(
        False,
        description="rows with the same prompt become one example with the targets of all as references",
    )

    @model_validator(mode="after")
    def _one_place(self):
        if (self.hub is None) == (self.file is None):
            raise ValueError("a source is either on the `hub` or in a `file`")
        return self


# ---- metrics and tasks -----------------------------------------------------------------------------------


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

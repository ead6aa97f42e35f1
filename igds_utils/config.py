"""Presets: one YAML file describes one experiment completely, and an unknown key is refused.

A preset is read by `load_preset`, narrowed to one model and some tasks, and changed by overrides
("sft.lr=1e-4"); what comes out is a frozen, typed record that every other module takes its parameters from.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from igds_utils.refs import KINDS, Ref, Strict

PROJECT = Path(__file__).resolve().parent.parent
PRESETS = Path(__file__).resolve().parent / "presets"


class ConfigError(ValueError):
    """A preset or an override that cannot be used; the message names the file, the field and the mend."""


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
    """The size of a model, for the plan's memory and disk; nothing else reads it."""

    parameters: int
    layers: int
    width: int = Field(description="of the residual stream")
    kv_width: int = Field(description="key heads times head size")
    vocabulary: int


class ModelConfig(Strict):
    identify: Ref = Field(description="the instruction-tuned model whose features are read and steered")
    train: Ref = Field(description="the model that is fine-tuned and evaluated")
    saes: SaeConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shape: Shape | None = None


# ---- stages ----------------------------------------------------------------------------------------------


class RecallConfig(Strict):
    tau: float = Field(0.8, gt=0, le=1, description="share of D_prior on which a candidate must fire")


class InterventionConfig(Strict):
    positions: Literal["critical_and_decode", "critical_only"] = "critical_and_decode"
    scale: float = Field(1.0, description="1.0 adds a_i d_i once, that is, doubles the feature")
    k: int = Field(1, ge=1, description="how many task features are kept")
    strict: bool = Field(False, description="no IGDS arm where no candidate has a positive effect")
    rows: int = Field(64, ge=1, description="rows (sample, feature) decoded together")


class ScoringConfig(Strict):
    units: Literal["activation", "residual"] = Field(
        "activation", description="activation: a_i as in the paper; residual: a_i * ||d_i||"
    )


class SftConfig(Strict):
    lr: float = 2e-5
    epochs: float = 1.0
    global_batch: int = 64
    device_batch: int = Field(
        8, description="samples a device holds at once; the rest is gradient accumulation"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_length: int = 2048
    rendering: Literal["records", "evaluation"] = "records"
    keep_weights: bool = True
    checkpoint_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; none for a small model"
    )


class Sizes(Strict):
    prior: int
    validation: int
    confirmation: int
    pool: int
    test: int


class TaskConfig(Strict):
    """One task: its data, how it is rendered, and how much of it is used."""

    data: dict[str, Any] = Field(default_factory=dict, description="parameters of the task's own loader")
    sizes: Sizes
    rendering: Literal["bare", "chat"] = "bare"
    shots: int = 0
    max_new_tokens: int
    max_candidates: int | None = Field(None, description="how many candidates enter the causal filter")
    selectors: list[str] = ["random", "loss", "igds"]
    ratios: list[float] = [0.5]
    seeds: list[int] = Field([0], description="seeds of Random and of training")
    samples: int = Field(1, ge=1, description="completions a test item; 1 is greedy, pass@k needs k")
    temperature: float = 0.7
    top_p: float = 0.95
    defect_check: bool = Field(
        False, description="also train on the clean and on the spoilt half of a labelled pool"
    )
    sft: SftConfig
    prompt_tokens: int = Field(description="mean tokens of a rendered prompt, for the plan")
    target_tokens: int = Field(description="mean tokens of a target, for the plan")

    @model_validator(mode="after")
    def _ratios_in_range(self):
        if bad := [r for r in self.ratios if not 0 < r <= 1]:
            raise ValueError(f"ratios must lie in (0, 1], not {bad}")
        return self


class Speeds(Strict):
    """What the plan multiplies tokens with; measured, see results/reference/quick/manifest.json."""

    forward: float = Field(description="tokens a second, forward pass")
    decode: float = Field(description="tokens a second, batched decoding")
    train: float = Field(description="tokens a second, training")
    notebook: float = Field(description="seconds a notebook needs beside the model's work")


class Preset(Strict):
    name: str
    description: str
    seed: int = 0
    model: str = Field(description="the chosen one of `models`")
    models: dict[str, ModelConfig]
    tasks: dict[str, TaskConfig]
    recall: RecallConfig = RecallConfig()
    intervention: InterventionConfig = InterventionConfig()
    scoring: ScoringConfig = ScoringConfig()
    batch_tokens: int = Field(2048, description="tokens of one forward pass")
    bootstrap: int = Field(2000, description="resamples of every interval")
    confidence: float = 0.95
    speeds: Speeds

    @property
    def chosen(self) -> ModelConfig:
        return self.models[self.model]


# ---- reading ---------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(
    name: str,
    model: str = "",
    tasks: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> Preset:
    """Read a preset by name or path, keep one model and the named tasks, and apply dotted overrides.

    Raises `ConfigError` for an unknown preset, key, model or task, with what is known in its place.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no preset {name!r}: known are {', '.join(preset_names())}, or give the path of a YAML file"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} holds no fields: a preset starts with name, description, model")
    for dotted, value in (overrides or {}).items():
        _override(raw, dotted, value)
    for task in raw.get(
        "tasks", {}
    ).values():  # a task states only what it changes of the shared training settings
        task["sft"] = {**raw.get("sft", {}), **task.get("sft", {})}
    raw.pop("sft", None)
    if model:
        raw["model"] = _known(model, raw.get("models", {}), "model", path.name)
    if tasks:
        raw["tasks"] = {t: raw["tasks"][_known(t, raw["tasks"], "task", path.name)] for t in tasks}
    try:
        preset = Preset.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, path.name)) from None
    _known(preset.model, preset.models, "model", path.name)
    return preset


def _known(name: str, known: Any, what: str, file: str) -> str:
    if name not in known:
        raise ConfigError(f"{file}: no {what} {name!r}; known: {', '.join(known)}")
    return name


def _override(raw: dict, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node = raw
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {dotted!r}: {key!r} has no fields of its own")
    node[last] = value


def _explain(error: ValidationError, file: str) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"]
        if problem["type"] == "extra_forbidden":
            known = _fields_at(problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            text = f"unknown key{hint}; known here: {', '.join(known)}"
        lines.append(f"{file}: {place}: {text}")
    return "\n".join(lines)


def _fields_at(location: tuple) -> list[str]:
    """Names of the fields of the record at a location that pydantic reported."""
    sections = {
        "sft": SftConfig, "sizes": Sizes, "saes": SaeConfig, "shape": Shape, "recall": RecallConfig,
        "intervention": InterventionConfig, "scoring": ScoringConfig, "speeds": Speeds, **KINDS,
    }  # fmt: skip
    for part in reversed(location):
        if part in sections:
            return list(sections[part].model_fields)
    parents = {"tasks": TaskConfig, "models": ModelConfig}
    return list(parents.get(location[0] if location else "", Preset).model_fields)

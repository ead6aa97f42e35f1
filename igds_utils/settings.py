"""The records that a preset consists of: what can be set, its type, its default and its meaning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from igds_utils.refs import Ref, Strict

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

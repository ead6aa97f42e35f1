"""What a stage costs: floating-point operations and bytes from a model's shape, tokens, blocks and rows.

A block's matrix products take 2 operations a weight and token, attention 4 a unit of width for every earlier token
that a token sees, the LM head 2 x width x vocabulary for every position that needs its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field

from igds_utils.config.refs import Strict
from igds_utils.config.settings import Shape

FP32_TRAINING = 16  # bytes a parameter: fp32 weight, its gradient, and AdamW's two moments
# Values a token, block and unit of width that the backward pass needs, in a block with RMS norms and a gated MLP of
# 8/3 x width: norms 4, queries, keys and values with and without rotation 5, attention 2, MLP 11, residuals 2.
KEPT_VALUES = 24
LESS_EPOCHS = 4  # as its authors


class Use(Strict):
    read: float = Field(gt=0, le=1)
    train: float = Field(gt=0, le=1)
    decode: float = Field(gt=0, le=1)


class Machine(Strict):
    """A machine's peaks and the shares of them that are assumed to be reached."""

    devices: int = Field(ge=1)
    teraflops: float = Field(description="of one device")
    terabytes: float = Field(description="a second, from one device's memory")
    memory_gb: float = Field(description="of one device")
    use: Use
    block_seconds: float = Field(0, ge=0, description="the least that a block takes of a decoding step")
    start_seconds: float = Field(0, ge=0, description="of a notebook, or of a launch of processes")

    def seconds(self, flops: float, kind: str) -> float:
        """Time for operations that are shared by all devices; kind: "read" or "train"."""
        return flops / (self.devices * self.teraflops * 1e12 * getattr(self.use, kind))


def machines() -> dict[str, Machine]:
    """The machines of hardware.yaml, by name."""
    text = Path(__file__).with_name("hardware.yaml").read_text(encoding="utf8")
    return {name: Machine(**fields) for name, fields in yaml.safe_load(text).items()}


# ---- operations ------------------------------------------------------------------------------------------


def block_parameters(shape: Shape) -> float:
    """Parameters of one block, the embeddings left out."""
    embeddings = shape.vocabulary * shape.width * (1 if shape.tied else 2)
    return (shape.parameters - embeddings) / shape.layers


def forward_flops(
    shape: Shape, tokens: float, length: float, layers: float | None = None, head_tokens: float = 0
) -> float:
    """Operations of a forward pass over `tokens` in texts of `length` tokens.

    layers: blocks that are run, all by default. head_tokens: positions that meet the vocabulary.
    """
    layers = shape.layers if layers is None else layers
    a_token = 2 * block_parameters(shape) + 4 * shape.width * length / 2
    return tokens * layers * a_token + 2 * head_tokens * shape.width * shape.vocabulary


def training_flops(shape: Shape, tokens: float, length: float, checkpointing: bool = False) -> float:
    """Operations of forward and backward passes; the LM head sees every position.

    checkpointing: the blocks are computed a second time in the backward pass.
    """
    again = forward_flops(shape, tokens, length) if checkpointing else 0
    return 3 * forward_flops(shape, tokens, length, head_tokens=tokens) + again


def decode_seconds(
    shape: Shape, machine: Machine, tokens: float, rows: float, length: float, width: int = 2
) -> float:
    """Time to generate `tokens` in batches of `rows` that hold about `length` tokens each, on all devices.

    A step reads the weights once and every row's cache: whichever takes longest, that, the operations, or launching
    them one by one, is its time.
    """
    read = width * shape.parameters + rows * row_bytes(shape, length, width)
    memory = read / (machine.terabytes * 1e12 * machine.use.decode)
    products = forward_flops(shape, rows, 2 * length, head_tokens=rows)
    launches = machine.block_seconds * shape.layers
    step = max(memory, products / (machine.teraflops * 1e12 * machine.use.read), launches)
    return tokens / rows * step / machine.devices


# ---- selectors -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a selector makes the model do on a pool: tokens that it reads, and operations."""

    tokens: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.flops + other.flops)


def need_tokens(need: str, prompt: float, target: float, less_epochs: int = LESS_EPOCHS) -> float:
    """Tokens of one pool sample that the model reads to measure what a selector needs.

    Nothing for needs that are measured without the language model (tags, embeddings, texts) and for those on the few
    examples of the target task. less_epochs: checkpoints under which LESS reads every sample.
    """
    if need in {"target_loss", "hidden_states", "sae_mean", "sae_max", "neuron_mean"}:
        return prompt + target
    if need == "gradients":
        return less_epochs * (prompt + target)
    if need == "bare_target_loss":
        return target
    return prompt if need.endswith("_activations") or need in {"critical_reads", "direction_reads"} else 0


def selection_cost(
    shape: Shape,
    needs: Sequence[str],
    n: int,
    prompt: float,
    target: float,
    blocks: int,
    d_sae: int = 0,
    less_epochs: int = LESS_EPOCHS,
) -> Cost:
    """Tokens and operations of the model passes behind a selector's needs on a pool of n samples (Table 4).

    prompt, target: mean tokens of a sample. blocks: how many are run for activations (the highest layer read + 1).
    d_sae: features of the SAE that all-token needs encode with. less_epochs: as for `need_tokens`.
    """
    found = Cost(0, 0)
    for need in needs:
        tokens, text = n * need_tokens(need, prompt, target, less_epochs), prompt + target
        match need:
            case "target_loss" | "bare_target_loss":
                length = text if need == "target_loss" else target
                flops = forward_flops(shape, tokens, length, head_tokens=n * target)
            case "hidden_states":
                flops = forward_flops(shape, tokens, text)
            case "sae_mean" | "sae_max":
                flops = forward_flops(shape, tokens, text, blocks) + 2 * tokens * shape.width * d_sae
            case "neuron_mean":
                flops = forward_flops(shape, tokens, text, blocks)
            case "gradients":
                flops = training_flops(shape, tokens, text)
            case _:
                flops = forward_flops(shape, tokens, prompt, blocks)
        found += Cost(tokens, flops)
    return found


# ---- memory ----------------------------------------------------------------------------------------------


def sae_bytes(shape: Shape) -> float:
    """Memory of the one SAE that is held at a time: encoder and decoder in fp32."""
    return 2 * 4 * shape.width * shape.d_sae


def row_bytes(shape: Shape, length: float, width: int = 2) -> float:
    """Memory of the keys and values of one row of `length` tokens. width: bytes of a value."""
    return width * length * 2 * shape.layers * shape.kv_width


def pass_bytes(shape: Shape, tokens: float, width: int = 2) -> float:
    """Memory of a forward pass over `tokens` beside the weights: the residual stream after every block, where features
    may be read, what one block computes, and logits. width: bytes of an activation.
    """
    from igds_utils.engine.batching import LOGIT_BYTES

    logits = 3 * LOGIT_BYTES  # capping them, as Gemma-2 does, holds two more copies
    return tokens * shape.width * width * (shape.layers + KEPT_VALUES) + logits


def training_bytes(
    shape: Shape,
    tokens: float,
    width: int = 4,
    shards: int = 1,
    copies: bool = False,
    checkpointing: bool = False,
) -> list[tuple[str, float]]:
    """Memory of a device that trains all parameters with AdamW on batches of `tokens`: (what, bytes) of each part.

    width: bytes of an activation. shards: devices that weights, gradients and moments are spread over. copies: whether
    several devices each train a whole copy and average their gradients.
    """
    kept = shape.layers + KEPT_VALUES if checkpointing else KEPT_VALUES * shape.layers
    parts = [
        ("fp32 weights, gradients and moments", FP32_TRAINING * shape.parameters / shards),
        ("activations", kept * tokens * shape.width * width),
        ("logits", 3 * tokens * shape.vocabulary * 4),  # fp32, with their softmax and gradient
    ]
    if width < 4:
        parts.append(("weights in 16 bit", width * shape.parameters / shards))
    if copies:
        parts.append(("gradients that are exchanged", 4 * shape.parameters))
    return parts

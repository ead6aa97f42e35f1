"""What a large preset would take on machines that are not at hand: time, what fits, and when one is not enough.

Operations come from `costs`, peaks and the shares of them that are assumed to be reached from hardware.yaml.
"""

from __future__ import annotations

import math

import pandas as pd

from igds_utils.config.settings import Preset, Shape, TaskConfig
from igds_utils.core import costs
from igds_utils.core.costs import Machine

LARGE = 1e9  # parameters from which a preset is not meant for a machine without GPUs
DEPTH = 0.6  # share of the blocks up to a task feature (Table 1: layers 14 of 26, 19 of 32, 16 of 36)
USABLE = 0.8  # share of a device's memory that is planned with; the rest is for what a pass computes
DAY = 86400


def hours(preset: Preset, frame: pd.DataFrame, machine: Machine) -> pd.Series:
    """Hours of every stage of `plan.plan(preset)` on a machine: index (task, stage)."""
    shape, found = preset.chosen.shape, {}
    for row in frame[frame["task"] != "all"].to_dict("records"):
        task = preset.tasks[row["task"]]
        length = task.prompt_tokens + task.target_tokens
        seconds = machine.seconds(costs.forward_flops(shape, row["read"], length), "read")
        if row["generate"]:
            context = task.prompt_tokens + task.max_new_tokens
            rows = rows_together(shape, machine, context)
            seconds += costs.decode_seconds(shape, machine, row["generate"], rows, context)
        if row["train"]:
            again = task.sft.gradient_checkpointing
            seconds += machine.seconds(costs.training_flops(shape, row["train"], length, again), "train")
        found[row["task"], row["stage"]] = seconds / 3600
    return pd.Series(found)


def cache_room(shape: Shape, machine: Machine, width: int = 2) -> float:
    """Bytes of one device that are left for caches beside the weights and one SAE; negative where those do not fit."""
    return USABLE * machine.memory_gb * 1e9 - width * shape.parameters - costs.sae_bytes(shape)


def rows_together(shape: Shape, machine: Machine, context: float, width: int = 2) -> int:
    """Rows whose caches fit on one device, 256 at most."""
    free = cache_room(shape, machine, width)
    return int(min(256, max(1, free // (width * context * 2 * shape.layers * shape.kv_width))))


def fits(preset: Preset, machine: Machine) -> str:
    """What of a preset fits on a machine's devices, and what does not."""
    shape = preset.chosen.shape
    inference, state = 2 * shape.parameters / 1e9, costs.FP32_TRAINING * shape.parameters / 1e9
    room = machine.memory_gb
    held = f"{inference:.0f} GB of weights"
    if shape.d_sae:
        held += f", one SAE of {costs.sae_bytes(shape) / 1e9:.1f} GB"
    left, asked = cache_room(shape, machine) / 1e9, preset.intervention.cache_gb
    if left > asked:
        verdict = "fits"
    elif left > 0:
        verdict = f"fits with SET=intervention.cache_gb={math.floor(10 * left) / 10:g}"
    else:
        verdict = "does not fit one device"
    said = [f"reading and steering hold {held} and {asked:g} GB of caches: {verdict}"]
    whole = f"full-parameter AdamW needs {state:.0f} GB of weights, gradients and moments"
    if state < USABLE * room:
        said.append(f"{whole}: fits one device")
    elif state / machine.devices < USABLE * room:
        said.append(
            f"{whole}: more than a device's {room:g} GB, fits sharded over {machine.devices} (fsdp, zero3)"
        )
    else:
        said.append(f"{whole}: does not fit, score and select here and train elsewhere")
    return "; ".join(said)


def against_loss(shape: Shape, task: TaskConfig) -> float:
    """Operations of FRS over those of Loss on the same pool: IGDS / Loss of Table 4, from the sizes alone."""
    blocks = round(DEPTH * shape.layers)
    igds, loss = (
        costs.selection_cost(shape, [need], 1, task.prompt_tokens, task.target_tokens, blocks)
        for need in ("task_feature_activations", "target_loss")
    )
    return igds.flops / loss.flops


def samples_a_day(shape: Shape, task: TaskConfig, machine: Machine, need: str) -> float:
    """Pool samples that a machine measures for a selector in a day."""
    blocks = round(DEPTH * shape.layers)
    one = costs.selection_cost(shape, [need], 1, task.prompt_tokens, task.target_tokens, blocks)
    return DAY / machine.seconds(one.flops, "read")


def lines(preset: Preset, frame: pd.DataFrame) -> list[str]:
    """The forecast as text; nothing for a preset whose model is small or has no stated shape."""
    shape = preset.chosen.shape
    if shape is None or shape.parameters < LARGE:
        return []
    said = ["", "By operations and bytes, at the utilisation assumed in hardware.yaml:"]
    for name, machine in costs.machines().items():
        found = hours(preset, frame, machine)
        stages = found.groupby(level=1, sort=False).sum()
        said.append(f"  {name}: about {found.sum():,.1f} hours (" + ", ".join(
            f"{stage} {value:,.1f}" for stage, value in stages.items()) + ")")  # fmt: skip
        said.append(f"    {fits(preset, machine)}")
        for task, config in preset.tasks.items():
            frs, loss = (
                samples_a_day(shape, config, machine, need)
                for need in ("task_feature_activations", "target_loss")
            )
            said.append(
                f"    {task}: scores {frs / 1e6:,.1f} M samples a day for IGDS, {loss / 1e6:,.1f} M for Loss"
            )
    for task, config in preset.tasks.items():
        said.append(
            f"IGDS / Loss on {task}: {against_loss(shape, config):.2f} of the operations (prompts of "
            f"{config.prompt_tokens} tokens, targets of {config.target_tokens}, a feature at {DEPTH:.0%} of the depth)"
        )
    said.append(
        "A pool of more samples than a machine scores in a day is shared out: `accelerate launch` on one machine, the "
        "SLURM profile over several; products and results are the same."
    )
    return said

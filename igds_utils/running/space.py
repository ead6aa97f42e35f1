"""What a preset holds in memory and on disk: arithmetic on its sizes alone.

A part of either is (what, bytes), so that a plan can say what fills a machine.
"""

from __future__ import annotations

from igds_utils.config.refs import HubRef
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.core.arms import arms
from igds_utils.core.costs import pass_bytes, row_bytes, sae_bytes, training_bytes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LONGEST = 1.75  # a batch is as wide as its longest sample: this many times the mean, about
SHOT_TOKENS = 160  # of one Minerva example
CHECKPOINT = 12  # bytes a parameter: fp32 weight and AdamW's two moments
COMET = 2.3e9  # Unbabel/wmt22-comet-da, an XLM-R large in fp32

Part = tuple[str, float]


def peak_memory(preset: Preset) -> float | None:
    """Bytes of main memory at the peak of a run without a GPU; None where no model shape is stated.

    The larger of training and steering, beside the model's own weights: what the next arm starts from, or what
    features are read on. Steering holds caches and one SAE.
    """
    shape, width = preset.chosen.shape, BYTES[preset.chosen.dtype]
    if shape is None:
        return None
    peaks = [held(_training(preset, task)) for task in preset.tasks.values()]
    steering = preset.intervention.cache_gb * 1e9 + sae_bytes(shape)
    return shape.parameters * width + max(*peaks, steering) + 1e9  # the interpreter and its libraries


def on_gpu(preset: Preset) -> dict[str, list[Part]]:
    """What one GPU holds at the peak of each step, for a preset that states its model's shape: parts by step.

    identify: recall and causal filter. score: measuring the pool, one model after the other. train, evaluate: of an
    arm. Of several tasks the one that holds most counts.
    """
    shape, width = preset.chosen.shape, BYTES[preset.chosen.dtype]
    weights, tasks = width * shape.parameters, preset.tasks.values()
    sae = ("one SAE", sae_bytes(shape))
    one_pass = (f"a pass of {preset.batch_tokens:,} tokens", pass_bytes(shape, preset.batch_tokens, width))
    return {
        "identify": [("weights", weights), sae, *max((_steering(preset, task) for task in tasks), key=held)],
        "score": [("weights", weights), sae, one_pass],
        "train": max((_training(preset, task) for task in tasks), key=held),
        "evaluate": [("weights", weights), ("caches", preset.intervention.cache_gb * 1e9)],
    }


def _steering(preset: Preset, task: TaskConfig) -> list[Part]:
    """Beside model and SAE, the larger of what amplified rows hold while they generate, and while they are read."""
    shape, width, tokens = preset.chosen.shape, BYTES[preset.chosen.dtype], preset.batch_tokens
    caches = preset.intervention.cache_gb * 1e9
    # every row that is read over its target has the keys of its prompt too
    given = row_bytes(shape, tokens * (1 + task.prompt_tokens / task.target_tokens), width)
    reading = [
        (f"a pass of {tokens:,} tokens", pass_bytes(shape, tokens, width)),
        ("caches", min(caches, given)),
    ]
    return max([("caches", caches)], reading, key=held)


def held(parts: list[Part]) -> float:
    """Bytes of all parts."""
    return sum(size for _, size in parts)


def listed(parts: list[Part]) -> str:
    """Parts in GB, the largest first."""
    ordered = sorted(parts, key=lambda part: -part[1])
    return " + ".join(f"{size / 1e9:.1f} {what}" for what, size in ordered)


def _training(preset: Preset, task: TaskConfig) -> list[Part]:
    """What a process holds while it trains: all of the state, or its share where the training is sharded."""
    launch, width = preset.launch, BYTES[preset.chosen.dtype]
    length = min(LONGEST * (task.prompt_tokens + task.target_tokens), task.sft.max_length)
    tokens = min(task.sft.device_batch, task.sft.global_batch) * length
    shards = launch.processes if launch.training else 1
    copies = launch.processes > 1 and not launch.training
    return training_bytes(preset.chosen.shape, tokens, width, shards, copies, task.sft.gradient_checkpointing)


def answers_together(preset: Preset, task: TaskConfig) -> int:
    """How many test answers decode at once (`evaluation.rows_that_fit`)."""
    prompt = LONGEST * task.prompt_tokens + task.shots * SHOT_TOKENS
    row = row_bytes(preset.chosen.shape, prompt + task.max_new_tokens, BYTES[preset.chosen.dtype])
    return max(1, int(preset.intervention.cache_gb * 1e9 / row))


def disk(preset: Preset) -> list[Part]:
    """What a run keeps on disk beside data sets and tables; nothing where no model shape is stated."""
    model, shape = preset.chosen, preset.chosen.shape
    if shape is None:
        return []
    tasks, weights = preset.tasks.values(), 4 * shape.parameters  # of an arm: fp32
    models = len({str(model.identify), str(model.train)})
    parts = [("models", models * BYTES[model.dtype] * shape.parameters)]
    if model.saes.source == "release":
        layers = shape.layers if model.saes.layers == "all" else len(model.saes.layers)
        parts.append((f"SAEs of {layers} layers", layers * sae_bytes(shape)))
    if any(t.metric and t.metric.name == "comet" and isinstance(t.metric.checkpoint, HubRef) for t in tasks):
        parts.append(("COMET", COMET))
    if any(task.sft.checkpoint_steps for task in tasks):
        about = "checkpoints of the arm in training (the last and the next)"
        parts.append((about, 2 * CHECKPOINT * shape.parameters))
    if kept := sum(arm.trained for task in tasks if task.sft.keep_weights for arm in arms(task)):
        parts.append((f"weights of {kept} arms", kept * weights))
    elif preset.launch.processes > 1:
        parts.append(("weights of the last arm, handed from training to answering", weights))
    return parts

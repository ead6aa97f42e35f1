"""What a preset would take: tokens and minutes, memory, disk. Nothing is run.

    print(render(load_preset("quick")))

A stage takes its tokens / the speed of one process (`speeds` of the preset), and as many processes
or jobs as `launch` says share it. Memory and disk follow from the `shape` of the model. Expect to
be off by a factor of two in time and by a third in memory.
"""

import math
from collections.abc import Iterator

import pandas as pd

from igds_utils import selectors
from igds_utils.config.refs import Shape, describe
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.core.arms import arms, asked_in_general

NOTEBOOKS = 12  # of a run; each starts once
SHARED = ("causal filter", "scoring", "stability")  # by the jobs of `launch.parts`
LAUNCHED = ("training", "evaluation", "capabilities")  # in `launch.processes`
TOKENS = ["read", "generate", "train"]
# By source of the SAEs: 9.2 basis points of Gemma's 26 x 16,384; SmolLM2's 4 x 4,608
CANDIDATES = {"release": 400, "folder": 40, "tiny": 40}
ABOVE = 0.4  # share of the blocks that an amplified target is read through, about
AT_P = ("_activations", "_reads", "_cosines")  # measurements that read prompts alone
SHOT_TOKENS = 160  # of one Minerva example
# Benchmark -> subjects, questions, tokens of a question with its examples and choices
QUESTIONS = {"mmlu": (57, 14042, 725), "truthfulqa": (1, 817, 1710), "mmlu_dev": (57, 281, 100)}
LONGEST = 1.5  # the longest sample of a batch, in means
VALUES = 24  # kept of a token for each block and unit of width, to train
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USABLE = 0.9  # of a GPU's memory; the rest is left to the allocator


def stages(preset: Preset) -> pd.DataFrame:
    """Tokens and minutes of a run, one row a task and stage.

    Columns: task, stage; tokens to read (forward passes), generate (decoding) and train (forward
    and backward), of all processes together; minutes, nan without speeds.
    """
    tasks = preset.tasks.items()
    rows = [(name, *row) for name, task in tasks for row in _stages(preset, task)]
    rows.append(("all", "starts", 0, 0, 0))
    frame = pd.DataFrame(rows, columns=["task", "stage", *TOKENS])
    frame = frame.round().astype(dict.fromkeys(TOKENS, int))
    if (speeds := preset.speeds) is None:
        return frame.assign(minutes=math.nan)
    shares = dict.fromkeys(SHARED, preset.launch.parts)
    shares |= dict.fromkeys(LAUNCHED, preset.launch.processes)
    seconds = frame[TOKENS] @ [1 / speeds.forward, 1 / speeds.decode, 1 / speeds.train]
    seconds /= frame["stage"].map(shares).fillna(1)
    seconds.iloc[-1] = NOTEBOOKS * speeds.notebook
    return frame.assign(minutes=seconds / 60)


def _stages(preset: Preset, task: TaskConfig) -> Iterator[tuple]:
    """The stages of a task: name, tokens to read, to generate and to train on."""
    sizes, settings = task.sizes, preset.intervention
    prompt, target, new = task.prompt_tokens, task.target_tokens, task.max_new_tokens
    yield "recall", sizes.prior * prompt, 0, 0

    candidates = CANDIDATES[preset.chosen.saes.source]
    finalists = min(settings.finalists or candidates, candidates)
    told = candidates + 2 * settings.placebos + settings.contrasts
    said = finalists + 2 * len(settings.doses)
    filtered = _amplified(task, told, said, sizes.validation, new)
    yield "causal filter", *filtered, 0
    confirmed = _amplified(task, settings.k, settings.k, sizes.confirmation, new)
    yield "confirmation", *confirmed, 0

    scored = sizes.pool * _measured(preset, task, task.selectors)
    if own := task.quality:
        some = selectors.names() if own.selectors == "all" else own.selectors
        scored += own.size * _measured(preset, task, some)
    yield "scoring", scored, 0, 0

    trained = [arm for arm in arms(task) if arm.trained]
    shown = task.sft.epochs * sum(arm.size(sizes.pool) for arm in trained)
    yield "training", 0, 0, shown * (prompt + target)
    asked = (1 + len(trained)) * sizes.test * (prompt + task.shots * SHOT_TOKENS)
    # a trained model stops where targets do, about; the untrained one does not stop
    answer = new + len(trained) * min(target, new)
    yield "evaluation", asked, sizes.test * task.samples * answer, 0

    if own := task.capabilities:
        for name in own.benchmarks:
            subjects, known, length = QUESTIONS[name]
            questions = min(known, subjects * own.limit.get(name, known))
            yield "capabilities", len(asked_in_general(task)) * questions * length, 0, 0

    if own := task.stability:
        n, new = sum(map(bool, own.sources.values())), own.max_new_tokens
        told, said = _amplified(task, candidates, finalists, own.validation, new)
        yield "stability", n * (own.prior * prompt + told), n * said, 0


def _amplified(task: TaskConfig, told: int, said: int, samples: int, new: int) -> list[float]:
    """Tokens to read and to generate where `told` features are amplified over the target and `said`
    in answers of `new` tokens; prompt, target and the original answer once."""
    read = task.prompt_tokens + task.target_tokens * (1 + told * ABOVE)
    return [samples * read, samples * (1 + said) * new]


def measurement_tokens(name: str, prompt: float, target: float, less_epochs: int = 4) -> float:
    """Tokens of one pool sample that the model reads for a measurement.

    Nothing for those that are made without the model (tags, embeddings, texts) and for those on the
    few examples of the target task. less_epochs: checkpoints under which LESS reads every sample.
    """
    whole = ["target_loss", "hidden_states", "sae_mean", "sae_max", "neuron_mean"]
    known = dict.fromkeys(whole, prompt + target)
    known |= {"bare_target_loss": target, "gradients": less_epochs * (prompt + target)}
    return known.get(name, prompt if name.endswith(AT_P) else 0)


def measurement_operations(name: str, tokens: float, shape: Shape, blocks: int) -> float:
    """Floating-point operations of reading so many tokens: 2 a parameter and token, 6 with a
    backward pass.

    blocks: how many are run where activations inside of the model are read.
    """
    whole = name in {"target_loss", "bare_target_loss", "hidden_states"}
    passes = 3 if name == "gradients" else 1 if whole else blocks / shape.layers
    return 2 * shape.parameters * tokens * passes


def _measured(preset: Preset, task: TaskConfig, names: list[str]) -> float:
    """Tokens of one sample for all these selectors; one pass for all read at p."""
    asked = {each for name in names for each in selectors.get(name).measurements}
    at_p = {each for each in asked if each.endswith(AT_P)}
    sizes = task.prompt_tokens, task.target_tokens, preset.selection.less.epochs
    rest = sum(measurement_tokens(each, *sizes) for each in asked - at_p)
    return rest + bool(at_p) * task.prompt_tokens


def memory(preset: Preset, shape: Shape) -> dict[str, dict[str, float]]:
    """Bytes that one process holds at the peak of reading and of training.

    Training takes 16 bytes a parameter: weight, gradient and AdamW's two moments in fp32, shared by
    the processes where they are sharded; and what the tokens of one pass leave in every block, or
    at its border with gradient checkpointing.
    """
    launch, size = preset.launch, BYTES[preset.chosen.dtype]
    reading = {
        "weights": size * shape.parameters,
        "an SAE": 8 * shape.width * shape.d_sae,
        "caches": 1e9 * preset.intervention.cache_gb,
    }
    sft, shards = preset.sft, launch.processes if launch.training else 1
    mean = max(task.prompt_tokens + task.target_tokens for task in preset.tasks.values())
    samples = math.ceil(sft.global_batch / launch.processes)
    tokens = min(sft.device_tokens, samples * min(LONGEST * mean, sft.max_length))
    values = shape.layers + VALUES if sft.gradient_checkpointing else shape.layers * VALUES
    training = {
        "weights, gradients, moments": 16 * shape.parameters / shards,
        "activations": tokens * shape.width * values * size,
    }
    libraries = {"libraries": 1e9}
    return {"reading": reading | libraries, "training": training | libraries}


def disk(preset: Preset, shape: Shape) -> dict[str, float]:
    """Bytes that a run keeps on disk beside data sets and tables."""
    model, tasks, weights = preset.chosen, preset.tasks.values(), 4 * shape.parameters
    layers = shape.layers if model.saes.layers == "all" else len(model.saes.layers)
    trained = sum(arm.trained for task in tasks for arm in arms(task))
    checkpoints = 2 if preset.sft.checkpoint_steps else 0  # the last and the next
    return {
        "models": BYTES[model.dtype] * shape.parameters * (1 + (model.identify != model.train)),
        "SAEs": layers * 8 * shape.width * shape.d_sae * (model.saes.source == "release"),
        "arms": weights * max(1, trained * preset.sft.keep_weights),  # one at a time
        "checkpoints": checkpoints * 3 * weights,  # with two moments
    }


def render(preset: Preset) -> str:
    """The plan as text; says which step does not fit into a GPU's memory."""
    model, frame, speeds = preset.chosen, stages(preset), preset.speeds
    lines = [
        f"Preset {preset.name}: {preset.description.strip()}",
        f"Model  {preset.model}: {describe(model.identify)}, SAEs {model.saes.name}; "
        f"training {describe(model.train)}",
    ]
    for name, task in preset.tasks.items():
        lines.append(f"Task   {name}: {', '.join(arm.name for arm in arms(task))}")
    minutes = frame["minutes"].sum()
    frame.loc[len(frame)] = ["total", "", *frame[TOKENS].sum(), minutes]
    frame = frame.round({"minutes": 1})
    lines += ["", frame.to_string(index=False, formatters=dict.fromkeys(TOKENS, "{:,}".format))]
    shown = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} hours"
    lines.append(f"\nTime: about {shown}" if speeds else "\nTime: no speeds in the preset")
    if (shape := model.shape) is None:
        return "\n".join([*lines, f"Memory and disk: no shape of {preset.model}"])
    room = USABLE * speeds.memory_gb if speeds and speeds.memory_gb else math.inf
    for step, parts in memory(preset, shape).items():
        lines.append(f"Memory of {step}: about {_gigabytes(parts)}")
        if sum(parts.values()) / 1e9 > room:
            lines.append(f"{step.capitalize()} does not fit into {room:.1f} GB of a GPU")
    return "\n".join([*lines, f"Disk beside the data: about {_gigabytes(disk(preset, shape))}"])


def _gigabytes(parts: dict[str, float]) -> str:
    each = " + ".join(f"{size / 1e9:.1f} {what}" for what, size in parts.items() if size)
    return f"{sum(parts.values()) / 1e9:.1f} GB ({each})"

"""What a preset would take: tokens and minutes of each stage, memory of each step, disk. Nothing is run.

    print(render(load_preset("quick")))

Nothing is fetched either, but for a pool that is used whole (`sizes.pool` none): `igds plan` reads it, to count it.

A stage takes tokens / (speed x processes) seconds, or x parts where jobs share it (`launch`). The speeds of one
process, which has a GPU or all cores of a CPU, stand in the preset (`speeds`); memory and disk follow from the `shape`
of the model. All of it is an estimate: expect to be off by a factor of two in time and by a third in memory.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from igds_utils import selectors
from igds_utils.config.refs import Shape, describe
from igds_utils.config.settings import Preset, TaskConfig
from igds_utils.core.arms import arms, asked_in_general

NOTEBOOKS = 12  # of a run; each starts once
SHARED = ("causal filter", "scoring", "stability")  # by the jobs that `launch.parts` asks for
LAUNCHED = ("training", "evaluation", "capabilities")  # in `launch.processes` processes
TOKENS = ["read", "generate", "train"]
# Candidates by the source of the SAEs: 9.2 basis points of Gemma's 26 x 16,384 (Table 1); of SmolLM2's 4 x 4,608
CANDIDATES = {"release": 400, "folder": 40, "tiny": 40}
FIRES = 0.22  # share of random (feature, sample) pairs that fire along the original answer; of quick's math
ABOVE = 0.4  # share of the blocks above a candidate's, about: all that an amplified target is read through
AT_P = ("_activations", "_reads", "_cosines")  # how measurements end that read prompts alone
SHOT_TOKENS = 160  # of one Minerva example
# Benchmark -> subjects, questions, tokens that are read for a question, with its worked examples and its choices
QUESTIONS = {"mmlu": (57, 14042, 725), "truthfulqa": (1, 817, 1710), "mmlu_dev": (57, 281, 100)}

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# The longest sample of a pool, in means: 1.4 to 1.9 in the seven pools of quick, laptop and gpu that hold short texts.
# In others it is 4 and more; there `device_tokens` and `max_length` decide.
LONGEST = 1.5
BLOCK_VALUES = 24  # of one block, a token and unit of width: norms, attention, gated MLP and residuals
USABLE = 0.9  # of a GPU's memory; the rest is left to the allocator

Parts = dict[str, float]  # what -> bytes


# ---- tokens and minutes ----------------------------------------------------------------------------------


def stages(preset: Preset) -> pd.DataFrame:
    """Tokens and minutes of a run, one row a task and stage.

    Columns: task, stage, what; tokens to read (forward passes), generate (decoding) and train (forward and backward
    passes), of all processes together; minutes, nan where the preset states no speeds.
    """
    rows = [(name, *row) for name, task in preset.tasks.items() for row in _stages(preset, task)]
    launch, starts = preset.launch, NOTEBOOKS
    if launch.parts > 1:
        starts += len(SHARED) * launch.parts
    if launch.processes > 1:  # to train an arm, and to ask it
        starts += sum(1 + arm.trained for task in preset.tasks.values() for arm in arms(task))
    rows.append(("all", "starts", f"{starts} of notebooks and processes", 0, 0, 0))
    frame = pd.DataFrame(rows, columns=["task", "stage", "what", *TOKENS])
    frame = frame.round().astype(dict.fromkeys(TOKENS, int))
    if (speeds := preset.speeds) is None:
        return frame.assign(minutes=math.nan)
    together = dict.fromkeys(SHARED, launch.parts) | dict.fromkeys(LAUNCHED, launch.processes)
    seconds = frame[TOKENS] @ [1 / speeds.forward, 1 / speeds.decode, 1 / speeds.train]
    frame["minutes"] = seconds / frame["stage"].map(together).fillna(1) / 60
    frame.loc[frame["stage"] == "starts", "minutes"] = starts * speeds.notebook / 60
    return frame


def _stages(preset: Preset, task: TaskConfig) -> Iterator[tuple[str, str, float, float, float]]:
    """The stages of a task: name, what, tokens to read, generate and train."""
    sizes, prompt, target, new = task.sizes, task.prompt_tokens, task.target_tokens, task.max_new_tokens
    yield "recall", f"{sizes.prior} prompts", sizes.prior * prompt, 0, 0

    settings, candidates = preset.intervention, CANDIDATES[preset.chosen.saes.source]
    finalists = min(settings.finalists or candidates, candidates)
    some = task.quality.selectors if task.quality else []
    some = selectors.names() if some == "all" else some
    ablated = "igds_unrecalled"  # filters as many random features, once a seed
    drawn = len(task.seeds) if ablated in task.selectors else int(ablated in some)
    placebos = 2 * settings.placebos
    told = candidates * (1 + FIRES * drawn) + placebos + settings.contrasts  # their targets are read
    said = finalists * (1 + FIRES * drawn) + 2 * len(settings.doses)  # their answers are generated
    if settings.rank_by == "score":
        said += min(placebos, 2 * finalists)
    filtered = _amplified(task, told, said, sizes.validation, new)
    yield "causal filter", f"{finalists} candidates answer x {sizes.validation}", *filtered, 0
    confirmed = _amplified(task, settings.k, settings.k, sizes.confirmation, new)
    yield "confirmation", f"{settings.k} x {sizes.confirmation}", *confirmed, 0

    epochs = preset.selection.less.epochs
    read = partial(measurement_tokens, prompt=prompt, target=target, less_epochs=epochs)
    what = f"{len(task.selectors)} selectors x {sizes.pool}"
    scored = sizes.pool * sum(map(read, _measured(task.selectors)))
    if own := task.quality:  # one pass serves all that is read at p, a second one reads the clean prompts rewritten
        what += f" + {len(some)} selectors x {own.size}"
        once = sum(read(name) for name in _measured(some) if not name.endswith(AT_P))
        scored += own.size * (once + prompt * (2 - own.target_rate - own.prompt_rate))
    yield "scoring", what, scored, 0, 0

    everyone = arms(task)
    trained = [arm for arm in everyone if arm.trained]
    shown = task.sft.epochs * sum(arm.size(sizes.pool) for arm in trained)
    yield "training", f"{len(trained)} arms, pool {sizes.pool}", 0, 0, shown * (prompt + target)
    asked = len(everyone) * sizes.test * (prompt + task.shots * SHOT_TOKENS)
    # a trained model stops where targets do, about; the untrained one does not stop
    answered = sizes.test * task.samples * (new + len(trained) * min(target, new))
    yield "evaluation", f"{len(everyone)} arms x {sizes.test} x {task.samples}", asked, answered, 0

    if own := task.capabilities:
        answering = len(asked_in_general(task))
        for name in own.benchmarks:
            subjects, known, length = QUESTIONS[name]
            limit = own.limit.get(name) if isinstance(own.limit, dict) else own.limit
            n = known if limit is None else min(known, subjects * limit)
            yield "capabilities", f"{answering} arms x {n} of {name}", answering * n * length, 0, 0

    if own := task.stability:
        n, samples = len(own.searched), own.validation
        told, said = _amplified(task, candidates, finalists, samples, own.max_new_tokens)
        what = f"{n} sources, {finalists} candidates answer x {samples}"
        yield "stability", what, n * (own.prior * prompt + told), n * said, 0


def _amplified(task: TaskConfig, told: float, said: float, samples: int, new: int) -> tuple[float, float]:
    """Tokens read and generated to amplify features on so many samples: told over the target, said in answers.

    Prompts and targets are read once, and the target again for every feature, from its block up. The original answer
    and the amplified ones are `new` tokens long: the model has not learnt to stop.
    """
    read = task.prompt_tokens + task.target_tokens * (1 + told * ABOVE)
    return samples * read, samples * (1 + said) * new


# ---- selectors -------------------------------------------------------------------------------------------


def measurement_tokens(name: str, prompt: float, target: float, less_epochs: int = 4) -> float:
    """Tokens of one pool sample that the model reads for a measurement.

    Nothing for those that are made without the model (tags, embeddings, texts) and for those on the few examples of
    the target task. less_epochs: checkpoints under which LESS reads every sample.
    """
    whole = prompt + target
    known = dict.fromkeys(["target_loss", "hidden_states", "sae_mean", "sae_max", "neuron_mean"], whole)
    known |= {"bare_target_loss": target, "gradients": less_epochs * whole}
    return known.get(name, prompt if name.endswith(AT_P) else 0)


def measurement_operations(name: str, tokens: float, shape: Shape, blocks: int) -> float:
    """Floating-point operations of reading so many tokens: 2 a parameter and token, 6 with a backward pass.

    blocks: how many are run where activations inside of the model are read (the highest layer read + 1).
    """
    whole = name in {"target_loss", "bare_target_loss", "hidden_states"}
    passes = 3 if name == "gradients" else 1 if whole else blocks / shape.layers
    return 2 * shape.parameters * tokens * passes


def _measured(names: Sequence[str]) -> set[str]:
    """What is measured on a pool for these selectors: each once, and all controls of IGDS in one pass."""
    every = {measured for name in names for measured in selectors.get(name).measurements}
    alone = {"task_feature_activations", "unrecalled_activations"}
    controls = {name for name in every if name.endswith(("_activations", "_reads"))} - alone
    return every - controls | {"critical_reads"} if controls else every


# ---- memory and disk -------------------------------------------------------------------------------------


def memory(preset: Preset) -> dict[str, Parts]:
    """What one process holds at the peak of each step, of a GPU's memory or of main memory.

    Of several tasks the one that holds most counts; answers of arms hold no more than the causal filter. Nothing where
    the preset states no shape of its model.
    """
    shape, settings, tasks = preset.chosen.shape, preset.intervention, preset.tasks.values()
    if shape is None:
        return {}
    size, finalists = BYTES[preset.chosen.dtype], settings.finalists or CANDIDATES[preset.chosen.saes.source]
    longest = max(t.sizes.validation * (LONGEST * t.prompt_tokens + t.max_new_tokens) for t in tasks)
    sae = 8 * shape.width * shape.d_sae  # encoder and decoder in fp32
    model = {"weights": size * shape.parameters, "an SAE": sae, "Python and libraries": 1e9}
    # keys and values of all amplified answers, or as many as the preset allows
    caches = min(finalists * longest * 2 * shape.layers * shape.kv_width * size, 1e9 * settings.cache_gb)
    # the residual stream after every block, what one block computes, and logits in parts of 0.5 GB with two copies
    one_pass = preset.batch_tokens * shape.width * (shape.layers + BLOCK_VALUES) * size + 1.5e9
    return {
        "causal filter": model | {"caches": caches},
        "scoring": model | {f"a pass of {preset.batch_tokens:,} tokens": one_pass},
        "training": max((_training(preset, task) for task in tasks), key=_gigabytes),
    }


def _training(preset: Preset, task: TaskConfig) -> Parts:
    """What a process holds in the largest part of an optimizer step.

    That is the process's share of the global batch, or as much of it as a device takes at once, padded to its longest
    sample. A training that is sharded (`launch.training`) holds its share of the state. Measured with quick's model on
    8 samples of 125 and 190 tokens: 4.6 and 5.8 GB; by this: 4.9 and 5.7.
    """
    shape, launch, sft, size = preset.chosen.shape, preset.launch, task.sft, BYTES[preset.chosen.dtype]
    mean = task.prompt_tokens + task.target_tokens
    longest = min(LONGEST * mean, sft.max_length)
    share = math.ceil(sft.global_batch / launch.processes) * longest
    tokens = min(max(sft.device_tokens, longest), share)
    learnt = tokens * task.target_tokens / mean  # only what predicts a target meets the vocabulary
    values = shape.layers + BLOCK_VALUES if sft.gradient_checkpointing else shape.layers * BLOCK_VALUES
    # of a parameter: fp32 weight, gradient and AdamW's two moments; and the weight in 16 bit where products are
    state = shape.parameters * (16 if size == 4 else 18) / (launch.processes if launch.training else 1)
    exchanges = launch.processes > 1 and not launch.training
    return {
        "weights, gradients, moments": state,
        "activations": tokens * shape.width * values * size,
        "logits": 3 * learnt * shape.vocabulary * 4,  # fp32, with their softmax and gradient
        "exchanged gradients": exchanges * 4 * shape.parameters,
        "Python and libraries": 1e9,
    }


def disk(preset: Preset) -> Parts:
    """What a run keeps on disk beside data sets and tables; nothing where the preset states no shape of its model."""
    model, shape, tasks = preset.chosen, preset.chosen.shape, preset.tasks.values()
    if shape is None:
        return {}
    models, weights = len({str(model.identify), str(model.train)}), 4 * shape.parameters  # of an arm: fp32
    layers = shape.layers if model.saes.layers == "all" else len(model.saes.layers)
    kept = sum(arm.trained for task in tasks if task.sft.keep_weights for arm in arms(task))
    kept = kept or int(preset.launch.processes > 1)  # one is handed from training to answering
    saes = layers * 8 * shape.width * shape.d_sae if model.saes.source == "release" else 0
    checkpoints = 2 * any(task.sft.checkpoint_steps for task in tasks)  # the last one and the next
    return {
        "models": models * BYTES[model.dtype] * shape.parameters,
        f"SAEs of {layers} layers": saes,
        "checkpoints": checkpoints * 3 * weights,  # weights and two moments
        f"weights of {kept} arms": kept * weights,
    }


# ---- text ------------------------------------------------------------------------------------------------


def render(preset: Preset) -> str:
    """The plan as text. A step that does not fit into the memory that the preset states is named in a sentence."""
    model, frame, speeds, launch = preset.chosen, stages(preset), preset.speeds, preset.launch
    names, tasks = dict.fromkeys([describe(model.identify), describe(model.train)]), preset.tasks.items()
    lines = [
        f"Preset {preset.name}: {preset.description.strip()}",
        f"Model  {preset.model}: {', training '.join(names)}; {model.dtype}; SAEs {model.saes.name}",
        *(f"Task   {name}: {', '.join(arm.name for arm in arms(task))}" for name, task in tasks),
    ]
    minutes = frame["minutes"].sum()
    frame.loc[len(frame)] = ["total", "", "", *frame[TOKENS].sum(), minutes]
    shown = (frame if speeds else frame.drop(columns="minutes")).set_index(["task", "stage", "what"])
    formats = dict.fromkeys(TOKENS, "{:,}".format) | {"minutes": "{:,.1f}".format}
    lines += ["", shown.to_string(sparsify=False, formatters=formats), ""]
    total = f"{max(minutes, 1):.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} hours"
    time = f"Time: about {total} at the preset's speeds, processes: {launch.processes}, parts: {launch.parts}"
    lines.append(time if speeds else "Time is not known: the preset states no speeds")
    if model.shape is None:
        lines.append(f"Memory and disk are not known: the preset states no shape of {preset.model}")
        return "\n".join(lines)
    lines += [f"Memory of {step}: about {_listed(parts)}" for step, parts in memory(preset).items()]
    lines.append(f"Disk beside the data: about {_listed(disk(preset))}")
    room = USABLE * speeds.memory_gb if speeds and speeds.memory_gb else math.inf
    for step, parts in memory(preset).items():
        if (need := _gigabytes(parts)) > room:
            need = f"it needs {need:.1f} GB, and {room:.1f} GB can be used"
            lines.append(f"{step.capitalize()} does not fit into the memory of a GPU: {need}")
    return "\n".join(lines)


def _gigabytes(parts: Parts) -> float:
    return sum(parts.values()) / 1e9


def _listed(parts: Parts) -> str:
    """All parts in GB, the largest first."""
    ordered = sorted(((size / 1e9, what) for what, size in parts.items() if size), reverse=True)
    return f"{_gigabytes(parts):.1f} GB ({' + '.join(f'{size:.1f} {what}' for size, what in ordered)})"

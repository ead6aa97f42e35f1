"""What a preset would cost: arithmetic on its sizes alone, before anything is fetched or run.

print(render(load_preset("quick")))
"""

from __future__ import annotations

import pandas as pd

from igds_utils.arms import arms
from igds_utils.refs import FolderRef, HubRef, Ref, TinyRef
from igds_utils.settings import ModelConfig, Preset, TaskConfig

NOTEBOOKS = 6  # that one run executes
UNCUT_CANDIDATES = (
    400  # candidates where a preset does not cut them: 9.2 basis points of Gemma's 26 x 16,384 (Table 1)
)
SHOT_TOKENS = 160  # of one Minerva example
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan(preset: Preset) -> pd.DataFrame:
    """One row a task and stage: task, stage, what, and tokens to `read`, `generate` and `train`, and minutes.

    `read` are tokens of forward passes (teacher-forced ones too), `train` of forward and backward passes.
    """
    rows = []
    for name, task in preset.tasks.items():
        for stage, what, read, generate, train in _stages(preset, task):
            minutes = (
                read / preset.speeds.forward + generate / preset.speeds.decode + train / preset.speeds.train
            ) / 60
            rows.append((name, stage, what, round(read), round(generate), round(train), minutes))
    rows.append(("all", "notebooks", f"{NOTEBOOKS} starts", 0, 0, 0, NOTEBOOKS * preset.speeds.notebook / 60))
    return pd.DataFrame(rows, columns=["task", "stage", "what", "read", "generate", "train", "minutes"])


def _stages(preset: Preset, task: TaskConfig) -> list[tuple[str, str, float, float, float]]:
    sizes, prompt, target = task.sizes, task.prompt_tokens, task.target_tokens
    answer = min(target, task.max_new_tokens)  # tokens that a model generates for one item, about
    candidates = UNCUT_CANDIDATES if task.max_candidates is None else task.max_candidates
    k = preset.intervention.k
    # every candidate, and the original, generates on D_val and is teacher-forced on its targets; the k that are
    # chosen do so again on the confirmation set; one prefill of a prompt serves all of them
    amplified = (candidates + 1) * sizes.validation + (k + 1) * sizes.confirmation
    prefills = sizes.validation + sizes.confirmation
    all_arms = arms(task)
    trained = [arm for arm in all_arms if arm.trained]
    shown = sum(arm.size(sizes.pool) for arm in trained) * task.sft.epochs
    completions = sizes.test * task.samples
    written = completions * (
        task.max_new_tokens + len(trained) * answer
    )  # the untrained model does not stop early
    evaluated = len(all_arms) * sizes.test * (prompt + task.shots * SHOT_TOKENS)
    scored = sum(sizes.pool * _tokens_to_score(selector, prompt, target) for selector in task.selectors)
    return [
        ("recall", f"{sizes.prior} prompts", sizes.prior * prompt, 0, 0),
        (
            "causal filter",
            f"{candidates} candidates x {sizes.validation}",
            prefills * prompt + amplified * target,
            amplified * task.max_new_tokens,  # the model that is read has not learnt where to stop
            0,
        ),
        ("scoring", f"{len(task.selectors)} selectors x {sizes.pool}", scored, 0, 0),
        ("training", f"{len(trained)} arms, pool {sizes.pool}", 0, 0, shown * (prompt + target)),
        ("evaluation", f"{len(all_arms)} arms x {sizes.test} x {task.samples}", evaluated, written, 0),
    ]


def _tokens_to_score(selector: str, prompt: int, target: int) -> int:
    """Tokens that a selector reads of one sample."""
    return {"random": 0, "igds": prompt}.get(selector, prompt + target)


# ---- memory and disk -------------------------------------------------------------------------------------


def peak_memory(preset: Preset) -> float | None:
    """Bytes at the peak, the larger of training and steering, or None where the preset states no model shape."""
    shape, width = preset.chosen.shape, BYTES[preset.chosen.dtype]
    if shape is None:
        return None
    peaks = []
    for task in preset.tasks.values():
        length = min(task.prompt_tokens + task.target_tokens, task.sft.max_length)
        tokens = min(task.sft.device_batch, task.sft.global_batch) * length
        # weights, gradients and AdamW's two moments; then 17 values a token, layer and unit of width that the
        # backward pass needs (Korthikanti et al. 2022, without attention maps); logits, their softmax and gradient
        states = 4 * shape.parameters * width
        activations = 17 * tokens * shape.layers * shape.width * width + 3 * tokens * shape.vocabulary * 4
        rows = preset.intervention.rows * (task.prompt_tokens + task.max_new_tokens)
        cache = 2 * rows * shape.layers * shape.kv_width * width
        peaks += [states + activations, shape.parameters * width + cache]
    return max(peaks) + 1e9  # the interpreter and its libraries


def disk(preset: Preset) -> float | None:
    """Bytes to keep: the models in the cache, and the weights of the arms where they are kept."""
    model = preset.chosen
    if model.shape is None:
        return None
    weights = model.shape.parameters * BYTES[model.dtype]
    kept = sum(arm.trained for t in preset.tasks.values() if t.sft.keep_weights for arm in arms(t))
    return weights * (kept + len({str(model.identify), str(model.train)}))


# ---- for people ------------------------------------------------------------------------------------------


def render(preset: Preset) -> str:
    """The plan as text: what is run, the tokens of every stage, and the totals."""
    frame = plan(preset)
    lines = [
        f"Preset {preset.name}: {preset.description.strip()}",
        f"Model  {preset.model}: {_about(preset.chosen)}",
    ]
    for name, task in preset.tasks.items():
        lines.append(f"Task   {name}: {', '.join(arm.name for arm in arms(task))}")
    lines += ["", *_table(frame), ""]
    lines.append(f"Time   about {_time(frame['minutes'].sum())} at the preset's speeds")
    memory, space = peak_memory(preset), disk(preset)
    if memory is None:
        lines.append(f"Memory and disk are not known: the preset states no shape of model {preset.model}")
    else:
        lines.append(f"Memory about {memory / 1e9:.1f} GB at the peak, without the SAEs")
        lines.append(f"Disk   about {space / 1e9:.1f} GB of weights")
    return "\n".join(lines)


def _table(frame: pd.DataFrame) -> list[str]:
    total = {
        **frame[["read", "generate", "train", "minutes"]].sum(),
        "task": "total",
        "stage": "",
        "what": "",
    }
    rows = [list(frame.columns)]
    for row in [*frame.to_dict("records"), total]:
        tokens = [f"{row[c]:,.0f}" if row[c] else "-" for c in ("read", "generate", "train")]
        rows.append([row["task"], row["stage"], row["what"], *tokens, f"{row['minutes']:,.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = 3  # left-aligned columns
    return [
        "  ".join(
            cell.ljust(width) if i < texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _time(minutes: float) -> str:
    return f"{max(minutes, 1):.0f} min" if minutes < 120 else f"{minutes / 60:,.0f} hours"


def _about(model: ModelConfig) -> str:
    same = model.identify == model.train
    models = (
        _origin(model.identify)
        if same
        else f"identify on {_origin(model.identify)}, train {_origin(model.train)}"
    )
    layers = (
        "all layers" if model.saes.layers == "all" else f"layers {', '.join(map(str, model.saes.layers))}"
    )
    return f"{models}, {model.dtype}; SAEs: {model.saes.source} {model.saes.name}, {layers}"


def _origin(ref: Ref) -> str:
    if isinstance(ref, HubRef):
        return f"{ref.hub} ({ref.revision})"
    if isinstance(ref, FolderRef):
        return ref.folder
    if isinstance(ref, TinyRef):
        return f"a tiny random {ref.tiny}"
    return f"{ref.file} of {ref.wheel} {ref.version}"

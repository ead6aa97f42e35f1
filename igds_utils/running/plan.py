"""What a preset would cost: arithmetic on its sizes alone, before anything is fetched or run.

print(render(load_preset("quick")))
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pandas as pd

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import FolderRef, HubRef, Ref, TinyRef
from igds_utils.config.settings import CapabilitiesConfig, ModelConfig, Preset, TaskConfig
from igds_utils.core.arms import arms, asked_in_general
from igds_utils.core.costs import need_tokens, sae_bytes, training_bytes
from igds_utils.core.manifest import made_in
from igds_utils.running import forecast
from igds_utils.running.runner import STAGES
from igds_utils.selectors import get, names

UNCUT_CANDIDATES = (
    400  # candidates where a preset does not cut them: 9.2 basis points of Gemma's 26 x 16,384 (Table 1)
)
SHOT_TOKENS = 160  # of one Minerva example
# Benchmark -> subjects, questions, forward passes a question (an answer of one token costs none of its own), and tokens
# of a pass with its worked examples, as the default model counts them.
ASKED = {"mmlu": (57, 14042, 1, 725), "truthfulqa": (1, 817, 7.6, 225), "mmlu_dev": (57, 281, 1, 100)}
ABOVE = 0.4  # share of the blocks that lies above a candidate's: all that a given target is read through
LONGEST = 1.75  # a training batch is as wide as its longest sample: this many times the mean, about
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
    starts = len(STAGES)
    rows.append(("all", "notebooks", f"{starts} starts", 0, 0, 0, starts * preset.speeds.notebook / 60))
    return pd.DataFrame(rows, columns=["task", "stage", "what", "read", "generate", "train", "minutes"])


def _stages(preset: Preset, task: TaskConfig) -> list[tuple[str, str, float, float, float]]:
    sizes, prompt, target = task.sizes, task.prompt_tokens, task.target_tokens
    answer = min(target, task.max_new_tokens)  # tokens that a model generates for one item, about
    candidates, k = uncut(task.max_candidates), preset.intervention.k
    validated = _amplified(candidates, sizes.validation, prompt, target, task.max_new_tokens)
    confirmed = _amplified(k, sizes.confirmation, prompt, target, task.max_new_tokens)
    all_arms = arms(task)
    trained = [arm for arm in all_arms if arm.trained]
    shown = sum(arm.size(sizes.pool) for arm in trained) * task.sft.epochs
    completions = sizes.test * task.samples
    written = completions * (
        task.max_new_tokens + len(trained) * answer
    )  # the untrained model does not stop early
    evaluated = len(all_arms) * sizes.test * (prompt + task.shots * SHOT_TOKENS)
    scored = [(sizes.pool, task.selectors)]
    if task.quality:
        everyone = names() if task.quality.selectors == "all" else task.quality.selectors
        scored.append((min(task.quality.size, sizes.pool), everyone))
    read = sum(n * need_tokens(need, prompt, target) for n, some in scored for need in needs_of(some))
    found = [
        ("recall", f"{sizes.prior} prompts", sizes.prior * prompt, 0, 0),
        (
            "causal filter",
            f"{candidates} candidates x {sizes.validation}",
            validated[0] + confirmed[0],
            validated[1] + confirmed[1],
            0,
        ),
        ("scoring", " + ".join(f"{len(some)} selectors x {n}" for n, some in scored), read, 0, 0),
        ("training", f"{len(trained)} arms, pool {sizes.pool}", 0, 0, shown * (prompt + target)),
        ("evaluation", f"{len(all_arms)} arms x {sizes.test} x {task.samples}", evaluated, written, 0),
    ]
    if task.capabilities:
        answering = len(asked_in_general(task))
        questions, read = asked(task.capabilities)
        found.append(("capabilities", f"{answering} arms x {questions}", answering * read, 0, 0))
    if task.stability:
        own, sources = task.stability, len(task.stability.sources)
        tested = uncut(own.max_candidates)
        again = _amplified(tested, own.validation, prompt, target, own.max_new_tokens)
        read, written = own.prior * prompt + again[0], again[1]
        what = f"{sources} sources, {tested} candidates x {own.validation}"
        found.append(("stability", what, sources * read, sources * written, 0))
    return found


def asked(config: CapabilitiesConfig) -> tuple[int, float]:
    """How many questions of general benchmarks one arm is asked, and the tokens that it reads for them."""
    questions, read = 0, 0.0
    for benchmark in config.benchmarks:
        subjects, known, passes, length = ASKED[benchmark]
        most = config.limit.get(benchmark) if isinstance(config.limit, dict) else config.limit
        n = known if most is None else min(known, subjects * most)
        questions, read = questions + n, read + n * passes * length
    return questions, read


def uncut(max_candidates: int | None) -> int:
    """How many candidates a preset amplifies, about."""
    return UNCUT_CANDIDATES if max_candidates is None else max_candidates


def _amplified(
    features: int, samples: int, prompt: int, target: int, max_new_tokens: int
) -> tuple[float, float]:
    """Tokens that the causal filter reads (blocks above the feature counted as a share of all) and generates.

    Prompts and targets are read once, and every row reads its target above its block; every row, and the original,
    generates as long as it may: the model that is read has not learnt to stop. On a GPU rows share the original's
    answer as far as they agree with it, and generate less.
    """
    rows = features * samples
    return samples * (prompt + target) + rows * ABOVE * target, (samples + rows) * max_new_tokens


def needs_of(selectors: Sequence[str]) -> set[str]:
    """What is measured on a pool for some selectors: each measurement once, and one pass for all controls of IGDS."""
    needs = {need for name in selectors for need in get(name).needs}
    at_p = {need for need in needs if need_tokens(need, 1, 0) == 1 and need_tokens(need, 0, 1) == 0}
    controls = at_p - {"task_feature_activations"}
    return needs - controls | {"critical_reads"} if controls else needs


# ---- memory and disk -------------------------------------------------------------------------------------


def peak_memory(preset: Preset) -> float | None:
    """Bytes at the peak on one device, the larger of training and steering; None where no model shape is stated.

    Beside the model that is trained stands the one that features are read on; launched processes that shard the
    training spread its state, and each holds a part of it. Steering holds caches and one SAE.
    """
    shape, width = preset.chosen.shape, BYTES[preset.chosen.dtype]
    if shape is None:
        return None
    read, launch = shape.parameters * width, preset.launch
    peaks = []
    for task in preset.tasks.values():
        length = min(LONGEST * (task.prompt_tokens + task.target_tokens), task.sft.max_length)
        tokens = min(task.sft.device_batch, task.sft.global_batch) * length
        shards = launch.processes if launch.training else 1
        peaks.append(training_bytes(shape, tokens, width, shards, task.sft.gradient_checkpointing))
    steering = preset.intervention.cache_gb * 1e9 + sae_bytes(shape)
    return read + max(*peaks, steering) + 1e9  # the interpreter and its libraries


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
    lines.append(f"Time   about {show_minutes(frame['minutes'].sum())} at the preset's speeds")
    memory, space = peak_memory(preset), disk(preset)
    if memory is None:
        lines.append(f"Memory and disk are not known: the preset states no shape of model {preset.model}")
    else:
        lines.append(f"Memory about {memory / 1e9:.1f} GB at the peak{_of_sae(preset)}")
        lines.append(f"Disk   about {space / 1e9:.1f} GB of weights")
    lines += _measured(preset, frame["minutes"].sum(), memory)
    return "\n".join([*lines, *forecast.lines(preset, frame)])


def _of_sae(preset: Preset) -> str:
    size = sae_bytes(preset.chosen.shape)
    return f"; one SAE at a time, of {size / 1e9:.2g} GB" if size else ", without the SAEs"


def _measured(preset: Preset, minutes: float, memory: float | None) -> list[str]:
    """What the reference run of a preset took, and how far the plan is from it."""
    file = PROJECT / "results" / "reference" / preset.name / "timings.json"
    if not file.exists() or memory is None:
        return []
    runs = made_in(json.loads(file.read_text(encoding="utf8"))).values()
    took, peak = sum(run["seconds"] for run in runs) / 60, max(run["peak_bytes"] for run in runs)
    return [
        f"Ran    in {took:.0f} min with {peak / 1e9:.1f} GB at the peak when results/reference was made: the plan is "
        f"{minutes / took - 1:+.0%} and {memory / peak - 1:+.0%} from that"
    ]


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


def show_minutes(minutes: float) -> str:
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

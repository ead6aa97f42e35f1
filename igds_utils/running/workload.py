"""What a preset makes the models do: tokens and decoding steps of every stage, from its sizes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from igds_utils.config.settings import CapabilitiesConfig, Preset, TaskConfig
from igds_utils.core.arms import arms, asked_in_general
from igds_utils.core.costs import need_tokens, row_bytes
from igds_utils.running.runner import STAGES
from igds_utils.running.space import BYTES, LONGEST, SHOT_TOKENS, answers_together
from igds_utils.selectors import get, names

UNCUT_CANDIDATES = (
    400  # candidates where a preset does not cut them: 9.2 basis points of Gemma's 26 x 16,384 (Table 1)
)
# Benchmark -> subjects, questions, forward passes a question (an answer of one token costs none of its own), and tokens
# of a pass with its worked examples, as the default model counts them.
ASKED = {"mmlu": (57, 14042, 1, 725), "truthfulqa": (1, 817, 7.6, 225), "mmlu_dev": (57, 281, 1, 100)}
ABOVE = 0.4  # share of the blocks that lies above a candidate's: all that a given target is read through


def stages(preset: Preset) -> pd.DataFrame:
    """One row a task and stage: its tokens to `read`, `generate` and `train`, steps, starts and minutes.

    `read` are tokens of forward passes (teacher-forced ones too), `train` of forward and backward passes. steps: of
    decoding, all batches one after the other. starts: of notebooks and launched processes. minutes: at the preset's
    speeds, nan where it states none.
    """
    rows, speeds = [], preset.speeds
    for name, task in preset.tasks.items():
        steps = _steps(preset, task)
        for stage, what, read, generate, train in _stages(preset, task):
            minutes = math.nan
            if speeds:
                minutes = (read / speeds.forward + generate / speeds.decode + train / speeds.train) / 60
            tokens = (round(read), round(generate), round(train))
            rows.append((name, stage, what, *tokens, steps.get(stage, 0), 0, minutes))
    starts = len(STAGES) + _launches(preset)
    minutes = starts * speeds.notebook / 60 if speeds else math.nan
    rows.append(("all", "notebooks", f"{starts} starts", 0, 0, 0, 0, starts, minutes))
    columns = ["task", "stage", "what", "read", "generate", "train", "steps", "starts", "minutes"]
    return pd.DataFrame(rows, columns=columns)


def _launches(preset: Preset) -> int:
    """How often several processes are started: for recall, filter, its confirmation and the pool of a task, to train an
    arm, and to answer with it."""
    if preset.launch.processes == 1:
        return 0
    return sum(4 + sum(2 if arm.trained else 1 for arm in arms(task)) for task in preset.tasks.values())


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
    epochs = preset.selection.less.epochs
    read = sum(n * need_tokens(need, prompt, target, epochs) for n, some in scored for need in needs_of(some))
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


def _steps(preset: Preset, task: TaskConfig) -> dict[str, int]:
    """Decoding steps of each stage that generates; nothing for a preset that states no shape of its model.

    A batch goes on until its longest row ends: a trained arm's at `LONGEST` times the mean answer, others where they
    must.
    """
    if preset.chosen.shape is None:
        return {}
    sizes, new, k = task.sizes, task.max_new_tokens, preset.intervention.k
    trained = sum(arm.trained for arm in arms(task))
    items = max(1, answers_together(preset, task) // task.samples)
    batches = math.ceil(sizes.test / items)
    answer = min(new, round(LONGEST * task.target_tokens))
    found = {
        "causal filter": _filter_steps(preset, task, uncut(task.max_candidates), sizes.validation, new)
        + _filter_steps(preset, task, k, sizes.confirmation, new),
        "evaluation": batches * ((len(arms(task)) - trained) * new + trained * answer),
    }
    if own := task.stability:
        tested = uncut(own.max_candidates)
        one = _filter_steps(preset, task, tested, own.validation, own.max_new_tokens)
        found["stability"] = len(own.sources) * one
    return found


def _filter_steps(preset: Preset, task: TaskConfig, features: int, samples: int, max_new_tokens: int) -> int:
    """Decoding steps of amplified rows in batches whose caches fit into `intervention.cache_gb`, and of the originals.

    Rows that depart from their original early and late are two batches (`drafting.decode_from`).
    """
    room = LONGEST * task.prompt_tokens + 2 * max_new_tokens  # `effects.rows_that_fit`
    row = row_bytes(preset.chosen.shape, room, BYTES[preset.chosen.dtype])
    rows = max(1, int(preset.intervention.cache_gb * 1e9 / row))
    return (math.ceil(samples / rows) + 2 * math.ceil(features * samples / rows)) * max_new_tokens


def needs_of(selectors: Sequence[str]) -> set[str]:
    """What is measured on a pool for some selectors: each measurement once, and one pass for all controls of IGDS."""
    needs = {need for name in selectors for need in get(name).needs}
    at_p = {need for need in needs if need_tokens(need, 1, 0) == 1 and need_tokens(need, 0, 1) == 0}
    controls = at_p - {"task_feature_activations"}
    return needs - controls | {"critical_reads"} if controls else needs

"""The plan's arithmetic against numbers worked out by hand."""

import json

import pytest
import yaml

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.costs import KEPT_VALUES
from igds_utils.running.plan import render
from igds_utils.running.runner import STAGES
from igds_utils.running.space import LONGEST, disk, held, peak_memory
from igds_utils.running.workload import ABOVE, UNCUT_CANDIDATES, stages

SHAPE = {"parameters": 1_000_000, "layers": 2, "width": 10, "kv_width": 5, "vocabulary": 100}
PRESET = {
    "name": "sums",
    "description": "numbers that are easy to add",
    "model": "tiny",
    "models": {
        "tiny": {
            "identify": {"tiny": "llama"},
            "train": {"tiny": "llama"},
            "saes": {"source": "tiny", "name": "tiny"},
            "shape": SHAPE,
        }
    },
    "speeds": {"forward": 100, "decode": 10, "train": 5, "notebook": 30},
    "intervention": {"k": 2, "cache_gb": 1e-3},
    "tasks": {
        "math": {
            "sizes": {"prior": 20, "validation": 4, "confirmation": 3, "pool": 40, "test": 6},
            "prompt_tokens": 50,
            "target_tokens": 8,
            "max_new_tokens": 12,
            "max_candidates": 5,
            "selectors": ["random", "loss", "igds"],
            "samples": 2,
            "sft": {"epochs": 2, "device_batch": 4},
        }
    },
}


@pytest.fixture
def preset(tmp_path):
    def make(**overrides):
        file = tmp_path / "sums.yaml"
        file.write_text(yaml.safe_dump(PRESET))
        return load_preset(str(file), overrides=overrides)

    return make


def tokens(frame, stage):
    row = frame[frame.stage == stage].iloc[0]
    return row.read, row.generate, row.train


def test_tokens_of_every_stage(preset):
    frame = stages(preset())
    assert tokens(frame, "recall") == (20 * 50, 0, 0)
    rows = 5 * 4 + 2 * 3  # candidates on validation, k on confirmation; prompts and targets are read once
    read = (4 + 3) * (50 + 8) + rows * ABOVE * 8
    assert tokens(frame, "causal filter") == (round(read), (4 + 3 + rows) * 12, 0)
    assert tokens(frame, "scoring") == (
        40 * (50 + 8) + 40 * 50,
        0,
        0,
    )  # Loss reads targets, IGDS prompts, Random none
    assert tokens(frame, "training") == (0, 0, (40 + 3 * 20) * 2 * (50 + 8))
    completions = 6 * 2
    assert tokens(frame, "evaluation") == (5 * 6 * 50, completions * (12 + 4 * 8), 0)


def test_minutes_follow_the_speeds(preset):
    frame = stages(preset()).set_index("stage")
    assert frame.minutes["recall"] == pytest.approx(1000 / 100 / 60)
    assert frame.minutes["training"] == pytest.approx(frame.train["training"] / 5 / 60)
    assert frame.minutes["notebooks"] == pytest.approx(len(STAGES) * 30 / 60)


def test_answers_are_cut_at_max_new_tokens_and_uncut_candidates_are_assumed(preset):
    overrides = {"tasks.math.max_new_tokens": 3, "tasks.math.max_candidates": None}
    rows = UNCUT_CANDIDATES * 4 + 2 * 3
    read = 7 * (50 + 8) + rows * ABOVE * 8
    assert tokens(stages(preset(**overrides)), "causal filter") == (round(read), (7 + rows) * 3, 0)


def test_what_selectors_share_is_read_once(preset):
    names = ["loss", "ifd", "igds", "igds_k3", "igds_recalled", "longest"]
    frame = stages(preset(**{"tasks.math.selectors": names}))
    assert tokens(frame, "scoring") == (
        40 * (58 + 8 + 2 * 50),
        0,
        0,
    )  # with and without its prompt; IGDS, its controls


def test_memory_is_the_larger_of_training_and_steering(preset):
    batch = 4 * LONGEST * (50 + 8)
    training = 16 * 1_000_000 + KEPT_VALUES * batch * 2 * 10 * 4 + 3 * batch * 100 * 4
    assert peak_memory(preset()) == pytest.approx(
        4e6 + training + 1e9
    )  # what the next arm starts from stays beside it
    assert peak_memory(preset(**{"intervention.cache_gb": 3.0})) == pytest.approx(4e6 + 3e9 + 1e9)


def test_one_sae_is_held_while_steering(preset):
    shape = {**SHAPE, "d_sae": 7_000_000}
    one = 2 * 4 * 10 * 7_000_000
    found = preset(**{"models.tiny.shape": shape, "intervention.cache_gb": 1.0})
    assert peak_memory(found) == pytest.approx(4e6 + 1e9 + one + 1e9)
    assert "one SAE at a time, of 0.56 GB" in render(found)
    assert "without the SAEs" in render(preset())


def test_questions_of_general_benchmarks_are_read_by_every_arm_of_a_selector(preset):
    asked = {"benchmarks": ["mmlu", "truthfulqa"], "limit": {"mmlu": 2}}
    frame = stages(preset(**{"tasks.math.capabilities": asked, "tasks.math.defect_check": True}))
    questions = 2 * 57 * 725 + 817 * 7.6 * 225
    assert tokens(frame, "capabilities") == (round(5 * questions), 0, 0)  # original, full and three selectors
    assert "capabilities" not in set(stages(preset()).stage)


def test_the_plan_of_quick_comes_near_the_reference_run():
    """Peak memory of training, the largest: what the run of 135M parameters took."""
    runs = json.loads((PROJECT / "results/reference/quick/timings.json").read_text())
    largest = max(entry["peak_bytes"] for of_notebook in runs.values() for entry in of_notebook)
    assert peak_memory(load_preset("quick")) == pytest.approx(largest, rel=0.15)


def test_decoding_steps_are_those_of_the_batches_that_run(preset):
    def steps(**overrides):
        frame = stages(preset(**overrides)).set_index("stage")
        return int(frame.steps["causal filter"]), int(frame.steps["evaluation"])

    row = 4 * (LONGEST * 50 + 2 * 12) * 2 * 2 * 5  # fp32 keys and values of two blocks, with room to go on
    assert 1e6 // row == 112  # all 20 amplified rows decode together, early and late departures apart
    # 6 items x 2 samples are one batch; answers of 8 tokens reach 12, where they are cut
    assert steps() == ((1 + 2) * 12 + (1 + 2) * 12, 1 * (12 + 4 * 12))
    assert steps(**{"intervention.cache_gb": 8 * row / 1e9})[0] == (1 + 2 * 3) * 12 + (1 + 2) * 12
    answer = 4 * (LONGEST * 50 + 12) * 2 * 2 * 5
    few = {"intervention.cache_gb": 8.1 * answer / 1e9}  # 4 items fill a batch
    assert steps(**few)[1] == 2 * (12 + 4 * 12)


def test_processes_are_started_for_every_arm_twice(preset):
    several = stages(preset(**{"launch.processes": 2})).set_index("stage")
    assert several.starts["notebooks"] == len(STAGES) + 4 + 1 + 2 * 4
    assert stages(preset()).set_index("stage").starts["notebooks"] == len(STAGES)


def test_disk_counts_the_model_once_and_kept_weights(preset):
    assert disk(preset()) == [("models", 4_000_000), ("weights of 4 arms", 16_000_000)]
    assert held(disk(preset(**{"sft.keep_weights": False}))) == 4_000_000


def test_disk_counts_what_a_run_holds_for_a_while_and_what_it_fetches(preset):
    shape = {**SHAPE, "d_sae": 7}
    saes = {"source": "release", "name": "some"}
    asked = {"sft.keep_weights": False, "models.tiny.shape": shape, "models.tiny.saes": saes}
    parts = dict(disk(preset(**asked, **{"sft.checkpoint_steps": 5, "launch.processes": 2})))
    assert parts["SAEs of 2 layers"] == 2 * 2 * 4 * 10 * 7
    (checkpoints,) = (size for what, size in parts.items() if "checkpoints" in what)
    assert checkpoints == 2 * 12 * 1_000_000  # fp32 weights and two moments, while one replaces the other
    (handed,) = (size for what, size in parts.items() if "handed" in what)
    assert handed == 4_000_000
    comet = dict(disk(preset(**{"tasks.math.metric": {"name": "comet"}})))
    assert comet["COMET"] == 2.3e9
    assert "Disk   about 0.0 GB beside the data: 0.0 models" in render(preset(**asked))


def test_the_text_names_what_is_run_and_the_totals(preset):
    text = render(preset())
    frame = stages(preset())
    assert "Preset sums: numbers that are easy to add" in text
    assert "original, full, random@0.5, loss@0.5, igds@0.5" in text
    total = next(line for line in text.splitlines() if line.startswith("total"))
    assert total.split()[1:4] == [f"{frame[column].sum():,}" for column in ("read", "generate", "train")]
    assert "GB at the peak" in text


def test_a_preset_without_speeds_and_shape_still_counts_its_tokens(preset):
    text = render(preset(**{"models.tiny.shape": None, "speeds": None}))
    assert "Time is not known" in text and "minutes" not in text
    assert next(line for line in text.splitlines() if line.startswith("total")).split()[1] != "0"


def test_without_a_shape_the_text_says_that_memory_is_not_known(preset):
    assert "Memory and disk are not known" in render(preset(**{"models.tiny.shape": None}))

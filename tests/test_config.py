"""Presets: what is read, what is refused, and with which place in the message."""

import copy

import pytest
import yaml

from igds_utils.config.config import changes, load_preset, preset_names, read_yaml
from igds_utils.config.refs import FolderRef

SIZES = {"prior": 8, "validation": 4, "confirmation": 4, "pool": 16, "test": 8}
TASK = {"sizes": SIZES, "max_new_tokens": 8, "prompt_tokens": 20, "target_tokens": 6}
MODEL = {
    "identify": {"tiny": "llama"},
    "train": {"hub": "someone/some-model", "revision": "abc"},
    "saes": {"source": "folder", "name": "data/saes"},
}
CURVE = {"ratios": [0.2, 0.8], "selectors": ["igds"]}
PRESET = {
    "name": "mine",
    "description": "for these tests",
    "model": "one",
    "models": {"one": MODEL, "two": {**MODEL, "identify": {"folder": "models/two"}}},
    "tasks": {"math": {**TASK, "sft": {"lr": 1e-4}, "curve": CURVE}, "translation": TASK},
    "sft": {"lr": 1e-3, "global_batch": 8},
}


@pytest.fixture
def load(tmp_path):
    def load(change=None, **arguments):
        raw = copy.deepcopy(PRESET)
        if change:
            change(raw)
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(raw))
        return load_preset(str(file), **arguments)

    return load


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_is_valid_with_each_model_and_bears_its_file_name(name):
    preset = load_preset(name)
    assert preset.name == name and preset.chosen and preset.tasks
    for model in preset.models:
        assert load_preset(name, model).model == model


def test_shared_training_settings_reach_every_task_which_may_change_them(load):
    preset = load()
    tasks = preset.tasks
    assert (preset.sft.lr, tasks["math"].sft.lr, tasks["translation"].sft.lr) == (1e-3, 1e-4, 1e-3)
    assert tasks["math"].sft.global_batch == tasks["translation"].sft.global_batch == 8
    dumped = type(preset).model_validate(preset.model_dump(mode="json"))
    assert dumped == preset


def test_an_override_reaches_the_field_it_names(load):
    preset = load(overrides={"sft.lr": 0.5, "tasks.math.sizes.pool": 99, "recall.tau": 0.9})
    assert preset.tasks["translation"].sft.lr == 0.5
    assert preset.tasks["math"].sft.lr == 1e-4  # the task's own value stands
    assert preset.tasks["math"].sizes.pool == 99 and preset.recall.tau == 0.9
    assert preset.tasks["translation"].sizes.pool == 16  # an alias in the file
    changed = load(overrides={"tasks.math.curve.ratios": [0.9]}).tasks["math"].curve
    assert changed.ratios == [0.9] and changed.selectors == ["igds"]
    assert load(overrides={"tasks.math.curve": None}).tasks["math"].curve is None


def test_a_model_changes_the_preset_and_the_caller_changes_both(load):
    def own(raw):
        raw["models"]["two"]["overrides"] = {"launch.processes": 8, "recall.tau": 0.7, "sft.lr": 0.25}

    assert (load(own).launch.processes, load(own).recall.tau) == (1, 0.8)
    assert list(load(own, model="two", tasks=["translation"]).tasks) == ["translation"]
    two = load(own, model="two", overrides={"recall.tau": 0.9})
    assert two.chosen.identify == FolderRef(folder="models/two")
    assert (two.launch.processes, two.recall.tau) == (8, 0.9)
    assert (two.tasks["math"].sft.lr, two.tasks["translation"].sft.lr) == (1e-4, 0.25)
    assert load(own, overrides={"model": "two", "launch": {"processes": 2}}).launch.processes == 2
    assert load(own, model="two", overrides="sft.lr=5e-5").sft.lr == 5e-5



@pytest.mark.parametrize(("text", "found"), [
    ("recall.tau=0.5", {"recall.tau": 0.5}),
    ("  seed=5\n a.b=[0.2, 0.5]  c=chat d= ", {"seed": 5, "a.b": [0.2, 0.5], "c": "chat", "d": None}),
    ('a={"file": "my x.jsonl", "q": {"r": "p"}} b=2', {"a": {"file": "my x.jsonl", "q": {"r": "p"}}, "b": 2}),
    ("description=two words models.a-b.1.name=x", {"description": "two words", "models.a-b.1.name": "x"}),
    (None, {}),
])  # fmt: skip
def test_changes_are_told_apart_however_their_values_are_spaced(text, found):
    assert changes(text) == found


def test_a_key_may_change_what_an_anchor_merged(load, tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text("one: &one {tau: 0.5}\ntwo: {<<: *one, tau: 0.9}\n")
    assert read_yaml(file.read_bytes(), file.name)["two"] == {"tau": 0.9}

"""A task of a user's own: a YAML file, or the same fields in a preset, and rows of any dataset."""

import json

import pytest
import yaml

from igds_utils import tasks
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.config.refs import TaskSpec
from igds_utils.core.experiment import open_run
from igds_utils.engine import prompts

SPEC = {
    "title": "Capitals",
    "prompt": "Country: {country}\nAnswer in one word.\nCapital:",
    "target": "{capital}",
    "reference": "capital",
    "metric": {"name": "exact_match"},
}


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "capitals.jsonl"
    file.write_text("".join(json.dumps({"c": f"Land {i}", "k": f"City {i}"}) + "\n" for i in range(30)))
    return {
        "all": {
            "file": str(file),
            "columns": {"country": "c", "capital": "k"},
            "sets": ["test", "validation", "confirmation", "prior", "pool"],
        }
    }


def section(spec, rows):
    return {
        "task": spec,
        "data": {"sources": rows},
        "sizes": {"prior": 4, "validation": 2, "confirmation": 2, "pool": 8, "test": 4},
        "max_new_tokens": 4,
        "prompt_tokens": 20,
        "target_tokens": 2,
    }


def test_a_preset_may_hold_a_task_or_name_its_file(rows, tmp_path):
    file = tmp_path / "capitals.yaml"
    file.write_text(yaml.safe_dump(SPEC))
    found = []
    for spec in (SPEC, str(file)):
        run = open_run(
            "smoke",
            tasks=["capitals"],
            overrides={"tasks.capitals": section(spec, rows)},
            results=str(tmp_path),
        )
        task, example = run.task("capitals"), run.examples("capitals", "test")[0]
        assert (task.name, task.metric, task.metric_label) == ("capitals", "exact_match", "exact match (%)")
        assert run.score("capitals")([f" {example.target.upper()}.", "no"], [example, example]) == [1.0, 0.0]
        config = run.config("capitals").model_copy(update={"rendering": "bare"})
        found.append((example, prompts.sft_pair(task, example, None, "evaluation", config)))
        record = prompts.sft_pair(task, example, None, "records", config)
        country = example.fields["country"]
        assert record == (f"Country: {country}\nAnswer in one word.\n", f"Capital: {example.target}")
    assert found[0] == found[1]
    assert found[0][1][0].endswith("\nAnswer in one word.\nCapital:")
    assert found[0][0].id == "capitals-test-0000"


def test_records_may_be_written_otherwise():
    spec = TaskSpec(
        **{**SPEC, "instruction": "Name the capital.", "input": "{country}", "output": "{target}"}
    )
    task = tasks.get("capitals", spec)
    example = task.example({"country": "Peru", "capital": "Lima"})
    assert prompts.sft_pair(task, example, None, "records", _config()) == (
        "Name the capital.\nPeru\n",
        "Lima",
    )


def _config():
    from igds_utils.config.settings import TaskConfig

    return TaskConfig(**section(SPEC, {}), sft={})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"prompt": "Country: {country}\nCapital"},
            "prompt must end in a line of its own with the colon ':' .U.003A.",
        ),
        ({"prompt": "国家：{country}\n首都："}, r"with the colon ':' \(U\+003A\).*首都：' \(U\+FF1A\)"),
        (
            {"prompt": "Capital of {country}:"},
            "prompt must end in a line of its own with the colon ':' .U.003A.",
        ),
        ({"metric": {"name": "bleurt"}}, "metric"),
        ({"titel": "x"}, "titel: .*\nknown keys: title, prompt, target"),
        ({"target": None}, "target"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path, change, words):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(SPEC | change))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{words}"):
        tasks.get("mine", str(file))


def test_files_that_are_not_there_or_no_yaml_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task file .*gone.yaml: correct `task:`"):
        tasks.get("mine", str(tmp_path / "gone.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="broken.yaml is not valid YAML"):
        tasks.get("mine", str(tmp_path / "broken.yaml"))


def test_without_sources_such_a_task_has_no_data():
    task = tasks.get("capitals", TaskSpec(**SPEC))
    with pytest.raises(ConfigError, match="capitals has no data of its own: name `sources`"):
        task.sets(_config().model_copy(update={"data": {}}), 0)


@pytest.mark.parametrize("file", sorted((PRESETS / "tasks").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_shipped_examples_are_tasks(file):
    task = tasks.get(file.stem, str(file))
    record = {field: "x" for field in task.row_fields}
    assert task.identification_template.format(**task.example(record).fields).endswith(":")

"""The notebooks: how they are written, and what a run of all of them leaves behind."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from conftest import execute

from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.arms import arms
from igds_utils.running.runner import PART_STAGES, STAGES

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
APPENDICES = {"00_sae_training", "solutions"}  # no run executes them
PARAMETERS = {"preset": str, "model": str, "tasks": list, "overrides": dict, "results": str}
TASKS = load_preset("smoke").tasks


def notebook(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in notebook(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_in_short_cells(path):
    nbformat.validate(notebook(path))
    assert notebook(path).metadata.kernelspec.name == "python3"
    assert notebook(path).cells[0].source.startswith("# ")
    for cell in code(path):
        assert not cell.outputs and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 30, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_cell_holds_literals_only(path):
    (cell,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    found = {}
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.Assign)
        found[line.targets[0].id] = ast.literal_eval(line.value)
    if path.stem != "00_sae_training":
        assert {name: type(found[name]) for name in PARAMETERS} == PARAMETERS
        own = {"part"} if path.stem in PART_STAGES else set()
        assert set(found) == PARAMETERS.keys() | own or path.stem == "08_robustness"  # its sizes
    if path.stem == "08_robustness":  # which the report tells how to change
        template = PROJECT / "igds_utils/reporting/report.html.j2"
        asked = re.findall(r" -p (\w+) ", template.read_text(encoding="utf8"))
        assert len(asked) >= 2 and set(asked) <= set(found)


def test_the_runner_knows_every_notebook():
    assert {path.stem for path in NOTEBOOKS} == {*STAGES, *APPENDICES}


STEP = re.compile(r"^\d+\. `(\S+): (\w+)`, called in `(\S+)`$", re.MULTILINE)
PATH = STEP.findall((PROJECT / "notebooks/README.md").read_text(encoding="utf8"))


def test_a_row_of_the_pool_reaches_table_2_by_a_short_path():
    assert (PATH[0][1], PATH[-1][1]) == ("examples", "table2") and len(PATH) <= 25


@pytest.mark.parametrize("file, function, caller", PATH)
def test_the_path_of_a_row_is_that_of_the_code(file, function, caller):
    assert f"def {function}(" in (PROJECT / file).read_text(encoding="utf8")
    assert re.search(rf"\b{function}\b", (PROJECT / caller).read_text(encoding="utf8"))


def test_the_solutions_answer_every_exercise_without_a_model(smoke_run, capsys, monkeypatch):
    monkeypatch.setattr("igds_utils.engine.loading.load_lm", lambda *_: pytest.fail("not needed"))
    execute("solutions", {"preset": "smoke", "results": str(smoke_run.results)})
    answers = dict(re.findall(r"^(\d\d\.\d): (.+)$", capsys.readouterr().out, re.MULTILINE))
    text = "\n".join(cell.source for path in NOTEBOOKS for cell in notebook(path).cells)
    assert list(answers) == re.findall(r"^\d\. `(\d\d\.\d)` ", text, re.MULTILINE)
    # a model of random weights answers all alike
    assert {number for number, value in answers.items() if "not in this run" in value} <= {"05.1"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_cell_ran_and_figures_are_shown_as_pictures(smoke_run, stage):
    cells = code(smoke_run.root / "notebooks" / f"{stage}.ipynb")
    assert all(cell.execution_count for cell in cells if cell.source.strip())
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if "data" in output]
    figures = [data for data in shown if data.get("text/plain", "").startswith("<Figure")]
    assert all("image/png" in data for data in figures)
    assert figures or stage not in ("01_feature_recall", "03_data_scoring", "04_sft")


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_the_products_that_results_readme_lists(smoke_run, task):
    folder = smoke_run.root / "tiny-llama" / task
    names = [
        "recall.parquet", "recall.json", "effects_validation.parquet", "effects_forced_confirmation.parquet",
        "task_features.json", "evaluation.parquet", "summary.json", "distributions.parquet", "correlation.json",
    ]  # fmt: skip
    names += [f"arms/{arm.name}/outputs.parquet" for arm in arms(TASKS[task])]
    names += [f"arms/{arm.name}/activations.parquet" for arm in arms(TASKS[task])]
    names += [f"selected/{arm.name}.jsonl" for arm in arms(TASKS[task]) if arm.trained]
    if TASKS[task].quality:
        names += ["quality/precision.parquet", "quality/corruptions.parquet", "quality/summary.json"]
    assert [name for name in names if not (folder / name).is_file()] == []
    assert list((folder / "measurements").glob("*.parquet"))
    assert not list(folder.rglob("*.parts-*")) and not list(folder.rglob("*checkpoint*/*"))


@pytest.mark.parametrize("task", TASKS)
def test_every_arm_answered_every_test_item_and_trained_on_its_budget(smoke_run, task):
    folder, config = smoke_run.root / "tiny-llama" / task, TASKS[task]
    table = pd.read_parquet(folder / "evaluation.parquet")
    assert table.groupby("arm")["sample_id"].nunique().to_dict() == {
        arm.name: config.sizes.test for arm in arms(config)
    }
    for arm in (arm for arm in arms(config) if arm.trained):
        lines = (folder / f"selected/{arm.name}.jsonl").read_text().splitlines()
        ids = [json.loads(line)["id"] for line in lines]
        assert len(ids) == len(set(ids)) == arm.size(config.sizes.pool)


def test_tables_figures_manifest_and_report_are_there(smoke_run):
    for name in ("table1", "table2", "table3", "table4", "table5_math", "table6", "table9"):
        for kind in ("csv", "md", "tex"):
            assert (smoke_run.root / "tables" / f"{name}.{kind}").stat().st_size > 0
    for name in ("figure1", "figure2", "figure3", "figure4", "main_result"):
        for kind in ("png", "pdf"):
            assert (smoke_run.root / "figures" / f"{name}.{kind}").stat().st_size > 1000
    manifest = json.loads((smoke_run.root / "tiny-llama/manifest.json").read_text())
    assert manifest["preset"]["name"] == "smoke" and manifest["versions"]["torch"]
    assert (smoke_run.root / "report.html").stat().st_size > 10_000


def test_stored_answers_are_scored_again(smoke_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(smoke_run.root, tmp_path / "smoke")
    monkeypatch.chdir(PROJECT / "notebooks")
    asked = {"preset": "smoke", "model": "", "tasks": ["math"], "results": str(tmp_path)}
    execute("05_evaluation", asked | {"overrides": {}})
    assert "math/evaluation.parquet: up to date" in capsys.readouterr().out
    execute("05_evaluation", asked | {"overrides": {"tasks.math.metric": {"name": "exact_match"}}})
    assert "math/evaluation.parquet: making it again, changed: metric" in capsys.readouterr().out
    assert "exact_match" in pd.read_parquet(tmp_path / "smoke/tiny-llama/math/evaluation.parquet")


def started(folder, *command):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, start_new_session=True, **streams)


@pytest.mark.slow
def test_a_second_run_makes_nothing_again_and_a_changed_one_says_why(smoke_run, tmp_path):
    shutil.copytree(smoke_run.root, tmp_path / "smoke")
    for changes, expected in ([], "up to date"), (["--set", "recall.tau=0.7"], "changed: tau"):
        asked = ["-m", "igds_utils.cli", "run", "--preset", "smoke", "--results", str(tmp_path)]
        process = started(tmp_path, *asked, *changes)
        log = process.communicate(timeout=900)[0]
        assert process.returncode == 0 and expected in log
        assert changes or "making it" not in log


KILLED_AT = ("effects_validation.parquet: making it", "arms/igds@0.5/outputs.parquet: making it")
UNTIL_EVALUATION = """
import sys
from igds_utils.running import runner
runner.run("smoke", tasks=["math"], results=sys.argv[1], stages=runner.STAGES[:5])
"""


@pytest.mark.slow
def test_a_run_killed_anywhere_continues_to_the_same_products(smoke_run, tmp_path):
    until_evaluation = (tmp_path, "-c", UNTIL_EVALUATION, str(tmp_path))
    for line in KILLED_AT:
        process = started(*until_evaluation)
        seen = next((text for text in process.stdout if line in text), "the run ended before")
        assert line in seen
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # until its jobs have ended too
    process = started(*until_evaluation)
    log = process.communicate()[0]
    assert process.returncode == 0, log[-3000:]
    assert "effects_validation.parquet: up to date" in log, "the killed runs left nothing finished"

    undisturbed, continued = smoke_run.root / "tiny-llama/math", tmp_path / "smoke/tiny-llama/math"
    made = [path.relative_to(continued) for path in continued.rglob("*.made.json")]
    assert len(made) > 30
    for path in made:
        if path.name == "log.parquet.made.json":  # it tells the seconds of each step
            continue
        texts = ((folder / path).read_text() for folder in (undisturbed, continued))
        one, two = (json.loads(text)["sha256"] for text in texts)
        assert one == two, path
    assert not list(continued.rglob("*.parts*"))


EXECUTED = sorted(PROJECT.glob("results/reference/*/notebooks/*.ipynb"))


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_an_executed_notebook_of_a_reference_has_the_cells_of_today(path):
    ran = [cell for cell in code(path) if "injected-parameters" not in cell.metadata.get("tags", [])]
    today = code(PROJECT / "notebooks" / path.name)
    assert [cell.source for cell in ran] == [cell.source for cell in today]
    assert all(cell.execution_count for cell in ran)

"""What a run stored follows from its measurements by the present code, without a model or data.

The smoke run, and every committed reference that holds the products of its run.
"""

import json
import shutil

import pandas as pd
import pytest

from igds_utils import display, tables
from igds_utils import tasks as known
from igds_utils.config.config import PROJECT, load_preset
from igds_utils.core.arms import CHECKS, arms
from igds_utils.core.store import Store
from igds_utils.data.hub import sha256
from igds_utils.engine.features import features_of
from igds_utils.identification import effects, intervention, recall
from igds_utils.reporting.report import load_table
from igds_utils.running import runner
from igds_utils.training.evaluation import checks, summarise

EVALUATED = PROJECT.glob("results/reference/*/*/*/evaluation.parquet")
REFERENCES = sorted({path.parents[2].name for path in EVALUATED})


def test_files_of_the_reference_are_those_that_were_made():
    """Otherwise `make reread` would make them again."""
    root = PROJECT / "results/reference/quick"
    records = {file: json.loads(file.read_text()) for file in root.rglob("*.made.json")}
    made = {file.with_name(file.name.removesuffix(".made.json")): records[file] for file in records}
    there = [file for file in made if file.exists()]  # the large ones are not kept
    assert len(there) > 150
    assert [file for file in there if sha256(file)[:16] != made[file]["sha256"]] == []


class Stored:
    """A run's preset and products; of the tasks and arms those whose answers were stored."""

    def __init__(self, preset, root):
        self.root, self.preset, self.store = root, preset, Store(root / preset.model)
        self.tasks = [task for task in preset.tasks if self.store.has(f"{task}/summary.json")]
        self.options = preset.confidence, preset.bootstrap, preset.seed

    def arms(self, task):
        every = arms(self.preset.tasks[task])
        return [arm for arm in every if self.store.has(f"{task}/arms/{arm.name}/outputs.parquet")]


@pytest.fixture(params=["smoke", *REFERENCES])
def stored(request):
    root = PROJECT / "results/reference" / request.param
    if request.param == "smoke":
        root = request.getfixturevalue("smoke_run").root
    found = Stored(load_preset(request.param), root)
    assert found.tasks
    return found


def same(found, kept):
    """Equal apart from what another processor may do to the last digits."""
    if isinstance(kept, dict):
        return set(found) == set(kept) and all(same(found[key], kept[key]) for key in kept)
    if isinstance(kept, list):
        return len(found) == len(kept) and all(map(same, found, kept))
    return found == (pytest.approx(kept, rel=1e-6, abs=1e-9) if isinstance(kept, float) else kept)


def test_candidates_follow_from_the_recalled_frequencies(stored):
    for task in stored.tasks:
        table = stored.store.read(f"{task}/recall.parquet")
        counts = stored.store.read(f"{task}/recall.json")
        assert (table["candidate"] == (table["frequency"] >= stored.preset.recall.tau)).all()
        assert int(table["candidate"].sum()) == counts["n_candidates"]
        measured = stored.store.read(f"{task}/effects_forced_validation.parquet")
        assert set(recall.candidates(table)) == set(features_of(measured))


def test_task_features_follow_from_the_measured_effects(stored):
    def effects_of(task, name):
        rows = stored.store.read(f"{task}/effects_forced_{name}.parquet")
        if stored.store.has(said := f"{task}/effects_{name}.parquet"):
            rows = rows.merge(stored.store.read(said), on=effects.KEYS, how="left")
        if stored.store.has(foreign := f"{task}/effects_foreign_{name}.parquet"):
            other = stored.store.read(foreign)
            other["foreign"] = other["loglik_amplified"] - other["loglik_original"]
            rows["change"] = rows["loglik_amplified"] - rows["loglik_original"]
            rows = rows.merge(other[[*effects.KEYS, "foreign"]], on=effects.KEYS, how="left")
        return intervention.causal_effects(rows, *stored.options)

    settings = stored.preset.intervention
    for task in stored.tasks:
        recalled = stored.store.read(f"{task}/recall.parquet")
        ranked = intervention.rank_features(effects_of(task, "validation"), recalled, settings.rank_by)
        again = effects_of(task, "confirmation")
        found = intervention.task_features(ranked, again, settings.k, settings.rank_by)
        kept = stored.store.read(f"{task}/task_features.json")
        assert same(found, {key: kept[key] for key in found})


def test_igds_trained_on_the_samples_that_fire_the_task_features_most(stored):
    for task in stored.tasks:
        scores = stored.store.read(f"{task}/scores/igds.parquet")
        best = scores.sort_values(["score", "sample_id"], ascending=[False, True])["sample_id"].tolist()
        for arm in stored.arms(task):
            if arm.selector == "igds" and stored.store.has(f"{task}/selected/{arm.name}.jsonl"):
                ids = {record["id"] for record in stored.store.read(f"{task}/selected/{arm.name}.jsonl")}
                assert ids == set(best[: arm.size(len(best))])


def test_the_summary_follows_from_the_scores_of_every_answer(stored):
    for task in stored.tasks:
        pool = len(stored.store.read(f"{task}/scores/random-s0.parquet"))
        sizes = {arm.name: arm.size(pool) for arm in stored.arms(task) if arm.trained}
        trained = list(sizes)
        logs = {name: stored.store.read(f"{task}/arms/{name}/log.parquet") for name in trained}
        evaluation = stored.store.read(f"{task}/evaluation.parquet")
        ratio = stored.preset.tasks[task].ratio
        compared = evaluation[~evaluation["selector"].isin(CHECKS)]
        paths = {name: f"{task}/arms/{name}/likelihoods.parquet" for name in [*trained, "original"]}
        known = {name: stored.store.read(path) for name, path in paths.items() if stored.store.has(path)}
        found = summarise(compared, sizes | {"original": 0}, ratio, logs, known, *stored.options)
        assert same(found, stored.store.read(f"{task}/summary.json"))
        assert same(checks(evaluation, *stored.options), stored.store.read("checks.json")[task])


def test_tables_1_and_2_follow_from_what_is_stored(stored):
    summaries, found, metrics, paper = {}, {}, {}, display.paper_values()
    for task in stored.tasks:
        names, config = ("summary", "recall", "task_features"), stored.preset.tasks[task]
        summaries[task], *both = (stored.store.read(f"{task}/{name}.json") for name in names)
        found[task] = dict(zip(("recall", "features"), both, strict=True))
        task_of = known.get(task, config.task, config.metric)
        metrics[task] = display.metric_of(task_of, config.samples)
    table1 = tables.table1(found, metrics, stored.preset.model, paper)
    made = {"table1": table1, "table2": tables.table2(summaries, metrics, paper)}
    for name, frame in made.items():
        kept = load_table(stored.root / "tables", name)
        pd.testing.assert_frame_equal(frame.astype(str).reset_index(drop=True), kept, check_dtype=False)


def test_no_reference_names_a_place_on_a_machine():
    for file in (PROJECT / "results/reference").rglob("*.json*"):
        assert str(PROJECT) not in file.read_text(encoding="utf8"), file


@pytest.mark.slow
def test_notebooks_05_to_11_give_the_tables_of_the_reference_again(tmp_path):
    kept = PROJECT / "results/reference/quick"
    shutil.copytree(kept, tmp_path / "quick")
    shutil.rmtree(tmp_path / "quick/tables")
    after = runner.STAGES[runner.STAGES.index("05_evaluation") :]
    root = runner.run("quick", results=tmp_path, stages=after)
    made = {file.name: file.read_bytes() for file in (root / "tables").glob("*.csv")}
    assert len(made) >= 10
    assert made == {name: (kept / "tables" / name).read_bytes() for name in made}

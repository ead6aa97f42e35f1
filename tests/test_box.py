"""The box itself: it holds what the paper's preset names, as the hub's own libraries find it."""

from __future__ import annotations

import pytest
from box.catalog import REPOSITORIES

from igds_utils import tasks
from igds_utils.config.config import load_preset
from igds_utils.config.refs import DataSource, HubRef
from igds_utils.data import huggingface
from igds_utils.data.hub import SourceError
from igds_utils.data.rows import source_rows
from igds_utils.tasks.sourced import _read

PAPER = load_preset("paper")
SOURCES = {
    f"{task}-{name}": (task, source)
    for task, config in PAPER.tasks.items()
    for name, source in config.data["sources"].items()
}


def test_every_model_and_sae_of_the_paper_is_in_the_box():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    named = {ref.hub for model in PAPER.models.values() for ref in (model.identify, model.train)}
    releases = {model.saes.name for model in PAPER.models.values() if model.saes.source == "release"}
    named |= {get_pretrained_saes_directory()[release].repo_id for release in releases}
    assert all(isinstance(model.train, HubRef) for model in PAPER.models.values())
    assert {("models", name) for name in named} <= set(REPOSITORIES)


@pytest.mark.parametrize("name", SOURCES)
def test_every_dataset_of_the_paper_is_read_by_its_id_and_columns(hub_box, tmp_path, monkeypatch, name):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    task, raw = SOURCES[name]
    source = DataSource.model_validate(raw)
    assert ("datasets", source.hub) in REPOSITORIES
    examples, facts = _read(tasks.get(task), source, "x", seed=0)
    assert facts["rows"] >= 39 and all(all([*e.fields.values(), e.target]) for e in examples)
    assert any(f"/{source.revision}" in request for request in hub_box.requests)


def gsm8k():
    source = DataSource(hub="openai/gsm8k", config="main", columns={"question": "question"})
    return source_rows(source, ["question"], "x")


@pytest.mark.parametrize("where", ["/api/datasets/openai/gsm8k", "/resolve/"])
def test_a_busy_hub_is_asked_again_for_data(hub_box, tmp_path, monkeypatch, where):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface, "PAUSE", 0.0)
    with hub_box.fault("unavailable", where, times=1):
        assert len(list(gsm8k())) == 40
    assert len(hub_box.requests) > len(set(hub_box.requests)), "nothing was asked for again"


def test_gated_data_says_how_to_get_access(hub_box, tmp_path, monkeypatch):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    gated = hub_box.fault("gated", "openai/gsm8k")
    with gated, pytest.raises(SourceError, match="openai/gsm8k .*hf auth login"):
        list(gsm8k())
    assert not list(tmp_path.rglob("rows.jsonl"))

"""The same seeds give the same bytes: what a second run makes again is what the first one made."""

import pytest
from conftest import execute
from faults import same_bytes

STAGES = ("01_feature_recall", "02_causal_intervention", "03_data_scoring")


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(smoke_run, tmp_path):
    for stage in STAGES:
        execute(stage, {"preset": "smoke", "tasks": ["translation"], "results": str(tmp_path)})
    again = same_bytes.products(tmp_path / "smoke")
    again = {name: digest for name, digest in again.items() if "/translation/" in name}
    assert any("/selected/" in name for name in again) and any("/scores/" in name for name in again)
    first = same_bytes.products(smoke_run.root)
    assert {name: first.get(name) for name in again} == again


def test_a_changed_score_is_found_and_another_time_is_not(tmp_path):
    import pandas as pd

    for run, score, seconds in (("a", 1.0, 3.0), ("b", 1.0, 4.0), ("c", 2.0, 3.0)):
        folder = tmp_path / run / "model/task/scores"
        folder.mkdir(parents=True)
        pd.DataFrame({"score": [score], "seconds": [seconds]}).to_parquet(folder / "igds.parquet")
        (folder / "igds.parquet.made.json").write_text(str(seconds))
    a, b, c = (same_bytes.products(tmp_path / run) for run in "abc")
    assert list(a) == ["model/task/scores/igds.parquet"] and a == b != c

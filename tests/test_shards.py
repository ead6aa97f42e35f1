"""Sharing of work, as far as one process can show it; `test_launch` starts several."""

from datetime import timedelta

from igds_utils.engine import shards


def test_one_process_does_everything_in_order():
    seen = []
    assert shards.map_in_order(lambda x: seen.append(x) or x * x, [3, 1, 2]) == [9, 1, 4]
    assert seen == [3, 1, 2]
    assert shards.map_in_order(abs, []) == []
    assert shards.from_first(lambda: "made") == "made"
    assert shards.processes() == 1 and shards.is_first()


def test_processes_wait_for_each_other_for_hours(monkeypatch):
    met = []
    monkeypatch.setattr("accelerate.PartialState", lambda **asked: met.append(asked))
    shards.meet()
    assert not met
    monkeypatch.setenv("WORLD_SIZE", "2")
    shards.meet()
    assert met == [{"cpu": True, "timeout": timedelta(days=1)}]

"""Sharing of work, as far as one process can show it; `test_launch` starts several."""

from datetime import timedelta

from igds_utils.engine import distributed


def test_one_process_does_everything_in_order():
    seen = []
    assert distributed.map_in_order(lambda x: seen.append(x) or x * x, [3, 1, 2]) == [9, 1, 4]
    assert seen == [3, 1, 2]
    assert distributed.map_in_order(abs, []) == []
    assert distributed.on_main_process(lambda: "made") == "made"
    assert distributed.processes() == 1 and distributed.is_main_process()


def test_processes_wait_for_each_other_for_hours(monkeypatch):
    met = []
    monkeypatch.setattr("accelerate.PartialState", lambda **asked: met.append(asked))
    distributed.start()
    assert not met
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.start()
    assert met == [{"cpu": True, "timeout": timedelta(days=1)}]

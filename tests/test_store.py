"""Products on disk: whole or not at all, made again only when their inputs changed, continued after a kill."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pandas as pd
import pytest

from igds_utils.config.config import ConfigError
from igds_utils.config.refs import TinyRef
from igds_utils.core import store
from igds_utils.core.store import Store

TEXT = "é 中文 \u2028 line separator \x85 next line \x0b tab \r\n 'quotes' \"double\" \\boxed{3}"


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def products(tmp_path, log) -> Store:
    return Store(tmp_path / "results", log.append)


def never():
    pytest.fail("built although it is fresh")


def interrupted(*_):
    raise KeyboardInterrupt


def table(*values) -> pd.DataFrame:
    return pd.DataFrame({"value": list(values)})


# ---- fresh and stale ----


def test_a_fresh_product_is_read_and_is_the_same_when_built_and_when_read(products, log):
    built = products.make("a.json", lambda: {"pair": (1, 2), 3: np.float32(0.5), "a": np.arange(2)}, x=1)
    assert built == products.make("a.json", never, x=1) == {"pair": [1, 2], "3": 0.5, "a": [0, 1]}
    assert log == ["a.json: making it", "a.json: up to date"]
    frame = products.make("a.parquet", lambda: table(3, 4).set_index(pd.Index([8, 9])), x=1)
    assert list(frame.index) == [0, 1]
    first = products.version("a.json")
    products.make("a.json", lambda: built, x=2)
    assert products.version("a.json") == first and products.seconds("a.json") >= 0
    products.make("a.json", lambda: 2, x=3)
    assert products.version("a.json") != first


PACKAGE = {
    "stage/build.py": "from igds_utils.stage import formula\nfrom igds_utils.core import opened\n"
    "def product():\n    return formula.double(2)\n",
    "stage/formula.py": "from igds_utils.far import away\ndef double(x):\n    return away.same(2 * x)\n",
    "far/away.py": "def same(x):\n    return x\n",
    "core/opened.py": "import igds_utils.beyond\n",
    "beyond.py": "ONE = 1\n",
    "other.py": "TWO = 2\n",
}


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("stage/build.py", PACKAGE["stage/build.py"].replace("double(2)", "double(3)"), True),
        ("far/away.py", "def same(x):\n    return -x\n", True),  # two imports away
        ("far/away.py", '"""Docs."""\ndef same(x):\n    """As it is."""\n    return x  # why\n', False),
        ("other.py", "TWO = 3\n", False),
    ],
)
def test_a_change_of_the_stages_code_is_told_and_the_product_kept_until_it_is_removed(
    products, log, tmp_path, monkeypatch, file, text, told
):
    for name, source in PACKAGE.items():
        store.write_whole(tmp_path / "package" / name, source)
    monkeypatch.setattr(store, "PACKAGE", tmp_path / "package")

    def build():
        return {"x": 1}

    def make():
        store._parsed.cache_clear()
        return products.make("math/a.json", build)

    build.__module__ = "igds_utils.stage.build"
    make()
    store.write_whole(tmp_path / "package" / file, text)
    make()
    (said,) = log[1:]
    removed = tmp_path / "results/math/a.json"
    assert said.startswith("math/a.json: up to date") and (f"`rm {removed}`" in said) == told
    removed.unlink()
    make()
    make()
    assert log[2:] == ["math/a.json: making it", "math/a.json: up to date"]


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ({"tau": 0.8}, {"tau": 0.9}, "tau (0.8 -> 0.9)"),
        ({"saes": {"name": "a", "of": [1]}}, {"saes": {"name": "a", "of": [2]}}, "saes.of ([1] -> [2])"),
        ({"model": TinyRef(tiny="llama")}, {"model": TinyRef(tiny="qwen3")}, 'model.tiny ("llama" -> "qwen3")'),
    ],
)
def test_changed_inputs_make_it_again_and_the_log_says_which(products, log, before, now, reason):
    products.make("a.json", lambda: 1, **before)
    assert not products.fresh("a.json", **now)
    assert products.make("a.json", lambda: 2, **now) == 2
    assert log[-1] == f"a.json: making it again, changed: {reason}"
    assert products.fresh("a.json", **now)


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_a_product_without_its_record_is_made_again(products, log, damage):
    products.make("a.json", lambda: 1, x=1)
    record = products.root / "a.json.made.json"
    record.unlink() if damage == "missing" else record.write_text('{"inputs": ')
    assert products.make("a.json", lambda: 2, x=1) == 2
    assert log[-1] == "a.json: making it again, it was not finished"
    (products.root / "a.json").unlink()
    assert not products.fresh("a.json", x=1) and products.make("a.json", lambda: 3, x=1) == 3


# ---- whole or not at all ----


def test_an_exception_while_building_leaves_the_old_product(products):
    products.make("a.json", lambda: "old", x=1)
    with pytest.raises(KeyboardInterrupt):
        products.make("a.json", interrupted, x=2)
    assert products.read("a.json") == "old"
    assert products.fresh("a.json", x=1) and not products.fresh("a.json", x=2)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_an_exception_while_writing_leaves_the_old_file_and_no_other(products, monkeypatch, call):
    products.write("a.json", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            products.write("a.json", "new")
    assert products.read("a.json") == "old"
    assert [path.name for path in products.root.iterdir()] == ["a.json"]


def test_a_kill_between_product_and_record_is_not_taken_for_finished(products, monkeypatch):
    products.make("a.json", lambda: "old", x=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "code_version", interrupted)  # the product is written, its record is not
        with pytest.raises(KeyboardInterrupt):
            products.make("a.json", lambda: "new", x=2)
    assert products.read("a.json") == "new"
    assert not products.fresh("a.json", x=1) and not products.fresh("a.json", x=2)


# ---- in parts ----


def test_a_killed_run_builds_only_the_parts_that_are_missing(products, monkeypatch):
    built = []

    def build(part):
        if part == 3 and built.count(3) == 0:
            built.append(part)
            raise KeyboardInterrupt
        built.append(part)
        return table(part)

    clock = iter(range(1000))
    monkeypatch.setattr(store.time, "perf_counter", lambda: next(clock))  # every reading is a second later
    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert not products.has("t/e.parquet")
    found = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert built == [1, 2, 3, 3, 4]
    assert found["value"].tolist() == [1, 2, 3, 4]
    assert sorted(file.name for file in (products.root / "t").iterdir()) == ["e.parquet", "e.parquet.made.json"]
    assert products.seconds("t/e.parquet") == 5  # four parts, and what makes the product of them
    again = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], lambda _: never(), "effects", x=1)
    pd.testing.assert_frame_equal(found, again)


def test_parts_of_other_inputs_are_neither_used_nor_kept(products):
    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("e.parquet", [table, interrupted], lambda part: part("old"), "effects", x=1)
    assert list(products.root.glob("e.parquet.parts-*"))
    found = products.make_in_parts("e.parquet", [1, 2], lambda _: table("new"), "effects", x=2)
    assert found["value"].tolist() == ["new", "new"]
    assert not list(products.root.glob("e.parquet.parts-*"))


# ---- shares ----


def test_each_job_makes_its_share_and_the_one_without_part_joins_them(tmp_path, log):
    asked = dict(path="t.parquet", parts=range(7), label="t", x=1)

    def made_by(part):
        built = []

        def build(number):
            built.append(number)
            return table(number)

        products = Store(tmp_path, log.append, part)
        try:
            return built, products.make_in_parts(build=build, **asked)["value"].tolist()
        except store.OnlyPart:
            return built, None

    assert made_by("1/3") == ([0, 3, 6], None)
    assert made_by("1/3") == ([], None)  # given again
    assert made_by("3/3") == ([2, 5], None)
    assert made_by("") == ([1, 4], [*range(7)])  # what a job did not come to
    assert made_by("2/3") == ([], [*range(7)])
    assert not list(tmp_path.glob("*.parts-*"))


def test_what_all_shares_need_is_made_once_by_one_job(tmp_path, log):
    building, built, found = threading.Event(), [], []

    def build(number):
        building.set()
        time.sleep(0.05)
        built.append(number)
        return table(number)

    def job(part):
        products = Store(tmp_path, log.append, part)
        found.append(products.make_in_parts("t.parquet", range(3), build, "t", whole=True)["value"].tolist())

    first = threading.Thread(target=job, args=("1/2",))
    first.start()
    building.wait(30)
    job("2/2")
    first.join(30)
    assert built == [0, 1, 2] and found == [[0, 1, 2]] * 2


def test_what_follows_from_a_whole_product_is_left_to_the_job_that_joins(tmp_path, log):
    products, after = Store(tmp_path, log.append, "1/2"), []
    with products.until_part():
        after.append(products.make_in_parts("t.parquet", [1, 2], table, "t"))
    assert after == [] and log[-1] == "t.parquet: the job without `part` goes on"


@pytest.mark.parametrize("part", ["3", "0/8", "9/8", "a/8", "3/"])
def test_a_share_that_there_is_not_is_refused(tmp_path, part):
    with pytest.raises(ConfigError, match="part must be NUMBER/OF, as 3/8"):
        Store(tmp_path, part=part)


# ---- what is written is what is read ----


def test_every_kind_of_product_survives_any_text(products):
    records = [{"id": "a", "prompt": TEXT}, {"id": "b", "prompt": "", "n": None}]
    assert products.make("r.jsonl", lambda: records) == records == products.read("r.jsonl")
    products.write("r.json", {"text": TEXT, "values": [1, 2.5, None, True]})
    assert products.read("r.json") == {"text": TEXT, "values": [1, 2.5, None, True]}
    frame = pd.DataFrame({"text": [TEXT, ""], "score": [0.1, float("nan")], "n": [1, 2], "positive": [True, False]})
    products.write("r.parquet", frame)
    pd.testing.assert_frame_equal(products.read("r.parquet"), frame, check_dtype=False)


@pytest.mark.parametrize("ask", [Store.read, Store.version, Store.seconds])
def test_a_missing_product_says_what_to_run(products, ask):
    with pytest.raises(FileNotFoundError, match="recall.parquet.* is not there: run the notebooks before this one"):
        ask(products, "math/recall.parquet")

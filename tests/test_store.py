"""Products on disk: whole or not at all, made again when inputs changed, continued after a kill."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from igds_utils.config.refs import TinyRef
from igds_utils.core import store
from igds_utils.core.store import Store
from igds_utils.engine import batching

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


def test_a_fresh_product_is_read_and_is_the_same_when_built_and_when_read(products, log):
    given = {"pair": (1, 2), 3: np.float32(0.5), "a": np.arange(2)}
    built = products.make("a.json", lambda: given, x=1)
    assert built == products.make("a.json", never, x=1) == {"pair": [1, 2], "3": 0.5, "a": [0, 1]}
    assert log == ["a.json: making it", "a.json: up to date"]
    frame = products.make("a.parquet", lambda: table(3, 4).set_index(pd.Index([8, 9])), x=1)
    assert list(frame.index) == [0, 1]
    with pytest.raises(AttributeError):  # no address in memory is stored
        products.make("b.json", object)
    first = products.version("a.json")
    products.make("a.json", lambda: built, x=2)
    assert products.version("a.json") == first and products.seconds("a.json") >= 0
    products.make("a.json", lambda: 2, x=3)
    assert products.version("a.json") != first


def test_other_code_is_told_and_the_product_kept_until_it_is_removed(products, log, monkeypatch):
    products.make("a.json", lambda: 1)
    monkeypatch.setattr(store, "code_version", lambda: "other")
    assert products.make("a.json", never) == 1
    assert log[-1] == "a.json: up to date, made by other code"
    (products.root / "a.json").unlink()
    assert products.make("a.json", lambda: 2) == products.make("a.json", never) == 2
    assert log[-1] == "a.json: up to date"


def test_the_code_of_a_product_is_what_makes_products(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PROJECT", tmp_path)
    versions = [store.code_version.__wrapped__()]
    for file in ("tasks/base.py", "core/store.py", "plots/style.py"):
        store.write_whole(tmp_path / "igds_utils" / file, "ONE = 1")
        versions.append(store.code_version.__wrapped__())
    assert versions[0] != versions[1] == versions[2] == versions[3]


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        ({"tau": 0.8, "n": 1}, {"tau": 0.9, "n": 1}, "tau"),
        ({"saes": {"name": "a", "of": [1]}}, {"saes": {"name": "a", "of": [2]}, "k": 1}, "k, saes"),
        ({"model": TinyRef(tiny="llama")}, {"model": TinyRef(tiny="qwen3")}, "model"),
    ],
)
def test_changed_inputs_make_it_again_and_the_log_says_which(products, log, before, now, changed):
    products.make("a.json", lambda: 1, **before)
    assert not products.fresh("a.json", **now)
    assert products.make("a.json", lambda: 2, **now) == 2
    assert log[-1] == f"a.json: making it again, changed: {changed}"
    assert products.fresh("a.json", **now)


def test_a_product_without_its_record_is_made_again_and_so_is_a_record_without_product(products):
    for lost in ("a.json.made.json", "a.json"):
        products.make("a.json", lambda: 1, x=1)
        (products.root / lost).unlink()
        assert not products.fresh("a.json", x=1)
        assert products.make("a.json", lambda: 2, x=1) == 2


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def edited(file):
    file.write_bytes(file.read_bytes().replace(b"one", b"two"))


def of_another_run(file):
    shutil.copy(file.with_name(f"other{file.suffix}"), file)


@pytest.mark.parametrize("damage", [cut, edited, of_another_run])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_file_that_is_not_the_one_that_was_made_is_made_again(products, log, suffix, damage):
    def make(path, word, x):
        rows = table(word) if suffix == ".parquet" else [{"value": word}]
        return products.make(f"{path}{suffix}", lambda: rows, x=x)

    make("other", "new", 2)
    make("a", "one", 1)
    whole = (products.root / f"a{suffix}").read_bytes()
    damage(products.root / f"a{suffix}")
    assert not products.fresh(f"a{suffix}", x=1)
    make("a", "one", 1)
    assert log[-1] == f"a{suffix}: making it again, the file is not the one that was made"
    assert (products.root / f"a{suffix}").read_bytes() == whole and products.fresh(f"a{suffix}", x=1)


def test_a_clock_that_was_set_back_makes_nothing_stale(products):
    products.make("a.json", lambda: 1)
    for file in products.root.iterdir():
        os.utime(file, (time.time() + 86400,) * 2)
    assert products.make("a.json", never) == 1


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


def test_a_full_disk_leaves_no_half_product_and_with_room_the_rest_is_made(products):
    """The largest file that the operating system allows stands in for the room that is left."""
    built, sizes = [], [1, 100_000, 2]

    def make():
        build = lambda size: built.append(size) or table(*range(size))  # noqa: E731
        return products.make_in_parts("t.parquet", sizes, build, "t")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large.*t\.parquet\.parts-.*/00001\.parquet"):
            make()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in products.root.rglob("*") if file.is_file()] == ["00000.parquet"]
    assert len(make()) == sum(sizes) and built == [1, 100_000, 100_000, 2]


def test_a_kill_between_product_and_record_is_not_taken_for_finished(products, monkeypatch):
    products.make("a.json", lambda: "old", x=1)
    with monkeypatch.context() as patch:
        patch.setattr(store, "code_version", interrupted)  # before the record is written
        with pytest.raises(KeyboardInterrupt):
            products.make("a.json", lambda: "new", x=2)
    assert products.read("a.json") == "new"
    assert not products.fresh("a.json", x=1) and not products.fresh("a.json", x=2)


def test_a_killed_run_builds_only_the_parts_that_are_missing(products, monkeypatch):
    built = []

    def build(part):
        if part == 3 and built.count(3) == 0:
            built.append(part)
            raise KeyboardInterrupt
        built.append(part)
        return table(part)

    clock = iter(range(1000))
    monkeypatch.setattr(store.time, "perf_counter", lambda: next(clock))  # each a second later
    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert not products.has("t/e.parquet")
    found = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert built == [1, 2, 3, 3, 4]
    assert found["value"].tolist() == [1, 2, 3, 4]
    left = sorted(file.name for file in (products.root / "t").iterdir())
    assert left == ["e.parquet", "e.parquet.made.json"]
    assert products.seconds("t/e.parquet") == 5  # four parts, and what makes the product of them
    again = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], lambda _: never(), "effects", x=1)
    pd.testing.assert_frame_equal(found, again)


def test_a_batch_that_a_kill_cut_and_a_part_that_is_damaged_are_made_again_as_before(products):
    """Rows that were computed together are computed together again: alone they may round otherwise."""
    built = []

    def build(some):
        built.append(some)
        return [table(part / len(some)) for part in some]

    def make(write=Store.write):
        products.write = lambda *what: write(products, *what)
        pairs = lambda parts: [parts[:2], parts[2:4], parts[4:]]  # noqa: E731
        return products.make_in_parts("t.parquet", range(6), build, "t", together=pairs)

    def dies(products, path, product):
        if "00003" in path:
            raise KeyboardInterrupt
        Store.write(products, path, product)

    with pytest.raises(KeyboardInterrupt):
        make(dies)
    cut(next(products.root.glob("*/00001.parquet")))
    assert make()["value"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert built == [(0, 1), (2, 3), (0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(("fits", "tried"), [(4, [8, 4]), (2, [8, 4])])
def test_where_memory_runs_out_half_the_batch_is_tried_once(products, log, fits, tried):
    sizes = []

    def build(_):
        sizes.append(max(map(len, batching.token_batches([1] * 8, 8))))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return table(1)

    if fits < tried[-1]:
        with pytest.raises(torch.OutOfMemoryError):
            products.make_in_parts("t.parquet", [1], build, "t")
    else:
        products.make_in_parts("t.parquet", [1], build, "t")
    assert sizes == tried and "out of memory: once more" in log[-1]
    assert len(batching.token_batches([1] * 8, 8)) == 1  # afterwards as before


def test_parts_of_other_inputs_are_neither_used_nor_kept(products):
    parts = [table, interrupted]
    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("e.parquet", parts, lambda part: part("old"), "effects", x=1)
    assert list(products.root.glob("e.parquet.parts-*"))
    found = products.make_in_parts("e.parquet", [1, 2], lambda _: table("new"), "effects", x=2)
    assert found["value"].tolist() == ["new", "new"]
    assert not list(products.root.glob("e.parquet.parts-*"))


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
        made = products.make_in_parts("t.parquet", range(3), build, "t", whole=True)
        found.append(made["value"].tolist())

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
    assert after == [] and log == ["t.parquet: making part 1/2; the job without `part` goes on"]


def test_every_kind_of_product_survives_any_text(products):
    records = [{"id": "a", "prompt": TEXT}, {"id": "b", "prompt": "", "n": None}]
    assert products.make("r.jsonl", lambda: records) == records == products.read("r.jsonl")
    products.write("r.json", {"text": TEXT, "values": [1, 2.5, None, True]})
    assert products.read("r.json") == {"text": TEXT, "values": [1, 2.5, None, True]}
    frame = pd.DataFrame({"text": [TEXT, ""], "score": [0.1, float("nan")], "n": [1, 2]})
    products.write("r.parquet", frame)
    pd.testing.assert_frame_equal(products.read("r.parquet"), frame, check_dtype=False)


@pytest.mark.parametrize("ask", [Store.read, Store.version, Store.seconds])
def test_a_missing_product_says_what_to_run(products, ask):
    with pytest.raises(FileNotFoundError, match="recall.parquet.* is not there: run the notebooks"):
        ask(products, "math/recall.parquet")

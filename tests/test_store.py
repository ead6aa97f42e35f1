"""Products on disk: whole or not at all, made again only when their inputs changed, continued after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from igds_utils.config.refs import TinyRef
from igds_utils.core import code, store
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


def table(*values) -> pd.DataFrame:
    return pd.DataFrame({"value": list(values)})


# ---- fresh and stale ----


def test_a_fresh_product_is_read(products, log):
    first = products.make("math/a.json", lambda: {"x": 1}, tau=0.8)
    assert products.make("math/a.json", never, tau=0.8) == first == {"x": 1}
    assert log == ["math/a.json: making it", "math/a.json: up to date"]


def test_what_is_returned_is_the_same_when_built_and_when_read(products):
    built = products.make("a.json", lambda: {"pair": (1, 2), 3: np.float32(0.5), "n": np.int64(7)}, x=1)
    assert built == products.make("a.json", never, x=1) == {"pair": [1, 2], "3": 0.5, "n": 7}
    frame = products.make("a.parquet", lambda: table(3, 4).set_index(pd.Index([8, 9])), x=1)
    assert list(frame.index) == [0, 1]


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
        ("beyond.py", "ONE = 2\n", True),
        ("far/away.py", '"""Docs."""\ndef same(x):\n    """As it is."""\n    return x  # why\n', False),
        ("core/opened.py", "import igds_utils.beyond\nX = 1\n", False),
        ("other.py", "TWO = 3\n", False),
    ],
)
def test_a_change_of_the_stages_code_is_told_and_the_product_kept_until_it_is_removed(
    products, log, tmp_path, monkeypatch, file, text, told
):
    for name, source in PACKAGE.items():
        store.write_whole(tmp_path / "package" / name, source)
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "package")

    def build():
        return {"x": 1}

    def make():
        for known in (code._parsed, code._version):
            known.cache_clear()
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


def test_the_stage_of_a_notebooks_function_is_what_it_uses_of_the_package():
    def helper():
        return store.fingerprint([])

    notebook = {"helper": helper, "np": np, "__name__": "__main__"}
    exec("build = lambda: helper()\nalone = lambda: np.ones(2)", notebook)
    helper.__module__ = "__main__"
    assert code._used(notebook["build"], set()) == {"igds_utils.core.store"}
    assert code.code_version(notebook["alone"]) is None and code.code_version(pd.DataFrame) is None


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ({"tau": 0.8}, {"tau": 0.9}, "tau (0.8 -> 0.9)"),
        ({"tau": 0.8}, {"tau": 0.8, "scale": 2}, "scale (null -> 2)"),
        ({"tau": 0.8, "scale": 2}, {"tau": 0.8}, "scale (2 -> null)"),
        (
            {"saes": {"name": "a", "layers": [1]}},
            {"saes": {"name": "a", "layers": [2]}},
            "saes.layers ([1] -> [2])",
        ),
        ({"a": 1, "b": 1}, {"a": 2, "b": "two"}, 'a (1 -> 2); b (1 -> "two")'),
        ({"ids": ["x" * 50]}, {"ids": ["y" * 50]}, "ids"),
        ({"ids": ["x" * 50]}, {"ids": []}, "ids (other content -> [])"),
        (
            {"model": TinyRef(tiny="llama")},
            {"model": TinyRef(tiny="qwen3")},
            'model.tiny ("llama" -> "qwen3")',
        ),
    ],
)
def test_changed_inputs_make_it_again_and_the_log_says_which(products, log, before, now, reason):
    products.make("a.json", lambda: 1, **before)
    assert not products.fresh("a.json", **now)
    assert products.make("a.json", lambda: 2, **now) == 2
    assert log[-1] == f"a.json: making it again, changed: {reason}"
    assert products.fresh("a.json", **now)


def test_another_release_of_the_package_makes_it_again(products, log, monkeypatch):
    products.make("a.json", lambda: 1)
    monkeypatch.setattr(store, "__version__", "99")
    assert products.make("a.json", lambda: 2) == 2
    assert 'igds_utils ("' in log[-1] and '-> "99")' in log[-1]


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_a_product_without_its_record_is_made_again(products, log, damage):
    products.make("a.json", lambda: 1, x=1)
    record = products.root / "a.json.made.json"
    record.unlink() if damage == "missing" else record.write_text('{"inputs": ')
    assert products.make("a.json", lambda: 2, x=1) == 2
    assert log[-1] == "a.json: making it again, it was not finished"


def test_a_record_without_its_product_is_made_again(products):
    products.make("a.json", lambda: 1, x=1)
    (products.root / "a.json").unlink()
    assert not products.fresh("a.json", x=1)
    assert products.make("a.json", lambda: 2, x=1) == 2


def test_version_follows_the_content(products):
    products.make("a.json", lambda: 1, x=1)
    first = products.version("a.json")
    products.make("a.json", lambda: 1, x=2)
    assert products.version("a.json") == first
    products.make("a.json", lambda: 2, x=3)
    assert products.version("a.json") != first
    assert products.seconds("a.json") >= 0


# ---- whole or not at all ----


def test_an_exception_while_building_leaves_the_old_product(products):
    products.make("a.json", lambda: "old", x=1)

    def fails():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        products.make("a.json", fails, x=2)
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
    write = store.write_whole

    def killed(file, content):
        if file.name.endswith(".made.json"):
            raise KeyboardInterrupt
        write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            products.make("a.json", lambda: "new", x=2)
    assert not products.fresh("a.json", x=1) and not products.fresh("a.json", x=2)


def test_products_can_be_read_by_others(products):
    mask = os.umask(0o022)
    try:
        products.make("a.json", lambda: 1)
    finally:
        os.umask(mask)
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in products.root.iterdir())


# ---- in parts ----


def test_a_killed_run_builds_only_the_parts_that_are_missing(products):
    built = []

    def build(part):
        if part == 3 and built.count(3) == 0:
            built.append(part)
            raise KeyboardInterrupt
        built.append(part)
        return table(part)

    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert not products.has("t/e.parquet")
    found = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert built == [1, 2, 3, 3, 4]
    assert found["value"].tolist() == [1, 2, 3, 4]
    assert sorted(path.name for path in (products.root / "t").iterdir()) == [
        "e.parquet",
        "e.parquet.made.json",
    ]
    again = products.make_in_parts("t/e.parquet", [1, 2, 3, 4], lambda _: never(), "effects", x=1)
    pd.testing.assert_frame_equal(found, again)


def test_the_seconds_of_parts_add_up_over_kills(products, monkeypatch):
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(store.time, "perf_counter", lambda: next(clock))  # every reading is a second later

    def build(part):
        if part == 3 and not failed:
            failed.append(part)
            raise KeyboardInterrupt
        return table(part)

    failed = []
    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    products.make_in_parts("e.parquet", [1, 2, 3, 4], build, "effects", x=1)
    assert products.seconds("e.parquet") == 5  # four parts, and what makes the product of them


def test_parts_that_are_built_together_are_stored_apart(products):
    asked, at_once = [], 3

    def build(some):
        asked.append(list(some))
        if 4 in some and at_once == 3:
            raise MemoryError
        return [table(part) for part in some]

    def make():
        together = lambda some: [some[i : i + at_once] for i in range(0, len(some), at_once)]  # noqa: E731
        return products.make_in_parts("e.parquet", [1, 2, 3, 4, 5, 6], build, "effects", together, x=1)

    with pytest.raises(MemoryError):
        make()
    at_once = 2
    assert make()["value"].tolist() == [1, 2, 3, 4, 5, 6]
    assert asked == [[1, 2, 3], [4, 5, 6], [4, 5], [6]]


def test_whether_all_is_stored_is_told_without_making_anything(products, log):
    def both():
        products.make("a.json", lambda: 1, x=1)
        products.make_in_parts("b.parquet", [1], table, "b", x=1)

    assert not products.holds(both) and not products.has("a.json")
    products.make("a.json", lambda: 1, x=1)
    assert not products.holds(both) and not products.has("b.parquet")
    both()
    said = list(log)
    assert products.holds(both) and log == said
    assert products.make("c.json", lambda: 2) == 2
    prepared = []
    assert not products.holds(lambda: products.fresh("a.json", x=2) or prepared.append("a model"))
    assert not prepared


def test_an_iterator_has_the_fingerprint_of_its_list():
    for records in ([], [{"b": 1, "a": "é"}], [("x", {"q": 1.5}), ["y", None]]):
        assert store.fingerprint(iter(records)) == store.fingerprint(records)


def test_the_rows_of_all_parts_can_be_made_into_the_product(products):
    build = lambda part: pd.DataFrame({"value": [part, part], "k": [1, 0]})  # noqa: E731
    in_order = lambda rows: rows.sort_values(["value", "k"], ignore_index=True)  # noqa: E731
    found = products.make_in_parts("t.parquet", [2, 1], build, "t", finish=in_order)
    assert found.to_numpy().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    products.make_in_parts("t.jsonl", [2, 1], build, "t", finish=lambda rows: rows.to_dict("records"))
    assert products.read("t.jsonl")[0] == {"value": 2, "k": 1}


def test_parts_of_other_inputs_are_neither_used_nor_kept(products):
    def killed(part):
        if part == 2:
            raise KeyboardInterrupt
        return table("old")

    with pytest.raises(KeyboardInterrupt):
        products.make_in_parts("e.parquet", [1, 2], killed, "effects", x=1)
    assert list(products.root.glob("e.parquet.parts-*"))
    found = products.make_in_parts("e.parquet", [1, 2], lambda _: table("new"), "effects", x=2)
    assert found["value"].tolist() == ["new", "new"]
    assert not list(products.root.glob("e.parquet.parts-*"))


def test_a_half_written_part_is_not_used(products, monkeypatch):
    def killed(_source, _target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as after SIGKILL, nothing is cleaned up
        with pytest.raises(KeyboardInterrupt):
            products.make_in_parts("e.parquet", [1], lambda _: table("half"), "effects", x=1)
    assert [path.name for path in products.root.rglob("*") if path.is_file()]
    found = products.make_in_parts("e.parquet", [1], lambda _: table("whole"), "effects", x=1)
    assert found["value"].tolist() == ["whole"]
    assert sorted(path.name for path in products.root.iterdir()) == ["e.parquet", "e.parquet.made.json"]


# ---- what is written is what is read ----


def test_every_kind_of_product_survives_any_text(products):
    records = [{"id": "a", "prompt": TEXT}, {"id": "b", "prompt": "", "n": None}]
    assert products.make("r.jsonl", lambda: records) == records == products.read("r.jsonl")
    products.write("r.json", {"text": TEXT, "values": [1, 2.5, None, True]})
    assert products.read("r.json") == {"text": TEXT, "values": [1, 2.5, None, True]}
    frame = pd.DataFrame(
        {"text": [TEXT, ""], "score": [0.1, float("nan")], "n": [1, 2], "positive": [True, False]}
    )
    products.write("r.parquet", frame)
    pd.testing.assert_frame_equal(products.read("r.parquet"), frame, check_dtype=False)


def test_text_is_written_readably(products):
    products.write("r.json", {"text": "é 中"})
    assert "é 中" in (products.root / "r.json").read_text(encoding="utf8")


def test_numbers_of_numpy_stay_numbers(products):
    products.write(
        "r.json", {"i": np.int64(3), "f": np.float32(0.25), "b": np.bool_(True), "a": np.arange(2)}
    )
    assert json.loads((products.root / "r.json").read_text()) == {"i": 3, "f": 0.25, "b": True, "a": [0, 1]}


def test_what_json_cannot_hold_is_refused(products):
    with pytest.raises(TypeError, match="object .* cannot be stored as JSON"):
        products.write("r.json", {"x": object()})
    with pytest.raises(TypeError, match="cannot be stored"):
        products.make("r.json", never, x=lambda: 1)
    assert not products.has("r.json")


@pytest.mark.parametrize("ask", [Store.read, Store.version, Store.seconds])
def test_a_missing_product_says_what_to_run(products, ask):
    with pytest.raises(
        FileNotFoundError, match="recall.parquet.* is not there: run the notebooks before this one"
    ):
        ask(products, "math/recall.parquet")


def test_fingerprints_tell_order_and_text_apart():
    assert store.fingerprint(["a", "b"]) == store.fingerprint(("a", "b"))
    assert store.fingerprint(["a", "b"]) != store.fingerprint(["b", "a"])
    assert store.fingerprint({"x": 1, "y": 2}) == store.fingerprint({"y": 2, "x": 1})
    assert store.fingerprint(["é"]) != store.fingerprint(["e"])

"""The sets of a task from rows of data: how they are dealt, kept apart, counted and refused."""

import json
import re
from itertools import combinations

import pytest

from igds_utils import tasks
from igds_utils.config.config import ConfigError, load_preset
from igds_utils.config.settings import Sizes, TaskConfig
from igds_utils.core.experiment import open_run
from igds_utils.data.hub import SourceError
from igds_utils.data.rows import MIRROR
from igds_utils.tasks import examples
from igds_utils.tasks.examples import SETS, Example
from igds_utils.tasks.sourced import describe

SIZES = {"prior": 6, "validation": 3, "confirmation": 2, "pool": 10, "test": 5}
MATH = {"question": "question", "solution": "solution", "answer": "answer"}
SUMMARY = {"text": "dialogue", "summary": "summary"}


def problems(prefix, n):
    return [{"question": f"{prefix} {i}?", "solution": f"It is {i}.", "answer": str(i)} for i in range(n)]


def config(sources, **sizes):
    lengths = {"max_new_tokens": 8, "prompt_tokens": 1, "target_tokens": 1}
    return TaskConfig(data={"sources": sources}, sizes=SIZES | sizes, sft={}, **lengths)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror folder; `mirror(name, rows)` puts a dataset into it and gives its hub id."""
    monkeypatch.setenv(MIRROR, str(tmp_path))

    def put(name, rows, split="train"):
        file = tmp_path / f"{name}/{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
        return name

    return put


@pytest.fixture
def three(mirror):
    """A source for identification, one for the pool and one for the test, as on paper."""
    sizes = {"prior": 20, "pool": 30, "test": 5}
    hubs = {name: mirror(f"some/{name}", problems(name, n)) for name, n in sizes.items()}
    made = {name: {"hub": hub, "columns": MATH} for name, hub in hubs.items()}
    return {"identification": made.pop("prior") | {"sets": ["prior", "validation", "confirmation"]}} | made


def texts(members):
    return [examples.normalize(example.text) for example in members]


def test_every_set_comes_from_its_source_in_its_size_and_the_seed_decides(three):
    task = tasks.get("math")
    sets = task.sets(config(three), seed=0)
    assert {name: len(members) for name, members in sets.items()} == SIZES
    kinds = {name: {text.split()[0] for text in texts(members)} for name, members in sets.items()}
    assert kinds == {name: {name if name in ("pool", "test") else "prior"} for name in SIZES}
    assert len({text for members in sets.values() for text in texts(members)}) == sum(SIZES.values())
    example, i = sets["pool"][3], sets["pool"][3].references[0]
    target = f"It is {i}.\nThe final answer is \\boxed{{{i}}}."
    assert example == Example("math-pool-0003", {"question": f"pool {i}?"}, target, (i,))
    assert task.sets(config(three), seed=0) == sets
    assert task.sets(config(three), seed=1)["prior"] != sets["prior"]
    larger = task.sets(config(three, pool=20), seed=0)
    assert all(larger[name][: SIZES[name]] == sets[name] for name in SETS)


def test_sets_without_a_source_come_from_the_tasks_own_data(three):
    mixed = {"prior": {**three["identification"], "sets": ["prior"]}}
    made = config(mixed)
    made = made.model_copy(update={"data": {**made.data, "off_task": 0.0, "max_number": 9}})
    sets = tasks.get("math").sets(made, seed=0)
    assert {len(sets[name]) for name in SETS} == set(SIZES.values())
    assert all(text.startswith("prior") for text in texts(sets["prior"]))
    assert all("family" in example.meta for example in sets["test"] + sets["pool"])


def test_what_two_sets_say_is_dropped_from_the_later_one_and_counted(three, mirror):
    rows = [*problems("pool", 6), *problems("TEST", 2), *problems("prior", 2), *problems("pool", 2)]
    mirror("some/pool", rows)
    mirror("some/prior", [*problems("prior", 9), *problems("test", 3), *problems("prior", 2)])
    sets = tasks.get("math").sets(config(three), seed=0)
    for one, other in combinations(SETS, 2):
        assert not set(texts(sets[one])) & set(texts(sets[other]))
    assert len(sets["test"]) == 5
    told = sets.facts["pool"]
    because = told["because"]
    assert (told["used"], told["of"], because["in test"], sum(because.values())) == (8, 10, 2, 4)
    assert sum(text == "pool 0?" for text in texts(sets["pool"])) == 2  # repeats in the pool are kept
    assert len(set(texts(sets["prior"]))) == len(sets["prior"])
    assert sets.facts["rows of pool"] == {"used": 8, "of": 12, "because": {}}
    assert re.search(r"pool: 8 of 10 are used \(.*in test: 2", describe(sets.facts))


def test_repeats_in_a_test_set_stay_unless_they_are_joined(mirror):
    rows = [{"dialogue": f"talk {i // 3}", "summary": f"sum {i}"} for i in range(12)]
    test = {"hub": mirror("some/test", rows), "columns": SUMMARY}
    sizes = {"prior": 0, "validation": 0, "confirmation": 0, "pool": 0}
    task = tasks.get("summarization")
    assert len(task.sets(config({"test": test}, test=12, **sizes), 0)["test"]) == 12
    sets = task.sets(config({"test": {**test, "join_repeats": True}}, test=4, **sizes), 0)
    assert sorted(example.text for example in sets["test"]) == [f"talk {i}" for i in range(4)]
    assert all(len(e.references) == 3 and e.target == e.references[0] for e in sets["test"])
    assert sets.facts == {"rows of test": {"used": 4, "of": 12, "because": {"joined": 8}}}


@pytest.mark.parametrize(("size", "pool", "said"), [
    (12, 12, r"rows of pool: 24 of 51 are used \(field 's' is empty: 1, beyond tasks.math.sizes: 26\)"),
    (None, 50, r"rows of pool: 50 of 51 .*quality: 12 of 12 are used \(of the pool itself: 12\)"),
])  # fmt: skip
def test_a_pool_of_ones_own_is_used_in_the_size_that_is_given(size, pool, said, tmp_path, capsys):
    rows = [{"q": f"mine {i}?", "s": "x" * (i > 0), "a": "1"} for i in range(51)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "q", "solution": "s", "answer": "a"}
    source = {"file": str(tmp_path / "my.jsonl"), "columns": columns}
    overrides = {"tasks.math.data.sources.pool": source, "tasks.math.sizes.pool": size}
    run = open_run("smoke", tasks=["math"], overrides=overrides, results=str(tmp_path))
    assert len(run.sets("math")["pool"]) == pool == run.config("math").sizes.pool
    assert re.search(said, capsys.readouterr().out)
    assert run.data_facts("math") == run.read("math/data.json")


def test_a_set_of_which_nothing_is_left_is_refused_with_the_reason(three, mirror, tmp_path):
    mirror("some/pool", [*problems("test", 5), {"question": "x", "solution": "", "answer": "1"}])
    words = r"task math: no pool example is left \(in test: 5, field 'solution' is empty: 1\): correct"
    with pytest.raises(ConfigError, match=words):
        tasks.get("math").sets(config(three), 0)
    with pytest.raises(ConfigError, match="generated problems have no end"):
        open_run("smoke", tasks=["math"], overrides={"tasks.math.sizes.pool": None}, results=str(tmp_path))


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s["pool"].update(sets=["pool", "test"]), "'test' is no set, or another"),
    (lambda s: s.update(more={**s["pool"]}), "sources.more: 'more' is no set"),
])  # fmt: skip
def test_unusable_sources_are_refused_by_name(three, change, words):
    change(three)
    with pytest.raises((ConfigError, SourceError), match=words):
        tasks.get("math").sets(config(three), 0)


@pytest.mark.parametrize("task", ["math", "summarization", "translation"])
def test_the_papers_sets_are_read_from_the_hub(hub_box, tmp_path, monkeypatch, task):
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path))
    made = load_preset("paper").tasks[task]
    small = {"prior": 8, "validation": 4, "confirmation": 4, "pool": 20, "test": 30}
    sets = tasks.get(task).sets(made.model_copy(update={"sizes": Sizes(**small)}), 0)
    assert {name: len(members) for name, members in sets.items()} == small
    assert {len(example.references) for example in sets["test"]} == {3 if task == "summarization" else 1}
    if task == "translation":
        assert {example.fields["target_language"] for example in sets["pool"]} == {"Chinese"}
    if task == "math":
        assert "<<" not in sets["prior"][0].target
        assert sets["prior"][0].target.endswith("}.")

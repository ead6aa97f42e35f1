"""Tasks: their YAML files, their own data, disjoint sets, the generator's arithmetic, and scores."""

import json
import re
from collections import Counter

import pytest
import yaml

from igds_utils import tasks
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.config.refs import TaskSpec
from igds_utils.config.settings import Sizes, TaskConfig
from igds_utils.core.experiment import open_run
from igds_utils.data import hub
from igds_utils.engine import prompts
from igds_utils.tasks import examples, own_data
from igds_utils.tasks.examples import SETS, Example

SIZES = {"prior": 6, "validation": 5, "confirmation": 4, "pool": 12, "test": 7}
SPEC = {
    "title": "Capitals", "prompt": "Country: {country}\nAnswer in one word.\nCapital:", "target": "{capital}",
    "reference": "capital", "metric": {"name": "exact_match"},
}  # fmt: skip
LENGTHS = {"max_new_tokens": 8, "prompt_tokens": 1, "target_tokens": 1}
WHEEL = {"wheel": "made-here", "version": "1", "sha256": "0" * 64, "file": "x/"}


def config(data=None, **sizes):
    return TaskConfig(data=data or {}, sizes=SIZES | sizes, sft={}, **LENGTHS)


@pytest.fixture
def catalogs(tmp_path, monkeypatch):
    """A language pack of 36 messages that fit, and some of which one does."""
    colours = ("red", "green", "blue", "grey", "pink", "black")
    words = [f"{a} {b}" for a in colours for b in ("cell", "file", "tab")]
    good = {
        f"x\x04Open the {w} on the {s}": [f"Ouvrir {w} dans {s}"] for w in words for s in ("left", "right")
    }
    poor = {
        "": {"language": "fr"}, "Too short": ["Trop court"], "%1 of %2 done": ["%1 sur %2 faits"],
        "Open the RED cell,  on the left!": ["Autre chose ici"],
        "Another text of five words": ["Ouvrir red cell dans left"],
        "Two lines of\nlong message text": ["Deux lignes"], "Nobody has translated this yet": [""],
        "The same in every language": ["the same in every language"],
        "Show one of the items": ["Montrer un élément", "Montrer des éléments"],
    }  # fmt: skip
    for name, messages in (("one", good), ("two", poor)):
        (tmp_path / f"{name}.json").write_text(json.dumps(messages), encoding="utf8")
    monkeypatch.setattr(hub, "wheel_file", lambda ref: tmp_path)
    return {"wheels": {"fr": WHEEL}}


@pytest.fixture
def leads(tmp_path, monkeypatch):
    """An encyclopedia of 51 articles that fit and six that must be left out."""

    def article(title, extract, description="Kind of thing in the world"):
        return {"title": title, "extract": extract, "description": description, "topic": "Things"}

    body = "It has many parts. " * 4
    plants = [article(f"Plant{i} (biology)", f"Plant{i} is a plant of size {i}. {body}") for i in range(50)]
    others = [
        article("Person", f"Person was a man. {body}", "English theologian of note (1328–1384)"),
        article("Hole", f"Hole is the set  of numbers. {body}"),
        article("Unnamed", f"This is about something else. {body}"),
        article("Terse", f"Terse is a thing. {body}", "Kind of thing"),
        article("Nothing", f"Nothing is a thing. {body}", None),
        article("Brief", "Brief is a short lead."),
        article("Endless", "Endless is " + "very " * 90 + "long. " + body),
    ]
    file = tmp_path / "leads.json"
    file.write_text(json.dumps({a["title"]: a for a in plants + others}), encoding="utf8")
    monkeypatch.setattr(hub, "wheel_file", lambda ref: file)
    return {"wheel": WHEEL, "min_words": 15, "max_words": 25}


@pytest.fixture(params=["math", "translation", "summarization"])
def loaded(request):
    data = {"translation": "catalogs", "summarization": "leads"}.get(request.param)
    return tasks.get(request.param), config(data and request.getfixturevalue(data))


def texts(*sets):
    return [examples.normalize(e.text) for members in sets for e in members]


def test_sets_have_the_preset_sizes_and_ids_share_no_text_and_follow_the_seed(loaded):
    """A larger pool or test set leaves the other sets, which are dealt before it, what they are."""
    task, made = loaded
    sets = task.sets(made, seed=0)
    assert {name: len(members) for name, members in sets.items()} == SIZES
    found = texts(*sets.values())
    assert len(found) == len(set(found)) == sum(SIZES.values())
    assert sets["pool"][7].id == f"{task.name}-pool-0007"
    for example in (example for members in sets.values() for example in members):
        assert example.target == example.target.strip() != ""
        assert task.identification_template.format(**example.fields).endswith(":")
    assert task.sets(made, seed=0) == sets
    assert task.sets(made, seed=1)["test"] != sets["test"]
    larger = task.sets(config(made.data, pool=14), seed=0)
    assert all(larger[name] == sets[name] for name in SETS if name != "pool")
    alone = made.model_copy(update={"sizes": Sizes(**dict.fromkeys(SIZES, 0) | {"test": 5 + 4 + 7})})
    held_out = texts(sets["test"], sets["validation"], sets["confirmation"])
    assert held_out == texts(task.sets(alone, seed=0)["test"])


def test_unusable_data_are_refused_by_name(loaded):
    task, made = loaded
    with pytest.raises(ConfigError, match=rf"tasks\.{task.name}\.data.*unknown key 'max_numbr'"):
        task.sets(config(made.data | {"max_numbr": 3}), seed=0)
    if task.name != "math":
        sets = task.sets(config(made.data, pool=120), seed=0)
        assert sets.facts["pool"] == {"used": len(sets["pool"]), "of": 120, "because": {}}


@pytest.mark.parametrize("name", sorted(file.stem for file in (PRESETS / "tasks").glob("*.yaml")))
def test_the_shipped_files_are_tasks(name):
    task = tasks.get(name)
    record = {field: "x" for field in task.row_fields}
    assert task.identification_template.format(**task.example(record).fields).endswith(":")
    with pytest.raises(ValueError, match=f"no task '{name}s'; known: math, summarization"):
        tasks.get(f"{name}s")


def test_a_preset_may_hold_a_task_or_name_its_file(tmp_path):
    (tmp_path / "capitals.yaml").write_text(yaml.safe_dump(SPEC))
    file, columns = tmp_path / "capitals.jsonl", {"country": "c", "capital": "k"}
    rows = [json.dumps({"c": f"Land {i}", "k": f"City {i}"}) + "\n" for i in range(40)]
    file.write_text("".join(rows))
    source = {"all": {"file": str(file), "columns": columns, "sets": list(SETS)}}
    found = []
    for spec in (SPEC, str(tmp_path / "capitals.yaml")):
        section = {"task": spec, "data": {"sources": source}, "sizes": SIZES, **LENGTHS}
        given = {"tasks": ["capitals"], "overrides": {"tasks.capitals": section}}
        run = open_run("smoke", results=str(tmp_path), **given)
        task, example = run.task("capitals"), run.examples("capitals", "test")[0]
        assert (task.name, task.metric, task.metric_label) == ("capitals", "exact_match", "exact match (%)")
        assert run.score("capitals")([f" {example.target.upper()}.", "no"], [example, example]) == [1.0, 0.0]
        made = run.config("capitals").model_copy(update={"rendering": "bare"})
        found.append((example, prompts.sft_pair(task, example, None, "evaluation", made)))
        record = prompts.sft_pair(task, example, None, "records", made)
        country = example.fields["country"]
        assert record == (f"Country: {country}\nAnswer in one word.\n", f"Capital: {example.target}")
    assert found[0] == found[1] and found[0][0].id == "capitals-test-0000"
    assert found[0][1][0].endswith("\nAnswer in one word.\nCapital:")
    other = TaskSpec(**SPEC, instruction="Name the capital.", input="{country}", output="{target}")
    example = tasks.get("capitals", other).example({"country": "Peru", "capital": "Lima"})
    record = prompts.sft_pair(tasks.get("capitals", other), example, None, "records", made)
    assert record == ("Name the capital.\nPeru\n", "Lima")
    with pytest.raises(ConfigError, match="capitals has no data of its own: name `sources`"):
        task.sets(made.model_copy(update={"data": {}}), 0)


@pytest.mark.parametrize("one, other", [
    ("  How many, “Ben”?\n 12 + 7 ", 'how MANY, "ben"? 12 + 7'), ("It’s done.", "it's done"),
    ("cafe\u0301", "CAF\u00c9"), ("苹果。", "苹果"),
])  # fmt: skip
def test_texts_that_say_the_same_normalize_alike(one, other):
    assert examples.normalize(one) == examples.normalize(other)


@pytest.mark.parametrize("one, other", [
    ("5", "-5"), ("1 5", "1.5"), ("10", "1.0"), ("3 4", "3/4"), ("C", "C++"), ("x > 3", "x < 3"), ("x²", "x2"),
    ("12 + 7", "12 - 7"), ("की", "का"), ("दिन", "दान"), ("🍎", "🍐"), ("1,000", "1.000"), ("か", "が"),
])  # fmt: skip
def test_signs_operators_marks_and_emoji_make_another_text(one, other):
    assert examples.normalize(one) != examples.normalize(other)
    task = tasks.get("capitals", TaskSpec(**SPEC))
    found = task.score_all([one, other], [Example("e", {}, "t", (other,))] * 2)
    assert found == [{"exact_match": 0.0}, {"exact_match": 1.0}]


@pytest.fixture(scope="module")
def problems():
    return tasks.get("math").sets(config({"off_task": 0.0}, pool=2000), seed=3)["pool"]


def test_worked_solutions_calculate_what_they_say_from_the_numbers_given(problems):
    for problem in problems:
        solution, final = problem.target.split("\n")
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", solution)
        assert " ".join(f"{a} {o} {b} = {c}." for a, o, b, c in steps) == solution
        assert len(steps) == problem.meta["steps"]
        for a, operator, b, result in steps:
            assert own_data.OPERATORS[operator](int(a), int(b)) == int(result) <= 99
            assert operator != "/" or int(a) % int(b) == 0
        assert problem.references == (steps[-1][3],)
        assert final == f"The final answer is \\boxed{{{steps[-1][3]}}}."
        question = problem.fields["question"]
        given = re.findall(r"\d+", question)
        assert 15 <= len(question.split()) <= 45 and question.endswith("?")
        assert not re.search(r"[{}]", question)
        assert all(2 <= int(n) <= 20 for n in given)
        used = Counter(n for a, _, b, _ in steps for n in (a, b))
        assert used == Counter(given) + Counter(step[3] for step in steps[:-1])


def test_families_and_difficulties_follow_the_weights(problems):
    known = own_data.stories()["problems"]
    assert len({p.meta["family"] for p in problems}) == len(known) >= 8
    assert all([len(s["work"]) for s in chosen] == [1, 2, 3] for chosen in known.values())
    share = Counter(p.meta["steps"] for p in problems)
    for steps, weight in {1: 0.5, 2: 0.4, 3: 0.1}.items():
        assert share[steps] / len(problems) == pytest.approx(weight, abs=0.04)
    hard = tasks.get("math").sets(config({"steps": {"3": 1.0}, "max_number": 9}), seed=0)["test"]
    assert {p.meta["steps"] for p in hard} == {3}
    assert max(int(n) for p in hard for n in re.findall(r"\d+", p.fields["question"])) <= 9
    for wrong in ({4: 1.0}, {1: 0.0}, {1: -1.0, 2: 2.0}, {}):
        with pytest.raises(ConfigError, match=r"tasks\.math\.data\.steps"):
            tasks.get("math").sets(config({"steps": wrong}), seed=0)


def test_off_task_requests_are_in_the_pool_alone_and_hold_no_number():
    sets = tasks.get("math").sets(config({"off_task": 0.25}, pool=400), seed=0)
    requests = [e for e in sets["pool"] if e.meta["off_task"]]
    assert len(requests) == 100
    assert not any(re.search(r"\d|\\boxed|[{}]", e.fields["question"] + e.target) for e in requests)
    assert not any(e.meta["off_task"] for name, s in sets.items() if name != "pool" for e in s)
    assert 20 < sum(e.meta["off_task"] for e in sets["pool"][:200]) < 80  # mixed in, not at an end
    none = tasks.get("math").sets(config({"off_task": 0.0}), seed=0)
    assert not any(e.meta["off_task"] for e in none["pool"])


@pytest.mark.parametrize(
    "output, accuracy, boxed",
    [
        ("So \\boxed{38}.", 1, 1), ("12 + 7 = 19. 19 * 2 = 38.", 1, 0), ("I do not know.", 0, 0),
    ],
)  # fmt: skip
def test_math_score_reads_the_box_then_the_last_number(output, accuracy, boxed):
    problem = Example("", {"question": ""}, "", ("38",))
    assert tasks.get("math").score_all([output], [problem]) == [{"accuracy": accuracy, "boxed": boxed}]


def test_catalogs_give_plain_pairs_and_leave_out_the_poor_ones(catalogs):
    pairs = list(own_data.InterfaceMessages(**catalogs).load())
    assert len(pairs) == 36 + 1
    assert pairs[0].fields == {"source_text": "Open the red cell on the left", "target_language": "French"}
    assert pairs[0].target == "Ouvrir red cell dans left"
    assert pairs[-1].target == "Montrer un élément"
    chinese = own_data.InterfaceMessages(language="zh", wheels={"zh": WHEEL})
    assert next(chinese.load()).fields["target_language"] == "Chinese"
    for language, words in (("zh", "none for language 'zh'"), ("xx", r"data\.language: .*'fr' or 'zh'")):
        with pytest.raises(ConfigError, match=words):
            tasks.get("translation").sets(config({**catalogs, "language": language}), 0)


def test_leads_become_title_and_description_and_the_poor_ones_are_left_out(leads):
    found = list(own_data.ArticleLeads(**leads).load())
    assert len(found) == 51
    assert found[0].target == "Plant0: Kind of thing in the world"
    assert found[0].fields["text"].startswith("Plant0 is a plant of size 0. It has many parts.")
    assert found[0].fields["text"].endswith("parts.")
    assert len(found[0].fields["text"].split()) == 23
    assert found[-1].target == "Person: English theologian of note"
    assert own_data.whole_sentences("One two. Three four. Five.", 4) == "One two. Three four."
    assert own_data.whole_sentences("One two three. Four.", 2) == ""
    task = tasks.get("summarization")
    english = task.english(config(leads), 0)
    assert len(english) == 57 - SIZES["test"] and "Brief is a short lead." in english

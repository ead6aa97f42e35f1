"""Tasks: data, splits, disjointness, the generator's arithmetic, and scores."""

import json
import re
import zipfile
from collections import Counter

import pytest

from igds_utils import display, tasks
from igds_utils.config.config import ConfigError, load_preset
from igds_utils.config.refs import ExactMetric
from igds_utils.config.settings import Sizes, TaskConfig
from igds_utils.data import hub
from igds_utils.tasks import examples, summarization, translation
from igds_utils.tasks.examples import Example
from igds_utils.tasks.word_problems import OPERATORS, stories

SIZES = {"prior": 6, "validation": 5, "confirmation": 4, "pool": 12, "test": 7}
SHA = "0" * 64


def config(data=None, **sizes):
    return TaskConfig(
        data=data or {},
        sizes={**SIZES, **sizes},
        max_new_tokens=8,
        sft={},
        prompt_tokens=1,
        target_tokens=1,
    )


def wheel(file):
    return {"wheel": "made-here", "version": "1", "sha256": SHA, "file": file}


@pytest.fixture
def catalogs(tmp_path, monkeypatch):
    """A language pack of 60 distinct messages and some that must be left out, in place of the wheel's folder."""
    words = [
        f"{a} {b}" for a in ("red", "green", "blue", "grey", "pink", "black") for b in ("cell", "file", "tab")
    ]
    good = {
        f"settings\x04Open the {w} on the {s}": [f"Ouvrir {w} dans {s}"]
        for w in words
        for s in ("left", "right")
    }
    poor = {
        "": {"language": "fr"},
        "Too short": ["Trop court"],
        "%1 of %2 done": ["%1 sur %2 faits"],
        "Open the RED cell,  on the left!": ["Autre chose ici"],
        "Another text of five words": ["Ouvrir red cell dans left"],
        "Two lines of\nlong message text": ["Deux lignes"],
        "Nobody has translated this yet": [""],
        "The same in every language": ["the same in every language"],
        "Show one of the items": ["Montrer un élément", "Montrer des éléments"],
    }
    (tmp_path / "one.json").write_text(json.dumps(good), encoding="utf8")
    (tmp_path / "two.json").write_text(json.dumps(poor), encoding="utf8")
    monkeypatch.setattr(hub, "wheel_file", lambda ref: tmp_path)
    return {"wheels": {"fr": wheel("x/")}}


@pytest.fixture
def leads(tmp_path, monkeypatch):
    """An encyclopedia of 50 articles that fit and some that must be left out, in place of the wheel's file."""

    def article(title, extract, description="Kind of thing in the world"):
        return {"title": title, "extract": extract, "description": description, "topic": "Things"}

    body = "It has many parts. " * 4
    articles = [article(f"Plant{i} (biology)", f"Plant{i} is a plant of size {i}. {body}") for i in range(50)]
    articles += [
        article("Person", f"Person was a man. {body}", "English theologian of note (1328–1384)"),
        article("Hole", f"Hole is the set  of numbers. {body}"),
        article("Unnamed", f"This is about something else. {body}"),
        article("Terse", f"Terse is a thing. {body}", "Kind of thing"),
        article("Nothing", f"Nothing is a thing. {body}", None),
        article("Brief", "Brief is a short lead."),
        article("Endless", "Endless is " + "very " * 90 + "long. " + body),
    ]
    file = tmp_path / "leads.json"
    file.write_text(json.dumps({a["title"]: a for a in articles}), encoding="utf8")
    monkeypatch.setattr(hub, "wheel_file", lambda ref: file)
    return {"wheel": wheel("leads.json"), "min_words": 15, "max_words": 25}


@pytest.fixture(params=["math", "translation", "summarization"])
def loaded(request):
    data = {"translation": "catalogs", "summarization": "leads"}.get(request.param)
    return tasks.get(request.param), config(request.getfixturevalue(data) if data else {})


# ---- every task ------------------------------------------------------------------------------------------


def test_sets_have_the_preset_sizes_ids_and_no_two_examples_that_say_the_same(loaded):
    task, made = loaded
    sets = task.sets(made, seed=0)
    assert {name: len(members) for name, members in sets.items()} == SIZES
    texts = [examples.normalize(e.text) for members in sets.values() for e in members]
    assert len(texts) == len(set(texts)) == sum(SIZES.values())
    assert sets["pool"][7].id == f"{task.name}-pool-0007"
    for members in sets.values():
        for example in members:
            assert example.target == example.target.strip() != ""
            assert task.identification_template.format(**example.fields).endswith(":")


def test_the_seed_decides_the_sets_and_a_larger_pool_leaves_the_test_set(loaded):
    task, made = loaded
    sets = task.sets(made, seed=0)
    assert task.sets(made, seed=0) == sets
    assert task.sets(made, seed=1)["test"] != sets["test"]
    larger = made.model_copy(update={"sizes": made.sizes.model_copy(update={"pool": 14})})
    for name in ("test", "validation", "confirmation", "prior"):
        assert task.sets(larger, seed=0)[name] == sets[name]


def test_what_is_held_out_is_dealt_first_whatever_the_sizes(loaded):
    task, made = loaded
    nothing_else = {name: 0 for name in SIZES} | {"test": 5 + 4 + 7}
    first = task.sets(made.model_copy(update={"sizes": Sizes(**nothing_else)}), seed=0)["test"]
    assert examples.held_out_texts(task.sets(made, seed=0)) == {examples.normalize(e.text) for e in first}


def test_extra_examples_are_distinct_and_avoid_what_is_held_out(loaded):
    task, made = loaded
    sets = task.sets(made, seed=0)
    extra = task.extra(made, seed=0, n=30 if task.name == "math" else 1000)
    texts = {examples.normalize(e.text) for e in extra}
    assert len(texts) == len(extra) >= 20
    assert not texts & examples.held_out_texts(sets)
    if task.name != "math":  # all that the source holds besides
        assert texts >= {examples.normalize(e.text) for name in ("prior", "pool") for e in sets[name]}
    assert len(task.extra(made, seed=0, n=5)) == 5


def test_unknown_data_key_is_refused_by_name(loaded):
    task, made = loaded
    wrong = made.model_copy(update={"data": {**made.data, "max_numbr": 3}})
    with pytest.raises(ConfigError, match=rf"tasks\.{task.name}\.data\.max_numbr.*\n.*known keys"):
        task.sets(wrong, seed=0)


def test_the_target_itself_scores_best(loaded):
    task, made = loaded
    example = task.sets(made, seed=0)["test"][0]
    best, worst = task.score(example.target, example), task.score("", example)
    assert next(iter(best)) == task.metric
    assert best[task.metric] == pytest.approx({"accuracy": 1, "rouge1": 1, "chrf": 100}[task.metric])
    assert worst[task.metric] == 0


def test_get_names_the_known_tasks():
    assert [tasks.get(name).name for name in tasks.TASKS] == ["math", "summarization", "translation"]
    with pytest.raises(ValueError, match="no task 'maths'; known: math, summarization, translation"):
        tasks.get("maths")


# ---- the shared helpers ----------------------------------------------------------------------------------


def example(text):
    return Example(id="", fields={"question": text}, target="t", references=())


@pytest.mark.parametrize(
    "one, other",
    [
        ("  How many, “Ben”?\n 12 + 7 ", 'how MANY, "ben"? 12 + 7'),
        ("It’s done.", "it's done"),
        ("cafe\u0301", "CAF\u00c9"),
        ("苹果。", "苹果"),
    ],
)
def test_texts_that_say_the_same_normalize_alike(one, other):
    assert examples.normalize(one) == examples.normalize(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("5", "-5"), ("1 5", "1.5"), ("10", "1.0"), ("3 4", "3/4"), ("C", "C++"), ("x > 3", "x < 3"), ("x²", "x2"),
        ("12 + 7", "12 - 7"), ("की", "का"), ("दिन", "दान"), ("🍎", "🍐"), ("1,000", "1.000"), ("か", "が"),
    ],
)  # fmt: skip
def test_signs_operators_marks_and_emoji_make_another_text(one, other):
    assert examples.normalize(one) != examples.normalize(other)
    task = tasks.get("math").scored_by(ExactMetric())
    found = task.score_all([one, other], [Example("e", {}, "t", (other,))] * 2)
    assert found == [{"exact_match": 0.0}, {"exact_match": 1.0}]


def test_assert_disjoint_names_both_places():
    examples.assert_disjoint({"test": [example("one")], "pool": [example("two")]})
    with pytest.raises(ValueError, match="pool example 1 says the same as test example 0: 'One.'"):
        examples.assert_disjoint({"test": [example("one")], "pool": [example("two"), example("One.")]})
    with pytest.raises(ValueError, match="pool example 1"):
        examples.assert_disjoint({"pool": [example("one"), example("one")]})


def test_too_little_data_is_refused_with_numbers_and_mend():
    with pytest.raises(
        ConfigError, match=r"for 34 examples \(test 7, .*\), the data holds 3: lower tasks.x.sizes"
    ):
        examples.split([example(str(i)) for i in range(3)], config().sizes, "x")


def test_an_output_ends_where_the_next_problem_begins():
    assert tasks.get("math").cut(" 4.\n### Problem:\n5") == "4."
    assert tasks.get("summarization").cut(" a\nb ") == "a\nb"


# ---- math ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problems():
    return [e for e in tasks.get("math").extra(config({"off_task": 0.0}), seed=3, n=2000)]


def test_worked_solutions_calculate_what_they_say(problems):
    for problem in problems:
        solution, final = problem.target.split("\n")
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", solution)
        assert " ".join(f"{a} {o} {b} = {c}." for a, o, b, c in steps) == solution
        assert len(steps) == problem.meta["steps"]
        for a, operator, b, result in steps:
            assert OPERATORS[operator](int(a), int(b)) == int(result) <= 99
            assert operator != "/" or int(a) % int(b) == 0
        assert final == f"The final answer is \\boxed{{{steps[-1][3]}}}." and problem.references == (
            steps[-1][3],
        )


def test_questions_are_short_hold_their_numbers_and_leave_no_letter(problems):
    for problem in problems:
        question = problem.fields["question"]
        given = [int(n) for n in re.findall(r"\d+", question)]
        assert 15 <= len(question.split()) <= 45 and question.endswith("?")
        assert all(2 <= n <= 20 for n in given)
        solution = problem.target.split("\n")[0]
        results = re.findall(r"= (\d+)", solution)
        used = Counter(re.findall(r"\d+", re.sub(r"= \d+", "", solution)))
        assert used == Counter(map(str, given)) + Counter(results[:-1])
        assert not re.search(r"[{}]", question)


def test_families_and_difficulties_follow_the_weights(problems):
    assert len({p.meta["family"] for p in problems}) == len(stories()["problems"]) >= 8
    share = Counter(p.meta["steps"] for p in problems)
    for steps, weight in {1: 0.5, 2: 0.4, 3: 0.1}.items():
        assert share[steps] / len(problems) == pytest.approx(weight, abs=0.04)
    hard = tasks.get("math").sets(config({"steps": {3: 1.0}, "max_number": 9}), seed=0)["test"]
    assert {p.meta["steps"] for p in hard} == {3}
    assert max(int(n) for p in hard for n in re.findall(r"\d+", p.fields["question"])) <= 9


def test_every_story_lacks_nothing():
    for family, chosen in stories()["problems"].items():
        assert [len(s["work"]) for s in chosen] == [1, 2, 3], family


def test_off_task_requests_are_in_the_pool_alone_and_hold_no_number():
    sets = tasks.get("math").sets(config({"off_task": 0.25}, pool=400), seed=0)
    requests = [e for e in sets["pool"] if e.meta["off_task"]]
    assert len(requests) == 100
    assert not any(re.search(r"\d|\\boxed|[{}]", e.fields["question"] + e.target) for e in requests)
    assert not any(e.meta["off_task"] for name, s in sets.items() if name != "pool" for e in s)
    assert 20 < sum(e.meta["off_task"] for e in sets["pool"][:200]) < 80  # mixed in, not at an end
    none = tasks.get("math").sets(config({"off_task": 0.0}), seed=0)
    assert not any(e.meta["off_task"] for e in none["pool"])


@pytest.mark.parametrize("steps", [{4: 1.0}, {1: 0.0}, {1: -1.0, 2: 2.0}, {}])
def test_impossible_difficulties_are_refused(steps):
    with pytest.raises(ConfigError, match=r"tasks\.math\.data\.steps"):
        tasks.get("math").sets(config({"steps": steps}), seed=0)


def test_math_score_reads_the_box_then_the_last_number():
    task, problem = tasks.get("math"), Example("", {"question": ""}, "", ("38",))
    assert task.score("So \\boxed{38}.", problem) == {"accuracy": 1.0, "boxed": 1.0}
    assert task.score("12 + 7 = 19. 19 * 2 = 38.", problem) == {"accuracy": 1.0, "boxed": 0.0}
    assert task.score("\\boxed{38}\n### Problem:\n\\boxed{5}", problem) == {"accuracy": 1.0, "boxed": 1.0}
    assert task.score("I do not know.", problem) == {"accuracy": 0.0, "boxed": 0.0}


# ---- translation -----------------------------------------------------------------------------------------


def test_catalogs_give_plain_pairs_and_leave_out_the_poor_ones(catalogs):
    pairs = tasks.get("translation").load(config(catalogs))
    assert len(pairs) == 36 + 1
    assert pairs[0].fields == {"source_text": "Open the red cell on the left", "target_language": "French"}
    assert pairs[0].target == "Ouvrir red cell dans left" and pairs[0].meta == {"catalog": "one"}
    assert pairs[-1].target == "Montrer un élément"


def test_translation_language_is_a_parameter_and_unknown_ones_are_refused(catalogs):
    chinese = {"language": "zh", "wheels": {"zh": wheel("x/")}}
    assert tasks.get("translation").load(config(chinese))[0].fields["target_language"] == "Chinese"
    with pytest.raises(ConfigError, match="no wheel for 'zh'; known: fr"):
        tasks.get("translation").load(config({**catalogs, "language": "zh"}))
    with pytest.raises(ConfigError, match="no name of the language for 'xx'; known: fr, zh"):
        tasks.get("translation").load(config({**catalogs, "language": "xx"}))


def test_a_folder_without_catalogs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no \\*.json catalogs"):
        list(translation.read_catalogs(tmp_path, 4, 30))


def test_translation_is_labelled_by_the_metric_that_it_is():
    task = tasks.get("translation")
    assert (task.metric, task.metric_label) == ("chrf", "chrF, mean of sentences")
    chinese = Example("", {"source_text": "", "target_language": "Chinese"}, "", ("要忽略的诊断代码",))
    assert task.score("要忽略的诊断代码", chinese) == pytest.approx({"chrf": 100, "bleu": 100})
    assert display.metric_of(task).unit == "chrF"


# ---- summarization ---------------------------------------------------------------------------------------


def test_leads_become_title_and_description_and_the_poor_ones_are_left_out(leads):
    loaded = tasks.get("summarization").load(config(leads))
    assert len(loaded) == 51
    assert loaded[0].target == "Plant0: Kind of thing in the world"
    assert loaded[0].fields["text"].startswith("Plant0 is a plant of size 0. It has many parts.")
    assert loaded[0].fields["text"].endswith("parts.") and len(loaded[0].fields["text"].split()) == 23
    assert loaded[-1].target == "Person: English theologian of note"


def test_general_english_keeps_out_what_is_held_out(leads):
    task, made = tasks.get("summarization"), config(leads)
    held_out = {e.meta["title"].split()[0] for name in examples.HELD_OUT for e in task.sets(made, 0)[name]}
    texts = task.english(made, seed=0)
    assert len(texts) == 57 - 16
    assert not [t for t in texts if t.split()[0] in held_out]
    assert any(t.startswith("Brief") for t in texts)


def test_sentences_are_kept_whole():
    assert summarization._cut("One two. Three four. Five.", 4) == "One two. Three four."
    assert summarization._cut("One two three. Four.", 2) == ""


def test_the_wheels_file_reaches_the_loader_through_the_hub(tmp_path, monkeypatch):
    """From a wheel on disk to pairs, with the real `hub.wheel_file` and only its download replaced."""
    made = tmp_path / "made_here-1-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("x/a.json", json.dumps({"Open the red cell": ["Ouvrir la cellule rouge"]}))
        archive.writestr("x/a.mo", "not read")
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_download", lambda ref, folder: made)
    data = {"wheels": {"fr": {**wheel("x/"), "sha256": hub.sha256(made)}}}
    assert [p.target for p in tasks.get("translation").load(config(data))] == ["Ouvrir la cellule rouge"]


def test_the_default_preset_finds_enough_data_in_the_pinned_wheels():
    preset = load_preset("quick")
    for name, made in preset.tasks.items():
        sets = tasks.get(name).sets(made, preset.seed)
        assert {k: len(v) for k, v in sets.items()} == made.sizes.model_dump()
        examples.assert_disjoint(sets)

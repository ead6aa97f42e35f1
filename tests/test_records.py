"""Which columns fill the fields of a task, and which records make examples."""

import json

import pytest

from igds_utils import tasks
from igds_utils.config.config import ConfigError
from igds_utils.config.refs import Column, DataSource, TaskSpec
from igds_utils.data.rows import find_rows
from igds_utils.tasks.records import Records, take

PROMPT = "{instruction}\n{input}\nAnswer:"
OWN = TaskSpec(title="x", prompt=PROMPT, target="{output}", reference="output", metric={"name": "rouge1"})
ASK, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
SYSTEM, MORE = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "And?"}


@pytest.fixture
def read(tmp_path):
    def read(records, task="math", columns=None, scored=False, **source):
        file = tmp_path / "pool.jsonl"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
        task = tasks.get("own", OWN) if task == "own" else tasks.get(task)
        made = DataSource(file=str(file), columns=columns or {}, **source)
        found = Records(find_rows(str(file)), task, made, scored)
        return found, [example for example, _, _ in found.read()]

    return read


def texts(examples):
    return [(list(e.fields.values()), e.target) for e in examples]


WHY = [(["Why?"], "So.")]


@pytest.mark.parametrize(("record", "columns"), [
    ({"question": "Why?", "target": "So."}, {}),
    ({"messages": [ASK, ANSWER]}, {}),
    ({"messages": [SYSTEM, ASK, ANSWER, MORE, ANSWER]}, {}),
    ({"messages": [ASK, ANSWER]}, {"question": "messages.0.content", "target": "messages.1.content"}),
    ({"messages": [ASK, ANSWER]}, {"question": "messages", "target": "messages"}),
    ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, {}),
    ({"prompt": [SYSTEM, ASK], "completion": [ANSWER]}, {}),
    ({"prompt": "Why?", "completion": "So."}, {}),
    ({"instruction": "Why?", "input": "", "output": "So."}, {}),
    ({"a": {"b": ["Why?"]}, "c.d": "So."}, {"question": "a.b.0", "target": "c.d"}),
    ({"a": "Why", "b": "?", "target": "So."}, {"question": "{a}{b}"}),
    ({"a": "Why?"}, {"question": "a", "target": {"value": "So."}}),
])  # fmt: skip
def test_known_formats_and_named_columns_give_prompt_and_target(read, record, columns):
    assert texts(read([record], columns=columns)[1]) == WHY


def test_instruction_and_input_are_joined(read):
    records = [{"instruction": "Add.", "input": i, "output": "5"} for i in ("2, 3", "", None)]
    expected = [(["Add.\n2, 3"], "5"), (["Add."], "5"), (["Add."], "5")]
    found, made = read(records)
    assert texts(made) == expected and found.how == "instruction and input are joined"
    assert texts(read(records, columns={"question": "instruction", "target": "output"})[1]) == expected
    assert texts(read(records, columns={"question": "{instruction}"})[1]) == [(["Add."], "5")] * 3
    chats = read([{"messages": [SYSTEM, ASK, ANSWER, MORE, ANSWER]}])[0]
    assert chats.how == "of a chat the first user's turn and the answer to it are read"
    assert read([{"question": "a", "target": "b"}])[0].how == ""


def test_a_target_is_made_by_the_tasks_template_unless_a_record_holds_it(read):
    parts = {"question": "q", "solution": "2 + 3 = 5.", "answer": 5}
    made = "2 + 3 = 5.\nThe final answer is \\boxed{5}."
    assert texts(read([parts])[1]) == [(["q"], made)]
    assert texts(read([parts | {"target": "five"}])[1]) == [(["q"], "five")]
    (example,) = read([parts], scored=True)[1]
    assert (example.target, example.references, example.id) == (made, ("5",), "")


@pytest.mark.parametrize(("how", "text", "taken"), [
    ("gsm8k_answer", "2 + 3 = <<2+3=5>>5 eggs.\n#### 1,005", "1005"),
    ("gsm8k_solution", "a\n\nb <<1*2=2>>2\n#### -3 ", "a\n\nb 2"),
])  # fmt: skip
def test_what_a_column_asks_for(how, text, taken):
    assert take(Column(column="x", take=how), text) == taken


def test_ids_come_from_a_column_from_two_or_from_the_line(read):
    places = [("a", "x"), (7, "y"), (None, "z")]
    rows = [{"id": i, "source": s, "question": "q", "target": "t"} for i, s in places]
    ids = lambda **columns: [example.id for example in read(rows, columns=columns)[1]]  # noqa: E731
    assert ids() == ["a", "7", "line-000003"]
    assert ids(id="source") == ["x", "y", "z"]
    assert ids(id="{source}-{id}") == ["x-a", "y-7", "z-"]
    assert ids(id="src-{source}") == ["src-x", "src-y", "src-z"]
    assert ids(id={"value": ""}) == ["line-000001", "line-000002", "line-000003"]
    with pytest.raises(ConfigError, match=r"pool.jsonl, all records: no field 'uuid' for 'id'"):
        ids(id="uuid")
    (wrong,) = read([{"id": ["a"], "question": "q", "target": "t"}])[0].problems.values()
    assert "field 'id' holds a list: write it as text" in wrong


FINE = {"question": "q", "target": "t", "solution": "s", "answer": "a"}


@pytest.mark.parametrize(("change", "left_out", "words"), [
    ({"target": {}}, None, "field 'target' holds a dict: write it as text"),
    ({"target": None}, None, "field 'target' is empty"),
    ({"question": ["a"]}, False, "field 'question' holds a list: write it as text"),
    ({"question": "\ud83d"}, False, "half a character"),
    ({"question": ""}, True, "field 'question' is empty"),
])  # fmt: skip
def test_a_record_of_no_use_is_told_with_its_place_or_counted(read, change, left_out, words):
    """Of a preset's source a record without a text is left out and counted."""
    found, made = read([FINE, FINE | change, FINE])
    assert len(made) == 2 and found.count == 3 and not found.left_out
    ((place, problem),) = found.problems.items()
    assert place == "pool.jsonl line 2"
    assert problem.startswith(f"{place}: ") and words in problem
    if left_out is not None:
        found, made = read([FINE, FINE | change, FINE], scored=True)
        (told,) = found.left_out if left_out else found.problems.values()
        assert len(made) == 2 and words in told and not (found.problems and found.left_out)


def test_rows_are_filtered(read):
    rows = [FINE | {"question": f"{'w ' * n}", "level": {"n": n}} for n in (1, 2, 3, 4)]
    found, made = read(rows, where={"level.n": [1, 2, 3]}, max_words={"question": 2}, scored=True)
    assert [example.text for example in made] == ["w", "w w"]
    assert found.left_out == {"filtered by max_words": 1, "filtered by where": 1}
    with pytest.raises(ConfigError, match="task math has no field 'colour'"):
        read(rows, max_words={"colour": 2})

"""`igds select` and `igds explain` on pools of a user's own: what they write, and what they refuse."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from igds_utils import cli, selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, prompts
from igds_utils.selection import tool
from igds_utils.selection.explain import _parts, explain
from igds_utils.selection.features import task_features
from igds_utils.selection.samples import Samples
from igds_utils.selection.tool import select
from igds_utils.selection.user_pool import PoolError
from igds_utils.tasks import get
from igds_utils.tasks.examples import Example

QUESTIONS = [
    "Ann has 3 apples. Bob brings 4 more. How many apples are there?",
    "A bus with 20 passengers stops. Then 7 leave. How many stay?",
    "Write a short poem about rain.",
    "Mona reads 5 pages a day for 6 days. How many pages does she read?",
    "There are 9 rows of 4 flowers. Rabbits eat 11. How many are left?",
    "Suggest a name for a calm parrot. Say why it fits.",
]
RECORDS = [
    {"id": f"s{i}", "question": text, "target": f"Reply {i}.", "weight": i}
    for i, text in enumerate(QUESTIONS)
]


def write(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")
    return str(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run("smoke", tasks=["math"], results=str(tmp_path_factory.mktemp("results")))


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "pool.jsonl", RECORDS)


@pytest.fixture(scope="module")
def fires(run):
    """Names of a feature that fires on some of the samples, and of one that fires on none."""
    examples = [Example(r["id"], {"question": r["question"]}, r["target"], ()) for r in RECORDS]
    texts = Samples(run, "math", examples).prompts
    h = activations.critical_residuals(run.lm, texts, [2])[2]
    count = (run.saes[2].encode(h) > 0).sum(0)
    some = int(((count > 1) & (count < len(texts))).nonzero()[0, 0])
    return f"l2_p{some}", f"l2_p{int((count == 0).nonzero()[0, 0])}"


def score_by_hand(run, text, name):
    """Activation of one feature at the last token of the prompt, through the whole model."""
    layer, index = (int(part) for part in name.removeprefix("l").split("_p"))
    example = Example("x", {"question": text}, "t", ())
    prompt = prompts.identification_prompt(get("math"), example, run.tokenizer, "chat")
    ids = torch.tensor([prompts.encode(run.tokenizer, prompt)])
    with torch.inference_mode():
        h = run.lm.model(ids, output_hidden_states=True).hidden_states[layer + 1][0, -1]
        return float(run.saes[layer].encode(h[None])[0, index])


# ---- what is written -------------------------------------------------------------------------------------


def test_a_selection_holds_the_records_as_they_were_best_first(run, file, fires, tmp_path):
    made = select(run, "math", file, tmp_path / "out", features=fires[0], ratio=0.5)
    scores = {r["id"]: score_by_hand(run, r["question"], fires[0]) for r in RECORDS}
    expected = sorted(RECORDS, key=lambda r: (-scores[r["id"]], r["id"]))
    assert made.records == expected[:3]
    lines = (tmp_path / "out/selection.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected[:3]
    table = pd.read_csv(tmp_path / "out/scores.csv")
    assert table["sample_id"].tolist() == [r["id"] for r in expected]
    assert table["score"].tolist() == pytest.approx(
        [scores[i] for i in table["sample_id"]], rel=1e-3, abs=1e-5
    )
    assert table["selected"].sum() == 3 and table["place"][0].startswith("pool.jsonl line ")
    facts = json.loads((tmp_path / "out/selection.json").read_text())
    assert facts["selector"] == "igds" and facts["made_by"]["direction"] == "highest"


def test_other_selectors_need_no_features_and_what_was_measured_is_kept(run, file, tmp_path):
    first = select(run, "math", file, tmp_path / "out", selector="loss", ratio=0.5)
    stored = sorted(run.root.rglob("pools/*/target_loss.parquet"))
    made_at = [path.stat().st_mtime_ns for path in stored]
    again = select(run, "math", file, tmp_path / "more", selector="loss", ratio=1.0)
    assert stored and [path.stat().st_mtime_ns for path in stored] == made_at
    assert again.records[:3] == first.records and len(again.records) == 6


# ---- what silence and ties mean --------------------------------------------------------------------------


def test_silent_samples_are_counted_and_ties_that_decide_are_said(run, file, fires, tmp_path):
    made = select(run, "math", file, tmp_path / "out", features=fires[1])
    few = select(run, "math", file, tmp_path / "few", features=fires[0])
    silent = (few.scores["score"] == 0).sum()
    assert 0 < silent < 6
    assert few.facts["remarks"][0] == f"{silent} of 6 samples do not fire {fires[0]}: their score is 0"
    silent, tied = made.facts["remarks"]
    assert silent == f"no sample of this pool fires {fires[1]}: the scores say nothing about it"
    assert (
        tied == "3 of the 3 selected have the same score as 3 that were left out: ties decided, by sample id"
    )
    assert [record["id"] for record in made.records] == ["s0", "s1", "s2"]


def test_bad_records_may_be_left_out_and_are_counted(run, fires, tmp_path, capsys):
    """A selection without them is explained without them too."""
    file = write(tmp_path / "pool.jsonl", [{"id": "x", "question": ""}, *RECORDS, {"id": "y", "target": "t"}])
    assert cli.main(["select", *call(file, tmp_path / "out", run, "--features", fires[0], "--skip-bad")]) == 0
    assert "6 of 8 records are used, because 2 cannot be (--skip-bad)" in capsys.readouterr().err
    assert explain(run, tmp_path / "out", "s0").place["samples"] == 6


@pytest.mark.parametrize(
    ("selector", "limits", "expected"),
    [
        ("loss", {"sft.max_length": 150}, ["1 of 6 targets are longer than what is read of them (sft.max_length 150)"]),
        ("igds", {"tasks.math.max_prompt_tokens": 150}, ["1 of 6 prompts are longer than what is read of them (tasks."
                                                         "math.max_prompt_tokens 150)"]),
        ("control", {"tasks.math.max_prompt_tokens": 400}, []),
        ("longest", {"sft.max_length": 150}, []),
        ("loss", {}, []),
    ],
)  # fmt: skip
def test_what_is_cut_of_samples_is_said(selector, limits, expected, run, fires, tmp_path):
    if selector == "control":  # of the tokenizer's tokens: read as text, which is all of it
        selector, records = "igds", changed(question=f"Add {run.tokenizer.eos_token} 2.")
    else:
        records = changed(question="Add. " * 60) if selector == "igds" else changed(target="Add. " * 60)
    changed_run = open_run("smoke", tasks=["math"], overrides=limits, results=str(run.root.parent))
    file = write(tmp_path / "pool.jsonl", records)
    made = select(changed_run, "math", file, tmp_path / "out", selector=selector, features=fires[0])
    assert [remark for remark in made.facts["remarks"] if "longer" in remark] == expected


def test_what_other_programs_cannot_read_is_written_as_they_can(run, tmp_path):
    records = [r | {"more": "a \ud83d b", "time": i} for i, r in enumerate(RECORDS)]
    (tmp_path / "pool.jsonl").write_bytes(lines(records).replace(b'"time": 1', b'"time": NaN'))
    select(run, "math", str(tmp_path / "pool.jsonl"), tmp_path / "out", selector="longest", ratio=1.0)
    text = (tmp_path / "out/selection.jsonl").read_text(encoding="utf8")
    assert "NaN" not in text and text.count("null") == 1 and text.count("\\ud83d") == 6


def test_nothing_that_a_user_gave_is_written_over(run, file, tmp_path):
    select(run, "math", file, tmp_path / "out", selector="longest")
    with pytest.raises(
        ConfigError, match="out/selection.jsonl would be overwritten by the selection: name another"
    ):
        select(run, "math", str(tmp_path / "out/selection.jsonl"), tmp_path / "out", selector="longest")
    for names in (["selection.jsonl"], ["scores.csv", "selection.json"], ["scores.parquet"]):
        mine = tmp_path / names[0] / "mine"
        mine.mkdir(parents=True)
        for name in names:
            (mine / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"mine/{names[0]} would be overwritten"):
            select(run, "math", file, mine, selector="longest")


# ---- explain ---------------------------------------------------------------------------------------------


def test_an_explanation_by_hand(run, file, fires, tmp_path):
    made = select(run, "math", file, tmp_path / "out", features=fires[0])
    best = made.scores["sample_id"].iloc[0]
    found = explain(run, tmp_path / "out", best)
    assert found.place["rank"] == 1 and found.place["selected"] and found.place["samples"] == 6
    assert found.place["last_in"] == made.scores["score"].iloc[2]
    assert found.place["first_out"] == made.scores["score"].iloc[3]
    (row,) = found.features.to_dict("records")
    assert row["feature"] == fires[0] and row["activation"] == pytest.approx(found.place["score"])
    assert row["percentile"] == pytest.approx(100 * 5 / 6)
    question = QUESTIONS[int(best[1:])]
    for change in found.changes.to_dict("records"):
        shorter = question.replace(change["without"], "").replace("  ", " ").strip()
        by_hand = score_by_hand(run, shorter, fires[0])
        assert change["score"] == pytest.approx(by_hand, rel=1e-3, abs=1e-5)
        assert change["change"] == pytest.approx(by_hand - row["activation"], rel=1e-3, abs=1e-4)
        others = made.scores.loc[made.scores["sample_id"] != best, "score"]
        assert change["rank"] >= 1 + (others > change["score"] + 1e-6).sum()
    text = str(found)
    assert f"{best} (pool.jsonl line" in text and "rank 1 of 6" in text and "the target is not read" in text


def test_an_explanation_of_chinese_leaves_out_whole_sentences(run, tmp_path):
    texts = [f"小明有{i}个苹果🍎。他又买了👨‍👩‍👧{i + 1}个！现在共有几个？" for i in range(2, 6)]
    records = [{"id": f"z{i}", "question": text, "target": "5个"} for i, text in enumerate(texts)]
    select(run, "math", write(tmp_path / "pool.jsonl", records), tmp_path / "out", features="l2_p2")
    found = explain(run, tmp_path / "out", "z1")
    assert "\ufffd" not in str(found)
    sentences = ["小明有3个苹果🍎。", "他又买了👨‍👩‍👧4个！", "现在共有几个？"]
    assert sorted(found.changes["without"]) == sorted(sentences)
    for change in found.changes.to_dict("records"):
        by_hand = score_by_hand(run, texts[1].replace(change["without"], ""), "l2_p2")
        assert change["score"] == pytest.approx(by_hand, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("Ann has 3.5 kg. Bob left!\n\nOK", ["Ann has 3.5 kg. ", "Bob left!\n\n", "OK"]),
        ("Is x > 3 or -5?", ["Is ", "x ", "> ", "3 ", "or ", "-5?"]),
        ("他说：“好。”然后走了。", ["他说：“好。”", "然后走了。"]),
        ("दिन है। कब?", ["दिन है। ", "कब?"]),
        ("有5个🍎，又", ["有", "5", "个", "🍎，", "又"]),
        ("", [""]),
    ],
)
def test_parts_of_a_text_are_its_sentences_or_its_words(text, parts):
    assert _parts(text) == parts and "".join(parts) == text


def test_other_selectors_are_explained_by_their_place(run, file, tmp_path):
    select(run, "math", file, tmp_path / "out", selector="loss")
    found = explain(run, tmp_path / "out", "s2")
    assert found.features.empty and "loss is not a score of the task features" in str(found)


def test_what_cannot_be_explained_is_refused(run, file, fires, tmp_path):
    with pytest.raises(ConfigError, match="nowhere holds no selection: make one with `igds select`"):
        explain(run, "nowhere", "s0")
    select(run, "math", file, tmp_path / "out", features=fires[0])
    with pytest.raises(ConfigError, match=r"no sample 's9' in .*scores.csv \(s"):
        explain(run, tmp_path / "out", "s9")
    write(tmp_path / "pool.jsonl", [RECORDS[0] | {"question": "Another one?"}, *RECORDS[1:]])
    with pytest.raises(ConfigError, match=r"pool.jsonl has changed since .* was made from it: select again"):
        explain(run, tmp_path / "out", "s0")


def test_an_explanation_reads_the_features_of_its_selection_and_checks_nothing_again(
    run, file, fires, tmp_path, monkeypatch
):
    features = tmp_path / "task_features.json"
    features.write_text(json.dumps({"selected": [fires[0]]}))
    made = select(run, "math", file, tmp_path / "out", features=str(features))
    features.write_text(json.dumps({"selected": [fires[1]]}))
    monkeypatch.setattr(tool, "check_readable", None)
    best = made.scores["sample_id"].iloc[0]
    assert explain(run, tmp_path / "out", best).features["feature"].tolist() == [fires[0]]


def test_an_earlier_selection_stays_until_the_new_one_is_whole(run, file, fires, tmp_path, monkeypatch):
    select(run, "math", file, tmp_path / "out", features=fires[0])

    def killed(self, path, product):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool.store.Store, "write", killed)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        select(run, "math", file, tmp_path / "out", features=fires[0], ratio=1.0)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# ---- bad input -------------------------------------------------------------------------------------------


def changed(place=2, **fields):
    return [r | fields if i == place else r for i, r in enumerate(RECORDS)]


def without(field, place=2):
    return [{k: v for k, v in r.items() if k != field or i != place} for i, r in enumerate(RECORDS)]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


LONG_PROMPT, LONG_TARGET = changed(question="word " * 600), changed(target="word " * 600)
TWO = lines([RECORDS[0] | {"question": ""}, *RECORDS[1:5], RECORDS[5] | {"target": None}])
BAD_FILES = {
    "missing field": (lines(without("question")), r"line 3: no field 'question' \(task math needs question, target; "
                      r"the record has id, target, weight\): rename it, or name its column: --column question=NAME"),
    "two at once": (TWO, "(?s)line 1: field 'question' is.*line 6: field 'target' is.*\n2 of 6 records cannot"),
    "one is too long": (lines([*RECORDS[:2], LONG_PROMPT[2], RECORDS[3] | {"target": ""}]),
                        "(?s)line 3: .*its prompt alone has .*line 4: .*empty.*\n2 of 4 .*them out with --skip-bad"),
    "duplicate id": (lines(changed(5, id="s1")), "line 6: id 's1' is that of pool.jsonl line 2 too.*--column id=NAME"),
    "empty file": (b"", "pool.jsonl holds no samples"),
    "a pool of one": (lines(RECORDS[:1]), "holds one sample: there is nothing to select from"),
    "all of no use": (lines([{"question": "", "target": ""}] * 3), "(?s)line 1: .*3 of 3 records cannot be used"),
}  # fmt: skip
BAD_CALLS = {
    "ratio 0": (["--ratio", "0"], r"a ratio must lie in \(0, 1\], not 0.0"),
    "ratio nan": (["--ratio", "nan"], r"a ratio must lie in \(0, 1\], not nan"),
    "unknown selector": (["--selector", "los"], r"no selector 'los' \(did you mean 'loss'\?\); known: .*igds.*random"),
    "unknown task": (["--task", "chess"], "no task 'chess'; known: math"),
    "unknown preset": (["--preset", "huge"], "no preset 'huge': known are"),
    "no features stored": ([], "no task features of math are stored in .*or name features as l<layer>_p<index>$"),
    "no feature name": (["--features", "p3"], "'p3' is no feature: write l<layer>_p<index>"),
    "no such layer": (["--features", "l9_p3"], "feature l9_p3: layer 9 has no SAE; there are 0, 1, 2, 3"),
    "no such index": (["--features", "l1_p64"], "feature l1_p64: the SAE has 64 features, numbered from 0"),
    "no features file": (["--features", "gone.json"], "there is no file gone.json"),
    "unknown field": (["--column", "colour=a"], "task math has no field 'colour'; it has question, target, solution"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "records", "overrides", "expected"),
    [
        ("igds", LONG_TARGET, {}, None),  # no target is read
        ("longest", LONG_PROMPT, {}, None),  # no model reads it
        ("igds", LONG_PROMPT, {"sft.max_length": 64}, "tokens of it are read, .* at most 512: .*max_prompt_tokens"),
        ("igds", LONG_PROMPT, {"sft.max_length": 64, "tasks.math.max_prompt_tokens": 100}, None),
        ("igds", RECORDS, {"sft.max_length": 8}, None),
        ("loss", LONG_TARGET, {"sft.max_length": 600}, "600 tokens of it are read, .* at most 512: .*sft.max_length"),
        ("mona", LONG_PROMPT, {}, "its prompt alone has [0-9]+ tokens, sft.max_length is 512"),
    ],
)  # fmt: skip
def test_a_sample_is_refused_where_what_is_read_of_it_does_not_fit(
    selector, records, overrides, expected, run, fires, tmp_path
):
    changed_run = open_run("smoke", tasks=["math"], overrides=overrides, results=str(run.root.parent))
    file = write(tmp_path / "pool.jsonl", records)
    ask = lambda: select(  # noqa: E731
        changed_run, "math", file, tmp_path / "out", selector=selector, features=fires[0]
    )
    if expected is None:
        assert len(ask().records) == 3
    else:
        with pytest.raises(PoolError, match=f"^pool.jsonl line 3: .*{expected}"):
            ask()
        made = select(changed_run, "math", file, tmp_path / "out", selector, features=fires[0], skip_bad=True)
        assert made.facts["left_out"] == [2] and len(made.scores) == 5
        assert made.facts["remarks"][0] == "5 of 6 records are used, because 1 cannot be (--skip-bad)"


def refused(arguments, capsys):
    assert cli.main(["select", *arguments]) == 2
    message = capsys.readouterr().err.strip().rpartition("igds: ")[2]
    assert "Traceback" not in message
    return message


@pytest.fixture
def finished(tmp_path, run, file, fires):
    """A selection that is there already: no failed call may touch it."""
    select(run, "math", file, tmp_path / "out", features=fires[0])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    yield tmp_path / "out"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def call(pool_file, out, run, *more):
    shared = ["--preset", "smoke", "--task", "math", "--results", str(run.root.parent), "--out", str(out)]
    return [str(pool_file), *shared, *more]


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_pool_is_one_message_with_file_and_line(case, tmp_path, run, finished, capsys):
    content, expected = BAD_FILES[case]
    (tmp_path / "pool.jsonl").write_bytes(content)
    message = refused(call(tmp_path / "pool.jsonl", finished, run, "--selector", "loss"), capsys)
    assert re.search(expected, message), message
    assert "pool.jsonl" in message


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_request_is_one_message_with_the_mend(case, run, file, finished, capsys):
    more, expected = BAD_CALLS[case]
    message = refused(call(file, finished, run, *more), capsys)
    assert re.search(expected, message), message


def test_an_output_that_is_a_file_is_refused(run, file, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    message = refused(call(file, tmp_path / "taken", run, "--selector", "loss"), capsys)
    assert "taken is a file: name a folder for the selection" in message
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_score_that_is_no_number_names_the_sample_and_its_line(run, file, finished, capsys, monkeypatch):
    scores = np.array([0.1, math.nan, 0.3, math.nan, 0.5, 0.6])
    monkeypatch.setitem(
        selectors.base._REGISTRY, "loss", replace(selectors.get("loss"), function=lambda *_: scores)
    )
    message = refused(call(file, finished, run, "--selector", "loss"), capsys)
    assert "pool.jsonl line 2: 2 samples have no score (NaN): s1, s3; repair or remove" in message


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"selected": []}', '{"selected": ["x"]}', '{"features": []}']
)
def test_a_file_without_task_features_is_refused(run, content, tmp_path):
    stored = tmp_path / "task_features.json"
    stored.write_text(content)
    with pytest.raises(ConfigError, match="is no task_features.json|selects no feature|'x' is no feature"):
        task_features(run, "math", str(stored))
    stored.write_text(json.dumps({"selected": ["l1_p3", "l2_p0"], "features": []}))
    assert task_features(run, "math", str(stored)) == task_features(run, "math", "l1_p3, l2_p0")


def test_a_malformed_option_is_told_by_the_parser(capsys):
    def parse(*more):
        return dict(cli._parser().parse_args(["select", "a", "b", "--task", "math", *more]).columns)

    given = parse("--column", r"question={a}\n{b}", "--value", "lang=French", "--column", "id=")
    assert given == {"question": "{a}\n{b}", "lang": {"value": "French"}, "id": ""} and parse() == {}
    with pytest.raises(SystemExit) as caught:
        cli.main(["select", "pool.jsonl", "--task", "math", "--column", "question"])
    assert caught.value.code == 2 and "'question' is not FIELD=NAME" in capsys.readouterr().err


# ---- the command line ------------------------------------------------------------------------------------


def test_select_and_explain_from_the_command_line(run, file, fires, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["select", *call(file, out, run, "--features", ",".join(fires), "--ratio", "0.3")]) == 0
    shown = capsys.readouterr()
    assert f"2 of 6 samples, best first: {out}/selection.jsonl" in shown.out
    assert "igds: note: " in shown.err and "do not fire" in shown.err
    arguments = ["--preset", "smoke", "--results", str(run.root.parent)]
    assert cli.main(["explain", str(out), "s4", *arguments]) == 0
    assert "s4 (pool.jsonl line 5): rank" in capsys.readouterr().out
    assert cli.main(["explain", str(out), "s4"]) == 2
    assert "was made with preset smoke, not quick: say --preset smoke" in capsys.readouterr().err

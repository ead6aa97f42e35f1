"""`igds select` and `igds explain` on pools of a user's own: what they write, and what they refuse."""

import json
import re

import pandas as pd
import pytest
import torch

from igds_utils import cli, selectors
from igds_utils.config.config import ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.engine import activations, prompts
from igds_utils.selection import features, pool, tool
from igds_utils.selection.explain import explain
from igds_utils.selection.pool import Samples
from igds_utils.selection.tool import PoolError, select
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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_samples_and_records_are_read_from_disk_in_any_order(suffix, tmp_path):
    file = tmp_path / f"pool.{suffix}"
    pd.DataFrame(RECORDS).to_parquet(file) if suffix == "parquet" else write(file, RECORDS)
    samples = tool.UserPool(str(file), get("math"))
    assert len(samples) == 6 and [one.id for one in samples] == samples.ids
    assert [one.fields["question"] for one in samples[2:4]] == QUESTIONS[2:4] and samples[30:] == []
    assert [samples[i].target for i in (-1, 1)] == ["Reply 5.", "Reply 1."]
    assert samples.place(3) == f"{file.name} {'row' if suffix == 'parquet' else 'line'} 4"
    with pytest.raises(IndexError):
        samples[6]
    samples.write(tmp_path / "out.jsonl", [4, 0, 5])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [RECORDS[i] for i in (4, 0, 5)]


@pytest.mark.parametrize("selector", ["igds", "loss", "ifd", "longest", "zip"])
def test_the_results_are_those_of_a_list(selector, run, file, fires, tmp_path, monkeypatch):
    """Texts are read part by part, and the ranking is that of samples in memory."""
    monkeypatch.setattr(features, "PROMPTS", 2)
    made = select(run, "math", file, tmp_path / "out", selector, features=",".join(fires))
    examples = list(tool.UserPool(file, get("math")))
    found = features.task_features(run, "math", ",".join(fires))
    own = pool.Pool(run, "math", examples, f"as_list/{selector}", run.preset.seed, task_features=found)
    expected = selectors.rank_pool(selector, own, 3)
    for name in ("sample_id", "score", "rank", "filled"):
        assert made.scores[name].tolist() == expected[name].tolist()


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
    assert found.around.equals(made.scores.iloc[[0, 2, 3]].reset_index(drop=True))
    (row,) = found.features.to_dict("records")
    assert row["feature"] == fires[0] and row["activation"] == pytest.approx(found.around["score"][0])
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
    assert re.search(rf"{best} +pool.jsonl line", text) and "the target is not read" in text


def test_what_cannot_be_explained_is_refused(run, file, fires, tmp_path):
    with pytest.raises(ConfigError, match="nowhere holds no selection: make one with `igds select`"):
        explain(run, "nowhere", "s0")
    select(run, "math", file, tmp_path / "out", features=fires[0])
    with pytest.raises(ConfigError, match=r"no sample 's9' in .*scores.csv \(s"):
        explain(run, tmp_path / "out", "s9")
    write(tmp_path / "pool.jsonl", [RECORDS[0] | {"question": "Another one?"}, *RECORDS[1:]])
    with pytest.raises(ConfigError, match=r"pool.jsonl has changed since .* was made from it: select again"):
        explain(run, tmp_path / "out", "s0")


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
BAD_FILES = {
    "missing field": (lines(without("question")), r"line 3: no field 'question' \(task math needs question, target; "
                      r"the record has id, target, weight\): rename it, or name its column: --column question=NAME"),
    "duplicate id": (lines(changed(5, id="s1")), "line 6: id 's1' is that of pool.jsonl line 2 too.*--column id=NAME"),
    "empty file": (b"", "pool.jsonl holds no samples"),
    "all of no use": (lines([{"question": "", "target": ""}] * 3), "(?s)line 1: .*3 of 3 records cannot be used"),
}  # fmt: skip
BAD_CALLS = {
    "ratio 0": (["--ratio", "0"], r"a ratio must lie in \(0, 1\], not 0.0"),
    "unknown selector": (["--selector", "los"], "no selector 'los'; known: .*igds.*random"),
    "no features stored": ([], "no task features of math are stored in .*or name features as l<layer>_p<index>$"),
    "no such layer": (["--features", "l9_p3"], "feature l9_p3: layer 9 has no SAE; there are 0, 1, 2, 3"),
    "unknown field": (["--selector", "zip", "--column", "colour=a"], "task math has no field 'colour'; it has"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "records", "overrides", "expected"),
    [
        ("igds", LONG_PROMPT, {"sft.max_length": 64}, "tokens of it are read, .* at most 512: .*max_prompt_tokens"),
        ("loss", LONG_TARGET, {"sft.max_length": 600}, "600 tokens of it are read, .* at most 512: .*sft.max_length"),
        ("mona", LONG_PROMPT, {}, "its prompt alone has [0-9]+ tokens, sft.max_length is 512"),
    ],
)  # fmt: skip
def test_a_sample_is_refused_where_what_is_read_of_it_does_not_fit(
    selector, records, overrides, expected, run, fires, tmp_path
):
    changed_run = open_run("smoke", tasks=["math"], overrides=overrides, results=str(run.root.parent))
    file = write(tmp_path / "pool.jsonl", records)
    asked = (changed_run, "math", file, tmp_path / "out", selector, 0.5, fires[0])
    with pytest.raises(PoolError, match=f"^pool.jsonl line 3: .*{expected}"):
        select(*asked)
    made = select(*asked, skip_bad=True)
    assert made.facts["left_out"] == ["pool.jsonl line 3"] and len(made.scores) == 5
    assert made.facts["remarks"][0] == "5 of 6 records are used, because 1 cannot be (--skip-bad)"
    assert explain(changed_run, tmp_path / "out", "s1").around["place"][0] == "pool.jsonl line 2"


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


# ---- the command line ------------------------------------------------------------------------------------


def test_select_and_explain_from_the_command_line(run, file, fires, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["select", *call(file, out, run, "--features", ",".join(fires), "--ratio", "0.3")]) == 0
    shown = capsys.readouterr()
    assert f"2 of 6 samples, best first: {out}/selection.jsonl" in shown.out
    assert "igds: note: " in shown.err and "do not fire" in shown.err
    arguments = ["--preset", "smoke", "--results", str(run.root.parent)]
    assert cli.main(["explain", str(out), "s4", *arguments]) == 0
    assert re.search("s4 +pool.jsonl line 5", capsys.readouterr().out)
    assert cli.main(["explain", str(out), "s4"]) == 2
    assert "was made with preset smoke, not quick: say --preset smoke" in capsys.readouterr().err

"""Malformed presets, tasks, pools, features, SAEs and models, and the one message that each ends in.

Each is given to the command `igds` as a user would give it. It must be refused by an error of our own
that names the place, before a model is loaded (unless the model is at fault) or a notebook begins.

    python tests/faults/bad_input.py      # writes results/reference/faults/bad_input.csv
"""

import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load_file, save_file

from igds_utils import cli, tiny
from igds_utils.config.config import PRESETS, PROJECT
from igds_utils.engine import loading
from igds_utils.running import runner

OUT = PROJECT / "results/reference/faults/bad_input.csv"
TASK = {
    "title": "Capitals", "prompt": "{country}\nCapital:", "target": "{capital}",
    "reference": "capital", "metric": {"name": "rouge1"},
}  # fmt: skip
SETS = ["prior", "validation", "confirmation", "pool", "test"]
PLACES = [{"country": f"Country {i}", "capital": f"City {i}"} for i in range(30)]
SIZED = {"sizes": dict.fromkeys(SETS, 2) | {"pool": None}, "max_new_tokens": 1}
SIZED |= {"prompt_tokens": 1, "target_tokens": 1}
FINE, MORE = {"id": "a", "question": "2 + 3?", "target": "5"}, {"id": "b", "question": "4?", "target": "4"}
MATH, MODEL = "tasks.math.", "models.tiny-llama"


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(names, *columns):
    pa.parquet.write_table(pa.Table.from_arrays([*map(pa.array, columns)], names), made := io.BytesIO())
    return made.getvalue()


GOOD, NAN = table(["question", "target"], ["a", "b"], ["c", "d"]), float("nan")
SAE, LLAMA, CFG, JSONL = "sae_weights.safetensors", "model.safetensors", "cfg.json", "a.jsonl"
CUT, NORM = object(), "model.norm.weight"
# kind -> [what is wrong, how it is written, what the message must say]
CASES = {
    "preset": [  # its text, or the fields that are changed
        ("empty", "", "mine.yaml: name: Field required"),
        ("a list", "- name: x", "mine.yaml holds a list"),
        ("bracket left open", "name: x\nseed: [1,", "mine.yaml line 2"),
        ("tab for spaces", "name: x\nrecall:\n\ttau: 1", "mine.yaml line 3"),
        ("braces without quotes", "name: {{x}}", "mine.yaml line 1"),
        ("no such day", "name: 2024-13-45", "mine.yaml is not valid YAML"),
        ("a Python tag", "name: !!python/name:os.system", "mine.yaml line 1"),
        ("ten thousand brackets", "[" * 10_000, "mine.yaml is not valid YAML"),
        ("a key twice", "name: x\nname: y", "mine.yaml line 2 .*'name' is given twice"),
        ("misspelt block", {"recal": {}}, "mine.yaml: unknown key 'recal' .*'recall'"),
        ("misspelt field", {"recall.tua": 1}, "mine.yaml: recall: unknown key 'tua' .*'tau'"),
        ("misspelt field of a task", {f"{MATH}sft": {"lrr": 1}}, "math.sft: unknown key 'lrr' .*'lr'"),
        ("misspelt override", {f"{MODEL}.overrides": {"sft.lrr": 1}}, "sft: unknown key 'lrr'"),
        ("path for a name", {"name": "../x"}, "mine.yaml: name: "),
        ("no tasks", {"tasks": {}}, "mine.yaml: tasks: "),
        ("a task without fields", {"tasks.math": None}, "mine.yaml: tasks.math: "),
        ("unknown task", {"tasks": {"maths": SIZED}}, "no task 'maths'; known: math"),
        ("unknown model", {"model": "llama"}, "no model 'llama'; known: tiny-llama"),
        ("a model from nowhere", {f"{MODEL}.train": {"git": "x"}}, f"{MODEL}.train: name a model by"),
        ("a model from two places", {f"{MODEL}.train": {"hub": "x", "folder": "y"}}, "key 'folder'"),
        ("text for a number", {"recall.tau": "high"}, "recall.tau: .* number"),
        ("percent for a confidence", {"confidence": 95}, "mine.yaml: confidence: .* 1$"),
        ("negative learning rate", {"sft.lr": -1e-4}, "sft.lr: "),
        ("percent for the warm-up", {"sft.warmup_ratio": 3}, "sft.warmup_ratio: "),
        ("unknown launch", {"launch.training": "fsdq"}, "launch.training: no 'fsdq'; give fsdp"),
        ("ratio of NaN", {f"{MATH}ratio": NAN}, f"{MATH}ratio: "),
        ("a ratio twice", {f"{MATH}curve.ratios": [0.5]}, "tasks.math: curve.ratios must differ"),
        ("other selectors on a curve", {f"{MATH}curve.selectors": ["less"]}, "math: curve.selectors"),
        ("no answer", {f"{MATH}max_new_tokens": 0}, f"{MATH}max_new_tokens: "),
        ("negative size", {f"{MATH}sizes.test": -4}, f"{MATH}sizes.test: "),
        ("no test set", {f"{MATH}sizes": dict.fromkeys(SETS[:4], 1)}, f"{MATH}sizes.test: Field required"),
        ("no seeds", {f"{MATH}seeds": []}, f"{MATH}seeds: "),
        ("a seed twice", {f"{MATH}seeds": [0, 0]}, "tasks.math: seeds and selectors"),
        ("more shots than examples", {f"{MATH}shots": 9}, f"{MATH}shots: 9, the task has 4"),
        ("unknown selector", {f"{MATH}selectors": ["random", "igds", "lost"]}, "no selector 'lost'; known: "),
        ("unknown selector of quality", {f"{MATH}quality.selectors": ["lost"]}, "no selector 'lost'"),
        ("unknown arm", {f"{MATH}only_arms": ["igds@5"]}, "no arm 'igds@5'; known: original"),
    ],
    "task": [  # its file's text, or the fields that are changed
        ("empty", "", "task.yaml: Input should be a valid dictionary"),
        ("bracket left open", "title: [", "task.yaml line 1"),
        ("a key twice", "title: x\ntitle: y", "task.yaml line 2 .*'title' is given twice"),
        ("no file", None, "no task can be read from task.yaml"),
        ("misspelt key", {"titel": "x"}, "task.yaml: unknown key 'titel' .*'title'"),
        ("no cue", {"prompt": "{country}"}, "task.yaml: prompt must end in a line of its own"),
        ("a colon of another script", {"prompt": "{country}\n\u56fd\uff1a"}, "task.yaml: .*uff1a"),
        ("brace left open", {"prompt": "{country\nCapital:"}, "task capitals: prompt cannot be filled"),
        ("brace too many", {"target": "{capital}}"}, "task capitals: target cannot be filled"),
        ("braces without a name", {"prompt": "{}\nCapital:"}, "task capitals: prompt "),
        ("an attribute", {"target": "{capital.name}"}, "task capitals: target cannot be filled"),
        ("no field", {"prompt": "Say it.\nCapital:"}, "task capitals: prompt must hold a field"),
        ("an unknown field", {"instruction": "Of {town}"}, "task capitals: instruction .*'town'"),
        ("an empty stop", {"stops": [""]}, "task.yaml: stops.0: "),
        ("COMET without a source", {"metric": {"name": "comet"}}, "prompt must hold a field; COMET needs source_text"),
    ],
    "rows": [  # fields of the task's source that are changed, or its sources
        ("no place", {"file": None}, "capitals.data.sources.all: a source is either on the `hub`"),
        ("misspelt field", {"colums": {}}, "sources.all: unknown key 'colums' .*'columns'"),
        ("no file", {"file": "gone.jsonl"}, "there is no file gone.jsonl: correct it"),
        ("unknown set", {"sets": ["training"]}, "sources.all: 'training' is no set"),
        ("no such field", {"columns": {"city": "capital"}}, "task capitals has no field 'city'"),
        ("unknown taking", {"columns": {"capital": {"column": "x", "take": "box"}}}, "columns.capital.take: "),
        ("a filter that lets nothing pass", {"where": {"capital": ["x"]}}, "no test example is left"),
        ("a list of sources", ["rows.jsonl"], "tasks.capitals.data.sources must hold"),
    ],
    "pool": [  # its bytes, and its name where that is not a.jsonl
        ("empty", b"", "a.jsonl holds 0 samples"),
        ("line cut off", lines(FINE) + b'{"id": ', "a.jsonl line 2: is not JSON"),
        ("Latin-1", lines(FINE) + b'{"id": "\xe9"}', "a.jsonl line 2: is not JSON in UTF-8"),
        ("UTF-16", lines(FINE, MORE).decode().encode("utf-16"), "a.jsonl line 1: is not JSON in UTF-8"),
        ("hundred thousand brackets", lines(FINE) + b"[" * 100_000, "a.jsonl line 2: is not JSON"),
        ("list cut off", b'[{"question": "a"}, ', "a.json cannot be read as a whole file", "a.json"),
        ("a list of texts", b'["a", "b"]', "a.json record 1: holds a str", "a.json"),
        ("missing field", lines(FINE, {"id": "c", "target": "5"}), "line 2: no field 'question' .*--column"),
        ("misspelt field", lines({"qestion": "a", "target": "5"}), "a.jsonl, all records: no field 'question'"),
        ("empty field", lines(FINE, MORE | {"question": " "}), "a.jsonl line 2: field 'question' is empty"),
        ("list for a text", lines(FINE, MORE | {"question": ["a"]}), "line 2: field 'question' holds a list"),
        ("half a character", lines(FINE, MORE | {"question": "\ud83d"}), "line 2: field 'question' holds half"),
        ("an id twice", lines(FINE, MORE, FINE), "line 3: id 'a' is that of a.jsonl line 1"),
        ("chat without answer", lines({"messages": [{"role": "user", "content": "a"}]}), "'completion' is empty"),
        ("row too short", b"question,target\na,b\nc\n", "a.csv line 3: has not as many fields", "a.csv"),
        ("quote left open", b'question,target\na,"b\n', "a.csv cannot be read", "a.csv"),
        ("a column twice", b"question,question\na,b\n", "a.csv .*two columns have the same name: question", "a.csv"),
        ("Parquet cut off", GOOD[:-9], "a.parquet cannot be read", "a.parquet"),
        ("missing column", table(["q"], "a"), "a.parquet, all records: no field 'question'", "a.parquet"),
        ("gzip cut off", gzip.compress(lines(FINE, MORE))[:40], "a.jsonl.gz cannot be read", "a.jsonl.gz"),
        ("another kind of file", b"a", "a.txt is of no known kind: write it as .jsonl", "a.txt"),
        ("no file", None, "there is no file gone.jsonl: correct it", "gone.jsonl"),
    ],
    "options": [  # of `igds select`
        ("no such field", "--column colour=x", "task math has no field 'colour'; it has question"),
        ("no column", "--column question", "--column: 'question' is not FIELD=NAME"),
        ("ratio of NaN", "--ratio nan", "a ratio must lie in"),
        ("unknown selector", "--selector los", "no selector 'los'; known: bm25"),
        ("unknown task", "--task maths", "no task 'maths'; known: math"),
        ("unknown preset", "--preset smok", "no preset 'smok': known are .*smoke"),
        ("change without a value", "--set recall.tau", "'recall.tau' is not FIELD=VALUE"),
        ("change with a bracket open", "--set recall.tau=[1", "recall.tau line 1 is not valid YAML"),
        ("change below a number", "--set seed.x=1", "seed.x: 'seed' has no fields of its own"),
        ("no features", "--selector igds", "no task features of math are stored in .*: run notebooks 1"),
        ("no product", "--selector igds_recalled --features l2_p1", "recall.parquet is not there"),
        ("misspelt feature", "--selector igds --features l2-p3", "l2-p3: .* l<layer>_p<index>"),
        ("negative feature", "--selector igds --features l2_p-1", "feature l2_p-1: the SAE has 64 features"),
        ("layer without an SAE", "--selector igds --features l9_p3", "layer 9 has no SAE; there are 0, 1"),
        ("a file for a folder", "--out f.json", "cannot write to f.json"),
        ("prompt too long", "--selector loss --value question=" + "w" * 9_999, "line 1: .* prompt alone has"),
    ],
    "features": [  # bytes of a task_features.json
        (name, content, "no task features of math are stored in f.json: ")
        for name, content in {"a list": b"[]", "no features": b'{"selected": []}', "cut off": b"{",
                              "text": b'{"selected": "l2_p3"}', "numbers": b'{"selected": [3]}'}.items()
    ],
    "selection": [  # a file that `igds explain` reads, and its bytes
        (f"{name} {what}", (name, content), "out holds no selection: make one with `igds select`")
        for name, what, content in [
            ("selection.json", "a list", b"[]"), ("selection.json", "cut off", b"{"),
            ("scores.csv", "of another program", b"a,b\n1,2\n"), ("scores.csv", "empty", b""),
        ]
    ],
    "sae": [  # what is done to a file in the folder of layer 3
        ("no folder", shutil.rmtree, "no SAEs under saes: it needs .*`make saes`"),
        ("two of a layer", lambda f: shutil.copytree(f, f.with_name("layer_3")), "two SAEs of layer 3"),
        ("settings cut off", (CFG, b'{"d_in": '), "layer_03/cfg.json cannot be read"),
        ("a list of settings", (CFG, b"[]"), "layer_03/cfg.json cannot be read"),
        ("text for a width", (CFG, {"d_in": "32"}), "SAE layer_03 of saes reads vectors of width '32'"),
        ("another layer", (CFG, {"metadata": {"hook_name": "blocks.2.hook_resid_post"}}), "reads blocks.2"),
        ("a number for a hook", (CFG, {"metadata": {"hook_name": 3}}), "SAE layer_03 of saes reads 3: only"),
        ("training form", (CFG, {"architecture": "batchtopk"}), "layer_03 .* save_inference_model"),
        ("normalized", (CFG, {"normalize_activations": "layer_norm"}), "layer_03 .*layer_norm"),
        ("no number of features", (CFG, {"d_sae": None}), "layer_03 holds no SAE .*'d_sae'"),
        ("another number of features", (CFG, {"d_sae": 65}), "layer_03 holds no SAE .*W_enc has the shape"),
        ("no weights", (SAE, None), "layer_03 holds no SAE"),
        ("weights cut off", (SAE, CUT), "layer_03 holds no SAE"),
        ("no decoder", (SAE, {"W_dec": None}), "layer_03 holds no SAE .*W_dec"),
        ("transposed", (SAE, {"W_enc": torch.zeros(64, 32)}), r"layer_03 .*W_enc has the shape \[64, 32\]"),
    ],
    "model": [  # what is done to a file in its folder
        ("no folder", shutil.rmtree, "no folder model: correct `folder:`"),
        ("configuration cut off", ("config.json", b"{"), "could not load model"),
        ("a list of settings", ("config.json", b"[]"), "could not load model"),
        ("unknown architecture", ("config.json", {"model_type": "gpt9"}), "could not load model: .*gpt9"),
        ("no tokenizer", ("tokenizer.json", None), "could not load model"),
        ("tokenizer cut off", ("tokenizer.json", CUT), "could not load model: .*EOF while parsing"),
        ("no chat template", ("chat_template.jinja", None), "no chat template: set `rendering: bare`"),
        ("no end of text", ("tokenizer_config.json", {"eos_token": None}), "no EOS token"),
        ("no weights", (LLAMA, None), f"could not load model: .*{LLAMA}"),
        ("weights cut off", (LLAMA, CUT), "could not load model: .*SafetensorError"),
        ("a tensor missing", (LLAMA, {NORM: None}), f"could not load model: .* no {NORM}"),
        ("a tensor of another shape", (LLAMA, {NORM: torch.ones(33)}), "load model: .*size mismatch"),
        ("NaN in the weights", (LLAMA, {NORM: torch.full((32,), NAN)}), "no score .* model"),
    ],
}  # fmt: skip
OPTIONS = {
    "features": ["--selector", "igds", "--features", "f.json"],
    "sae": ["--selector", "igds", "--features", "l3_p1"],
    "model": ["--selector", "loss"],
}
SELECT = "--preset smoke --task math --selector zip --results results --out out".split()


def changed(raw, changes):
    """A copy of nested fields with other values at dotted places."""
    for place, value in changes.items():
        first, _, rest = place.partition(".")
        raw = raw | {first: changed(raw.get(first, {}), {rest: value}) if rest else value}
    return raw


def damaged(folder, name, change):
    """A file is removed (None), cut off, written (bytes), or gets other entries (None: without)."""
    file = folder / name
    if change is None:
        file.unlink()
    elif not isinstance(change, dict):
        file.write_bytes(file.read_bytes()[:-100] if change is CUT else change)
    else:
        found = (json.loads(file.read_text()) if file.suffix == ".json" else load_file(file)) | change
        found = {key: value for key, value in found.items() if value is not None}
        file.write_text(json.dumps(found)) if file.suffix == ".json" else save_file(found, file)


def written(kind, what, name=JSONL):
    """Write a case into the working folder; the arguments of `igds` that meet it."""
    here, files = Path.cwd(), {JSONL: lines(FINE, MORE), "f.json": b"{}", "task.yaml": TASK}
    preset = yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "mine"}
    call = ["run", "--preset", "mine.yaml", "--results", "results"]
    if kind == "preset":
        files["mine.yaml"] = changed(preset, what) if isinstance(what, dict) else what
    elif kind in ("task", "rows"):
        source = {"file": str(here / "rows.jsonl"), "sets": SETS}
        sources = what if isinstance(what, list) else {"all": source | (what if kind == "rows" else {})}
        own = SIZED | {"task": str(here / "task.yaml"), "data": {"sources": sources}}
        files |= {"mine.yaml": preset | {"tasks": {"capitals": own}}, "rows.jsonl": lines(*PLACES)}
        if kind == "rows":
            call = ["plan", "--preset", "mine.yaml"]
        else:
            files["task.yaml"] = TASK | what if isinstance(what, dict) else what
    else:
        files |= {name: what} if kind == "pool" else {"f.json": what} if kind == "features" else {}
        call = ["select", name, *SELECT, *(what.split() if kind == "options" else OPTIONS.get(kind, []))]
    for file, content in files.items():
        if content is not None:
            text = content if isinstance(content, str | bytes) else yaml.safe_dump(content)
            (here / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    if kind == "selection":
        assert cli.main(call) == 0
        (here / "out" / what[0]).write_bytes(what[1])
        return ["explain", "out", "a"]
    if kind in ("sae", "model"):
        folder = here / {"sae": "saes/layer_03", "model": "model"}[kind]
        if kind == "sae":
            sae = tiny.sae(seed=3)
            sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
            sae.save_model(folder)
            place = json.dumps({"source": "folder", "name": str(here / "saes")})
            call += ["--set", f"{MODEL}.saes={place}"]
        else:
            tiny.save_model("llama", 0, folder)
            place = json.dumps({"folder": str(folder)})
            call += ["--set", f"{MODEL}.identify={place} {MODEL}.train={place}"]
        what(folder) if callable(what) else damaged(folder, *what)
    return call


def refusal(kind, *case):
    """Exit code and message of `igds` in a folder of its own; what else it raises passes through."""
    loads = loading.load_lm if kind == "model" else mock.Mock(side_effect=AssertionError("a model is loaded"))
    starts = mock.Mock(side_effect=AssertionError("a run is started"))
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(here))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch.object(loading, "load_lm", loads))
        stack.enter_context(mock.patch.object(runner, "_snakemake", starts))
        try:
            code = cli.main(written(kind, *case))
        except SystemExit as error:  # argparse
            code = error.code
        assert kind == "selection" or not Path("out").exists()  # nothing is written
    message = re.search(r"^igds.*", said.getvalue(), re.S | re.M)[0].strip()
    for folder in (Path(here).resolve(), here, PROJECT):
        message = message.replace(f"{folder}/", "")
    return code, message


def main():
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("w", newline="", encoding="utf8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["input", "message"])
        for kind, cases in CASES.items():
            for name, what, _, *file_name in cases:
                rows.writerow([f"{kind}: {name}", refusal(kind, what, *file_name)[1]])


if __name__ == "__main__":
    main()

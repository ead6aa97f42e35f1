"""Malformed presets, tasks, pools, SAEs and models, and the one message that each of them ends in.

Each is given to the command `igds` in this process, as a user would. It must be refused by one of the
project's own errors that names the place, before a model is loaded or a notebook is started.

    python tests/faults/bad_input.py      # writes results/reference/faults/bad_input.csv
"""

import contextlib
import csv
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml
from safetensors.torch import load_file, save_file

from igds_utils import cli, tiny
from igds_utils.config.config import PRESETS, PROJECT
from igds_utils.engine import loading
from igds_utils.running import runner

OUT = PROJECT / "results/reference/faults/bad_input.csv"
SPEC = {
    "title": "Capitals", "prompt": "{country}\nCapital:", "target": "{capital}", "reference": "capital",
    "metric": {"name": "rouge1"},
}  # fmt: skip
FINE = {"id": "a", "question": "Two and 3?", "target": "5"}
MORE = {"id": "b", "question": "Two and 4?", "target": "6"}
RATIO, LESS = "tasks.math.ratio", "selection.less"

# input -> its text, or the fields that are changed; what the message must name
PRESETS_ = {
    "an empty preset": ("", "mine.yaml: name: Field required"),
    "a list": ("- name: x", "mine.yaml.*fields"),
    "text alone": ("quick", "mine.yaml.*fields"),
    "brackets left open": ("name: [1,", "mine.yaml.*line 1"),
    "a tab for indentation": ("name: x\nrecall:\n\ttau: 1", "mine.yaml.*line 3"),
    "braces without quotes": ("name: {{x}}", "mine.yaml.*line 1"),
    "bytes of another encoding": (b"name: caf\xe9", "mine.yaml"),
    "an anchor that is not there": ("name: *x", "mine.yaml.*line 1"),
    "an anchor within itself": ("name: &x [*x]", "mine.yaml"),
    "a tag of Python": ("name: !!python/name:os.system", "mine.yaml.*line 1"),
    "brackets ten thousand deep": ("[" * 10_000, "mine.yaml"),
    "a key given twice": ("name: x\nname: y", "line 2: 'name' is given twice"),
    "a misspelt key": ({"recal": {}}, "unknown key 'recal'.*'recall'"),
    "a misspelt field": ({"recall.tua": 1}, "recall: unknown key 'tua'.*'tau'"),
    "a misspelt field of a task": ({"tasks.math.sft": {"lrr": 1}}, "tasks.math.sft: unknown key 'lrr'"),
    "a name with a slash": ({"name": "../x"}, "name: "),
    "no tasks": ({"tasks": {}}, "tasks: "),
    "no model": ({"models": {}}, "no model 'tiny-llama'"),
    "another model's name": ({"model": "llama"}, "no model 'llama'; known: tiny-llama"),
    "a model without a place": ({"models.tiny-llama.train": {"git": "x"}}, "models.tiny-llama.train"),
    "a model by two places": ({"models.tiny-llama.train": {"hub": "x", "folder": "y"}}, "models.tiny-llama.train"),
    "a list for a model": ({"models.tiny-llama": []}, "models.tiny-llama"),
    "text for a number": ({"recall.tau": "high"}, "recall.tau: .*number"),
    "tau of 80": ({"recall.tau": 80}, "recall.tau: "),
    "a ratio of 0": ({RATIO: 0}, f"{RATIO}: "),
    "a ratio that is no number": ({RATIO: float("nan")}, f"{RATIO}: "),
    "a confidence of 95": ({"confidence": 95}, "confidence: "),
    "no resamples": ({"bootstrap": 0}, "bootstrap: "),
    "negative batch tokens": ({"batch_tokens": -1}, "batch_tokens: "),
    "a learning rate below 0": ({"sft.lr": -1e-4}, "sft.lr: "),
    "no epochs": ({"sft.epochs": 0}, "sft.epochs: "),
    "a batch of 0": ({"sft.global_batch": 0}, "sft.global_batch: "),
    "a warm-up of 3 %": ({"sft.warmup_ratio": 3}, "sft.warmup_ratio: "),
    "no tokens to train on": ({"sft.max_length": 0}, "sft.max_length: "),
    "no new tokens": ({"tasks.math.max_new_tokens": 0}, "tasks.math.max_new_tokens: "),
    "a negative size": ({"tasks.math.sizes.test": -4}, "tasks.math.sizes.test: "),
    "half a sample": ({"tasks.math.sizes.test": 4.5}, "tasks.math.sizes.test: "),
    "no test set": ({"tasks.math.sizes": {"prior": 1}}, "tasks.math.sizes.*test"),
    "no seeds": ({"tasks.math.seeds": []}, "tasks.math.seeds: "),
    "a seed twice": ({"tasks.math.seeds": [0, 0]}, "tasks.math.seeds: "),
    "more shots than examples": ({"tasks.math.shots": 9}, "tasks.math"),
    "a share above 1": ({"tasks.math.top_p": 95}, "tasks.math.top_p: "),
    "a ratio twice": ({"tasks.math.curve.ratios": [0.5]}, "tasks.math: curve.ratios"),
    "an unknown selector": ({"tasks.math.selectors": ["lost"]}, "no selector 'lost'"),
    "an unknown selector of the known pool": ({"tasks.math.quality.selectors": ["lost"]}, "no selector 'lost'"),
    "an unknown arm": ({"tasks.math.only_arms": ["igds@5"]}, "no arm 'igds@5'"),
    "an unknown arm of general questions": ({"tasks.translation.capabilities.arms": ["x"]}, "no arm 'x'"),
    "an unknown task": ({"tasks.maths": {}}, "tasks.maths"),
    "a file of a launch that is not there": ({"launch.training": "fsdq"}, "launch.training: no 'fsdq'"),
}


# a task of one's own and its rows
TASKS = {
    "an empty task": ("", "task.yaml"),
    "a list for a task": ("[]", "task.yaml"),
    "brackets left open in a task": ("title: [", "task.yaml"),
    "a key of a task given twice": ("title: x\ntitle: y", "task.yaml.*line 2"),
    "braces without quotes in a task": ("title: x\ntarget: {{answer}}", "task.yaml.*line 2"),
    "a misspelt key of a task": ({"titel": "x"}, "task.yaml: unknown key 'titel'"),
    "no cue": ({"prompt": "{country}"}, "task.yaml: prompt must end"),
    "another script's colon": ({"prompt": "{country}\nCapital\uff1a"}, "uff1a"),
    "a brace left open": ({"prompt": "{country\nCapital:"}, "task.yaml: prompt"),
    "a brace too many": ({"target": "{capital}}"}, "task.yaml: target"),
    "fields without names": ({"prompt": "{} {0}\nCapital:"}, "task.yaml: prompt"),
    "a field's attribute": ({"target": "{capital.name}"}, "task.yaml: target"),
    "a prompt without fields": ({"prompt": "Say it.\nCapital:"}, "task.yaml: prompt"),
    "a field that no row fills": ({"instruction": "Name {town}"}, "task.yaml: instruction.*town"),
    "an empty stop": ({"stops": [""]}, "task.yaml.*stops"),
    "COMET without a source": ({"metric": {"name": "comet"}}, "source_text"),
    "an unknown metric": ({"metric": {"name": "bleu"}}, "task.yaml: metric.name"),
    "no file": (None, "task.yaml"),
}
# rows of the task's own source
ROWS = {
    "a source without a place": ({"file": None}, "sources.all: a source is either"),
    "a misspelt field of a source": ({"colums": {}}, "sources.all: unknown key 'colums'"),
    "a file that is not there": ({"file": "gone.jsonl"}, "gone.jsonl"),
    "a set that is none": ({"sets": ["training"]}, "sources.all"),
    "a column that no row has": ({"columns": {"capital": "town"}}, "no field 'town' for 'capital'"),
    "a field that the task has not": ({"columns": {"city": "capital"}}, "no field 'city'"),
    "a number for a column": ({"columns": {"capital": 3}}, "columns.capital"),
    "a way of taking that is none": ({"columns": {"capital": {"column": "capital", "take": "box"}}}, "columns.capital.take"),
    "a filter that leaves nothing": ({"where": {"capital": ["x"]}}, "no test example is left"),
    "sources as a list": (["rows.jsonl"], "tasks.capitals.data.sources"),
    "a source that is text": ("rows.jsonl", "tasks.capitals.data.sources.all"),
}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(**columns):
    stream = io.BytesIO()
    pa.parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


GOOD = table(question=["a", "b"], target=["c", "d"])
TWICE = pa.Table.from_arrays([pa.array(["a"])] * 2, ["question", "question"])
# file and its bytes, and options of the command
POOLS = {
    "an empty file": ("a.jsonl", b"", "a.jsonl holds 0 samples"),
    "one sample": ("a.jsonl", lines(FINE), "a.jsonl holds 1 samples"),
    "a line cut off": ("a.jsonl", lines(FINE) + b'{"id": ', "a.jsonl line 2: is not JSON"),
    "a list in a line": ("a.jsonl", lines(FINE, [1], MORE), "a.jsonl line 2: holds a list"),
    "a line of another encoding": ("a.jsonl", lines(FINE) + b'{"question": "\xe9"}', "line 2: is not JSON in UTF-8"),
    "UTF-16": ("a.jsonl", lines(FINE, MORE).decode().encode("utf-16"), "a.jsonl"),
    "a null byte": ("a.jsonl", b"\0" + lines(FINE, MORE), "a.jsonl line 1"),
    "lists ten thousand deep": ("a.jsonl", lines(FINE) + b'{"question": ' + b"[" * 100_000, "a.jsonl line 2"),
    "a number of ten thousand digits": ("a.jsonl", lines(FINE) + b'{"id": ' + b"1" * 10_000 + b"}", "line 2"),
    "one object around the records": ("a.json", json.dumps({"data": [FINE, MORE]}).encode(), "a.json"),
    "the same over many lines": ("a.json", json.dumps({"data": [FINE, MORE]}, indent=1).encode(), "a.json"),
    "a list cut off": ("a.json", b'[{"question": "a"}, ', "a.json cannot be read"),
    "a list with text in it": ("a.json", b'["a", "b"]', "a.json record 1: holds a str"),
    "a missing field": ("a.jsonl", lines(FINE, {"id": "c", "target": "5"}), "line 2: no field 'question'"),
    "a field misspelt in all": ("a.jsonl", lines({"qestion": "a", "target": "5"}), "line 1: no field 'question'"),
    "an empty field": ("a.jsonl", lines(FINE, MORE | {"question": " "}), "line 2: field 'question' is empty"),
    "null for a text": ("a.jsonl", lines(FINE, MORE | {"target": None}), "line 2: field 'target' is empty"),
    "a list for a text": ("a.jsonl", lines(FINE, MORE | {"question": ["a"]}), "line 2: field 'question' holds a list"),
    "half a character": ("a.jsonl", lines(FINE, MORE | {"question": "\ud83d"}), "line 2: field 'question' holds half"),
    "an id twice": ("a.jsonl", lines(FINE, MORE, FINE), "a.jsonl line 3: id 'a' is that of a.jsonl line 1"),
    "a chat without an answer": ("a.jsonl", lines({"messages": [{"role": "user", "content": "a"}]}), "line 1"),
    "a CSV without a header": ("a.csv", b"a,b\nc,d\n", "a.csv line 2: no field 'question'"),
    "a CSV with semicolons": ("a.csv", b"question;target\na;b\n", "a.csv line 2: no field 'question'"),
    "a row too short": ("a.csv", b"question,target\na,b\nc\n", "a.csv line 3: has not as many fields"),
    "a quote left open": ("a.csv", b'question,target\na,"b\n', "a.csv"),
    "a column twice": ("a.csv", b"question,target,question\na,b,c\n", "a.csv.*'question'"),
    "a CSV of another encoding": ("a.csv", b"question,target\n\xe9,b\n", "a.csv cannot be read"),
    "a CSV in UTF-16": ("a.csv", "question,target\na,b\n".encode("utf-16"), "a.csv"),
    "a Parquet cut off": ("a.parquet", GOOD[:-9], "a.parquet cannot be read"),
    "JSON called Parquet": ("a.parquet", lines(FINE), "a.parquet cannot be read"),
    "a Parquet column twice": ("a.parquet", None, "a.parquet"),
    "Parquet without a field": ("a.parquet", table(q=["a"], target=["b"]), "a.parquet row 1: no field 'question'"),
    "a time beyond the calendar": ("a.parquet", table(question=["a"], t=pa.array([2**62], pa.timestamp("s"))), "a.parquet"),
    "a gzip cut off": ("a.jsonl.gz", gzip.compress(lines(FINE, MORE))[:40], "a.jsonl.gz cannot be read"),
    "plain text called gzip": ("a.jsonl.gz", lines(FINE, MORE), "a.jsonl.gz cannot be read"),
    "a file of another kind": ("a.txt", b"a", "a.txt is of no known kind"),
    "a folder without data": ("a/x.md", b"", "a holds no data files"),
    "a name that no file has": ("a.jsonl", None, "no file"),
    "one record": ("a.jsonl", lines(FINE, MORE), "--column colour=x", "no field 'colour'"),
    "a column that no record has": ("a.jsonl", lines(FINE, MORE), "--column question=text", "no field 'text'"),
    "a column without a name": ("a.jsonl", lines(FINE, MORE), "--column question=", "question"),
    "no column": ("a.jsonl", lines(FINE, MORE), "--column question", "FIELD=NAME"),
    "a ratio of 50": ("a.jsonl", lines(FINE, MORE), "--ratio 50", "a ratio must lie in"),
    "nan for a ratio": ("a.jsonl", lines(FINE, MORE), "--ratio nan", "a ratio must lie in"),
    "text for a ratio": ("a.jsonl", lines(FINE, MORE), "--ratio half", "--ratio"),
    "a selector that is none": ("a.jsonl", lines(FINE, MORE), "--selector los", "no selector 'los'"),
    "a task that is none": ("a.jsonl", lines(FINE, MORE), "--task maths", "no task 'maths'"),
    "a preset that is none": ("a.jsonl", lines(FINE, MORE), "--preset smok", "no preset 'smok'"),
    "a change without a value": ("a.jsonl", lines(FINE, MORE), "--set recall.tau", "'recall.tau' is not FIELD=VALUE"),
    "a change of nothing": ("a.jsonl", lines(FINE, MORE), "--set =3", "FIELD=VALUE"),
    "a change with an open bracket": ("a.jsonl", lines(FINE, MORE), "--set recall.tau=[", "recall.tau"),
    "a change below a number": ("a.jsonl", lines(FINE, MORE), "--set seed.x=1", "seed.x: 'seed' has no fields"),
    "no features": ("a.jsonl", lines(FINE, MORE), "--selector igds", "no task features of math"),
    "a feature misspelt": ("a.jsonl", lines(FINE, MORE), "--features l2-p3", "'l2-p3' is no feature"),
    "a feature below 0": ("a.jsonl", lines(FINE, MORE), "--features l2_p-1", "l2_p-1"),
    "a feature beyond the SAE": ("a.jsonl", lines(FINE, MORE), "--features l2_p64", "the SAE has 64 features"),
    "a layer without an SAE": ("a.jsonl", lines(FINE, MORE), "--features l9_p3", "layer 9 has no SAE"),
    "features of another program": ("a.json", lines(FINE, MORE), "--features a.json", "no task features"),
    "a selection over its pool": ("selection.jsonl", lines(FINE, MORE), "--out .", "would be written over"),
    "a file where the selection goes": ("a.jsonl", lines(FINE, MORE), "--out a.jsonl", "cannot write to a.jsonl"),
    "too long": ("a.jsonl", lines(FINE, MORE | {"question": "w " * 999}), "--selector loss", "line 2: .* tokens"),
}
FILES = {
    "a features file with a list": ("f.json", b"[]", "f.json"),
    "a features file without features": ("f.json", b'{"selected": []}', "f.json"),
    "a features file with text": ("f.json", b'{"selected": "l2_p3"}', "f.json"),
    "a features file with numbers": ("f.json", b'{"selected": [3]}', "f.json"),
}
SELECTIONS = {
    "a selection that is a list": ("selection.json", b"[]", "holds no selection"),
    "scores of another program": ("scores.csv", b"a,b\n1,2\n", "holds no selection"),
    "scores that are empty": ("scores.csv", b"", "holds no selection"),
}


def cfg(**changes):
    """Other fields of an SAE's cfg.json."""

    def change(folder):
        fields = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(fields | changes))

    return change


def without(name):
    def change(folder):
        fields = json.loads((folder / "cfg.json").read_text())
        del fields[name]
        (folder / "cfg.json").write_text(json.dumps(fields))

    return change


def weights(**changes):
    def change(folder):
        file = next(folder.glob("*.safetensors"))
        found = load_file(file)
        save_file({k: v for k, v in (found | changes).items() if v is not None}, file)

    return change


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def gone(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


import torch
SAES = {
    "no SAE folder": (lambda folder: shutil.rmtree(folder), "no SAEs under"),
    "two SAEs of a layer": (lambda folder: shutil.copytree(folder, folder.with_name("layer_3")), "two SAEs of layer 3"),
    "an SAE without settings": (gone("cfg.json"), "no SAEs under"),
    "settings cut off": (text("cfg.json", b'{"d_in": '), "cfg.json cannot be read"),
    "settings that are a list": (text("cfg.json", b"[]"), "cfg.json cannot be read"),
    "empty settings": (text("cfg.json", b"{}"), "layer_03"),
    "metadata that are null": (cfg(metadata=None, d_in=99), "layer_03"),
    "an SAE of another width": (cfg(d_in=576), "width 576"),
    "a width in quotes": (cfg(d_in="32"), "width"),
    "an SAE of another layer": (cfg(metadata={"hook_name": "blocks.2.hook_resid_post"}), "layer_03.*blocks.2"),
    "an SAE of an MLP": (cfg(metadata={"hook_name": "blocks.3.hook_mlp_out"}), "layer_03.*hook_mlp_out"),
    "a hook that is a number": (cfg(metadata={"hook_name": 3}), "layer_03"),
    "an SAE in training form": (cfg(architecture="batchtopk"), "layer_03.*batchtopk"),
    "an SAE of normalized activations": (cfg(normalize_activations="layer_norm"), "layer_03.*normalized"),
    "no number of features": (without("d_sae"), "layer_03.*d_sae"),
    "another number of features": (cfg(d_sae=65), "layer_03"),
    "SAE weights missing": (gone("sae_weights.safetensors"), "layer_03"),
    "SAE weights cut off": (cut("sae_weights.safetensors"), "layer_03"),
    "SAE weights of nothing": (text("sae_weights.safetensors", b""), "layer_03"),
    "SAE without a decoder": (weights(W_dec=None), "layer_03"),
    "SAE transposed": (weights(W_enc=torch.zeros(64, 32)), "layer_03"),
    "SAE with NaN": (weights(W_enc=torch.full((32, 64), float("nan"))), "layer_03"),
}
MODELS = {
    "no model folder": (lambda folder: shutil.rmtree(folder), "no folder model"),
    "an empty model folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "model"),
    "a configuration cut off": (text("config.json", b"{"), "model"),
    "a configuration that is a list": (text("config.json", b"[]"), "model"),
    "a configuration of no model": (text("config.json", b"{}"), "model"),
    "another architecture": (text("config.json", b'{"model_type": "gpt2"}'), "gpt2"),
    "an unknown architecture": (text("config.json", b'{"model_type": "gpt9"}'), "gpt9"),
    "no tokenizer": (gone("tokenizer.json"), "model"),
    "a tokenizer cut off": (cut("tokenizer.json"), "model"),
    "no weights": (gone("model.safetensors"), "model"),
    "weights cut off": (cut("model.safetensors"), "model"),
    "a tensor missing": (weights(**{"model.layers.2.mlp.up_proj.weight": None}), "model.layers.2.mlp.up_proj"),
    "a tensor of another shape": (weights(**{"model.norm.weight": torch.ones(33)}), "model.norm"),
    "no chat template": (gone("chat_template.jinja"), "chat template"),
    "no end of text": (None, "EOS"),
    "weights that are NaN": (weights(**{"model.norm.weight": torch.full((32,), float("nan"))}), "NaN"),
}


@contextlib.contextmanager
def folder():
    """A folder of its own as the working folder, no model loaded and no run started in it."""
    with tempfile.TemporaryDirectory() as made, contextlib.chdir(made):
        yield Path(made)


def igds(*arguments):
    err, out = io.StringIO(), io.StringIO()
    loaded = mock.Mock(side_effect=AssertionError("LOADED"))
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out), mock.patch.object(runner, "_snakemake", loaded):
        try:
            code = cli.main(list(arguments))
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = f"!!{type(error).__name__}"
            err.write(str(error)[:300])
    return code, err.getvalue()


def base():
    return yaml.safe_load((PRESETS / "smoke.yaml").read_text()) | {"name": "mine"}


def changed(raw, changes):
    for place, value in changes.items():
        *parents, last = place.split(".")
        node = raw
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return raw


def write(name, what, raw=None):
    if isinstance(what, dict):
        what = yaml.safe_dump(changed(raw, what), allow_unicode=True)
    if what is not None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(what.encode() if isinstance(what, str) else what)


def run():
    import re
    from igds_utils.core import experiment
    from igds_utils.config.config import ConfigError
    from igds_utils.data.hub import SourceError
    res = []
    stop = mock.Mock(side_effect=AssertionError("a model was loaded"))
    def note(kind, name, words, got, here):
        code, said = got
        said = said.replace(str(here) + "/", "").replace(str(here.resolve()) + "/", "").replace(str(PROJECT) + "/", "")
        ok = code == 2 and re.search(words, said, re.S)
        res.append(ok)
        print("ok " if ok else "BAD", kind, "|", name, "|", code, "|", said.strip()[:600] if not ok or "-v" in sys.argv else said.strip()[:200], "" if ok else f"   <<< {words}")
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    if only in "preset":
      for name, (what, words) in PRESETS_.items():
        with folder() as here:
            write("mine.yaml", what, base())
            note("preset", name, words, igds("run", "--preset", "mine.yaml", "--results", "results"), here)
    def rowsof(name, words, here, source=None):
            Path("rows.jsonl").write_bytes(lines(*({"country": f"c{i}", "capital": f"t{i}"} for i in range(30))))
            src = {"file": str(here / "rows.jsonl"), "sets": ["prior", "validation", "confirmation", "pool", "test"]}
            if isinstance(source, dict): src |= source
            elif source: src = source
            sources = src if isinstance(source, list) else {"all": src}
            raw = base()
            raw["tasks"] = {"capitals": {"task": str(here / "task.yaml"), "data": {"sources": sources}, "max_new_tokens": 4, "prompt_tokens": 1, "target_tokens": 1, "sizes": {"prior": 1, "validation": 1, "confirmation": 1, "pool": 4, "test": 2}}}
            write("mine.yaml", yaml.safe_dump(raw))
            def f():
                try:
                    r = experiment.open_run("mine.yaml", results="results")
                    r.sets("capitals")
                    return 0, ""
                except (ConfigError, SourceError) as e:
                    return 2, str(e)
                except Exception as e:
                    return "!!" + type(e).__name__, str(e)
            note("task", name, words, f(), here)
    if only in "task":
      for name, (what, words) in TASKS.items():
        with folder() as here:
            write("task.yaml", what, dict(SPEC))
            rowsof(name, words, here)
      for name, (what, words) in ROWS.items():
        with folder() as here:
            write("task.yaml", {}, dict(SPEC))
            rowsof(name, words, here, what)
    sel = ("--preset", "smoke", "--task", "math", "--selector", "zip", "--results", "results", "--out", "out")
    with mock.patch.object(loading, "load_lm", stop):
      if only in "pool":
        for name, (file, what, *more, words) in POOLS.items():
         with folder() as here:
            if name == "a Parquet column twice":
                pa.parquet.write_table(TWICE, file)
            else:
                write(file, what)
            more = more[0].split(" ", 1) if more else []
            if "--features" in more: more += ["--selector", "igds"]
            note("pool", name, words, igds("select", "a" if "/" in file else file, *sel, *more), here)
        for name, (file, what, words) in FILES.items():
         with folder() as here:
            write(file, what); write("a.jsonl", lines(FINE, MORE))
            note("file", name, words, igds("select", "a.jsonl", *sel, "--selector", "igds", "--features", "f.json"), here)
        for name, (file, what, words) in SELECTIONS.items():
         with folder() as here:
            write("a.jsonl", lines(FINE, MORE))
            print(igds("select", "a.jsonl", *sel)); 
            write("out/" + file, what)
            note("selection", name, words, igds("explain", "out", "a"), here)
      if only in "sae":
        for name, (change, words) in SAES.items():
         with folder() as here:
            sae = tiny.sae(seed=3); sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
            sae.save_model(here / "saes/layer_03"); write("a.jsonl", lines(FINE, MORE))
            change(here / "saes/layer_03")
            place = json.dumps({"source": "folder", "name": str(here / "saes")})
            note("sae", name, words, igds("select", "a.jsonl", *sel, "--selector", "igds", "--features", "l3_p1", "--set", f"models.tiny-llama.saes={place}"), here)
    if only in "model":
        for name, (change, words) in MODELS.items():
         with folder() as here:
            tiny.save_model("llama", 0, here / "model"); write("a.jsonl", lines(FINE, MORE))
            if change: change(here / "model")
            else:
                f = here / "model/tokenizer_config.json"; c = json.loads(f.read_text()); c.pop("eos_token"); f.write_text(json.dumps(c))
                f = here / "model/special_tokens_map.json"; f.exists() and f.unlink()
            place = json.dumps({"folder": str(here / "model")})
            note("model", name, words, igds("select", "a.jsonl", *sel, "--selector", "loss", "--set", f"models.tiny-llama.identify={place}", "--set", f"models.tiny-llama.train={place}"), here)
    print(len(res), sum(map(bool, res)))


if __name__ == "__main__":
    run()

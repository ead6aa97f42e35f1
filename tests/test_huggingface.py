"""Models from the hub, by id and revision, and what happens when the hub says no, is busy, or stops in the middle."""

from __future__ import annotations

import re
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from igds_utils import tiny
from igds_utils.config.refs import HubRef
from igds_utils.data import hub
from igds_utils.data.hub import SourceError, snapshot
from igds_utils.engine.loading import load_lm, load_tokenizer
from igds_utils.engine.prompts import encode, encode_pair

LLAMA, GEMMA = "meta-llama/Llama-3.1-8B", "google/gemma-2-2b-it"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# id: layers, width, (BOS, EOS, padding), has a chat template
MODELS = {
    "google/gemma-2-2b-it": (2, 2304, ("<bos>", "<eos>", "<pad>"), True),
    "meta-llama/Llama-3.1-8B-Instruct": (3, 64, ("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"), True),
    "Qwen/Qwen3-8B-Base": (2, 4096, (None, "<|endoftext|>", "<|endoftext|>"), True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (3, 64, ("<|im_start|>", "<|im_end|>", "<|im_end|>"), True),
}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)


def asked(hub_box, what: str) -> list[str]:
    return [request for request in hub_box.requests if what in request]


@pytest.mark.parametrize("name", MODELS)
def test_models_load_by_their_ids(hub_box, name):
    layers, width, special, chat = MODELS[name]
    lm = load_lm(HubRef(hub=name), "bfloat16")
    assert (lm.name, lm.n_layers, lm.width, lm.model.dtype) == (name, layers, width, torch.bfloat16)
    tokenizer = lm.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == special
    assert bool(tokenizer.chat_template) == chat
    stored = torch.cat([parameter.flatten()[:1] for parameter in lm.model.parameters()])
    assert stored.isfinite().all() and stored.float().std() > 0
    ids, n_prompt = encode_pair(tokenizer, "Solution:", " 12 + 7 = 19")
    assert ids[-1] == tokenizer.eos_token_id
    assert [i for i in ids[:n_prompt] if i == tokenizer.bos_token_id] == ids[: special[0] is not None]


def test_only_the_files_that_are_read_are_fetched_and_only_once(hub_box, empty_cache):
    load_lm(HubRef(hub=LLAMA))
    files = {request.rsplit("/", 1)[1] for request in asked(hub_box, "GET /meta-llama")}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < files
    assert len([file for file in files if file.endswith(".safetensors")]) > 1
    assert not asked(hub_box, "original/")
    hub_box.requests.clear()
    with hub_box.fault("unavailable", "/"):  # all is in the cache
        assert load_lm(HubRef(hub=LLAMA)).n_layers == 3
    assert not asked(hub_box, "/resolve/")


def test_a_revision_is_what_is_asked_for_and_a_tokenizer_comes_without_weights(hub_box, empty_cache):
    tokenizer = load_tokenizer(HubRef(hub=LLAMA, revision=REVISION))
    assert encode(tokenizer, "Solution:")[0] == tokenizer.bos_token_id
    assert asked(hub_box, "tokenizer.json") and not asked(hub_box, "model-0000")
    assert snapshot(HubRef(hub=LLAMA, revision=REVISION)).name == REVISION
    assert asked(hub_box, f"/resolve/{REVISION}/model") and not asked(hub_box, "/main/")


@pytest.fixture
def old_repository(hub_box):
    """A repository whose weights lie in a pickle, or in a format that nothing here reads; gone after the test."""
    folder = hub_box.root / "models" / "old/tagger"
    tiny.save_model("llama", 0, folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    yield folder
    shutil.rmtree(folder)


def test_weights_without_safetensors_are_read_as_tensors_only(old_repository, empty_cache, capsys):
    lm, kept = load_lm(HubRef(hub="old/tagger")), tiny.model("llama", 0).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in lm.model.state_dict().items())

    class Harm:
        def __reduce__(self):
            return print, ("this pickle was run",)

    torch.save({"model.norm.weight": Harm()}, old_repository / "pytorch_model.bin")
    shutil.rmtree(empty_cache)
    with pytest.raises(SourceError, match="could not load old/tagger"):
        load_lm(HubRef(hub="old/tagger"))
    assert "this pickle was run" not in capsys.readouterr().out


def refused(ref: HubRef, hub_box) -> str:
    with pytest.raises(SourceError) as error:
        load_lm(ref)
    assert len(asked(hub_box, "GET /api/models/" + ref.hub)) == 1, "asking again cannot help"
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_gated_model_says_how_to_get_access(hub_box, empty_cache):
    with hub_box.fault("gated", GEMMA):
        message = refused(HubRef(hub=GEMMA), hub_box)
    assert f"accept its licence on https://huggingface.co/{GEMMA}" in message
    assert "hf auth login" in message


def test_an_unknown_model_or_revision_is_named(hub_box, empty_cache):
    assert "nobody/nothing is not on the hub" in refused(HubRef(hub="nobody/nothing"), hub_box)
    assert f"{LLAMA} has no such revision" in refused(HubRef(hub=LLAMA, revision="v9"), hub_box)


def test_a_busy_hub_is_asked_again(hub_box, empty_cache, capsys):
    with hub_box.fault("unavailable", f"/api/models/{LLAMA}", times=2):
        assert load_lm(HubRef(hub=LLAMA)).n_layers == 3
    assert len(re.findall("503 Server Error.*; trying again in 0 s", capsys.readouterr().err)) == 2
    with hub_box.fault("unavailable", "tokenizer.json", times=1):
        assert load_tokenizer(HubRef(hub=GEMMA)).eos_token == "<eos>"
    assert len(asked(hub_box, f"{GEMMA}/resolve/")) > len(set(asked(hub_box, f"{GEMMA}/resolve/")))


def test_a_file_that_breaks_off_is_continued(hub_box, empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # written down at a time
    with hub_box.fault("cut", "model-00001", times=2):
        lm = load_lm(HubRef(hub=LLAMA))
    assert len(asked(hub_box, "bytes=")) == 2, "what had arrived was not used"
    whole = load_lm(HubRef(hub=LLAMA, revision=REVISION)).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in lm.model.state_dict().items())


def test_a_file_that_is_truncated_at_its_source_is_not_loaded(hub_box, empty_cache):
    with hub_box.fault("stub", "model-00001"), pytest.raises(SourceError) as error:
        load_lm(HubRef(hub=LLAMA))
    folder = empty_cache / "models--meta-llama--Llama-3.1-8B"
    assert f"could not load {LLAMA}" in str(error.value) and f"remove {folder}" in str(error.value)

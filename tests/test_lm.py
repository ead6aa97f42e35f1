"""Hook points and attention on tiny models, and the default model of its wheel."""

import pytest
import torch
from transformers import DynamicCache, Gemma3Config, GPTNeoXConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from igds_utils import tiny
from igds_utils.config.config import load_preset
from igds_utils.config.refs import FolderRef
from igds_utils.data.hub import SourceError
from igds_utils.engine import lm as lm_module
from igds_utils.engine import prompts
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM, edited, grouped_attention, residuals, step_mask
from igds_utils.engine.loading import device_map, load_config, load_lm

ARCHITECTURES = ["llama", "gemma2", "qwen3"]
SEQUENCES = [[0, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120], [0, 25, 35], [0, 11, 12, 13, 14, 15, 16]]


@pytest.fixture(params=["left", "right"])
def inputs(request, lm):
    return pad(SEQUENCES, 1, request.param, lm.device)


def test_blocks_after_the_highest_layer_never_run(lm, inputs, monkeypatch):
    for beyond in (lm.blocks[3], lm.model.get_decoder().norm, lm.model.get_output_embeddings()):
        monkeypatch.setattr(beyond, "forward", None)
    assert sorted(residuals(lm, [2, 0], **inputs)) == [0, 2]


def test_hooks_are_removed_whatever_happens(lm, inputs):
    def breaks(_h):
        raise RuntimeError("in the middle")

    with torch.inference_mode(), pytest.raises(RuntimeError), edited(lm, {1: breaks}):
        lm.model(**inputs)
    with pytest.raises(IndexError):
        residuals(lm, [0, 99], **inputs)
    residuals(lm, [0, 1], **inputs)
    assert not any(module._forward_hooks for module in lm.model.modules())


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


@pytest.mark.parametrize("short", [0, 9])  # the fused kernel, plain products
@pytest.mark.parametrize("positions", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_sdpa_with_repeated_keys(short, positions, masked, monkeypatch):
    monkeypatch.setattr(lm_module, "SHORT", short)
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, positions, 8, generator=draw).requires_grad_()
    key, value = (torch.randn(5, 2, 9, 8, generator=draw).requires_grad_() for _ in range(2))
    mask = torch.rand(5, 1, positions, 9, generator=draw) > 0.3 if masked else None
    ours, _ = grouped_attention(Module(), query, key, value, mask, scaling=0.2)
    theirs, _ = sdpa_attention_forward(Module(), query, key, value, mask, scaling=0.2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weights = torch.randn(theirs.shape, generator=draw)
    slopes = [torch.autograd.grad((out * weights).sum(), (query, key, value)) for out in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("positions", [1, 4])
def test_scores_are_capped_as_in_gemma2(positions):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, positions, 8, generator=draw) * 9
    key, value = (torch.randn(5, 2, 9, 8, generator=draw) for _ in range(2))
    mask = torch.rand(5, 1, positions, 9, generator=draw) > 0.3
    mask[..., 0] = True
    shared = Module(), query, key, value
    capped = {"scaling": 0.2, "softcap": 3.0}
    ours, _ = grouped_attention(*shared, mask, **capped)
    added = lm_module.added_mask(mask, query.dtype)
    theirs, _ = eager_attention_forward(*shared, added, **capped)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    uncapped, _ = grouped_attention(*shared, mask, scaling=0.2)
    assert not torch.allclose(ours, uncapped, atol=0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attention_gives_what_eager_attention_gives(name):
    lm, eager = LM(tiny.model(name), tiny.tokenizer(), name), tiny.model(name)
    assert lm.model.config._attn_implementation == lm_module.GROUPED  # SDPA would drop Gemma-2's cap
    eager.set_attn_implementation("eager")
    inputs = pad(SEQUENCES, 1, "left", lm.device)
    own = inputs["attention_mask"].bool()
    with torch.inference_mode():
        ours, theirs = (model(**inputs).logits[own] for model in (lm.model, eager))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_the_mask_of_a_step_is_that_of_transformers(window):
    model = tiny.model("gemma2")
    model.config.sliding_window = window or 4096
    for block in model.get_decoder().layers:
        block.self_attn.sliding_window = window and block.self_attn.sliding_window and window
    lm = LM(model, tiny.tokenizer(), "gemma2")
    batch = pad(SEQUENCES, 1, "left", lm.device)
    mask = batch.pop("attention_mask")
    before = {name: tensor[:, :-1] for name, tensor in batch.items()}
    last = {name: tensor[:, -1:] for name, tensor in batch.items()}
    found = []
    with torch.inference_mode():
        for step in (mask, step_mask(lm, mask)):
            cached = {"past_key_values": DynamicCache(), "use_cache": True}
            lm.model.get_decoder()(**before, attention_mask=mask[:, :-1], **cached)
            found.append(lm.model(**last, attention_mask=step, **cached).logits)
    assert (step_mask(lm, mask).dim() == 2) == bool(window)
    torch.testing.assert_close(*found)


def test_where_a_model_is_put(monkeypatch):
    assert device_map() is None  # without a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_map() == {"": 0}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_map() == {"": 3}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert device_map() is None


@pytest.mark.parametrize("config", [GPTNeoXConfig(), Gemma3Config()], ids=lambda config: config.model_type)
def test_other_architectures_are_refused(tmp_path, config):
    config.save_pretrained(tmp_path)  # there are no weights
    said = f"is a {config.model_type} model, .* not supported: llama, .* are$"
    for load in (load_config, load_lm):
        with pytest.raises(SourceError, match=said):
            load(FolderRef(folder=str(tmp_path)))


def test_the_default_model_answers_and_stops():
    lm = load_lm(load_preset("quick").chosen.identify)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = lm.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([prompts.encode(lm.tokenizer, text)])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "do_sample": False}
    with torch.inference_mode():
        output = lm.model.generate(ids, **options)[0, ids.shape[1] :]
    assert "Paris" in lm.tokenizer.decode(output)
    assert len(output) < 64 and output[-1] == lm.tokenizer.eos_token_id

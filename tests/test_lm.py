"""Hook points and attention on tiny models of every architecture, and the default model as its wheel holds it."""

import pytest
import torch
from transformers import DynamicCache, Gemma3Config, GPT2Config, GPTNeoXConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from igds_utils import tasks, tiny
from igds_utils.config.config import load_preset
from igds_utils.config.refs import FolderRef, TinyRef
from igds_utils.data.hub import SourceError
from igds_utils.engine import lm as lm_module
from igds_utils.engine import prompts
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import (
    GROUPED,
    LM,
    added_mask,
    edited,
    grouped_attention,
    residuals,
    step_mask,
    unembed,
)  # fmt: skip
from igds_utils.engine.loading import device_map, fast_matmul, load_config, load_lm

ARCHITECTURES = ["llama", "gemma2", "qwen3"]
SEQUENCES = [[0, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120], [0, 25, 35], [0, 11, 12, 13, 14, 15, 16]]


@pytest.fixture(params=["left", "right"])
def inputs(request, lm):
    return pad(SEQUENCES, 1, request.param, lm.device)


def hooks_of(lm: LM) -> int:
    return sum(len(module._forward_hooks) for module in lm.model.modules())


def test_residuals_are_the_hidden_states_of_a_plain_forward_pass(lm, inputs):
    layers = list(range(lm.n_layers))
    found = residuals(lm, layers, **inputs)
    with torch.inference_mode():
        states = lm.model(**inputs, output_hidden_states=True).hidden_states
    own = inputs["attention_mask"].bool()
    for layer in layers[:-1]:
        assert found[layer].shape == (len(SEQUENCES), len(SEQUENCES[0]), lm.width)
        torch.testing.assert_close(found[layer][own], states[layer + 1][own])
    # the last entry of hidden_states is taken after the final norm
    last = lm.model.get_decoder().norm(found[layers[-1]])
    torch.testing.assert_close(last[own], states[-1][own])
    assert not torch.allclose(found[layers[-1]][own], states[-1][own], rtol=0.1)


def test_blocks_after_the_highest_layer_never_run(lm, inputs):
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(lm.blocks)
    ]
    beyond = [lm.model.get_decoder().norm, lm.model.get_output_embeddings()]
    handles += [module.register_forward_pre_hook(lambda *_: ran.append("beyond")) for module in beyond]
    try:
        assert sorted(residuals(lm, [2, 0], **inputs)) == [0, 2]
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2]


def test_hooks_are_always_removed(lm, inputs):
    residuals(lm, [0, 1], **inputs)
    assert hooks_of(lm) == 0

    def breaks(_h):
        raise RuntimeError("in the middle")

    with torch.inference_mode(), pytest.raises(RuntimeError, match="in the middle"), edited(lm, {1: breaks}):
        lm.model(**inputs)
    assert hooks_of(lm) == 0
    with pytest.raises(IndexError):
        residuals(lm, [0, 99], **inputs)
    assert hooks_of(lm) == 0
    with pytest.raises(ValueError):
        residuals(lm, [0])  # without any input
    assert hooks_of(lm) == 0


def test_unembed_gives_the_models_logits(lm, inputs):
    with torch.inference_mode():
        h = lm.model.get_decoder()(**inputs).last_hidden_state
        torch.testing.assert_close(unembed(lm, h), lm.model(**inputs).logits)
        torch.testing.assert_close(unembed(lm, h[:, -1]), lm.model(**inputs).logits[:, -1])
        if lm.name == "gemma2":
            assert unembed(lm, h * 1e4).abs().max() <= lm.model.config.final_logit_softcapping


# ---- attention -------------------------------------------------------------------------------------------


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


class Single(Module):
    num_key_value_groups = 1


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


def test_a_position_that_sees_nothing_is_no_nan_and_dropout_drops():
    query = key = value = torch.randn(1, 6, 4, 8, generator=torch.Generator().manual_seed(0))
    blind = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    blind[:, :, 0] = False
    assert grouped_attention(Single(), query, key, value, blind)[0].isfinite().all()
    dropped, _ = grouped_attention(Single(), query, key, value, None, dropout=0.99)
    assert (dropped == 0).any()


@pytest.mark.parametrize("positions", [1, 4])
def test_scores_are_capped_as_in_gemma2(positions):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, positions, 8, generator=draw) * 9
    key, value = (torch.randn(5, 2, 9, 8, generator=draw) for _ in range(2))
    mask = torch.rand(5, 1, positions, 9, generator=draw) > 0.3
    mask[..., 0] = True
    added = added_mask(mask, query.dtype)
    ours, _ = grouped_attention(Module(), query, key, value, mask, scaling=0.2, softcap=3.0)
    theirs, _ = eager_attention_forward(Module(), query, key, value, added, scaling=0.2, softcap=3.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grouped_attention(Module(), query, key, value, added, scaling=0.2, softcap=3.0)[0], ours)
    uncapped, _ = grouped_attention(Module(), query, key, value, mask, scaling=0.2)
    assert not torch.allclose(ours, uncapped, atol=0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_what_its_eager_attention_gives(name):
    model = tiny.model(name)
    model.set_attn_implementation("eager")
    inputs = pad(SEQUENCES, 1, "left", model.device)
    with torch.inference_mode():
        theirs = model(**inputs).logits
        lm = LM(model, tiny.tokenizer(), name)
        model.set_attn_implementation(GROUPED)  # eager is kept where it was asked for and nothing is capped
        ours = lm.model(**inputs).logits
    own = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[own], theirs[own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_the_mask_of_a_step_is_what_transformers_makes_of_the_plain_one(window):
    model = tiny.model("gemma2")
    model.config.sliding_window = window or 4096
    for block in model.get_decoder().layers:
        block.self_attn.sliding_window = window and block.self_attn.sliding_window and window
    lm = LM(model, tiny.tokenizer(), "gemma2")
    batch = pad(SEQUENCES, 1, "left", lm.device)
    with torch.inference_mode():
        found = []
        for mask in (lambda m: m, lambda m: step_mask(lm, m)):
            cache = DynamicCache()
            lm.model.get_decoder()(
                input_ids=batch["input_ids"][:, :-1], attention_mask=batch["attention_mask"][:, :-1],
                position_ids=batch["position_ids"][:, :-1], past_key_values=cache, use_cache=True,
            )  # fmt: skip
            found.append(lm.model(
                input_ids=batch["input_ids"][:, -1:], attention_mask=mask(batch["attention_mask"]),
                position_ids=batch["position_ids"][:, -1:], past_key_values=cache, use_cache=True,
            ).logits)  # fmt: skip
    assert (step_mask(lm, batch["attention_mask"]).dim() == 2) == bool(window)
    torch.testing.assert_close(*found)


def test_who_gets_it():
    for name in ARCHITECTURES:  # SDPA would drop Gemma-2's cap
        assert LM(tiny.model(name), tiny.tokenizer(), name).model.config._attn_implementation == GROUPED


# ---- loading ---------------------------------------------------------------------------------------------


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_fast_products_keep_fp32_accuracy_or_are_not_used(precision):
    fast_matmul()
    generator = torch.Generator().manual_seed(5)
    x, w = torch.randn(300, 576, generator=generator), torch.randn(576, 1536, generator=generator)
    exact = x.double() @ w.double()
    assert ((x @ w).double() - exact).abs().max() / exact.abs().max() < 1e-5


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


def test_tiny_models_and_folders_load(tmp_path, monkeypatch):
    monkeypatch.setenv("IGDS_CACHE", str(tmp_path / "cache"))
    for architecture in ARCHITECTURES:
        made = load_lm(TinyRef(tiny=architecture, seed=3))
        expected = tiny.model(architecture, seed=3).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in made.model.state_dict().items())
        assert not made.model.training
        assert (made.n_layers, made.width) == (tiny.LAYERS, tiny.WIDTH)
    again = load_lm(FolderRef(folder=made.tokenizer.name_or_path))
    assert again.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert load_lm(TinyRef(tiny="llama"), "bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config", [GPT2Config(), GPTNeoXConfig(), Gemma3Config()], ids=lambda config: config.model_type
)
def test_other_architectures_are_refused_before_their_weights_are_read(tmp_path, config):
    config.save_pretrained(tmp_path)  # there are no weights
    ref = FolderRef(folder=str(tmp_path))
    for load in (load_config, load_lm):
        with pytest.raises(
            SourceError, match=f"is a {config.model_type} model, .* not supported: llama, .* are$"
        ):
            load(ref)


@pytest.fixture(scope="module")
def real() -> LM:
    return load_lm(load_preset("quick").chosen.identify)


@pytest.fixture(scope="module")
def examples():
    """Some pool samples of every task of the default preset."""
    preset = load_preset("quick")
    return {
        name: tasks.get(name).sets(config, preset.seed)["pool"][:8] for name, config in preset.tasks.items()
    }


def test_special_tokens_of_the_default_model(real):
    tokenizer, generation = real.tokenizer, real.model.generation_config
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert tokenizer.pad_token_id is not None
    for settings in (generation, real.model.config):
        assert settings.eos_token_id == 2 and settings.bos_token_id == 1
        assert settings.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("rendering", ["bare", "chat"])
@pytest.mark.parametrize("task", ["math", "translation", "summarization"])
def test_one_bos_before_every_prompt_and_none_in_or_before_a_target(real, examples, task, rendering):
    tokenizer = real.tokenizer
    for example in examples[task]:
        prompt = prompts.identification_prompt(tasks.get(task), example, tokenizer, rendering)
        ((ids, n_prompt),) = prompts.encode_pairs(tokenizer, [prompt], [f" {example.target}"])
        turns = prompt.count("<|im_start|>")  # BOS is also what opens a turn of the chat template
        assert ids[0] == 1 and ids[1] != 1
        assert ids[:n_prompt].count(1) == max(turns, 1)
        assert (turns > 0) == (rendering == "chat")
        target = ids[n_prompt:]
        assert 1 not in target
        assert target.count(2) == 1 and target[-1] == 2
        assert tokenizer.decode(target[:-1]) == f" {example.target}"
        p = prompts.critical_position(tokenizer, prompt + f" {example.target}", prompt)
        assert p == n_prompt - 1
        assert tokenizer.decode(ids[p]).endswith(":")


def question(tokenizer, text: str) -> str:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def test_the_default_model_answers_and_stops(real):
    ids = prompts.encode(real.tokenizer, question(real.tokenizer, "What is the capital of France?"))
    with torch.inference_mode():
        output = real.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=64, do_sample=False
        )[0, len(ids) :]
    assert "Paris" in real.tokenizer.decode(output)
    assert len(output) < 64 and output[-1] == real.tokenizer.eos_token_id

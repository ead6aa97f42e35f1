"""Merged steering against one row at a time, the whole sequence for every token."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from igds_utils import tiny
from igds_utils.engine import generation, losses
from igds_utils.engine.batching import pad
from igds_utils.engine.generation import read_prefix
from igds_utils.engine.lm import LM, edited, last_hidden, residuals, unembed
from igds_utils.engine.loading import ARCHITECTURES as SUPPORTED
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering

ARCHITECTURES = ["llama", "gemma2", "qwen3"]
FEATURES = [Feature(0, 3), Feature(1, 7), Feature(1, 21), Feature(tiny.LAYERS - 1, 5)]
NEW = 6


def prompts(lm, n=4):
    generator = torch.Generator().manual_seed(1)
    lengths = [5, 14, 9, 2, 12][:n]
    return [torch.randint(2, len(lm.tokenizer), (k,), generator=generator).tolist() for k in lengths]


def obvious_hidden(lm, saes, ids, first, feature, scale, positions="critical_and_decode"):
    """Logits of one sequence, the feature amplified from `first` on, without a cache."""

    def edit(h):
        if feature is None:
            return None
        h = h.clone()
        for t in range(first, h.shape[1]):
            if positions == "critical_only" and t > first:
                break
            sae = saes[feature.layer]
            z = sae.encode(h[0, t][None])
            doubled = z.clone()
            doubled[0, feature.index] *= 1 + scale
            h[0, t] += (sae.decode(doubled) - sae.decode(z))[0]
        return h

    with torch.inference_mode(), edited(lm, {feature.layer if feature else 0: edit}):
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0]


def obvious_tokens(lm, saes, prompt, feature, scale=1.0, positions="critical_and_decode", new=NEW):
    ids = list(prompt)
    for _ in range(new):
        token = int(obvious_hidden(lm, saes, ids, len(prompt) - 1, feature, scale, positions)[-1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("positions", ["critical_and_decode", "critical_only"])
def test_merged_rows_equal_one_row_at_a_time(lm, saes, positions):
    texts = prompts(lm)
    rows = [(s, feature) for s in range(len(texts)) for feature in [None, *FEATURES]]
    steering = Steering(saes, FEATURES, scale=3.0, positions=positions)
    merged = generation.decode(lm, texts, rows, NEW, steering)
    slow = [obvious_tokens(lm, saes, texts[s], feature, 3.0, positions) for s, feature in rows]
    assert merged == slow
    unsteered = {s: tokens for (s, feature), tokens in zip(rows, merged, strict=True) if feature is None}
    changed = [tokens != unsteered[s] for (s, feature), tokens in zip(rows, merged, strict=True) if feature]
    assert any(changed), "no amplified row differs from its original, so the comparison proves nothing"


# What else is supported: the fields that change what a block or the head computes
SIMILAR = {
    "mistral": {"sliding_window": 8},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2},
    "gemma": {},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "olmo2": {},
    "smollm3": {},
}


@pytest.mark.parametrize("kind", sorted(set(SUPPORTED) - set(ARCHITECTURES)))
def test_every_supported_architecture_is_read_and_steered(kind):
    skipped = {"model_type", "architectures", "head_dim" if kind == "cohere" else ""}
    shared = {k: v for k, v in tiny.config("llama", 400).to_diff_dict().items() if k not in skipped}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shared | SIMILAR[kind]))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.15)
    lm = LM(model.float().eval(), tiny.tokenizer(), kind)
    saes = {layer: tiny.sae(seed=layer) for layer in range(tiny.LAYERS)}
    texts = prompts(lm, 2)
    inputs = pad(texts, 1, "left", lm.device)
    own = inputs["attention_mask"].bool()
    with torch.inference_mode():
        theirs = model(**inputs, output_hidden_states=True)
        logits = unembed(lm, last_hidden(lm, **inputs))
    torch.testing.assert_close(residuals(lm, [2], **inputs)[2][own], theirs.hidden_states[3][own])
    torch.testing.assert_close(logits[own], theirs.logits[own], rtol=1e-4, atol=1e-4)
    rows = [(1, feature) for feature in [None, *FEATURES[1:3]]]
    merged = generation.decode(lm, texts, rows, NEW, Steering(saes, FEATURES, scale=3.0))
    assert merged == [obvious_tokens(lm, saes, texts[s], feature, 3.0) for s, feature in rows]
    given, rows = [[text[-1], 5, 7, 9] for text in texts], [(s, f) for s in (0, 1) for f in (None, *FEATURES)]
    steering = Steering(saes, FEATURES, scale=0.0)  # reads the blocks above a feature, and changes nothing
    found = losses.log_likelihoods(lm, read_prefix(lm, texts), given, rows, steering)
    for (s, _), values in zip(rows, found, strict=True):
        logits = model(torch.tensor([texts[s] + given[s][1:]])).logits[0, len(texts[s]) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(3), given[s][1:]]
        torch.testing.assert_close(torch.tensor(values), expected.detach(), rtol=1e-4, atol=1e-4)


def test_rows_that_ended_leave(lm, monkeypatch):
    texts = prompts(lm)
    alone = [generation.decode(lm, [prompt], [(0, None)], NEW)[0] for prompt in texts]
    ends = {tokens[2] for tokens in alone[:2]}  # tokens that end some rows early
    monkeypatch.setattr(generation, "_end_ids", lambda lm: ends)
    cut = [next((tokens[:i] for i, t in enumerate(tokens) if t in ends), tokens) for tokens in alone]
    monkeypatch.setattr(generation, "LEAVE_AT", 0.01)
    together = generation.decode(lm, texts, [(s, None) for s in range(len(texts))], NEW)
    assert together == cut
    assert len({len(tokens) for tokens in together}) > 1


def test_draws_follow_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    seeds = [str(i) for i in range(4000)]
    choose = generation._chooser(generation.Sampling(1.0, 0.9, seeds), 1)
    drawn = choose(logits.expand(4000, 4), list(range(4000)), 0).bincount(minlength=4)
    assert (drawn / 4000).tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=0.03)
    assert drawn[3] == 0


def test_a_text_ends_before_the_first_stop(lm):
    for text, kept in ((" 4.\n### Problem:\n5", "4."), (" a\nb ", "a\nb")):
        assert generation.to_text(lm, lm.tokenizer(text)["input_ids"], ["### Problem"]) == kept


@pytest.mark.parametrize("every", [1, 3, 8, 50])
def test_stops_cut_whenever_they_are_looked_for(every, monkeypatch):
    lm = LM(tiny.model("llama"), tiny.tokenizer(), "llama")
    texts, new = prompts(lm), 20
    rows = [(s, None) for s in range(len(texts))]
    full = generation.decode(lm, texts, rows, new)
    stop = [lm.tokenizer.decode(tokens)[3:5] for tokens in full[:2]]

    def cut(tokens):
        whole = (i for i in range(1, len(tokens) + 1))
        seen = (i for i in whole if any(s in lm.tokenizer.decode(tokens[:i]) for s in stop))
        return tokens[: next(seen, len(tokens))]

    monkeypatch.setattr(generation, "STOP_EVERY", every)
    assert generation.decode(lm, texts, rows, new, stop=stop) == [cut(tokens) for tokens in full]
    # a row that ends by itself is looked at as well
    ends = {tokens[6] for tokens in full}
    monkeypatch.setattr(generation, "_end_ids", lambda lm: ends)
    ended = [next((t[:i] for i, token in enumerate(t) if token in ends), t) for t in full]
    assert generation.decode(lm, texts, rows, new, stop=stop) == [cut(tokens) for tokens in ended]

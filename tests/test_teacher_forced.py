"""Rows read over given tokens, against the slow obvious way."""

import numpy as np
import pytest
import torch
from test_generation import FEATURES, obvious_hidden, prompts

from igds_utils import tiny
from igds_utils.engine import losses
from igds_utils.engine.generation import read_prefix
from igds_utils.engine.lm import edited, residuals
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention
from igds_utils.identification.effects import KEYS
from igds_utils.tasks.examples import Example

SILENT = Feature(2, 63)


def texts_of(prompt_ids):
    return [[*ids, *[7, 30, 11, 250][: 1 + s % 4]] for s, ids in enumerate(prompt_ids)]


@pytest.mark.parametrize("positions", ["critical_and_decode", "critical_only"])
def test_log_likelihoods_equal_a_full_forward_pass(lm, saes, positions):
    before = prompts(lm)
    whole = texts_of(before)
    given = [ids[len(prompt) - 1 :] for ids, prompt in zip(whole, before, strict=True)]
    rows = [(s, feature) for s in range(len(before)) for feature in [*FEATURES, None]]
    steering = Steering(saes, FEATURES, 2.0, positions)
    expected = []
    for s, feature in rows:
        ids, n = whole[s], len(before[s])
        log_p = obvious_hidden(lm, saes, ids, n - 1, feature, 2.0, positions).log_softmax(-1)
        expected.append([float(log_p[t - 1, ids[t]]) for t in range(n, len(ids))])
    prefix = read_prefix(lm, before)
    for tokens in (1, 12, 4096):
        found = losses.log_likelihoods(lm, prefix, given, rows, steering, tokens)
        for values, slow in zip(found, expected, strict=True):
            assert values == pytest.approx(slow, rel=1e-5, abs=1e-5)


def test_a_silent_feature_costs_nothing_and_changes_nothing(lm, saes, monkeypatch):
    before = prompts(lm)
    given = [ids[len(p) - 1 :] for ids, p in zip(texts_of(before), before, strict=True)]
    quiet = {layer: tiny.sae("jumprelu", seed=layer) for layer in range(tiny.LAYERS)}
    quiet[SILENT.layer].b_enc.data[SILENT.index] = -1e6
    monkeypatch.setattr(losses, "_above", None)  # would raise if a row were read at all
    rows = [(s, feature) for feature in (None, SILENT) for s in range(len(before))]
    found = losses.log_likelihoods(lm, read_prefix(lm, before), given, rows, Steering(quiet, [SILENT]))
    assert found[len(before) :] == found[: len(before)]


def samples_of(prompt_ids):
    return [
        intervention.Sample(f"s{i}", ids, [*ids, 9, 30, 1], Example(f"s{i}", {}, "t", ("t",)))
        for i, ids in enumerate(prompt_ids)
    ]


def steered_logits(lm, saes, ids, first, feature, change):
    """Logits of a sequence whose residual h from `first` on becomes change(h, a_i(h), d_i)."""

    def edit(h):
        h = h.clone()
        for t in range(first, h.shape[1]):
            z, unit = saes[feature.layer].encode(h[:, t]), torch.zeros(1, tiny.D_SAE)
            unit[0, feature.index] = 1.0
            d = saes[feature.layer].decode(unit) - saes[feature.layer].decode(0 * unit)
            h[:, t] = change(h[:, t], z[0, feature.index], d)
        return h

    with torch.inference_mode(), edited(lm, {feature.layer: edit}):
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0]


def test_forced_effects_of_own_and_other_targets_equal_a_full_forward_pass(lm, saes):
    samples = samples_of(prompts(lm))
    targets = [[7, 30], [11], [250, 7, 30, 11], [30]]
    for given in (None, targets):
        table = intervention.forced_effects(lm, Steering(saes, FEATURES, 2.0), FEATURES, samples, 24, given)
        assert len(table) == len(samples) * len(FEATURES)
        for row in table.sample(5, random_state=0).itertuples():
            place, feature = int(row.sample_id[1:]), Feature(row.layer, row.feature)
            prompt, target = samples[place].prompt, (given or [[9, 30, 1]] * 4)[place]
            for value, scale in ((row.loglik_amplified, 2.0), (row.loglik_original, 0.0)):
                logits = obvious_hidden(lm, saes, [*prompt, *target], len(prompt) - 1, feature, scale)
                log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
                assert value == pytest.approx(float(log_p[range(len(target)), target].mean()), abs=1e-5)


@pytest.mark.parametrize("kind", ["clamped", "random"])
def test_clamped_features_and_random_directions_equal_a_full_forward_pass(lm, saes, kind):
    samples, level = samples_of(prompts(lm)), dict.fromkeys([*FEATURES, SILENT], 0.7)
    options = {"clamp": level} if kind == "clamped" else {"random": 5}
    features = [*FEATURES, SILENT]
    steering = Steering(saes, features, 1.5, **options)
    table = intervention.forced_effects(lm, steering, features, samples, 24)
    lengths = lambda outputs, _: [float(len(output)) for output in outputs]  # noqa: E731
    answers = intervention.generated_effects(lm, steering, features, samples, lengths, 4).set_index(KEYS)

    def change(h, a, d):
        if kind == "clamped":
            return h + (2.5 * 0.7 - a) * d
        drawn = np.random.default_rng([5, feature.layer, feature.index]).standard_normal(tiny.WIDTH)
        unit = torch.tensor(drawn / np.linalg.norm(drawn), dtype=torch.float32)
        return h + 1.5 * a * d.norm() * unit

    for row in table.sample(5, random_state=0).itertuples():
        feature, sample = Feature(row.layer, row.feature), samples[int(row.sample_id[1:])]
        first = len(sample.prompt) - 1
        log_p = steered_logits(lm, saes, sample.tokens, first, feature, change).log_softmax(-1)[first:-1]
        expected = float(log_p[range(3), sample.tokens[-3:]].mean())
        assert row.loglik_amplified == pytest.approx(expected, abs=1e-5)
        ids = list(sample.prompt)
        for _ in range(4):
            ids.append(int(steered_logits(lm, saes, ids, first, feature, change)[-1].argmax()))
        ends = [*ids[first + 1 :], lm.tokenizer.eos_token_id].index(lm.tokenizer.eos_token_id)
        said = answers.loc[(row.sample_id, row.layer, row.feature), "tokens_amplified"]
        assert said == ends


@pytest.mark.parametrize("positions", ["critical_and_decode", "critical_only"])
def test_firing_features_are_those_above_zero_at_a_steered_position(lm, saes, positions):
    before = prompts(lm)
    whole = texts_of(before)
    features = [*FEATURES, SILENT, *(Feature(1, index) for index in range(8))]
    found = losses.firing(
        lm, read_prefix(lm, before), [ids[len(p) - 1 :] for ids, p in zip(whole, before, strict=True)],
        Steering(saes, features, 1.0, positions), 12,
    )  # fmt: skip
    for fires, ids, prompt in zip(found, whole, before, strict=True):
        first, end = len(prompt) - 1, len(ids) - 1  # the last token is not read
        steered = slice(first, end if positions == "critical_and_decode" else first + 1)
        expected = set()
        for layer in {feature.layer for feature in features}:
            h = residuals(lm, [layer], input_ids=torch.tensor([ids]))[layer]
            on = (saes[layer].encode(h[0, steered]) > 0).any(0)
            expected |= {f for f in features if f.layer == layer and on[f.index]}
        assert fires == expected

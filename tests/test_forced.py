"""Rows read over given tokens, against the slow obvious way."""

import pytest
import torch
from test_generation import ARCHITECTURES, FEATURES, obvious_hidden, prompts

from igds_utils import tiny
from igds_utils.engine import forced
from igds_utils.engine.caching import read_prefix
from igds_utils.engine.lm import LM, residuals
from igds_utils.engine.sae import Feature
from igds_utils.engine.steering import Steering
from igds_utils.identification import intervention

SILENT = Feature(2, 63)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return LM(tiny.model(request.param), tiny.tokenizer(), request.param)


@pytest.fixture(scope="module", params=["jumprelu", "topk"])
def saes(request):
    return {layer: tiny.sae(request.param, seed=layer) for layer in range(tiny.LAYERS)}


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
        found = forced.log_likelihoods(lm, prefix, given, rows, steering, tokens)
        for values, slow in zip(found, expected, strict=True):
            assert values == pytest.approx(slow, rel=1e-5, abs=1e-5)


def test_rows_of_every_layer_fit_into_a_batch_whatever_the_layer_before_read(lm, saes):
    before = prompts(lm)[:2]
    given = [[before[0][-1], 7], [before[1][-1], *range(20, 30)]]
    first, second = Feature(0, 3), [Feature(1, index) for index in range(8)]
    rows = [(0, first), *((1, feature) for feature in second)]  # the last that the first layer reads is short
    steering, read = Steering(saes, [first, *second], 2.0), []
    amplify = steering.amplify
    steering.amplify = lambda h, features: read.append(h.shape[0] * h.shape[1]) or amplify(h, features)
    forced.log_likelihoods(lm, read_prefix(lm, before), given, rows, steering, 24)
    assert len(read) > 2 and max(read) <= 24


def test_a_silent_feature_costs_nothing_and_changes_nothing(lm, saes, monkeypatch):
    before = prompts(lm)
    given = [ids[len(p) - 1 :] for ids, p in zip(texts_of(before), before, strict=True)]
    quiet = {layer: tiny.sae("jumprelu", seed=layer) for layer in range(tiny.LAYERS)}
    quiet[SILENT.layer].b_enc.data[SILENT.index] = -1e6
    monkeypatch.setattr(forced, "_above", None)  # would raise if a row were read at all
    rows = [(s, feature) for feature in (None, SILENT) for s in range(len(before))]
    found = forced.log_likelihoods(lm, read_prefix(lm, before), given, rows, Steering(quiet, [SILENT]))
    assert found[len(before) :] == found[: len(before)]


def test_the_model_is_whole_again_after_an_error(lm, saes):
    blocks = lm.blocks
    with pytest.raises(RuntimeError, match="inside"), forced._starting_above(lm, 1, torch.zeros(1)):
        assert lm.n_layers == tiny.LAYERS - 2
        raise RuntimeError("inside")
    assert lm.blocks is blocks and not blocks[2]._forward_pre_hooks


def test_amplified_scores_are_the_same_with_given_originals(lm, saes):
    from igds_utils.tasks.examples import Example

    samples = [
        intervention.Sample(f"s{i}", ids, [*ids, 9, 30, 1], Example(f"s{i}", {}, "t", ("t",)))
        for i, ids in enumerate(prompts(lm))
    ]
    originals = intervention.original_answers(lm, samples, 6, together=2)
    tables = [
        intervention.amplified_scores(
            lm,
            saes,
            FEATURES,
            samples,
            lambda outputs, _: [float(len(o)) for o in outputs],
            6,
            originals=given,
        )
        for given in (None, originals)
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("positions", ["critical_and_decode", "critical_only"])
def test_firing_features_are_those_above_zero_at_a_steered_position(lm, saes, positions):
    before = prompts(lm)
    whole = texts_of(before)
    features = [*FEATURES, SILENT, *(Feature(1, index) for index in range(8))]
    found = forced.firing(
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

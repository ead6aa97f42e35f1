"""Frequency recall on hand-made codes."""

import pytest
import torch

from igds_utils.engine.sae import Feature
from igds_utils.identification import recall


class Identity:
    """An SAE whose code is its input."""

    device = "cpu"

    def encode(self, h):
        return h

    def __call__(self, h):
        return h * 0.9


class Saes(dict):
    device, layers, drop = "cpu", property(list), lambda self: None


SAES = Saes({3: Identity(), 8: Identity()})
# four prompts (rows), three features (columns)
RESIDUAL = {
    3: torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 0.0, 0.0]]),
    8: torch.tensor([[0.0, 1.0, 9.0], [0.5, 1.0, 9.0], [0.5, 1.0, 0.0], [0.5, 1.0, 0.0]]),
}


def test_frequencies_and_activations_by_hand():
    table = recall.frequency_recall(RESIDUAL, SAES, tau=0.75).set_index(["layer", "feature"])
    assert table["frequency"].to_dict() == {(3, 0): 1.0, (3, 2): 0.25, (8, 0): 0.75, (8, 1): 1.0, (8, 2): 0.5}
    assert table.loc[(3, 0), "mean_activation"] == pytest.approx(2.0)
    assert table.loc[(8, 0), "mean_activation"] == pytest.approx(0.375)  # over all of D_prior
    assert table.index[table["candidate"]].tolist() == [(3, 0), (8, 0), (8, 1)]


def test_how_the_saes_fit_the_model_is_told_by_layer():
    saes, stated = Saes(SAES), {3: None, 8: 3.0}
    saes.stated_l0 = stated.get
    table = recall.frequency_recall(RESIDUAL, saes, tau=0.75)
    fit = recall.sae_fit(table, saes)
    assert fit["L0"].to_dict() == {3: 1.25, 8: 2.25} and fit["L0 of the release"][8] == 3.0
    h = RESIDUAL[8]
    fvu = (0.1 * h).square().sum() / (h - h.mean(0)).square().sum()
    assert fit["FVU"][8] == pytest.approx(fvu.item(), rel=1e-5)
    assert fit["carries over"].all()
    silent, bad = table[table["layer"] == 3], table.assign(fvu=[2.5] * 2 + [0.1] * 3)
    for layer, wrong, of_release in ((8, silent, 3.0), (3, bad, 3.0), (8, table, 50.0)):
        stated[8] = of_release
        fit = recall.sae_fit(wrong, saes)
        assert fit["carries over"].to_dict() == {layer: False, 11 - layer: True}


def test_a_frequency_of_exactly_tau_counts_whatever_the_rounding():
    n = 96
    for k in range(1, n + 1):
        h = (torch.arange(n)[:, None] < torch.tensor([k, k - 1])).float()
        table = recall.frequency_recall({3: h}, Saes({3: Identity()}), tau=k / n).set_index("feature")
        assert table.loc[0, "candidate"]
        assert 1 not in table.index or not table.loc[1, "candidate"]


def test_candidates_are_ordered_by_frequency_activation_and_place():
    table = recall.frequency_recall(RESIDUAL, SAES, tau=0.5)
    expected = [Feature(3, 0), Feature(8, 1), Feature(8, 0), Feature(8, 2)]
    assert recall.candidates(table) == expected


def test_random_features_are_distinct_and_drawn_from_every_layer():
    facts = {"layers": [3, 9], "n_features_total": 40}
    every = {Feature(layer, index) for layer in (3, 9) for index in range(20)}
    assert set(recall.random_features(facts, 50, 0)) == every
    some, again, other = (recall.random_features(facts, 8, seed) for seed in (0, 0, 1))
    assert some == again != other and len(set(some)) == 8

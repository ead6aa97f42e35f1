"""Amplification of features during a forward pass: h' = h + scale * a_i(h) * d_i, one feature a row."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from igds_utils.engine.sae import Feature, FeatureSet, Saes


class Steering:
    """What amplifies features in h, the residual stream after their block; a_i is read on the current h.

    Rows without a feature pass unchanged. Clamped, the activation is set instead of added to:
    h' = h + ((1 + scale) * level_i - a_i(h)) * d_i, where the feature is silent too.
    """

    def __init__(
        self, saes: Saes | dict, features: Sequence[Feature], scale: float = 1.0,
        positions: str = "critical_and_decode", clamp: Mapping[Feature, float] | None = None,
        random: int | None = None,
    ):  # fmt: skip
        """features: all that will be amplified. positions: "critical_and_decode" or "critical_only".

        clamp: level of each feature, in units of its activation; none: the influence is added. random: seed of the
        random directions, of the norms of d_i, that stand in place of d_i (a placebo); none: d_i itself.
        """
        self.scale, self.clamped, self.decode_too = scale, clamp is not None, positions == "critical_and_decode"
        self._steered = slice(None) if self.decode_too else slice(0, 1)
        self._sets: dict[int, FeatureSet] = {}
        self._levels: dict[int, Tensor] = {}
        self._column: dict[Feature, int] = {}
        self.layers = sorted({feature.layer for feature in features})
        for layer in self.layers:
            here = sorted({feature for feature in features if feature.layer == layer})
            indices = [feature.index for feature in here]
            self._sets[layer] = known = FeatureSet(saes[layer], indices)
            if random is not None:
                known.directions = _random_like(known.directions, [[random, layer, index] for index in indices])
            if clamp is not None:
                levels = [(1 + scale) * clamp[feature] for feature in here]
                self._levels[layer] = torch.tensor(levels, device=known.indices.device)
            self._column |= {feature: column for column, feature in enumerate(here)}

    def edits(self, rows: Sequence[Feature | None]) -> dict[int, Callable[[Tensor], Tensor]]:
        """What amplifies the feature of each row in a forward pass, by layer (for `lm.edited`).

        The pass begins at the critical position or, where `decode_too`, after it.
        """
        edits = {}
        for layer, known in self._sets.items():
            mine = [(row, self._column[one]) for row, one in enumerate(rows) if one and one.layer == layer]
            if mine:
                places = torch.tensor(mine, device=known.indices.device).unbind(-1)
                edits[layer] = partial(self._edit, layer, *places)
        return edits

    def amplify(self, h: Tensor, features: Sequence[Feature]) -> Tensor:
        """h' of residual states h (rows, positions, d) after the block of `features`, one a row.

        The features are of one layer; the first position is the critical one.
        """
        layer = features[0].layer
        columns = [self._column[feature] for feature in features]
        return self._amplify(layer, torch.tensor(columns, device=self._sets[layer].indices.device), h)

    def firing(self, layer: int, h: Tensor, lengths: Sequence[int]) -> list[set[Feature]]:
        """A layer's features that move each row of h (rows, positions, d) at a steered position.

        Those that fire; all where they are clamped. lengths: positions of each row without padding.
        """
        known = self._sets[layer]
        every = [Feature(layer, index) for index in known.indices.tolist()]
        if self.clamped:
            return [set(every) for _ in lengths]
        a = known.encode(h[:, self._steered].to(known.indices.device))  # (rows, steered, features)
        own = torch.arange(a.shape[1]) < torch.tensor(lengths)[:, None]
        fires = ((a > 0).cpu() & own[..., None]).any(1)  # (rows, features)
        return [{feature for feature, on in zip(every, row, strict=True) if on} for row in fires.tolist()]

    def _amplify(self, layer: int, column: Tensor, h: Tensor) -> Tensor:
        known = self._sets[layer]
        a = known.encode_rows(h[:, self._steered].to(known.indices.device), column)  # (rows, steered)
        strength = self._levels[layer][column][:, None] - a if self.clamped else self.scale * a
        influence = strength.unsqueeze(-1) * known.directions[column].unsqueeze(1)
        changed = h.clone()
        changed[:, self._steered] += influence.to(h)
        return changed

    def _edit(self, layer: int, rows: Tensor, column: Tensor, h: Tensor) -> Tensor:
        own, changed = rows.to(h.device), h.clone()
        changed[own] = self._amplify(layer, column, h[own])
        return changed


def _random_like(directions: Tensor, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Random directions of the norms of these (F, d), each by a seed of its own."""
    drawn = [np.random.default_rng(seed).standard_normal(directions.shape[1]) for seed in seeds]
    unit = torch.nn.functional.normalize(torch.tensor(np.array(drawn)), dim=-1).to(directions)
    return unit * directions.norm(dim=-1, keepdim=True)

"""Amplification of features during a forward pass: h' = h + scale * a_i(h) * d_i, one feature a row."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from igds_utils.engine.lm import LM, edited
from igds_utils.engine.sae import Feature, FeatureSet, Saes


class Steering:
    """Amplification of one feature a row: h' = h + scale * a_i(h) * d_i, with a_i read on the current h.

    h is the residual stream after the feature's block; rows without a feature pass unchanged. Clamped, the activation
    is set instead of added to: h' = h + ((1 + scale) * level_i - a_i(h)) * d_i, where the feature is silent too.
    """

    def __init__(
        self,
        saes: Saes | dict,
        features: Sequence[Feature],
        scale: float = 1.0,
        positions: str = "critical_and_decode",
        clamp: Mapping[Feature, float] | None = None,
        random: int | None = None,
    ):
        """features: all that will be amplified. positions: "critical_and_decode" or "critical_only".

        clamp: level of each feature, in units of its activation; none: the influence is added. random: seed of the
        random directions, of the norms of d_i, that stand in place of d_i (a placebo); none: d_i itself.
        """
        self.scale, self.decode_too = scale, positions == "critical_and_decode"
        self._levels: dict[int, Tensor] | None = None if clamp is None else {}
        self._sets, self._column = {}, {}
        for layer in sorted({feature.layer for feature in features}):
            here = sorted({feature.index for feature in features if feature.layer == layer})
            self._sets[layer] = known = FeatureSet(saes[layer], here)
            if random is not None:
                known.directions = _random_like(known.directions, [[random, layer, index] for index in here])
            if clamp is not None:
                levels = [(1 + scale) * clamp[Feature(layer, index)] for index in here]
                self._levels[layer] = torch.tensor(levels, device=known.indices.device)
            self._column |= {Feature(layer, index): column for column, index in enumerate(here)}
        self.assign([])

    def assign(self, rows: Sequence[Feature | None]) -> None:
        """State which feature each row of the next forward pass amplifies."""
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, known in self._sets.items():
            mine = [
                (r, self._column[feature])
                for r, feature in enumerate(rows)
                if feature and feature.layer == layer
            ]
            if mine:
                self._rows[layer] = tuple(torch.tensor(mine, device=known.indices.device).unbind(-1))

    @contextmanager
    def applied(self, lm: LM, first: bool):
        """Amplify during the forward passes made in this context.

        first: whether the pass begins at the critical position; "critical_only" steers that token alone.
        """
        edits = {layer: self._edit(layer, first) for layer in self._rows} if first or self.decode_too else {}
        with edited(lm, edits):
            yield

    def amplify(self, h: Tensor, features: Sequence[Feature]) -> tuple[Tensor, Tensor]:
        """h' of residual states h (rows, positions, d) after the block of `features`, one a row, and where it is moved.

        The features are of one layer; the first position is the critical one. Moved: (rows, steered positions) bool.
        """
        layer = features[0].layer
        device = self._sets[layer].indices.device
        return self._amplify(h, layer, torch.tensor([self._column[one] for one in features], device=device))

    @property
    def layers(self) -> list[int]:
        """Layers of the features, ascending."""
        return list(self._sets)

    def firing(self, layer: int, h: Tensor, lengths: Sequence[int]) -> list[set[Feature]]:
        """The features of a layer that move each row's residual states h (rows, positions, d) at a steered position.

        Those that fire there; all of them where they are clamped. lengths: positions of each row; the rest is padding.
        """
        known, steered = self._sets[layer], slice(None) if self.decode_too else slice(0, 1)
        if self._levels is not None:
            return [{Feature(layer, index) for index in known.indices.tolist()} for _ in lengths]
        a = known.encode(h[:, steered].to(known.indices.device))  # (rows, steered, features)
        own = torch.arange(a.shape[1]) < torch.tensor(lengths)[:, None]
        on = ((a > 0).cpu() & own[..., None]).any(1)  # (rows, features)
        return [{Feature(layer, index) for index in known.indices.cpu()[row].tolist()} for row in on]

    def _amplify(self, h: Tensor, layer: int, column: Tensor) -> tuple[Tensor, Tensor]:
        known, steered = self._sets[layer], slice(None) if self.decode_too else slice(0, 1)
        a = known.encode_rows(h[:, steered].to(known.indices.device), column)  # (rows, steered)
        if self._levels is None:
            strength, moved = self.scale * a, a > 0
        else:
            strength, moved = self._levels[layer][column][:, None] - a, torch.ones_like(a, dtype=torch.bool)
        influence = strength.unsqueeze(-1) * known.directions[column].unsqueeze(1)
        changed = h.clone()
        changed[:, steered] += influence.to(h)
        return changed, moved

    def _edit(self, layer: int, first: bool):
        rows, column = self._rows[layer]

        def edit(h: Tensor) -> Tensor:  # (rows, positions, d)
            own, changed = rows.to(h.device), h.clone()
            changed[own] = self._amplify(h[own], layer, column)[0]
            return changed

        return edit


def _random_like(directions: Tensor, seeds: Sequence[Sequence[int]]) -> Tensor:
    """Random directions of the norms of these (F, d), each by a seed of its own."""
    drawn = [np.random.default_rng(seed).standard_normal(directions.shape[1]) for seed in seeds]
    unit = torch.nn.functional.normalize(torch.tensor(np.array(drawn)), dim=-1).to(directions)
    return unit * directions.norm(dim=-1, keepdim=True)

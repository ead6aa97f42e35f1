"""Amplification of features during a forward pass: h' = h + scale * a_i(h) * d_i, one feature a row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from igds_utils.engine.lm import LM, edited
from igds_utils.engine.sae import Feature, FeatureSet, Saes


class Steering:
    """Amplification of one feature a row: h' = h + scale * a_i(h) * d_i, with a_i read on the current h.

    h is the residual stream after the feature's block; rows without a feature pass unchanged.
    """

    def __init__(
        self,
        saes: Saes | dict,
        features: Sequence[Feature],
        scale: float = 1.0,
        positions: str = "critical_and_decode",
    ):
        """features: all that will be amplified. positions: "critical_and_decode" or "critical_only"."""
        self.scale, self.decode_too = scale, positions == "critical_and_decode"
        self._sets, self._column = {}, {}
        for layer in sorted({feature.layer for feature in features}):
            here = sorted({feature.index for feature in features if feature.layer == layer})
            self._sets[layer] = FeatureSet(saes[layer], here)
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
        """h' of residual states (rows, positions, d) after the block of `features`, one a row, and a_i (rows, steered).

        The features are of one layer; the first position is the critical one.
        """
        known = self._sets[features[0].layer]
        column = torch.tensor([self._column[feature] for feature in features], device=known.indices.device)
        return self._amplify(h, known, column)

    @property
    def layers(self) -> list[int]:
        """Layers of the features, ascending."""
        return list(self._sets)

    def firing(self, layer: int, h: Tensor, lengths: Sequence[int]) -> list[set[Feature]]:
        """The features of a layer that fire at a steered position of each row's residual states h (rows, positions, d).

        lengths: positions of each row; what follows is padding.
        """
        known, steered = self._sets[layer], slice(None) if self.decode_too else slice(0, 1)
        a = known.encode(h[:, steered].to(known.indices.device))  # (rows, steered, features)
        own = torch.arange(a.shape[1]) < torch.tensor(lengths)[:, None]
        on = ((a > 0).cpu() & own[..., None]).any(1)  # (rows, features)
        return [{Feature(layer, index) for index in known.indices.cpu()[row].tolist()} for row in on]

    def _amplify(self, h: Tensor, known: FeatureSet, column: Tensor) -> tuple[Tensor, Tensor]:
        steered = slice(None) if self.decode_too else slice(0, 1)
        a = known.encode_rows(h[:, steered].to(known.indices.device), column)  # (rows, steered)
        influence = self.scale * a.unsqueeze(-1) * known.directions[column].unsqueeze(1)
        changed = h.clone()
        changed[:, steered] += influence.to(h)
        return changed, a

    def _edit(self, layer: int, first: bool):
        known, (rows, column) = self._sets[layer], self._rows[layer]

        def edit(h: Tensor) -> Tensor:  # (rows, positions, d)
            own, changed = rows.to(h.device), h.clone()
            changed[own] = self._amplify(h[own], known, column)[0]
            return changed

        return edit

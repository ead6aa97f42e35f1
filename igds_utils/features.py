"""A feature's place and name, for everything that reads stored results and needs no tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Feature:
    """A feature's place: its layer (decoder block) and its index in that layer's dictionary."""

    layer: int
    index: int

    @property
    def name(self) -> str:
        """The paper's notation, for instance l14_p11575."""
        return f"l{self.layer}_p{self.index}"

    @classmethod
    def parse(cls, name: str) -> Feature:
        layer, index = name.removeprefix("l").split("_p")
        return cls(int(layer), int(index))

"""A feature's place and name, for everything that reads stored results and needs no tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import PROJECT

if TYPE_CHECKING:
    import pandas as pd

    from igds_utils.config.settings import SaeConfig

LAYER_FOLDER = "layer_{:02d}"  # of one layer's SAE, in a folder of SAEs


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


def features_of(table: pd.DataFrame) -> list[Feature]:
    """The features of a table's rows, by its columns layer and feature, in their order."""
    return [
        Feature(int(layer), int(index)) for layer, index in zip(table["layer"], table["feature"], strict=True)
    ]


def described(saes: SaeConfig, layer: int) -> dict[str, Any]:
    """What a folder of SAEs says of the one of a layer, beside its weights."""
    file = PROJECT / saes.name / LAYER_FOLDER.format(layer) / "cfg.json"
    return json.loads(file.read_text(encoding="utf8"))


def neuronpedia_url(saes: SaeConfig, feature: Feature) -> str | None:
    """The feature's page on Neuronpedia, by what sae_lens knows of its SAE; None where there is none."""
    match saes.source:
        case "release":
            from igds_utils.engine.sae import neuronpedia_id

            page = neuronpedia_id(saes, feature)
        case "folder":
            page = described(saes, feature.layer)["metadata"].get("neuronpedia_id")
        case "tiny":
            page = None
    return f"https://www.neuronpedia.org/{page}/{feature.index}" if page else None

"""A feature's place and name, for everything that reads stored results and needs no tensors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import PROJECT
from igds_utils.data.hub import SourceError

if TYPE_CHECKING:
    import pandas as pd

    from igds_utils.config.refs import SaeConfig

LAYER_FOLDER = "layer_{:02d}"  # of one layer's SAE, in a folder of SAEs
OF_LAYER = re.compile(r"(?:layer_|blocks\.)(\d+)(?:\D.*)?")  # layer_03_width_16k, blocks.3.hook_resid_post


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


def sae_folders(saes: SaeConfig) -> dict[int, Path]:
    """Layer -> folder of its SAE, of a folder of SAEs. Raises `SourceError` where there is none, or two of a layer."""
    root, found = PROJECT / Path(saes.name).expanduser(), {}
    for folder in sorted(file.parent for file in root.glob("*/cfg.json")):
        if (named := OF_LAYER.fullmatch(folder.name)) is None:
            continue
        if (layer := int(named[1])) in found:
            raise SourceError(
                f"{root} has two SAEs of layer {layer}, {found[layer].name} and {folder.name}: keep one of them there"
            )
        found[layer] = folder
    if not found:
        raise SourceError(
            f"no SAEs under {root}: one folder a layer is read, named layer_3, layer_03_width_16k or "
            "blocks.3.hook_resid_post, with sae_lens's cfg.json and sae_weights.safetensors in it (`make saes` "
            "trains such)"
        )
    return dict(sorted(found.items()))


@cache
def say_once(text: str) -> None:
    """Print a line once a process."""
    print(text, flush=True)


def described(folder: Path) -> dict[str, Any]:
    """The fields of an SAE's cfg.json, those of its metadata among them, which sae_lens before version 6 had so too."""
    file = folder / "cfg.json"
    try:
        fields = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{file} cannot be read ({error}): save the SAE there with sae_lens again"
        ) from error
    return {**fields, **fields.get("metadata", {})}


def neuronpedia_url(saes: SaeConfig, feature: Feature) -> str | None:
    """The feature's page on Neuronpedia, by what sae_lens knows of its SAE; None where there is none."""
    match saes.source:
        case "release":
            from igds_utils.engine.sae import neuronpedia_id

            page = neuronpedia_id(saes, feature)
        case "folder":
            page = described(sae_folders(saes)[feature.layer]).get("neuronpedia_id")
        case "tiny":
            page = None
    return f"https://www.neuronpedia.org/{page}/{feature.index}" if page else None

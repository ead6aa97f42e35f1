"""Features and their SAEs without weights: names, places, and which SAEs can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igds_utils.config.config import PROJECT
from igds_utils.data.hub import SourceError

if TYPE_CHECKING:
    import pandas as pd

    from igds_utils.config.refs import SaeConfig

LAYER_FOLDER = "layer_{:02d}"  # of one layer's SAE, in a folder of SAEs
OF_LAYER = re.compile(r"(?:layer_|blocks\.)(\d+)(?:\D.*)?")  # layer_03_width_16k, blocks.3.hook_resid_post
# Each token's activations depend on its own residual alone, and none is negative.
ARCHITECTURES = {"standard", "gated", "jumprelu", "topk"}
# After block 3, in the words of TransformerLens and of transformers: blocks.3.hook_resid_post, model.layers.3
AFTER_BLOCK = re.compile(r"blocks\.(\d+)\.hook_resid_post|(?:\w+\.)*layers\.(\d+)")


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
    return [Feature(int(row.layer), int(row.feature)) for row in table.itertuples()]


def sae_folders(saes: SaeConfig) -> dict[int, Path]:
    """Layer -> folder of its SAE. Raises `SourceError` where there is none, or two of a layer."""
    root = PROJECT / Path(saes.name).expanduser()
    folders = [file.parent for file in root.glob("*/cfg.json")]
    found = sorted((int(named[1]), one) for one in folders if (named := OF_LAYER.fullmatch(one.name)))
    for (layer, first), (same, second) in pairwise(found):
        if layer == same:
            both = f"{first.name} and {second.name}"
            raise SourceError(f"{root} has two SAEs of layer {layer}, {both}: keep one of them there")
    if not found:
        raise SourceError(
            f"no SAEs under {root}: it needs sae_lens's folder of each layer, named layer_3, layer_03_width_16k or "
            "blocks.3.hook_resid_post, as `make saes` writes them"
        )
    return dict(found)


def described(folder: Path) -> dict[str, Any]:
    """The fields of an SAE's cfg.json, and of its metadata (before sae_lens 6 among the others)."""
    file = folder / "cfg.json"
    try:
        fields = json.loads(file.read_text(encoding="utf8"))
        return fields | (fields.get("metadata") or {})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{file} cannot be read ({error}): save the SAE there with sae_lens again") from error


def check(fields: Mapping[str, Any], name: str, layer: int | None = None, width: int | None = None) -> None:
    """Raise `SourceError` unless an SAE reads the raw residual stream after a block.

    fields: `described`. layer, width: of the model, where it is to be read.
    """
    hook = str(fields.get("hook_name") or fields.get("hook_point") or "")
    place, d_in = AFTER_BLOCK.fullmatch(hook), fields.get("d_in")
    architecture, normalized = fields.get("architecture", "standard"), fields.get("normalize_activations")
    if (hook and not place) or fields.get("reshape_activations", "none") != "none":
        hook = hook or "attention heads"
        reason = f"reads {hook}: only SAEs of the residual stream after a block are supported"
    elif place and layer not in (None, int(place[1] or place[2])):
        reason = f"reads {hook}: after layer {layer} its features would be numbers without meaning"
    elif width not in (None, d_in):
        reason = f"reads vectors of width {d_in!r}, the model's are {width} wide: give this model's own SAEs"
    elif architecture not in ARCHITECTURES:
        reason = f"has the architecture {architecture}: {', '.join(sorted(ARCHITECTURES))} are read; the inference "
        reason += "form of a BatchTopK or Matryoshka training is a jumprelu: save it with save_inference_model"
    elif normalized not in (None, False, "none"):
        reason = f"expects normalized activations ({normalized}): only SAEs of the raw residual are supported; "
        reason += "sae_lens folds a constant scale (fold_activation_norm_scaling_factor)"
    elif fields.get("finetuning_scaling_factor"):
        reason = "has a finetuning scale: multiply the rows of W_dec by it, and remove it from cfg.json"
    else:
        return
    raise SourceError(f"the SAE {name} {reason}")


def sae_release(name: str):
    """What sae_lens knows of a release: its `repo_id`, and facts of each SAE by its id."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    if known := get_pretrained_saes_directory().get(name):
        return known
    raise SourceError(f"sae_lens knows no release {name!r}")


def release_ids(config: SaeConfig, n_layers: int) -> dict[int, str]:
    """Layer -> sae_lens id of a release's SAEs of one kind: `config.id`, or the only one."""
    ids = sae_release(config.name).saes_map
    kinds = [config.id] if config.id else sorted({re.sub(r"\d+", "{layer}", i, count=1) for i in ids})
    if len(kinds) > 1:
        raise SourceError(
            f"{config.name} has several SAEs a layer: name one with `saes.id`, for instance {', '.join(kinds[:6])}"
        )
    named = {layer: kinds[0].replace("{layer}", str(layer)) for layer in range(n_layers)}
    found = {layer: sae_id for layer, sae_id in named.items() if sae_id in ids}
    if not found:
        raise SourceError(f"{config.name} has no SAE {kinds[0]!r}; its first are {', '.join(list(ids)[:4])}")
    return found


def neuronpedia_url(saes: SaeConfig, feature: Feature) -> str | None:
    """The feature's page on Neuronpedia, by what sae_lens knows of its SAE; None where there is none."""
    page = None
    if saes.source == "release":
        sae_id = release_ids(saes, feature.layer + 1).get(feature.layer)
        page = sae_release(saes.name).neuronpedia_id.get(sae_id)
    elif saes.source == "folder":
        page = described(sae_folders(saes)[feature.layer]).get("neuronpedia_id")
    return f"https://www.neuronpedia.org/{page}/{feature.index}" if page else None

"""Sparse autoencoders through sae_lens: one a layer, and the few features of one that are read or amplified.

Notation (method section of the paper): z = SAE_enc(h) in R^M; a_i(h) is the i-th activation; d_i the direction that
one unit of it adds to the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from igds_utils import tiny
from igds_utils.config import PROJECT, SaeConfig
from igds_utils.hub import SourceError

LAYER_FOLDER = "layer_{:02d}"
# Architectures whose feature i depends on encoder column i alone; for others the whole encoder decides.
ONE_COLUMN = {"jumprelu", "standard"}


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


class Saes:
    """The SAEs of one model, loaded when asked for; at most one is in memory at a time."""

    def __init__(self, config: SaeConfig, n_layers: int, width: int, device: torch.device | str = "cpu"):
        """n_layers, width: of the model, against which the SAEs are checked."""
        self.config, self.width, self.device = config, width, device
        covered = self._covered(n_layers)
        self.layers = covered if config.layers == "all" else sorted(config.layers)
        if missing := sorted(set(self.layers) - set(covered)):
            raise SourceError(f"no SAE of {config.name} for layers {missing}; there are {covered}")
        self._loaded: tuple[int, object] | None = None

    def _covered(self, n_layers: int) -> list[int]:
        match self.config.source:
            case "tiny":
                return list(range(n_layers))
            case "folder":
                folder = PROJECT / self.config.name
                found = sorted(int(path.name.removeprefix("layer_")) for path in folder.glob("layer_*"))
                if not found:
                    raise SourceError(f"no SAEs under {folder}: train them with `make saes`")
                return [layer for layer in found if layer < n_layers]
            case "release":
                return sorted(layer for layer in self._release_ids() if layer < n_layers)

    def _release_ids(self) -> dict[int, str]:
        """Layer -> sae_lens id of every residual-stream SAE of the release."""
        import re

        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        directory = get_pretrained_saes_directory()
        if self.config.name not in directory:
            raise SourceError(f"sae_lens knows no release {self.config.name!r}")
        ids = directory[self.config.name].saes_map
        return {int(found.group(1)): sae_id for sae_id in ids if (found := re.search(r"(?:layer_|layers\.|^l)(\d+)", sae_id))}

    def __getitem__(self, layer: int):
        """The sae_lens SAE of a layer, fp32, inference form."""
        if self._loaded is None or self._loaded[0] != layer:
            self._loaded = (layer, self._load(layer))
        return self._loaded[1]

    def _load(self, layer: int):
        if self.config.source == "tiny":
            return tiny.sae(seed=layer, width=self.width)
        from sae_lens import SAE

        if self.config.source == "folder":
            return load_folder(PROJECT / self.config.name / LAYER_FOLDER.format(layer), self.device)
        return _checked(SAE.from_pretrained(self.config.name, self._release_ids()[layer], device=str(self.device)), self.config.name)

    @property
    def d_sae(self) -> int:
        return self[self.layers[0]].cfg.d_sae


def load_folder(folder: Path, device: torch.device | str = "cpu"):
    """Read an SAE that sae_lens saved, in fp32 whatever its stored precision."""
    from sae_lens import SAE

    if not folder.is_dir():
        raise SourceError(f"no SAE in {folder}")
    sae = SAE.load_from_disk(folder, device=str(device), dtype="float32")
    return _checked(sae, folder.name)


def _checked(sae, name: str):
    """Refuse formats in which a feature's direction depends on the token it is read at."""
    if sae.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
        raise SourceError(f"SAE {name} normalizes every token ({sae.cfg.normalize_activations}), which is not supported")
    return sae.to(torch.float32).eval()


class FeatureSet:
    """Some features of one SAE: enough to read and to amplify them without keeping the whole SAE."""

    def __init__(self, sae, indices: Sequence[int]):
        self.indices = torch.as_tensor(list(indices), dtype=torch.long, device=sae.W_dec.device)
        self.directions = directions(sae, self.indices)  # (F, d)
        self._sae = None if sae.cfg.architecture() in ONE_COLUMN else sae
        with torch.inference_mode():
            self._columns = sae.W_enc[:, self.indices].clone()  # (d, F)
            offset = (sae.b_dec * sae.cfg.apply_b_dec_to_input) @ self._columns
            bias = getattr(sae, "b_enc", torch.zeros(sae.cfg.d_sae, device=sae.W_dec.device))
            self._bias = bias[self.indices] - offset
            threshold = getattr(sae, "threshold", torch.zeros_like(bias))
            self._threshold = threshold[self.indices].clamp(min=0)

    def encode(self, h: Tensor) -> Tensor:
        """Activations a_i(h) of the set's features: (..., d) -> (..., F)."""
        if self._sae is not None:
            return self._sae.encode(h)[..., self.indices]
        pre = h.float() @ self._columns + self._bias
        return pre * (pre > self._threshold)

    def encode_rows(self, h: Tensor, which: Tensor) -> Tensor:
        """Activation of one feature a row: h (rows, positions, d), which (rows,) -> (rows, positions).

        `which` counts within the set, so row r reads feature `indices[which[r]]`.
        """
        if self._sae is not None:
            picked = self.indices[which][:, None, None].expand(-1, h.shape[1], 1)
            return self._sae.encode(h).gather(-1, picked).squeeze(-1)
        pre = torch.einsum("rtd,dr->rt", h.float(), self._columns[:, which]) + self._bias[which][:, None]
        return pre * (pre > self._threshold[which][:, None])


def directions(sae, indices: Tensor) -> Tensor:
    """What one unit of each feature adds to the residual stream: (F,) -> (F, d).

    Taken from the decoder itself, decode(e_i) - decode(0), so that a_i d_i = decode(z with a_i doubled) - decode(z)
    under every convention of scales (folded or unfolded decoder norms).
    """
    with torch.inference_mode():
        units = torch.zeros(len(indices), sae.cfg.d_sae, device=sae.W_dec.device)
        units[torch.arange(len(indices)), indices] = 1.0
        return sae.decode(units) - sae.decode(torch.zeros_like(units[:1]))

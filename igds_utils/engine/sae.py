"""Sparse autoencoders through sae_lens: one a layer, and the few features of one that are read or amplified.

Notation (method section of the paper): z = SAE_enc(h) in R^M; a_i(h) is the i-th activation; d_i the direction that
one unit of it adds to the residual stream.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from torch import Tensor

from igds_utils.config.config import PROJECT
from igds_utils.config.settings import SaeConfig
from igds_utils.data.hub import SourceError
from igds_utils.data.huggingface import fetched
from igds_utils.engine import tiny
from igds_utils.engine.features import LAYER_FOLDER, Feature, described

# Architectures whose feature i depends on encoder column i alone; for others the whole encoder decides.
ONE_COLUMN = {"jumprelu", "standard"}


class Saes:
    """The SAEs of one model, loaded when asked for; at most one is in memory at a time."""

    def __init__(self, config: SaeConfig, n_layers: int, width: int, device: torch.device | str = "cpu"):
        """n_layers, width: of the model, against which the SAEs are checked."""
        self.config, self.width, self.device = config, width, device
        self._ids = release_ids(config, n_layers) if config.source == "release" else {}
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
                found = sorted(int(path.name.removeprefix("layer_")) for path in folder.glob("layer_*/"))
                if not found:
                    raise SourceError(f"no SAEs under {folder}: train them with `make saes`")
                return [layer for layer in found if layer < n_layers]
            case "release":
                return list(self._ids)

    def __getitem__(self, layer: int):
        """The sae_lens SAE of a layer, fp32, inference form."""
        if self._loaded is None or self._loaded[0] != layer:
            self._loaded = None  # let go of the last one before the next is read: they are large
            sae = self._load(layer)
            if sae.cfg.d_in != self.width:
                raise SourceError(
                    f"the SAE of layer {layer} of {self.config.name} reads vectors of width {sae.cfg.d_in}, "
                    f"the model's are {self.width} wide: give this model's own SAEs in `saes`"
                )
            self._loaded = (layer, sae)
        return self._loaded[1]

    def _load(self, layer: int):
        if layer not in self.layers:
            raise SourceError(f"no SAE of {self.config.name} for layer {layer}; there are {self.layers}")
        match self.config.source:
            case "tiny":
                return tiny.sae(seed=layer, width=self.width).requires_grad_(False).to(self.device)
            case "folder":
                return load_folder(PROJECT / self.config.name / LAYER_FOLDER.format(layer), self.device)
            case "release":
                return load_release(self.config.name, self._ids[layer], self.device)

    def drop(self) -> None:
        """Let go of the SAE in memory; the next one asked for is read again."""
        self._loaded = None

    @property
    def one_column(self) -> bool:
        """Whether one encoder column gives a feature's activation, or the whole encoder must be kept to read it."""
        return self[self.layers[0]].cfg.architecture() in ONE_COLUMN

    @property
    def d_sae(self) -> int:
        """Features of one SAE; a folder says it beside the weights, which need not be read for it."""
        if self.config.source == "folder":
            return described(self.config, self.layers[0])["d_sae"]
        return self[self.layers[0]].cfg.d_sae


def release_ids(config: SaeConfig, n_layers: int) -> dict[int, str]:
    """Layer -> sae_lens id of a release's SAEs, of one kind: `config.id`, or the only kind that there is."""
    ids = _release(config.name).saes_map
    kinds = [config.id] if config.id else sorted({re.sub(r"\d+", "{layer}", i, count=1) for i in ids})
    if len(kinds) > 1:
        raise SourceError(
            f"{config.name} has several SAEs a layer: name one with `saes.id`, "
            f"for instance {', '.join(kinds[:6])}"
        )
    named = {layer: kinds[0].replace("{layer}", str(layer)) for layer in range(n_layers)}
    if not any(sae_id in ids for sae_id in named.values()):
        raise SourceError(f"{config.name} has no SAE {kinds[0]!r}; its first are {', '.join(list(ids)[:4])}")
    return {layer: sae_id for layer, sae_id in named.items() if sae_id in ids}


def neuronpedia_id(config: SaeConfig, feature: Feature) -> str | None:
    """What Neuronpedia calls the SAE of a feature of a release, as far as sae_lens knows it."""
    sae_id = release_ids(config, feature.layer + 1).get(feature.layer)
    return _release(config.name).neuronpedia_id.get(sae_id)


def repository(release: str) -> str:
    """The repository of the hub that holds a release's SAEs."""
    return _release(release).repo_id


def _release(name: str):
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if name not in directory:
        raise SourceError(f"sae_lens knows no release {name!r}")
    return directory[name]


def load_folder(folder: Path, device: torch.device | str = "cpu"):
    """Read an SAE that sae_lens saved, in fp32 whatever its stored precision."""
    from sae_lens import SAE

    if not folder.is_dir():
        raise SourceError(f"no SAE in {folder}")
    sae = SAE.load_from_disk(folder, device=str(device), dtype="float32")
    return _checked(sae, folder.name)


def load_release(release: str, sae_id: str, device: torch.device | str = "cpu"):
    """Read one SAE of a sae_lens release, in fp32, from the hub or its cache."""
    from sae_lens import SAE

    place, name = repository(release), f"{sae_id} of {release}"
    try:
        # read beside the model's memory: converting a file takes that of three SAEs (6 GB of Qwen-Scope's)
        sae = fetched(place, lambda: SAE.from_pretrained(release, sae_id, device="cpu"))
    except (SafetensorError, BadZipFile, EOFError, RuntimeError) as error:
        if isinstance(error, SourceError | torch.OutOfMemoryError):
            raise
        raise SourceError(
            f"the file of SAE {name} cannot be read ({str(error).splitlines()[0]}): remove {place} from the "
            "hub's cache (`hf cache delete`), and it is fetched anew"
        ) from error
    return _checked(sae, name).to(device)


def _checked(sae, name: str):
    """Refuse formats that do not read the raw residual, or whose directions depend on the token they are read at."""
    if sae.cfg.normalize_activations != "none":
        raise SourceError(
            f"SAE {name} expects normalized activations ({sae.cfg.normalize_activations}): only SAEs of the raw "
            "residual are supported; sae_lens folds a constant scale (fold_activation_norm_scaling_factor)"
        )
    hook = sae.cfg.metadata.hook_name or ""
    if "hook_" in hook and not hook.endswith("hook_resid_post"):
        raise SourceError(
            f"SAE {name} reads {hook}: only SAEs of the residual stream after a block are supported"
        )
    return sae.to(torch.float32).requires_grad_(False).eval()


class FeatureSet:
    """Some features of one SAE: enough to read and to amplify them without keeping the whole SAE."""

    def __init__(self, sae, indices: Sequence[int]):
        self.indices = torch.as_tensor(list(indices), dtype=torch.long, device=sae.W_dec.device)
        self.directions = directions(sae, self.indices)  # (F, d)
        self._sae = None if sae.cfg.architecture() in ONE_COLUMN else _encoder(sae)
        if self._sae is not None:
            return
        with torch.no_grad():
            self._columns = sae.W_enc[:, self.indices].clone()  # (d, F)
            offset = (sae.b_dec * sae.cfg.apply_b_dec_to_input) @ self._columns
            self._bias = sae.b_enc[self.indices] - offset
            threshold = getattr(sae, "threshold", torch.zeros_like(sae.b_enc))
            self._threshold = threshold[self.indices].clamp(min=0)

    @torch.no_grad()
    def encode(self, h: Tensor) -> Tensor:
        """Activations a_i(h) of the set's features: (..., d) -> (..., F)."""
        if self._sae is not None:
            return self._sae.encode(h)[..., self.indices]
        pre = h.float() @ self._columns + self._bias
        return pre * (pre > self._threshold)

    @torch.no_grad()
    def encode_rows(self, h: Tensor, which: Tensor) -> Tensor:
        """Activation of one feature a row: h (rows, positions, d), which (rows,) -> (rows, positions).

        `which` counts within the set, so row r reads feature `indices[which[r]]`.
        """
        if self._sae is not None:
            picked = self.indices[which][:, None, None].expand(-1, h.shape[1], 1)
            return self._sae.encode(h).gather(-1, picked).squeeze(-1)
        pre = torch.einsum("rtd,dr->rt", h.float(), self._columns[:, which]) + self._bias[which][:, None]
        return pre * (pre > self._threshold[which][:, None])


def _encoder(sae):
    """The SAE without its decoder, half of its memory, where encoding does not need that."""
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return sae
    half = copy.copy(sae)
    half._parameters = {**sae._parameters, "W_dec": None}
    return half


def directions(sae, indices: Tensor) -> Tensor:
    """What one unit of each feature adds to the residual stream: (F,) -> (F, d).

    Taken from the decoder itself, decode(e_i) - decode(0), so that a_i d_i = decode(z with a_i doubled) - decode(z)
    under every convention of scales (folded or unfolded decoder norms).
    """
    with torch.no_grad():
        units = torch.zeros(len(indices), sae.cfg.d_sae, device=sae.W_dec.device)
        units[torch.arange(len(indices)), indices] = 1.0
        return sae.decode(units) - sae.decode(torch.zeros_like(units[:1]))

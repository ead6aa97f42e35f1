"""Sparse autoencoders through sae_lens, and the few features that are read or amplified.

Notation of the paper: z = SAE_enc(h) in R^M; a_i(h) is the i-th activation; d_i the direction
that one unit of it adds to the residual stream.
"""

import copy
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from igds_utils import tiny
from igds_utils.config.refs import SaeConfig
from igds_utils.data.hub import SourceError, fetched
from igds_utils.engine.features import Feature as Feature
from igds_utils.engine.features import check, described, release_ids, sae_folders, sae_release
from igds_utils.engine.loading import readable

# Architectures whose feature i depends on encoder column i alone; for others the whole encoder decides.
ONE_COLUMN = {"jumprelu", "standard"}
# sae_lens's names of OpenMOSS's formats -> the file of a layer that holds its settings
OPENMOSS = {"llama_scope": "hyperparams.json", "llama_scope_r1_distill": "config.json"}
NO_SAE = "holds no SAE in the inference form that sae_lens saves"


class Saes:
    """The SAEs of one model, loaded when asked for; at most one is in memory at a time.

    n_layers, width: of the model, against which the SAEs are checked; those of a folder at once.
    """

    def __init__(self, config: SaeConfig, n_layers: int, width: int, device: torch.device | str = "cpu"):
        self.config, self.width, self.device = config, width, device
        self._loaded: dict[int, Any] = {}
        match config.source:  # layer -> where its SAE is
            case "tiny":
                self._places = dict.fromkeys(range(n_layers))
            case "folder":
                self._places = {n: folder for n, folder in sae_folders(config).items() if n < n_layers}
            case "release":
                self._places = release_ids(config, n_layers)
        self.layers = list(self._places) if config.layers == "all" else sorted(config.layers)
        if missing := sorted(set(self.layers) - set(self._places)):
            raise SourceError(f"no SAE of {config.name} for layers {missing}; there are {list(self._places)}")
        for layer in self.layers if config.source == "folder" else ():
            folder = self._places[layer]
            check(described(folder), f"{folder.name} of {config.name}", layer, width)
            _check_shapes(folder)

    def __getitem__(self, layer: int):
        """The sae_lens SAE of a layer, fp32, inference form."""
        if layer not in self.layers:
            raise SourceError(f"no SAE of {self.config.name} for layer {layer}; there are {self.layers}")
        if layer not in self._loaded:
            self.drop()  # before the next is read: they are large
            self._loaded[layer] = self._load(layer, self._places[layer])
        return self._loaded[layer]

    def _load(self, layer: int, place: Path | str | None):
        match self.config.source:
            case "tiny":
                return _still(tiny.sae(seed=layer, width=self.width), self.device)
            case "folder":
                return load_folder(place, self.device)
            case "release":
                sae = load_release(self.config.name, place, self.device)
                fields = sae.cfg.to_dict()
                check({**fields, **fields["metadata"]}, f"{place} of {self.config.name}", layer, self.width)
                return sae

    def stated_l0(self, layer: int) -> float | None:
        """Features that fire on a token of ordinary text, if the SAE's release states it."""
        if self.config.source != "release":
            return None
        release, sae_id = sae_release(self.config.name), self._places[layer]
        in_path = re.search(r"l0_(\d+)", release.saes_map[sae_id])
        return release.expected_l0[sae_id] or (float(in_path[1]) if in_path else None)

    def drop(self) -> None:
        """Unload the SAE in memory; the next one asked for is read again."""
        self._loaded.clear()

    @property
    def one_column(self) -> bool:
        """Whether one encoder column gives a feature's activation."""
        return self[self.layers[0]].cfg.architecture() in ONE_COLUMN

    @property
    def d_sae(self) -> int:
        """Features of one SAE; a folder says it beside the weights, which need not be read for it."""
        first = self.layers[0]
        return described(self._places[first])["d_sae"] if self.config.source == "folder" else self[first].cfg.d_sae


def load_folder(folder: Path, device: torch.device | str = "cpu"):
    """Read an SAE that sae_lens saved, in fp32; `SourceError` where it cannot be read."""
    from sae_lens import SAE

    with readable(f"{folder} {NO_SAE}"):
        return _still(SAE.load_from_disk(folder, device=str(device), dtype="float32"), device)


def load_release(release: str, sae_id: str, device: torch.device | str = "cpu"):
    """Read one SAE of a sae_lens release, in fp32, from the hub or its cache."""
    from sae_lens import SAE

    place = sae_release(release).repo_id
    # read beside the model's memory: converting a file takes that of three SAEs (6 GB of Qwen-Scope's)
    options = {"device": "cpu", "converter": _converter(release)}
    mend = f"remove {place} from the hub's cache (`hf cache delete`), and it is fetched anew"
    with readable(f"the file of SAE {sae_id} of {release} cannot be read: {mend}"):
        return _still(fetched(place, lambda: SAE.from_pretrained(release, sae_id, **options)), device)


def _check_shapes(folder: Path) -> None:
    """Raise `SourceError` unless the weights' header has the shapes that cfg.json says."""
    with readable(f"{folder} {NO_SAE}"), safe_open(folder / "sae_weights.safetensors", "pt") as file:
        d_in, d_sae = (described(folder)[name] for name in ("d_in", "d_sae"))
        for name, expected in {"W_enc": [d_in, d_sae], "W_dec": [d_sae, d_in]}.items():
            if (shape := file.get_slice(name).get_shape()) != expected:
                raise ValueError(f"{name} has the shape {shape}, by cfg.json {expected}")


def _converter(release: str):
    """sae_lens's reader of OpenMOSS's releases with the thresholds of OpenMOSS's own; None for those of others.

    Feature i of Llama Scope fires where (s W_i h + b_i) ||d_i|| > s t: t is `jump_relu_threshold`,
    ||d_i|| the norm of its stored decoder row, s = sqrt(d) / the dataset's mean ||h||. sae_lens
    folds s and leaves ||d_i|| out, so t becomes t / ||d_i|| (`sparsity_include_decoder_norm`).
    """
    from huggingface_hub import hf_hub_download
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    kind = sae_release(release).conversion_func
    if kind not in OPENMOSS:
        return None

    def read(repo_id: str, folder_name: str, **options: Any):
        cfg, weights, sparsity = NAMED_PRETRAINED_SAE_LOADERS[kind](repo_id, folder_name, **options)
        settings = Path(hf_hub_download(repo_id, f"{folder_name}/{OPENMOSS[kind]}"))
        if json.loads(settings.read_text(encoding="utf8")).get("sparsity_include_decoder_norm", True):
            weights["threshold"] = weights["threshold"] / weights["W_dec"].norm(dim=1)
            told = "thresholds are divided by decoder norms, as by OpenMOSS and not by sae_lens"
            warnings.warn(f"{release}: {told}", stacklevel=2)
        return cfg, weights, sparsity

    return read


def _still(sae, device: torch.device | str):
    return sae.to(torch.float32).requires_grad_(False).eval().to(device)


@torch.inference_mode()
def unexplained(sae, acts: Tensor, chunk: int = 4096) -> float:
    """FVU = sum ||h - SAE(h)||^2 / sum ||h - mean(h)||^2 over residuals (tokens, width)."""
    mean = (sum(part.double().sum(0) for part in acts.split(chunk)) / len(acts)).to(sae.device)
    error = variance = 0.0
    for part in acts.split(chunk):
        h = part.float().to(sae.device)
        error += (h - sae(h)).square().sum().item()
        variance += (h - mean).square().sum().item()
    return error / variance if variance else float("nan")


class FeatureSet:
    """What it takes to read and to amplify some features of one SAE."""

    @torch.no_grad()
    def __init__(self, sae, indices: Sequence[int]):
        self.indices = torch.as_tensor(list(indices), dtype=torch.long, device=sae.W_dec.device)
        self.directions = directions(sae, self.indices)  # (F, d)
        self._sae = None
        if sae.cfg.architecture() not in ONE_COLUMN:
            self._sae = copy.copy(sae)
            if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
                # encoding does not need the decoder, which is half of the memory
                self._sae._parameters = {**sae._parameters, "W_dec": None}
            return
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
        """a of feature `indices[which[r]]` in row r: h (rows, positions, d) -> (rows, positions)."""
        if self._sae is not None:
            picked = self.indices[which][:, None, None].expand(-1, h.shape[1], 1)
            return self._sae.encode(h).gather(-1, picked).squeeze(-1)
        pre = torch.einsum("rtd,dr->rt", h.float(), self._columns[:, which]) + self._bias[which][:, None]
        return pre * (pre > self._threshold[which][:, None])


@torch.no_grad()
def directions(sae, indices: Tensor) -> Tensor:
    """What one unit of each feature adds to the residual stream: (F,) -> (F, d).

    It is decode(e_i) - decode(0), so a_i d_i = decode(z with a_i doubled) - decode(z).
    """
    units = torch.zeros(len(indices), sae.cfg.d_sae, device=sae.W_dec.device)
    units[torch.arange(len(indices)), indices] = 1.0
    return sae.decode(units) - sae.decode(torch.zeros_like(units[:1]))

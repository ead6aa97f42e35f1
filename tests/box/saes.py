"""The three formats of the paper's SAEs, with widths and names as sae_lens expects them.

Most weights are zero, or windows on one short random vector, so a file is small whatever its shape.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from box.models import LAYERS, config

ALIVE = 48  # features of a Gemma Scope dictionary that ever fire
GEMMA = (2304, 16384)
QWEN = (4096, 65536)


def gemma_scope(folder: Path) -> None:
    """layer_N/width_16k/average_l0_M/params.npz, JumpReLU with a threshold a feature."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    ids = get_pretrained_saes_directory()["gemma-scope-2b-pt-res-canonical"].saes_map
    width, size = GEMMA
    for layer in range(LAYERS["gemma2"]):
        random = np.random.default_rng(layer)
        encoder, decoder = np.zeros((width, size), np.float32), np.zeros((size, width), np.float32)
        encoder[:, :ALIVE] = random.standard_normal((width, ALIVE)) / width**0.5
        rows = random.standard_normal((ALIVE, width))
        decoder[:ALIVE] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        place = folder / ids[f"layer_{layer}/width_16k/canonical"]
        place.mkdir(parents=True)
        biases = {
            "b_enc": np.zeros(size, np.float32),
            "b_dec": random.standard_normal(width).astype(np.float32) * 0.1,
            "threshold": np.full(size, 0.2, np.float32),
        }
        np.savez_compressed(place / "params.npz", W_enc=encoder, W_dec=decoder, **biases)


def llama_scope(folder: Path) -> None:
    """hyperparams.json and checkpoints/final.safetensors, inputs scaled to sqrt(d).

    As in the true files the decoder's norms differ, and the threshold is one for all features, in units of the raw
    residual.
    """
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release = get_pretrained_saes_directory()["llama_scope_lxr_8x"]
    width = config("llama").hidden_size
    for layer in range(LAYERS["llama"]):
        generator = torch.Generator().manual_seed(layer)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731, B023
        sae_id = f"l{layer}r_8x"
        place = folder / release.saes_map[sae_id]
        (place / "checkpoints").mkdir(parents=True)
        norm = width**0.5 / release.norm_scaling_factor[sae_id]
        hyperparams = {
            "hook_point_in": f"blocks.{layer}.hook_resid_post",
            "hook_point_out": f"blocks.{layer}.hook_resid_post",
            "d_model": width,
            "d_sae": 8 * width,
            "expansion_factor": 8,
            "act_fn": "jumprelu",
            "jump_relu_threshold": 0.01,
            "norm_activation": "dataset-wise",
            "dataset_average_activation_norm": {"in": norm, "out": norm},
            "sparsity_include_decoder_norm": True,
            "apply_decoder_bias_to_pre_encoder": False,
            "dtype": "torch.bfloat16",
        }
        (place / "hyperparams.json").write_text(json.dumps(hyperparams))
        weights = {
            "encoder.weight": draw(8 * width, width) / width**0.5,
            "encoder.bias": draw(8 * width) * 0.1,
            "decoder.weight": torch.nn.functional.normalize(draw(width, 8 * width), dim=0)
            * torch.linspace(0.8, 1.2, 8 * width),
            "decoder.bias": draw(width) * 0.1,
        }
        weights = {name: value.bfloat16().contiguous() for name, value in weights.items()}
        save_file(weights, place / "checkpoints/final.safetensors")


def qwen_scope(folder: Path) -> None:
    """layerN.sae.pt with (features, width) encoder and TopK of 50."""
    width, size = QWEN
    for layer in range(LAYERS["qwen3"]):
        generator = torch.Generator().manual_seed(layer)
        vectors = torch.randn(2, size + width, generator=generator)
        bias = torch.zeros(size)
        bias[:24] = 20.0  # these are among the 50 largest wherever they are read
        torch.save(
            {
                # feature i reads the window that begins at i: all differ, one vector is stored
                "W_enc": vectors[0].mul(0.02).as_strided((size, width), (1, 1)),
                "W_dec": vectors[1].mul(0.02).as_strided((width, size), (1, 1)),
                "b_enc": bias,
                "b_dec": torch.randn(width, generator=generator) * 0.1,
            },
            folder / f"layer{layer}.sae.pt",
        )


SAES = {
    "google/gemma-scope-2b-pt-res": gemma_scope,
    "fnlp/Llama3_1-8B-Base-LXR-8x": llama_scope,
    "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50": qwen_scope,
}

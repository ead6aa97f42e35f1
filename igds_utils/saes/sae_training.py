"""Training sparse autoencoders (SAEs) on captured residuals with sae_lens, and writing them in 16 bit.

`notebooks/00_sae_training.ipynb` runs it (`make saes`): corpus and capture (sae_corpus), training and export (here),
and what came out of it (sae_quality).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from igds_utils.config.refs import Strict
from igds_utils.data import hub
from igds_utils.saes.sae_corpus import Captured

L0_LOSS = "quadratic"  # of jumprelu, as Gemma Scope 2: the weight of L0 itself ("step") does nothing above about 0.1


class Recipe(Strict):
    """How one SAE is trained (sae_lens: architecture, loss, trainer)."""

    architecture: Literal["batchtopk", "jumprelu"] = "batchtopk"
    features: int = Field(description="dictionary size M")
    passes: float = Field(2.0, description="how often each captured token is used")
    batch: int = Field(1024, description="tokens of one training step")
    lr: float = 8e-4
    warmup_steps: int = 20
    dead_after: int = Field(
        200, description="steps without firing after which a feature counts as dead in training"
    )
    k: float = Field(
        32, gt=0, description="active features a token, on average (jumprelu: the aim of the loss)"
    )
    l0_coefficient: float = Field(
        1.0, gt=0, description="jumprelu: weight of 2 (L0 - k)^2 / k; a larger one holds L0 nearer to k"
    )
    l0_warmup_steps: int = Field(0, description="jumprelu: steps over which that weight grows from zero")
    seed: int = 0


def train(captured: Captured, layer: int, recipe: Recipe, model_name: str, root: Path) -> Path:
    """Train one SAE and return the folder with its inference form (JumpReLU, fp32) and `curve.json`.

    The inputs are scaled to a mean norm of sqrt(width) while training; the scale (for batchtopk also the norms of the
    decoder's directions) is folded into the weights at the end, so the saved SAE reads raw residuals. An SAE that was
    finished before is not trained again.
    """
    source = captured.shards[0].parent.name  # a hash of the texts, the model and the layers
    made_from = [source, captured.sink_factor, layer, recipe.model_dump_json()]
    if recipe.architecture == "jumprelu":  # one of the same recipe under another loss is another SAE
        made_from.append(L0_LOSS)
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return hub.whole(root / key, lambda new: _train(captured.load(layer)[0], layer, recipe, model_name, new))


def _train(acts: Tensor, layer: int, recipe: Recipe, model_name: str, folder: Path) -> None:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed + layer)
    width, steps = acts.shape[1], int(recipe.passes * len(acts)) // recipe.batch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sae = _new_sae(recipe, width, device)
    settings = SAETrainerConfig(
        total_training_samples=steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr,
        lr_warm_up_steps=recipe.warmup_steps,
        lr_decay_steps=steps // 3,
        dead_feature_window=recipe.dead_after,
        device=device,
    )
    trainer = SAETrainer(settings, sae, _minibatches(acts, recipe.batch, recipe.seed))
    mean, mean_norm, variance = _statistics(acts)
    trainer.activation_scaler.scaling_factor = scale = width**0.5 / mean_norm
    sae.b_dec.data = (mean * scale).to(device)
    curve = []
    for step in (bar := tqdm(range(steps), desc=f"train layer {layer}", unit="step", mininterval=5)):
        output = trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        if step % 10 == 0:
            fvu = output.losses["mse_loss"].item() / (variance * scale**2)
            curve.append(
                {
                    "step": step,
                    "loss": output.loss.item(),
                    "fvu": fvu,
                    "dead": int(trainer.dead_neurons.sum()),
                }
            )
            bar.set_postfix(fvu=f"{fvu:.3f}", dead=curve[-1]["dead"])
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = model_name, f"blocks.{layer}.hook_resid_post"
    sae.cfg.device = "cpu"
    sae.save_inference_model(folder)
    (folder / "curve.json").write_text(json.dumps(curve), encoding="utf8")


def _new_sae(recipe: Recipe, width: int, device: str):
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
    )

    shared = {
        "d_in": width,
        "d_sae": recipe.features,
        "device": device,
        "normalize_activations": "expected_average_only_in",
    }
    if recipe.architecture == "batchtopk":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared, k=recipe.k))
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **shared,
            jumprelu_sparsity_loss_mode=L0_LOSS,
            target_l0=recipe.k,
            l0_coefficient=recipe.l0_coefficient,
            l0_warm_up_steps=recipe.l0_warmup_steps,
        )
    )


def _minibatches(acts: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches (size, width) in fp32, every token once a pass, in a new order each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(acts), generator=generator)
        for start in range(0, len(acts) - size + 1, size):
            yield acts[order[start : start + size]].float()


def _statistics(acts: Tensor) -> tuple[Tensor, float, float]:
    """Mean (width,), mean norm, and mean squared distance from the mean of residuals (tokens, width)."""
    total, norm, square = torch.zeros(acts.shape[1], dtype=torch.float64), 0.0, 0.0
    for chunk in acts.split(16384):
        norms = torch.linalg.vector_norm(chunk.float(), dim=1).double()
        total += chunk.double().sum(0)
        norm += norms.sum().item()
        square += norms.square().sum().item()
    mean = total / len(acts)
    return mean.float(), norm / len(acts), square / len(acts) - mean.square().sum().item()


def export(trained: Path, folder: Path, dtype: Literal["float16", "bfloat16", "float32"]) -> Path:
    """Write a trained SAE to `folder` with its matrices in `dtype`; `SAE.load_from_disk(folder)` reads it in fp32.

    Biases and thresholds stay in fp32: they are small, and a threshold rounded up silences its feature.
    """
    weights = load_file(trained / "sae_weights.safetensors")
    weights = {
        name: (w.to(getattr(torch, dtype)) if w.dim() > 1 else w.float()) for name, w in weights.items()
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hub.temporary_folder(folder) as new:
        save_file(weights, new / "sae_weights.safetensors")
        (new / "cfg.json").write_text((trained / "cfg.json").read_text(encoding="utf8"), encoding="utf8")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return folder

"""Gradient features of samples under a LoRA warm-up, for LESS-style influence (arXiv 2402.04333).

LoRA on the attention projections is trained on a few pool samples; at the end of every epoch each sample's gradient is
read, turned into the step that Adam would take (pool) or left as it is (target examples), and projected at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from igds_utils.config.settings import LessConfig
from igds_utils.engine.batching import even_chunks, pad, token_batches
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import Pair, target_labels, token_losses
from igds_utils.selection.needs.samples import Measured, Pool, Samples, column

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam
BLOCK = 1 << 14  # parameters whose random signs are held at once
GRADIENTS = 64  # samples of one part
KEPT = 4  # a backward pass keeps the activations of all blocks, so its batches are so many times smaller


class Checkpoint(NamedTuple):
    """The state of the warm-up at the end of an epoch; vectors over all LoRA parameters, (P,)."""

    lr: float  # mean over the epoch
    weights: Tensor
    first: Tensor  # Adam's moments
    second: Tensor


def add_lora(lm: LM, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Put fp32 LoRA weights on the attention projections of `lm.model`; its own are frozen. Returns the new ones."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, lm.model)
    lm.model.requires_grad_(False)
    added = [parameter for name, parameter in lm.model.named_parameters() if "lora_" in name]
    for parameter in added:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return added


def warm_up(
    lm: LM, weights: list[nn.Parameter], pairs: Sequence[Pair], config: LessConfig, seed: int = 0
) -> list[Checkpoint]:
    """Train LoRA weights on some samples with Adam, its rate falling to zero: one checkpoint an epoch."""
    optimizer = torch.optim.AdamW(weights, lr=config.lr, betas=BETAS, eps=EPS, weight_decay=0.0)
    random = np.random.default_rng(seed)
    steps = config.epochs * len(list(even_chunks(pairs, config.batch)))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    made = []
    for _ in range(config.epochs):
        rates = []
        for batch in even_chunks(random.permutation(len(pairs)).tolist(), config.batch):
            rates.append(schedule.get_last_lr()[0])
            optimizer.zero_grad()
            losses, _ = _token_losses(lm, [pairs[i] for i in batch])
            losses.mean().backward()
            optimizer.step()
            schedule.step()
        vectors = [
            _vector(optimizer.state[weight][name] for weight in weights) for name in ("exp_avg", "exp_avg_sq")
        ]
        made.append(Checkpoint(float(np.mean(rates)), _vector(weights), *vectors))
    return made


def sample_gradients(
    lm: LM,
    weights: list[nn.Parameter],
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    batch_tokens: int = 2048,
) -> Tensor:
    """The gradient of each sample's mean target loss with respect to the LoRA weights of a checkpoint: (n, P)."""
    sizes = [weight.numel() for weight in weights]
    for weight, values in zip(weights, checkpoint.weights.split(sizes), strict=True):
        weight.data.copy_(values.view_as(weight))
    found = torch.empty(len(pairs), sum(sizes), device=lm.device)
    with tqdm(total=len(pairs), desc="gradients", unit="sample", leave=False, delay=2) as bar:
        for batch in token_batches([len(ids) for ids, _ in pairs], batch_tokens):
            start = 0
            for values in _batch_gradients(lm, weights, [pairs[i] for i in batch]):
                flat = values.flatten(1)  # (B, parameters of one weight)
                found[batch, start : start + flat.shape[1]] = flat.to(found.device)
                start += flat.shape[1]
            bar.update(len(batch))
    return found


def _batch_gradients(lm: LM, weights: list[nn.Parameter], pairs: Sequence[Pair]) -> Iterator[Tensor]:
    """Per-sample gradients of each weight, (B, out, in) each, from one forward and one backward pass of a batch.

    LoRA weights are linear layers without a bias, y = W x at every token, and samples do not see each other. So the
    gradient of the summed loss with respect to y holds every sample's own, and sum_t dy_t x_t^T over the tokens of one
    sample is its gradient of W.
    """
    linears = {id(module.weight): module for module in lm.model.modules() if isinstance(module, nn.Linear)}
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def remember(module: nn.Linear, args: tuple[Tensor], output: Tensor) -> None:
        seen[id(module.weight)] = (args[0].detach(), output)

    handles = [linears[id(weight)].register_forward_hook(remember) for weight in weights]
    try:
        losses, rows = _token_losses(lm, pairs)
    finally:
        for handle in handles:
            handle.remove()
    read = [seen[id(weight)] for weight in weights]
    loss = (losses / rows.bincount()[rows]).sum()  # of each sample's mean over its target tokens
    slopes = torch.autograd.grad(loss, [output for _, output in read])
    for (x, _), dy in zip(read, slopes, strict=True):
        yield torch.einsum("bto,bti->boi", dy, x)


def _token_losses(lm: LM, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    inputs = pad([ids for ids, _ in pairs], lm.tokenizer.pad_token_id, "right", lm.device)
    return token_losses(lm.model, target_labels(inputs["input_ids"], pairs), **inputs)


def _vector(tensors: Iterable[Tensor]) -> Tensor:
    """All values one after the other, on the first one's device: a large model is spread over several."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    return torch.cat([one.to(flat[0].device) for one in flat])


def adam_step(gradient: Tensor, checkpoint: Checkpoint) -> Tensor:
    """Where Adam would go on this gradient alone, from a checkpoint's moments; without bias correction, as LESS."""
    first = BETAS[0] * checkpoint.first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * checkpoint.second + (1 - BETAS[1]) * gradient**2
    return first / (second + EPS).sqrt()


def project(vectors: Tensor, dimensions: int, seed: int = 0) -> Tensor:
    """Random projection with entries +1 and -1, the same for every call: (n, P) -> (n, dimensions), length 1.

    The matrix is drawn block by block, so that it is never whole in memory.
    """
    draw = torch.Generator(vectors.device).manual_seed(seed)
    found = vectors.new_zeros(len(vectors), dimensions)
    for start in range(0, vectors.shape[1], BLOCK):
        block = vectors[:, start : start + BLOCK]
        signs = torch.randint(
            0, 2, (block.shape[1], dimensions), generator=draw, device=vectors.device, dtype=torch.int8
        )
        found += block @ signs.to(block.dtype).mul_(2).sub_(1)
    return normalize(found, dim=-1)


# ---- measured on a pool ----------------------------------------------------------------------------------


def gradients(pool: Pool) -> Measured:
    """Projected Adam steps: (N, checkpoints, dimensions). Each vector is as long as its checkpoint's learning rate,
    as a share of the sum of all of them."""
    checkpoints = _checkpoints(pool)
    values, product, about = _measure(pool, pool.samples, checkpoints, adam=True)
    rates = np.array([one.lr for one in checkpoints], dtype=values.dtype)
    return Measured(values * (rates / rates.sum())[:, None], product, about)


def example_gradients(pool: Pool) -> Measured:
    """Projected gradients of the target examples, of length 1: (examples, checkpoints, dimensions)."""
    # the warm-up is the pool's own, and so are the gradients under it
    samples = Samples(pool.run, pool.task, pool.target_examples, f"{pool.folder}/example_")
    return _measure(pool, samples, _checkpoints(pool), adam=False)


def _measure(pool: Pool, samples: Samples, checkpoints: list[Checkpoint], adam: bool) -> Measured:
    run, config = pool.run, pool.run.preset.selection.less
    ready = cache(lambda: _with_lora(pool))

    def build(part: Sequence[int]) -> pd.DataFrame:
        lm, weights = ready()
        pairs, found = samples.at(part).training_pairs, []
        for one in checkpoints:
            on = Checkpoint(one.lr, *(vector.to(lm.device) for vector in one[1:]))
            rows = sample_gradients(lm, weights, on, pairs, run.preset.batch_tokens // KEPT)
            for row in rows if adam else ():
                row.copy_(adam_step(row, on))
            found.append(project(rows, config.dimensions).cpu())
        return pd.DataFrame({"gradients": list(torch.cat(found, dim=-1).numpy())})

    warm = run.store.version(_warm_up_path(pool))
    table = samples.in_parts(
        "gradients", build, GRADIENTS, warm_up=warm, dimensions=config.dimensions, **samples.trained_from()
    )
    values = column(table, "gradients").reshape(len(table), len(checkpoints), config.dimensions)
    return Measured(values, samples.path("gradients"), {"less": config.model_dump()})


def _checkpoints(pool: Pool) -> list[Checkpoint]:
    run, samples, config = pool.run, pool.samples, pool.run.preset.selection.less

    def build() -> pd.DataFrame:
        size = min(len(pool.examples), max(config.batch, round(config.share * len(pool.examples))))
        chosen = np.random.default_rng(run.preset.seed).choice(len(pool.examples), size, replace=False)
        lm, weights = _with_lora(pool)
        pairs = [pair for i in sorted(chosen) for pair in samples.at([i]).training_pairs]
        made = warm_up(lm, weights, pairs, config, run.preset.seed)
        return pd.DataFrame(
            [[one.lr, *(v.cpu().numpy() for v in one[1:])] for one in made], columns=Checkpoint._fields
        )

    table = run.make(
        _warm_up_path(pool),
        build,
        less=config.model_dump(exclude={"dimensions"}),
        seed=run.preset.seed,
        **samples.trained_from(),
    )
    return [
        Checkpoint(row.lr, *(torch.tensor(vector) for vector in row[1:]))
        for row in table.itertuples(index=False)
    ]


def _with_lora(pool: Pool) -> tuple[LM, list[nn.Parameter]]:
    """A copy of the model to be trained, with LoRA weights as the warm-up begins."""
    lm = pool.run.load(pool.run.preset.chosen.train)
    return lm, add_lora(lm, pool.run.preset.selection.less.rank, pool.run.preset.seed)


def _warm_up_path(pool: Pool) -> str:
    return f"{pool.folder}/less_warm_up.parquet"

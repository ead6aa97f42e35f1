"""Gradient features of samples under a LoRA warm-up, for LESS-style influence (arXiv 2402.04333).

LoRA on the attention projections is trained on a few pool samples; at the end of every epoch each sample's gradient is
read, turned into the step that Adam would take (pool) or left as it is (target examples), and projected at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from igds_utils.config.settings import LessConfig
from igds_utils.engine.batching import even_chunks, pad
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import Pair, target_labels, token_losses
from igds_utils.selection.measurements import Measured, measurement

if TYPE_CHECKING:
    from igds_utils.selection.pool import Pool, Samples

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam
BLOCK = 1 << 14  # parameters whose random signs are held at once
GRADIENTS = 64  # samples of one part


class Checkpoint(NamedTuple):
    """The state of the warm-up at the end of an epoch; vectors over all LoRA parameters, (P,)."""

    lr: float  # mean over the epoch
    weights: Tensor
    first: Tensor  # Adam's moments
    second: Tensor


def add_lora(lm: LM, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Put fp32 LoRA weights on the attention projections of `lm.model`; its own are frozen. Returns the new ones."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(lm.model, config)
    return [parameter for parameter in lm.model.parameters() if parameter.requires_grad]


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
            _mean_loss(lm, [pairs[i] for i in batch]).backward()
            optimizer.step()
            schedule.step()
        moments = ([optimizer.state[w][name] for w in weights] for name in ("exp_avg", "exp_avg_sq"))
        made.append(Checkpoint(float(np.mean(rates)), _vector(weights), *map(_vector, moments)))
    return made


def sample_gradients(
    lm: LM, weights: list[nn.Parameter], checkpoint: Checkpoint, pairs: Sequence[Pair]
) -> Tensor:
    """The gradient of each sample's mean target loss with respect to the LoRA weights of a checkpoint: (n, P).

    One sample at a time, as the authors do.
    """
    sizes = [weight.numel() for weight in weights]
    for weight, values in zip(weights, checkpoint.weights.split(sizes), strict=True):
        weight.data.copy_(values.view_as(weight))
    bar = tqdm(pairs, desc="gradients", unit="sample", leave=False, delay=2)
    return torch.stack([_vector(torch.autograd.grad(_mean_loss(lm, [pair]), weights)) for pair in bar])


def _mean_loss(lm: LM, pairs: Sequence[Pair]) -> Tensor:
    """Mean cross-entropy of all target tokens of a batch, with its graph."""
    inputs = pad([ids for ids, _ in pairs], lm.tokenizer.pad_token_id, "right", lm.device)
    return token_losses(lm.model, target_labels(inputs["input_ids"], pairs), **inputs)[0].mean()


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
    for block in vectors.split(BLOCK, dim=1):
        shape = (block.shape[1], dimensions)
        signs = torch.randint(0, 2, shape, generator=draw, device=vectors.device, dtype=torch.int8)
        found += block @ signs.to(block.dtype).mul_(2).sub_(1)
    return normalize(found, dim=-1)


@measurement("training_pairs")
def gradients(pool: Pool) -> Measured:
    """Projected Adam steps after a LoRA warm-up: (N, checkpoints, dimensions).

    Each vector is as long as its checkpoint's learning rate, as a share of the sum of all of them.
    """
    rates, measured = _projected(pool, pool, adam=True)
    shares = (rates / rates.sum()).astype(measured.values.dtype)
    return measured._replace(values=measured.values * shares[:, None])


@measurement()
def example_gradients(pool: Pool) -> Measured:
    """Projected gradients of the target examples under the pool's own warm-up: (examples, ...) of length 1."""
    own = type(pool)(pool.run, pool.task, pool.examples.samples, f"{pool.folder}/examples")
    return _projected(pool, own, adam=False)[1]


def _projected(pool: Pool, of: Pool, adam: bool) -> tuple[np.ndarray, Measured]:
    """The rates of the checkpoints of the warm-up on `pool`, and what is read there of the samples `of` a pool.

    adam: the step that Adam would take instead of the gradient.
    """
    run, config, path = pool.run, pool.run.preset.selection.less, pool.path("less_warm_up")

    @cache
    def ready() -> tuple[LM, list[nn.Parameter]]:
        """A copy of the model to be trained, with LoRA weights as the warm-up begins."""
        lm = run.load(run.preset.chosen.train)
        return lm, add_lora(lm, config.rank, run.preset.seed)

    def warmed() -> pd.DataFrame:
        n = len(pool.ids)
        size = min(n, max(config.batch, round(config.share * n)))
        chosen = sorted(np.random.default_rng(run.preset.seed).choice(n, size, replace=False))
        pairs = [pair for i in chosen for pair in pool.at([i]).training_pairs]
        made = warm_up(*ready(), pairs, config, run.preset.seed)
        ready.cache_clear()  # its weights have learnt
        rows = [[one.lr, *(vector.cpu().numpy() for vector in one[1:])] for one in made]
        return pd.DataFrame(rows, columns=Checkpoint._fields)

    def build(part: Samples) -> np.ndarray:
        lm, weights = ready()
        found = []
        for lr, *vectors in table.itertuples(index=False):
            on = Checkpoint(lr, *(torch.tensor(vector, device=lm.device) for vector in vectors))
            rows = sample_gradients(lm, weights, on, part.training_pairs)
            for row in rows if adam else ():
                row.copy_(adam_step(row, on))
            found.append(project(rows, config.dimensions).cpu())
        return torch.cat(found, dim=-1).numpy()

    learnt = config.model_dump(exclude={"dimensions"})
    table = run.make(path, warmed, less=learnt, seed=run.preset.seed, **pool.trained_from)
    inputs = {"warm_up": run.store.version(path), "dimensions": config.dimensions} | of.trained_from
    made = of.stored("gradients", build, inputs, {"less": config.model_dump()}, size=GRADIENTS)
    shape = (len(of.ids), len(table), config.dimensions)
    return table["lr"].to_numpy(), made._replace(values=made.values.reshape(shape))

"""Gradient features of samples under a LoRA warm-up, for LESS-style influence.

LoRA is trained on a few pool samples; at the end of every epoch each sample's gradient is
read, turned into Adam's step (not of target examples), and projected at random.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils import vector_to_parameters

from igds_utils.config.settings import LessConfig
from igds_utils.engine.batching import even_chunks, pad
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import IGNORED, Pair
from igds_utils.selection.measurements import Measured, measurement

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam
MOMENTS = ["exp_avg", "exp_avg_sq"]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
BLOCK = 1 << 14  # parameters whose random signs are held at once
GRADIENTS = 64  # samples of one part


def add_lora(lm: LM, rank: int, seed: int = 0) -> list[nn.Parameter]:
    """Put fp32 LoRA weights on the attention projections, and return them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=PROJECTIONS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(lm.model, config)
    return [parameter for parameter in lm.model.parameters() if parameter.requires_grad]


def warm_up(
    lm: LM, weights: list[nn.Parameter], pairs: Sequence[Pair], config: LessConfig, seed: int = 0
) -> pd.DataFrame:
    """Train LoRA weights with Adam, its rate falling to zero: a row an epoch.

    Columns: lr (mean over the epoch); weights and Adam's moments (P,).
    """
    optimizer = torch.optim.AdamW(weights, lr=config.lr, betas=BETAS, eps=EPS, weight_decay=0.0)
    random = np.random.default_rng(seed)
    steps = config.epochs * len(list(even_chunks(pairs, config.batch)))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    rows = []
    for _ in range(config.epochs):
        rates = []
        for batch in even_chunks(random.permutation(len(pairs)).tolist(), config.batch):
            rates += schedule.get_last_lr()
            optimizer.zero_grad()
            _mean_loss(lm, [pairs[i] for i in batch]).backward()
            optimizer.step()
            schedule.step()
        moments = [[optimizer.state[one][name] for one in weights] for name in MOMENTS]
        vectors = [_vector(tensors).cpu().numpy() for tensors in (weights, *moments)]
        rows.append([np.mean(rates), *vectors])
    return pd.DataFrame(rows, columns=["lr", "weights", "first", "second"])


def sample_gradients(
    lm: LM, weights: list[nn.Parameter], values: Tensor, pairs: Sequence[Pair]
) -> Iterator[Tensor]:
    """Gradient (P,) of each sample's mean target loss at some values (P,) of the weights."""
    vector_to_parameters(values, weights)
    for pair in pairs:
        yield _vector(torch.autograd.grad(_mean_loss(lm, [pair]), weights))


def _mean_loss(lm: LM, pairs: Sequence[Pair]) -> Tensor:
    inputs = pad([ids for ids, _ in pairs], lm.tokenizer.pad_token_id, "right", lm.device)
    labels = pad([[IGNORED] * n + ids[n:] for ids, n in pairs], IGNORED, "right", lm.device)
    return lm.model(**inputs, labels=labels["input_ids"], use_cache=False).loss


def _vector(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def adam_step(gradient: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Adam's step on a gradient from moments (P,), without bias correction, as LESS."""
    first = BETAS[0] * first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    return first / (second + EPS).sqrt()


def project(vectors: Tensor, dimensions: int) -> Tensor:
    """Random projection by +1 and -1: (n, P) -> (n, dimensions), of length 1."""
    draw = torch.Generator(vectors.device).manual_seed(0)
    found = vectors.new_zeros(len(vectors), dimensions)
    for block in vectors.split(BLOCK, dim=1):
        signs = torch.empty(block.shape[1], dimensions, device=block.device, dtype=torch.int8)
        found += block @ signs.random_(0, 2, generator=draw).to(block.dtype).mul_(2).sub_(1)
    return normalize(found, dim=-1)


@measurement("training_pairs")
def gradients(pool) -> Measured:
    """Projected Adam steps, as long as the rate's share of all: (N, checkpoints, d)."""
    return _projected(pool, pool)


@measurement()
def example_gradients(pool) -> Measured:
    """Projected gradients of the target examples, of length 1: (examples, ...)."""
    samples, folder = pool.examples.samples, f"{pool.folder}/examples"
    return _projected(pool, type(pool)(pool.run, pool.task, samples, folder))


def _projected(pool, of) -> Measured:
    """What is read of the samples `of` a pool after the warm-up on `pool`."""
    run, config, path = pool.run, pool.run.preset.selection.less, pool.path("less_warm_up")
    seed, n = run.preset.seed, len(pool.ids)

    @cache
    def with_lora() -> tuple[LM, list[nn.Parameter]]:
        lm = run.load(run.preset.chosen.train)  # a copy of its own
        return lm, add_lora(lm, config.rank, seed)

    def warmed() -> pd.DataFrame:
        size = min(n, max(config.batch, round(config.share * n)))
        with_lora.cache_clear()  # weights as they were, if memory ran out on the way
        chosen = sorted(np.random.default_rng(seed).choice(n, size, replace=False))
        pairs = [pool.at([i]).training_pairs[0] for i in chosen]
        return warm_up(*with_lora(), pairs, config, seed)

    def build(part) -> np.ndarray:
        (lm, weights), found = with_lora(), []
        for rate, *vectors in table.itertuples(index=False):
            values, *moments = (torch.tensor(vector, device=lm.device) for vector in vectors)
            rows = list(sample_gradients(lm, weights, values, part.training_pairs))
            if of is pool:
                rows = [adam_step(row, *moments) for row in rows]
            vectors = project(torch.stack(rows), config.dimensions).cpu()
            found.append(vectors * (rate / total if of is pool else 1))
        return torch.cat(found, dim=-1).numpy()

    learnt = config.model_dump(exclude={"dimensions"})
    table = run.make(path, warmed, less=learnt, seed=seed, **pool.trained_from)
    total, about = table["lr"].sum(), {"less": config.model_dump()}
    inputs = {"warm_up": run.store.version(path)} | about | of.trained_from
    made = of.stored("gradients", build, inputs, about, size=GRADIENTS)
    shape = (len(of.ids), len(table), config.dimensions)
    return made._replace(values=made.values.reshape(shape))

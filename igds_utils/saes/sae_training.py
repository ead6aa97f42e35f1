"""Sparse autoencoders (SAEs) trained with sae_lens: texts, residuals, training and quality.

`notebooks/00_sae_training.ipynb` runs it (`make saes`). A killed run goes on where it was: shards
of residuals and trained SAEs are stored whole under a hash of all that they depend on.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from igds_utils import tasks
from igds_utils.config.settings import Sizes, TaskConfig
from igds_utils.data import hub
from igds_utils.engine.batching import even_chunks, pad, token_batches
from igds_utils.engine.features import LAYER_FOLDER
from igds_utils.engine.lm import LM, edited, residuals
from igds_utils.engine.losses import target_losses
from igds_utils.engine.prompts import encode, encode_pairs, identification_prompt
from igds_utils.engine.sae import load_folder, unexplained
from igds_utils.tasks.examples import normalize

ENGLISH = "english"  # the source of a corpus that is no task: general English text
REPEATS = 100  # how often a position with the same tokens before it is used, at most
SINK = 5.0  # tokens whose norm exceeds this multiple of the median are attention sinks
SHARD_TOKENS = 65536  # of one file of residuals, about
WEIGHTS = "sae_weights.safetensors"  # of sae_lens


@dataclass(frozen=True)
class Document:
    """One text of the corpus; `critical` is the position p of its prompt, -1 without one."""

    source: str  # "math/chat", "english/bare", ...
    ids: list[int]
    critical: int
    held_out: bool


def documents(
    corpus: dict[str, Any], configs: dict[str, TaskConfig], tokenizer, seed: int
) -> list[Document]:
    """The texts of a corpus, shuffled: prompts with their targets, and general English.

    corpus: a part of presets/saes/default.yaml. The first `reserved` examples of each task, from
    which every preset draws its test, validation and confirmation set, are left out. A text's first
    words decide whether it is held out, so another rendering of it falls on the same side.
    """

    def add(source: str, text: str, ids: list[int], critical: int = -1):
        start = " ".join(normalize(text).split()[:8])
        draw = int.from_bytes(hashlib.sha256(start.encode()).digest()[:4]) / 2**32
        held_out = draw < corpus["held_out"]
        found.append(Document(source, ids[: corpus["context"]], critical, held_out))

    found: list[Document] = []
    for source, renderings in corpus["mix"].items():
        task = tasks.get("summarization" if source == ENGLISH else source)
        reserved = corpus["reserved"][task.name]
        sizes = Sizes(prior=0, validation=0, confirmation=0, pool=0, test=reserved)
        config = configs[task.name].model_copy(update={"sizes": sizes})
        if source == ENGLISH:
            for text in task.english(config, seed)[: renderings["bare"]]:
                add(f"{source}/bare", text, encode(tokenizer, text))
            continue
        examples = task.extra(config, seed, max(renderings.values()))
        for rendering, n in renderings.items():
            for example in examples[:n]:
                prompt = identification_prompt(task, example, tokenizer, rendering)
                ((ids, n_prompt),) = encode_pairs(tokenizer, [prompt], [f" {example.target}"])
                add(f"{source}/{rendering}", example.text, ids, n_prompt - 1)
    Random(f"sae corpus/{seed}").shuffle(found)
    return found


def used_positions(texts: Sequence[Document], repeats: int = REPEATS) -> list[list[int]]:
    """Positions of each document that an SAE is trained on; never the first, an attention sink.

    A residual depends on the tokens up to it alone: documents that begin alike (a chat's system
    turn) repeat the same residuals, of which each is used `repeats` times at most.
    """
    seen: Counter[int] = Counter()
    used: list[list[int]] = [[] for _ in texts]
    for document, positions in zip(texts, used, strict=True):
        prefix = hash(document.ids[0])
        for position, token in enumerate(document.ids[1:], start=1):
            prefix = hash((prefix, token))
            seen[prefix] += 1
            if seen[prefix] <= repeats:
                positions.append(position)
    return used


def load(shards: Sequence[Path], layer: int) -> tuple[Tensor, Tensor]:
    """Residuals of a layer (tokens, width) in fp16, and whether each is critical; no sinks."""
    files = [safe_open(shard / "acts.safetensors", framework="pt") for shard in shards]
    names = LAYER_FOLDER.format(layer), "critical"
    acts, critical = (torch.cat([file.get_tensor(name) for file in files]) for name in names)
    norms = _norms(acts)
    keep = norms <= SINK * norms.median()
    return acts[keep], critical[keep]


def _norms(acts: Tensor) -> Tensor:
    """Of residuals (tokens, width), in fp32: (tokens,)."""
    return torch.cat([torch.linalg.vector_norm(h.float(), dim=1) for h in acts.split(16384)])


def capture(
    lm: LM, texts: Sequence[Document], layers: Sequence[int], root: Path, batch_tokens: int
) -> list[Path]:
    """Write the residuals of all layers at the used positions of the texts under `root`, in fp16.

    A shard holds `layer_NN` (tokens, width) and `critical` (tokens,), whether a token is its
    document's critical position. A shard that is there complete is not made again.
    """
    positions = used_positions(texts)
    model = [lm.model.config.name_or_path, str(lm.model.dtype), sorted(layers)]
    key = _hash([[text.ids for text in texts], positions, *model, batch_tokens, SHARD_TOKENS])
    batches = token_batches([len(text.ids) for text in texts], batch_tokens)
    Random("sae batches/0").shuffle(batches)  # a shard holds texts of every length
    groups = list(even_chunks(batches, max(1, SHARD_TOKENS // batch_tokens)))
    folders = [root / key / f"shard_{i:04d}" for i in range(len(groups))]

    def fill(new: Path, group: list[list[int]]) -> None:
        parts = defaultdict(list)
        for batch in group:
            ids = [texts[i].ids for i in batch]
            inputs = pad(ids, lm.tokenizer.pad_token_id, "right", lm.device)
            rows = [row for row, i in enumerate(batch) for _ in positions[i]]
            columns = [position for i in batch for position in positions[i]]
            for layer, h in residuals(lm, layers, **inputs).items():
                parts[LAYER_FOLDER.format(layer)].append(h[rows, columns].half().cpu())
            critical = [p == texts[i].critical for i in batch for p in positions[i]]
            parts["critical"].append(torch.tensor(critical))
        whole = {name: torch.cat(tensors) for name, tensors in parts.items()}
        save_file(whole, new / "acts.safetensors")

    for folder, group in zip(tqdm(folders, desc="capture", unit="shard"), groups, strict=True):
        hub.whole(folder, lambda new, group=group: fill(new, group))
    return folders


def _hash(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def train(
    shards: Sequence[Path], layer: int, recipe: dict[str, Any], model: str, root: Path
) -> Path:
    """Train one SAE and return the folder with its inference form (JumpReLU), as sae_lens saves it.

    recipe: features; k, active features a token; passes, uses of a token; seed; and fields of
    sae_lens's configuration of the SAE (sae) and of the trainer (trainer).

    The inputs are scaled to a mean norm of sqrt(width); the scale (of batchtopk the norms of the
    decoder's directions, too) is folded into the weights: the saved SAE reads raw residuals.
    An SAE that was finished before is not trained again.
    """
    # the shards' folder is a hash of the texts, the model and the layers
    folder = root / _hash([shards[0].parent.name, layer, recipe])
    return hub.whole(folder, lambda new: _train(load(shards, layer)[0], layer, recipe, model, new))


def _train(acts: Tensor, layer: int, recipe: dict[str, Any], model: str, folder: Path) -> None:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe["seed"] + layer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, fields = acts.shape[1], dict(recipe["sae"])
    made, config = get_sae_training_class(architecture := fields.pop("architecture"))
    fields["k" if architecture == "batchtopk" else "target_l0"] = recipe["k"]
    fields["normalize_activations"] = "expected_average_only_in"
    sae = made(config(d_in=width, d_sae=recipe["features"], device=device, **fields))
    options = recipe["trainer"]
    size = options["train_batch_size_samples"]
    steps = int(recipe["passes"] * len(acts)) // size
    fields = {"total_training_samples": steps * size, "lr_decay_steps": steps // 3}
    settings = SAETrainerConfig(lr_end=options["lr"], device=device, **fields, **options)
    trainer = SAETrainer(settings, sae, _minibatches(acts, size, recipe["seed"]))
    mean = sum(part.double().sum(0) for part in acts.split(16384)) / len(acts)  # (width,)
    # of all tokens, where sae_lens would estimate it from some; `fit` folds it into the weights
    scale = width**0.5 / _norms(acts).double().mean().item()
    trainer.activation_scaler.scaling_factor = scale
    sae.b_dec.data = (mean.float() * scale).to(device)
    trainer.fit()
    about = sae.cfg.metadata
    about.model_name, about.hook_name = model, f"blocks.{layer}.hook_resid_post"
    sae.cfg.device = "cpu"
    sae.save_inference_model(folder)
    # biases and thresholds stay in fp32: a threshold rounded up silences its feature
    exact = load_file(folder / WEIGHTS)
    weights = {name: w.half() if w.dim() > 1 else w for name, w in exact.items()}
    save_file(weights, folder / WEIGHTS)


def _minibatches(acts: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches (size, width) in fp32, every token once a pass, in a new order each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(acts), generator=generator)
        for start in range(0, len(acts) - size + 1, size):
            yield acts[order[start : start + size]].float()


@torch.inference_mode()
def firing_rates(sae, acts: Tensor, chunk: int = 4096) -> Tensor:
    """On which share of residuals (tokens, width) a feature fires: (features,). The sum is L0."""
    parts = (part.float().to(sae.device) for part in acts.split(chunk))
    return sum((sae.encode(h) > 0).sum(0) for h in parts).cpu() / len(acts)


def cross_entropy(
    lm: LM, texts: Sequence[Document], layer: int, edit: Callable[[Tensor], Tensor]
) -> float:
    """Mean next-token cross-entropy in nats while `edit` replaces the residual after `layer`.

    The first position is left alone, and predictions made from it are left out of the mean.
    """

    def replace(h: Tensor) -> Tensor:
        return torch.cat([h[:, :1], edit(h[:, 1:].to(lm.device)).to(h)], dim=1)

    with edited(lm, {layer: replace}):
        losses = target_losses(lm, [(text.ids, 2) for text in texts])
    return float(np.average(losses, weights=[len(text.ids) - 2 for text in texts]))


def quality(
    lm: LM, layer: int, folder: Path, seen: list[Path], held_out: list[Path], texts: list[Document]
) -> dict[str, Any]:
    """One row of the quality table, for the SAE in `folder`; seen, held_out: shards of residuals.

    FVU and L0 are over held-out text, `fvu_critical` over its critical positions; `dead` is the
    share of features that fire on no token seen; `ce_recovered` = (CE_zero - CE_sae) / (CE_zero -
    CE) on `texts`: CE_zero is the loss with the residual at zero, CE_sae with its reconstruction.
    """
    sae, (acts, critical) = load_folder(folder, lm.device), load(held_out, layer)
    ce, ce_sae, ce_zero = (
        cross_entropy(lm, texts, layer, edit) for edit in (lambda h: h, sae, torch.zeros_like)
    )
    return {
        "layer": layer,
        "fvu": unexplained(sae, acts),
        "fvu_critical": unexplained(sae, acts[critical]),
        "l0": firing_rates(sae, acts).sum().item(),
        "dead": (firing_rates(sae, load(seen, layer)[0]) == 0).float().mean().item(),
        "ce": ce,
        "ce_sae": ce_sae,
        "ce_zero": ce_zero,
        "ce_recovered": (ce_zero - ce_sae) / (ce_zero - ce),
    }

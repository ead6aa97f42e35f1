"""Training sparse autoencoders (SAEs) with sae_lens: their texts, the model's residuals on them, training, export.

`notebooks/00_sae_training.ipynb` runs it (`make saes`); `sae_quality` measures what comes out. A killed run goes on
where it was: shards of residuals and trained SAEs are stored whole under a hash of everything they depend on.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from igds_utils import tasks
from igds_utils.config.refs import Strict
from igds_utils.config.settings import Sizes, TaskConfig
from igds_utils.data import hub
from igds_utils.engine.batching import even_chunks, pad, token_batches
from igds_utils.engine.features import LAYER_FOLDER
from igds_utils.engine.lm import LM, residuals
from igds_utils.engine.prompts import encode, encode_pair, identification_prompt
from igds_utils.tasks.examples import normalize

ENGLISH = "english"  # the source of a corpus that is no task: general English text
L0_LOSS = "quadratic"  # of jumprelu, as Gemma Scope 2: the weight of L0 itself ("step") does nothing above about 0.1


class Corpus(Strict):
    """What text the SAEs see. Sources are task names and `english`, renderings `chat` and `bare`."""

    mix: dict[str, dict[Literal["chat", "bare"], int]] = Field(
        description="source -> rendering -> documents, at most"
    )
    reserved: dict[str, int] = Field(description="task -> how many examples are kept for evaluation sets")
    context: int = Field(512, description="longer documents are cut to so many tokens")
    held_out: float = Field(0.02, gt=0, lt=1, description="share of the texts that no SAE is trained on")


class Recipe(Strict):
    """How one SAE is trained (sae_lens: architecture, loss, trainer)."""

    architecture: Literal["batchtopk", "jumprelu"] = "batchtopk"
    features: int = Field(description="dictionary size M")
    passes: float = Field(2.0, description="how often each captured token is used")
    batch: int = Field(1024, description="tokens of one training step")
    lr: float = 8e-4
    warmup_steps: int = 20
    dead_after: int = Field(200, description="steps without firing after which a feature counts as dead")
    k: float = Field(32, gt=0, description="active features a token, on average (jumprelu: aim of the loss)")
    l0_coefficient: float = Field(1.0, gt=0, description="jumprelu: weight of 2 (L0 - k)^2 / k")
    l0_warmup_steps: int = Field(0, description="jumprelu: steps over which that weight grows from zero")
    seed: int = 0


# ---- texts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One text of the corpus. `critical` is the position p of its prompt, None for text without a prompt."""

    source: str  # "math/chat", "english/bare", ...
    ids: list[int]
    critical: int | None
    held_out: bool


def documents(corpus: Corpus, configs: dict[str, TaskConfig], tokenizer, seed: int) -> list[Document]:
    """The texts of a corpus, shuffled: prompts with their targets, and general English.

    The first `reserved` examples of each task, from which every preset draws its test, validation and confirmation
    set, are left out. Whether a text is held out depends on its own first words alone, so that the same lead or
    question in another rendering falls on the same side.
    """

    def add(source: str, text: str, ids: list[int], critical: int = corpus.context) -> None:
        start = " ".join(normalize(text).split()[:8])
        draw = int.from_bytes(hashlib.sha256(start.encode()).digest()[:4]) / 2**32
        inside = critical if critical < corpus.context else None
        found.append(Document(source, ids[: corpus.context], inside, held_out=draw < corpus.held_out))

    found: list[Document] = []
    for source, renderings in corpus.mix.items():
        task = tasks.get("summarization" if source == ENGLISH else source)
        sizes = Sizes(prior=0, validation=0, confirmation=0, pool=0, test=corpus.reserved[task.name])
        config = configs[task.name].model_copy(update={"sizes": sizes})
        if source == ENGLISH:
            for text in task.english(config, seed)[: renderings["bare"]]:
                add(f"{source}/bare", text, encode(tokenizer, text))
            continue
        examples = task.extra(config, seed, max(renderings.values()))
        for rendering, n in renderings.items():
            for example in examples[:n]:
                prompt = identification_prompt(task, example, tokenizer, rendering)
                ids, n_prompt = encode_pair(tokenizer, prompt, f" {example.target}")
                add(f"{source}/{rendering}", example.text, ids, n_prompt - 1)
    Random(f"sae corpus/{seed}").shuffle(found)
    return found


def used_positions(texts: Sequence[Document], repeats: int) -> tuple[list[list[int]], int]:
    """Positions of each document that an SAE is trained on, and the number of distinct ones among them.

    Under causal attention a residual depends on the tokens up to it alone, so documents that begin alike (a chat
    template's system turn) repeat the same residuals: each is used `repeats` times at most. The first position,
    an attention sink, is never used.
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
    return used, len(seen)


# ---- residuals -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """Residuals of texts on disk."""

    texts: Sequence[Document]
    shards: Sequence[Path]
    distinct: int  # captured positions of which no two have the same tokens up to them
    sink_factor: float = 5.0  # tokens whose norm exceeds this multiple of the median are attention sinks

    def load(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals of one layer (tokens, width) in fp16, the index of each one's text, and whether it is critical.

        Attention sinks are left out.
        """
        files = [safe_open(shard / "acts.safetensors", framework="pt") for shard in self.shards]
        names = (LAYER_FOLDER.format(layer), "document", "critical")
        acts, document, critical = (torch.cat([file.get_tensor(name) for file in files]) for name in names)
        norms = torch.cat([torch.linalg.vector_norm(part.float(), dim=1) for part in acts.split(65536)])
        keep = norms <= self.sink_factor * norms.median()
        return acts[keep], document[keep], critical[keep]


def capture(
    lm: LM,
    texts: Sequence[Document],
    layers: Sequence[int],
    root: Path,
    repeats: int = 100,
    batch_tokens: int = 2048,
    shard_tokens: int = 65536,
    seed: int = 0,
    sink_factor: float = Captured.sink_factor,
) -> Captured:
    """Write the residuals of all layers at the used positions of the texts as shards under `root`, in fp16.

    A shard holds `layer_NN` (tokens, width), `document` (tokens,), the index into `texts`, and `critical` (tokens,),
    whether it is that document's critical position. A shard that is there complete is not made again.
    """
    positions, distinct = used_positions(texts, repeats)
    model = [lm.model.config.name_or_path, str(lm.model.dtype), sorted(layers)]
    key = _hash([[text.ids for text in texts], positions, *model, batch_tokens, shard_tokens, seed])
    batches = token_batches([len(text.ids) for text in texts], batch_tokens)
    Random(f"sae batches/{seed}").shuffle(batches)  # a shard holds texts of every length
    groups = list(even_chunks(batches, max(1, shard_tokens // batch_tokens)))
    folders = [root / key / f"shard_{i:04d}" for i in range(len(groups))]

    def read(batch: list[int]) -> dict[str, Tensor]:
        inputs = pad([texts[i].ids for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
        rows = torch.tensor([row for row, i in enumerate(batch) for _ in positions[i]])
        columns = torch.tensor([position for i in batch for position in positions[i]])
        found = residuals(lm, layers, **inputs)
        part = {LAYER_FOLDER.format(layer): h[rows, columns].half().cpu() for layer, h in found.items()}
        part["document"] = torch.tensor(batch, dtype=torch.int32)[rows]
        part["critical"] = torch.tensor([p == texts[i].critical for i in batch for p in positions[i]])
        return part

    def fill(new: Path, group: list[list[int]]) -> None:
        parts = [read(batch) for batch in group]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        save_file(joined, new / "acts.safetensors")

    for folder, group in zip(tqdm(folders, desc="capture", unit="shard"), groups, strict=True):
        hub.whole(folder, lambda new, group=group: fill(new, group))
    return Captured(texts, folders, distinct, sink_factor)


def _hash(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


# ---- training --------------------------------------------------------------------------------------------


def train(captured: Captured, layer: int, recipe: Recipe, model_name: str, root: Path) -> Path:
    """Train one SAE and return the folder with its inference form (JumpReLU, fp32) and `curve.json`.

    The inputs are scaled to a mean norm of sqrt(width) while training; the scale (for batchtopk also the norms of the
    decoder's directions) is folded into the weights at the end, so the saved SAE reads raw residuals. An SAE that was
    finished before is not trained again.
    """
    source = captured.shards[0].parent.name  # a hash of the texts, the model and the layers
    key = _hash([source, captured.sink_factor, layer, recipe.model_dump(), L0_LOSS])
    return hub.whole(root / key, lambda new: _train(captured.load(layer)[0], layer, recipe, model_name, new))


def _train(acts: Tensor, layer: int, recipe: Recipe, model_name: str, folder: Path) -> None:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    class Trainer(SAETrainer):
        """sae_lens's trainer, with a curve of every tenth step."""

        def step(self, batch: Tensor):
            output = super().step(batch)
            if self.n_training_steps % 10 == 0:
                fvu, dead = output.losses["mse_loss"].item() / variance, int(self.dead_neurons.sum())
                loss = output.loss.item()
                curve.append({"step": self.n_training_steps, "loss": loss, "fvu": fvu, "dead": dead})
            return output

    torch.manual_seed(recipe.seed + layer)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, steps, curve = acts.shape[1], int(recipe.passes * len(acts)) // recipe.batch, []
    shared = {"d_in": width, "d_sae": recipe.features, "device": device}
    shared |= {"normalize_activations": "expected_average_only_in"}
    if recipe.architecture == "batchtopk":
        sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**shared, k=recipe.k))
    else:
        config = sae_lens.JumpReLUTrainingSAEConfig(
            **shared,
            jumprelu_sparsity_loss_mode=L0_LOSS,
            target_l0=recipe.k,
            l0_coefficient=recipe.l0_coefficient,
            l0_warm_up_steps=recipe.l0_warmup_steps,
        )
        sae = sae_lens.JumpReLUTrainingSAE(config)
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
    trainer = Trainer(settings, sae, _minibatches(acts, recipe.batch, recipe.seed))
    parts = acts.split(16384)
    mean = sum(part.double().sum(0) for part in parts) / len(acts)  # (width,)
    norms = torch.cat([torch.linalg.vector_norm(part.float(), dim=1).double() for part in parts])
    # of all tokens, where sae_lens would estimate it from some; `fit` folds it into the weights
    trainer.activation_scaler.scaling_factor = scale = width**0.5 / norms.mean().item()
    variance = (norms.square().mean() - mean.square().sum()).item() * scale**2  # of the scaled inputs
    sae.b_dec.data = (mean.float() * scale).to(device)
    trainer.fit()
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = model_name, f"blocks.{layer}.hook_resid_post"
    sae.cfg.device = "cpu"
    sae.save_inference_model(folder)
    (folder / "curve.json").write_text(json.dumps(curve), encoding="utf8")


def _minibatches(acts: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches (size, width) in fp32, every token once a pass, in a new order each pass."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(acts), generator=generator)
        for start in range(0, len(acts) - size + 1, size):
            yield acts[order[start : start + size]].float()


def export(trained: Path, folder: Path, dtype: Literal["float16", "bfloat16", "float32"]) -> Path:
    """Write a trained SAE to `folder` with its matrices in `dtype`; `SAE.load_from_disk(folder)` reads it in fp32.

    Biases and thresholds stay in fp32: they are small, and a threshold rounded up silences its feature.
    """
    exact = load_file(trained / "sae_weights.safetensors")
    weights = {name: w.to(getattr(torch, dtype)) if w.dim() > 1 else w.float() for name, w in exact.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hub.temporary_folder(folder) as new:
        save_file(weights, new / "sae_weights.safetensors")
        shutil.copy(trained / "cfg.json", new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder

"""What SAEs are trained on: the texts, and the model's residuals on them, captured to disk.

Shards of residuals are written whole or not at all, under a name made from everything they depend on: the same call
after a kill goes on where the first one was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from igds_utils import tasks
from igds_utils.config.refs import Strict
from igds_utils.config.settings import TaskConfig
from igds_utils.data import hub
from igds_utils.engine.batching import even_chunks, pad, token_batches
from igds_utils.engine.features import LAYER_FOLDER
from igds_utils.engine.lm import LM, residuals
from igds_utils.engine.prompts import encode, encode_pair, identification_prompt
from igds_utils.tasks.examples import normalize

SINK_FACTOR = 5.0  # tokens whose norm exceeds this multiple of the median are attention sinks
ENGLISH = "english"  # the source of a corpus that is no task: general English text


class Corpus(Strict):
    """What text the SAEs see. Sources are task names and `english`, renderings `chat` and `bare`."""

    mix: dict[str, dict[Literal["chat", "bare"], int]] = Field(
        description="source -> rendering -> documents, at most"
    )
    reserved: dict[str, int] = Field(description="task -> how many examples are kept for evaluation sets")
    context: int = Field(512, description="longer documents are cut to so many tokens")
    held_out: float = Field(0.02, gt=0, lt=1, description="share of the texts that no SAE is trained on")
    repeats: int = Field(100, description="how often a position with the same tokens before it is used")


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
    found = []
    for source, renderings in corpus.mix.items():
        if source == ENGLISH:
            config = _reserving(configs["summarization"], corpus.reserved["summarization"])
            texts = tasks.get("summarization").english(config, seed)[: renderings["bare"]]
            found += [_document(corpus, f"{source}/bare", t, encode(tokenizer, t), None) for t in texts]
            continue
        task, config = tasks.get(source), _reserving(configs[source], corpus.reserved[source])
        examples = task.extra(config, seed, max(renderings.values()))
        for rendering, n in renderings.items():
            for example in examples[:n]:
                prompt = identification_prompt(task, example, tokenizer, rendering)
                ids, n_prompt = encode_pair(tokenizer, prompt, f" {example.target}")
                found.append(_document(corpus, f"{source}/{rendering}", example.text, ids, n_prompt - 1))
    Random(f"sae corpus/{seed}").shuffle(found)
    return found


def _reserving(config: TaskConfig, n: int) -> TaskConfig:
    sizes = config.sizes.model_copy(
        update={"test": n, "validation": 0, "confirmation": 0, "prior": 0, "pool": 0}
    )
    return config.model_copy(update={"sizes": sizes})


def _document(corpus: Corpus, source: str, text: str, ids: list[int], critical: int | None) -> Document:
    start = " ".join(normalize(text).split()[:8])
    draw = int.from_bytes(hashlib.sha256(start.encode()).digest()[:4]) / 2**32
    inside = critical if critical is not None and critical < corpus.context else None
    return Document(source, ids[: corpus.context], inside, held_out=draw < corpus.held_out)


def used_positions(texts: Sequence[Document], repeats: int) -> tuple[list[list[int]], int]:
    """Positions of each document that an SAE is trained on, and the number of distinct ones among them.

    Under causal attention a residual depends on the tokens up to it alone, so documents that begin alike (a chat
    template's system turn) repeat the same residuals: each is used `repeats` times at most. The first position,
    an attention sink, is never used.
    """
    seen: Counter[int] = Counter()
    used: list[list[int]] = []
    for document in texts:
        prefix, positions = hash(document.ids[0]), []
        for position, token in enumerate(document.ids[1:], start=1):
            prefix = hash((prefix, token))
            seen[prefix] += 1
            if seen[prefix] <= repeats:
                positions.append(position)
        used.append(positions)
    return used, len(seen)


# ---- capture ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Captured:
    """Residuals of texts on disk."""

    texts: Sequence[Document]
    shards: Sequence[Path]
    distinct: int  # captured positions of which no two have the same tokens up to them
    sink_factor: float = SINK_FACTOR

    def load(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals of one layer (tokens, width) in fp16, the index of each one's text, and whether it is critical.

        Attention sinks, more than `sink_factor` times the median in norm, are left out.
        """
        name = LAYER_FOLDER.format(layer)
        parts: dict[str, list[Tensor]] = {name: [], "document": [], "critical": []}
        for shard in self.shards:
            with safe_open(shard / "acts.safetensors", framework="pt") as file:
                for key, tensors in parts.items():
                    tensors.append(file.get_tensor(key))
        norms = torch.cat([torch.linalg.vector_norm(h.float(), dim=1) for h in parts[name]])
        keep = norms <= self.sink_factor * norms.median()
        acts, document, critical = (torch.cat(tensors)[keep] for tensors in parts.values())
        return acts, document, critical


def capture(
    lm: LM,
    texts: Sequence[Document],
    layers: Sequence[int],
    root: Path,
    repeats: int = 100,
    batch_tokens: int = 2048,
    shard_tokens: int = 65536,
    seed: int = 0,
    sink_factor: float = SINK_FACTOR,
) -> Captured:
    """Write the residuals of all layers at the used positions of the texts as shards under `root`, in fp16.

    A shard holds `layer_NN` (tokens, width), `document` (tokens,), the index into `texts`, and `critical` (tokens,),
    whether it is that document's critical position. A shard that is there complete is not made again. sink_factor: of
    `Captured.load`; the shards hold all positions.
    """
    positions, distinct = used_positions(texts, repeats)
    key = hashlib.sha256(json.dumps([[text.ids for text in texts], positions]).encode())
    model = [lm.model.config.name_or_path, str(lm.model.dtype), sorted(layers)]
    key.update(json.dumps([*model, batch_tokens, shard_tokens, seed]).encode())
    batches = token_batches([len(text.ids) for text in texts], batch_tokens)
    Random(f"sae batches/{seed}").shuffle(batches)  # a shard holds texts of every length
    groups = list(even_chunks(batches, max(1, shard_tokens // batch_tokens)))
    folders = [root / key.hexdigest()[:16] / f"shard_{i:04d}" for i in range(len(groups))]

    def fill(new: Path, group: list[list[int]]) -> None:
        parts = [_residuals_at(lm, texts, positions, layers, batch) for batch in group]
        save_file(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, new / "acts.safetensors"
        )

    for folder, group in tqdm(list(zip(folders, groups, strict=True)), desc="capture", unit="shard"):
        hub.whole(folder, lambda new, group=group: fill(new, group))
    return Captured(texts, folders, distinct, sink_factor)


def _residuals_at(lm: LM, texts, positions, layers, batch: list[int]) -> dict[str, Tensor]:
    found = residuals(
        lm, layers, **pad([texts[i].ids for i in batch], lm.tokenizer.pad_token_id, "right", lm.device)
    )
    rows = torch.tensor([row for row, i in enumerate(batch) for _ in positions[i]])
    columns = torch.tensor([position for i in batch for position in positions[i]])
    part = {LAYER_FOLDER.format(layer): h[rows, columns].half().cpu() for layer, h in found.items()}
    part["document"] = torch.tensor(batch, dtype=torch.int32)[rows]
    part["critical"] = torch.tensor([p == texts[i].critical for i in batch for p in positions[i]])
    return part

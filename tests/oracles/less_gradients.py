"""Gradient features beside LESS, before the random projection, which differs by device; and the
order of one checkpoint's scores by its matching.py."""

import importlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import MagicMock

import numpy as np
import torch
from parity import checkout, record, run, samples

from igds_utils import tiny
from igds_utils.config.settings import LessConfig
from igds_utils.engine.lm import LM
from igds_utils.engine.losses import IGNORED
from igds_utils.engine.prompts import encode_pairs
from igds_utils.selection import gradients
from igds_utils.selectors.similarity import less

REPOSITORY, SUBTASKS = "princeton-nlp/LESS", 9  # as many as its tydiqa has
CONFIG = LessConfig(rank=2, epochs=1, batch=4, dimensions=64, lr=1e-2)

folder, commit = checkout(REPOSITORY)
source = "collect_grad_reps.py, matching.py", REPOSITORY, commit
sys.path.insert(0, str(folder))
for module in ("functorch", "trak", "trak.projectors"):  # imported, not used here
    sys.modules[module] = MagicMock()
theirs = importlib.import_module("less.data_selection.collect_grad_reps")
lm = LM(tiny.model("llama"), tiny.tokenizer(), "tiny")
members, n = samples(60), 48  # of the pool; the others are the examples
prompts = [f"{one.text}:" for one in members]
pairs = encode_pairs(lm.tokenizer, prompts, [f" {one.target}" for one in members])
weights = gradients.add_lora(lm, CONFIG.rank)
_, values, *moments = map(torch.tensor, gradients.warm_up(lm, weights, pairs[:n], CONFIG).iloc[0])
ours = [*gradients.sample_gradients(lm, weights, values, pairs)]
ours[:n] = [gradients.adam_step(one, *moments) for one in ours[:n]]

found = []
for i, pair in enumerate(pairs):
    ids, labels = torch.tensor([pair[0]]), torch.tensor([[IGNORED] * pair[1] + pair[0][pair[1] :]])
    batch = {"input_ids": ids, "labels": labels}
    lm.model.zero_grad()  # the warm-up left one
    read = theirs.obtain_gradients_with_adam if i < n else theirs.obtain_gradients
    found.append(read(lm.model, batch, *moments[: 2 * (i < n)]))
off = [((a - b).norm() / b.norm()).item() for a, b in zip(ours, found, strict=True)]
for part, what in ((off[:n], "Adam steps"), (off[n:], "gradients")):
    agree = sum(one < 1e-4 for one in part)
    record(*source, f"{what}, relative to their length", len(part), agree, max(part))

vectors = torch.nn.functional.normalize(torch.stack(ours), dim=-1)
with TemporaryDirectory() as name:
    work = Path(name)
    torch.save(vectors[:n], work / "pool.pt")
    torch.save(vectors[n:].repeat(SUBTASKS, 1), work / "examples.pt")
    own = ["--gradient_path", work / "{1}.pt", "--validation_gradient_path", work / "examples.pt"]
    own += ["--train_file_names", "pool", "--target_task_names", "tydiqa", "--ckpts", 1]
    own += ["--checkpoint_weights", 1, "--output_path", work]
    run(folder / "less/data_selection/matching.py", *own)
    scores = torch.load(work / "tydiqa/pool_influence_score.pt").numpy()
influence = less(None, vectors[:n, None].numpy(), vectors[n:, None].numpy())
same = int((np.argsort(-scores) == np.argsort(-influence)).sum())
record(*source, "order, one checkpoint", n, same)

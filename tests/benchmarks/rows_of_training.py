"""The row of the benchmark that trains: `sft.train` against a bare PyTorch loop over the same batches."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from common import model, pool, size

from igds_utils.config.settings import SftConfig
from igds_utils.engine import losses
from igds_utils.engine.batching import pad
from igds_utils.engine.lm import LM
from igds_utils.training import sft


def training() -> dict:
    """Tokens a second of the project's training over those of the loop; the model is trained further, not kept."""
    (lm, _), (_, pairs), batch = model(), pool(size(32, 4), 70, 60), size(8, 4)
    config = SftConfig(lr=1e-5, global_batch=batch, max_length=512)
    state = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    seconds = {}
    for name, run in (("loop", _loop), ("sft", _sft)):
        lm.model.load_state_dict(state)
        start = time.perf_counter()
        run(lm, pairs, config)
        seconds[name] = time.perf_counter() - start
    lm.model.load_state_dict(state)
    lm.model.requires_grad_(True).eval()
    return {"value": seconds["loop"] / seconds["sft"], "seconds": seconds}


def _sft(lm: LM, pairs: list[losses.Pair], config: SftConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sft.train(lm, pairs, config, seed=0, workdir=Path(folder))


def _loop(lm: LM, pairs: list[losses.Pair], config: SftConfig) -> None:
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=config.lr, weight_decay=0.0)
    lm.model.train()
    for batch in sft.global_batches([len(ids) for ids, _ in pairs], config, seed=0):
        some = [pairs[i] for i in batch]
        inputs = pad([ids for ids, _ in some], lm.tokenizer.pad_token_id, "right", lm.device)
        found = losses.token_losses(lm.model, losses.target_labels(inputs["input_ids"], some), **inputs)
        optimizer.zero_grad()
        found.mean().backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
    lm.model.eval()

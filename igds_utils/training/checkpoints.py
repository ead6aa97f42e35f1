"""What a training leaves on disk: checkpoints to continue from, and the final weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from igds_utils.core.store import fingerprint, write_whole
from igds_utils.engine import shards

STATE = "inputs.txt"  # which training the checkpoints of a folder belong to


def last(workdir: Path, inputs: Any) -> str | None:
    """The newest whole checkpoint of this very training; all others are removed."""
    workdir.mkdir(parents=True, exist_ok=True)
    state, mine = workdir / STATE, fingerprint(inputs)
    same = state.exists() and state.read_text(encoding="utf8") == mine
    found = [folder for folder in workdir.glob("checkpoint-*") if same and _is_whole(folder)]
    newest = max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)
    remove(workdir, but=newest)
    write_whole(state, mine)
    return newest and str(newest)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer's own state is the last of its files."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False
    return True


def remove(workdir: Path, but: Path | None = None) -> None:
    """Remove all checkpoints of a folder but one."""
    for folder in workdir.glob("checkpoint-*"):
        if folder != but:
            shutil.rmtree(folder)


def save_weights(trainer, weights: Path) -> None:
    """Gather a trainer's final weights and write them (safetensors) with the tokenizer, whole or not at all."""
    new = weights.with_name(f".{weights.name}.new")
    trainer.save_model(str(new))
    trainer.accelerator.wait_for_everyone()
    shards.from_first(lambda: _replace(new, weights))


def _replace(new: Path, folder: Path) -> None:
    (new / "training_args.bin").unlink(missing_ok=True)  # pickled, and of no use to a reader of the weights
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)

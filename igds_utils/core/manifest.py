"""What a second run must share to give the same tables: versions, code, seeds, data, machine."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from igds_utils.config.config import PROJECT
from igds_utils.config.settings import Preset
from igds_utils.core.experiment import Run
from igds_utils.core.store import write_whole
from igds_utils.data.hub import newest

PACKAGES = (
    "torch", "transformers", "sae-lens", "trl", "accelerate", "math-verify", "sacrebleu", "rouge-score", "pandas",
)  # fmt: skip
# what lm-eval and unbabel-comet fetch by themselves
BENCHMARKS = {"mmlu": "cais/mmlu", "truthfulqa": "truthfulqa/truthful_qa"}
COMET_TOKENIZER = "xlm-roberta-large"


def manifest(run: Run) -> dict[str, Any]:
    """Preset, versions, commits, machine, fingerprints of data and SAEs, and the time and memory of each notebook."""
    return {
        "preset": run.preset.model_dump(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": _commit(),
        # kept from the first time: a later `make report` uses fewer threads
        "machine": run.make("machine.json", machine, processor=_processor()),
        "data": {task: {name: run.data_version(task, name) for name in run.sets(task)} for task in run.tasks},
        "left_out": {task: run.data_facts(task) for task in run.tasks},
        "saes": run.sae_version,
        "unpinned": unpinned_commits(run.preset),
        "notebooks": timings(run.root),
    }


def unpinned_commits(preset: Preset) -> dict[str, str]:
    """Repository -> commit, of all that was fetched from the hub as it was on that day: no revision is named for it."""
    chosen = preset.chosen
    parts = [chosen.identify, chosen.train, preset.selection, *preset.tasks.values()]
    names = {*_unpinned([part.model_dump() for part in parts])}
    if chosen.saes.source == "release":
        from igds_utils.engine.features import sae_release

        names.add(sae_release(chosen.saes.name).repo_id)
    for task in preset.tasks.values():
        asked = task.capabilities.benchmarks if task.capabilities else []
        names |= {BENCHMARKS[name] for name in asked if name in BENCHMARKS}
        if task.metric and task.metric.name == "comet":
            names.add(COMET_TOKENIZER)
    found = {name: newest(name) for name in sorted(names)}
    return {name: commit for name, commit in found.items() if commit}


def _unpinned(value: Any) -> Iterator[str]:
    """Repositories without a revision, anywhere in what a preset says."""
    if isinstance(value, dict):
        if "hub" in value and value.get("revision") is None:
            yield value["hub"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _unpinned(inner)


def timings(root: Path) -> dict[str, dict[str, float]]:
    """Notebook -> seconds and peak memory (bytes) of its longest run: later ones find everything made.

    snakemake's benchmark records, which a new run replaces, are added to <root>/timings.json, and all of it returned.
    """
    kept = json.loads(file.read_text(encoding="utf8")) if (file := root / "timings.json").is_file() else {}
    kept = {name: entry for name, entry in kept.items() if isinstance(entry, dict)}  # version 0.1 kept lists
    for record in sorted((root / "benchmarks").glob("*.tsv")):
        row = pd.to_numeric(pd.read_csv(record, sep="\t").loc[0, ["s", "max_rss"]], errors="coerce").fillna(0)
        found = {"seconds": round(row["s"], 1), "peak_bytes": row["max_rss"] * 2**20}
        kept[record.stem] = max(kept.get(record.stem, found), found, key=lambda entry: entry["seconds"])
    if kept:
        write_whole(file, json.dumps(kept, indent=1))
    return kept


def machine() -> dict[str, Any]:
    """The processor, and how many threads and GPUs torch uses: what a measured time belongs to."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpus": torch.cuda.device_count(),
    }


def _commit() -> str:
    """The git commit of the code, with a mark where files differ from it; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )

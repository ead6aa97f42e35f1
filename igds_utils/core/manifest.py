"""What a second run must share to give the same tables: versions, code, seeds, data, machine."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from igds_utils.config.config import PROJECT
from igds_utils.config.settings import Preset
from igds_utils.core.store import write_whole
from igds_utils.data.hub import newest

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run

PACKAGES = "torch transformers sae-lens trl accelerate math-verify sacrebleu rouge-score pandas".split()
# what lm-eval and unbabel-comet fetch by themselves
FETCHED = ("cais/mmlu", "truthfulqa/truthful_qa", "xlm-roberta-large")


def manifest(run: Run) -> dict[str, Any]:
    """Preset, versions, commits, machine, hashes of data and SAEs, and the time and memory of each notebook."""
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
    records, saes = [], preset.chosen.saes
    json.loads(preset.model_dump_json(), object_hook=records.append)  # every record in it
    names = {record["hub"] for record in records if "hub" in record and record.get("revision") is None}
    if saes.source == "release":
        from igds_utils.engine.features import sae_release

        names.add(sae_release(saes.name).repo_id)
    found = {name: newest(name) for name in sorted({*names, *FETCHED})}
    return {name: commit for name, commit in found.items() if commit}


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

    return {"processor": _processor(), "threads": torch.get_num_threads(), "gpus": torch.cuda.device_count()}


def _commit() -> str:
    """The git commit of the code, with a mark where files differ from it; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    named = re.findall(r"model name\s*: (.+)", file.read_text(encoding="utf8")) if file.is_file() else []
    return [*named, platform.processor() or platform.machine()][0]

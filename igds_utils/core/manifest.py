"""What a second run must share to give the same tables: versions, code, seeds, data, machine."""

import json
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from igds_utils.config.config import PROJECT
from igds_utils.core.experiment import Run
from igds_utils.core.store import write_whole

PACKAGES = "torch transformers sae-lens trl accelerate math-verify sacrebleu rouge-score pandas"


def manifest(run: Run) -> dict[str, Any]:
    """Preset, versions, commit, machine, hashes of data and SAEs, what each notebook took."""
    versions = {name: version(name) for name in PACKAGES.split()}
    data = {of: {name: run.data_version(of, name) for name in run.sets(of)} for of in run.tasks}
    return {
        "preset": run.preset.model_dump(),
        "versions": {"python": platform.python_version(), **versions},
        "commit": _commit(),
        # kept from the first time: a later `make report` uses fewer threads
        "machine": run.make("machine.json", machine, processor=_processor()),
        "data": data,
        "saes": run.sae_version,
        "notebooks": timings(run.root),
    }


def timings(root: Path) -> dict[str, dict[str, float]]:
    """Notebook -> seconds and peak memory (bytes) of its longest run: later ones find all made.

    snakemake's benchmark records, which a new run replaces, are added to <root>/timings.json.
    """
    file = root / "timings.json"
    kept = json.loads(file.read_text(encoding="utf8")) if file.is_file() else {}
    for record in sorted((root / "benchmarks").glob("*.tsv")):
        row = pd.read_csv(record, sep="\t", na_values="-").loc[0, ["s", "max_rss"]].fillna(0)
        found = {"seconds": round(row["s"], 1), "peak_bytes": row["max_rss"] * 2**20}
        kept[record.stem] = max(kept.get(record.stem, found), found, key=lambda one: one["seconds"])
    write_whole(file, json.dumps(kept, indent=1))
    return kept


def machine() -> dict[str, Any]:
    """The processor, and how many threads and GPUs torch uses: what a measured time belongs to."""
    import torch

    gpus = torch.cuda.device_count()
    return {"processor": _processor(), "threads": torch.get_num_threads(), "gpus": gpus}


def _commit() -> str:
    """The git commit of the code, marked where files differ; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", file.read_text()) if file.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()

"""Runs on a cluster: the snakemake profile that submits the jobs, and what each of them asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igds_utils.config.config import ConfigError
from igds_utils.config.machines import JobConfig
from igds_utils.core.launch import PROFILES


def profile_folder(name: str) -> Path:
    """The folder of a snakemake profile, named by itself or by the profile's name; raises `ConfigError` without one."""
    folder = next((path for path in (PROFILES / name, Path(name)) if (path / "config.yaml").is_file()), None)
    if folder is None:
        raise ConfigError(f"no profile {name!r}: give slurm, or a folder with a snakemake config.yaml")
    return folder.resolve()


def resources(
    jobs: dict[str, JobConfig], stages: Sequence[str], known: Sequence[str]
) -> dict[str, dict[str, int]]:
    """What each of the notebooks `stages`, and an arm, asks a cluster for; `known` are the names of all notebooks.

    Raises `ConfigError` for a job that is none of them.
    """
    if unknown := sorted(set(jobs) - {"default", "arm", *known}):
        raise ConfigError(f"jobs: no notebook {unknown[0]!r}; known: default, arm, {', '.join(known)}")
    default = jobs.get("default", JobConfig())
    return {name: jobs.get(name, default).resources for name in (*stages, "arm")}

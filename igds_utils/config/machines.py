"""What a preset asks of machines: processes that work together, and what a job gets on a cluster."""

from __future__ import annotations

from pydantic import Field, model_validator

from igds_utils.config.refs import Strict


class LaunchConfig(Strict):
    """Processes that train and evaluate an arm together, started by `accelerate launch`."""

    processes: int = Field(1, ge=1, description="on all machines together, a GPU each; 1: the notebook's own")
    training: str | None = Field(
        None,
        description="accelerate configuration of training: fsdp or zero3 (igds_utils/profiles), or the path of a "
        "YAML file; without it every process holds the whole model",
    )
    machines: int = Field(1, ge=1)
    starter: list[str] = Field(
        # inside a job step, which holds the job's resources and counts as one task of one machine
        ["srun", "--overlap", "--nodes={machines}", "--ntasks={machines}", "--ntasks-per-node=1", "-K1"],
        description="command that starts another one once on each machine; {machines} stands for their number",
    )

    @model_validator(mode="after")
    def _processes_spread_evenly(self):
        if self.processes % self.machines:
            raise ValueError(
                f"launch.processes {self.processes} is no multiple of launch.machines {self.machines}"
            )
        return self


class JobConfig(Strict):
    """What one job asks a cluster for."""

    gpus: int = Field(0, ge=0, description="on all nodes together")
    nodes: int = Field(1, ge=1)
    cpus: int = Field(2, ge=1, description="on each node")
    memory_gb: int = Field(16, ge=1, description="on each node")
    minutes: int = Field(120, ge=1)

    @property
    def resources(self) -> dict[str, int]:
        """By the names that snakemake and its executors know."""
        return {
            "gpu": self.gpus,
            "nodes": self.nodes,
            "cpus": self.cpus,
            "mem_mb": self.memory_gb * 1000,
            "runtime": self.minutes,
        }

"""The arms of a task: one trained model each, named by what it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from igds_utils.config import TaskConfig


@dataclass(frozen=True)
class Arm:
    """(selector, ratio, seed); `original` is the model without training (ratio 0), `full` trains on the whole pool."""

    name: str
    selector: str
    ratio: float
    seed: int

    @property
    def trained(self) -> bool:
        return self.ratio > 0

    def size(self, pool: int) -> int:
        """How many of `pool` samples the arm is trained on; at least one."""
        return max(1, round(self.ratio * pool)) if self.trained else 0


def arms(task: TaskConfig) -> list[Arm]:
    """All arms of a task: `original`, then `full` and `<selector>@<ratio>` for every seed.

    The first seed goes unnamed; the others end in -s<seed>.
    """
    found = [Arm("original", "original", 0.0, task.seeds[0])]
    for seed in task.seeds:
        end = "" if seed == task.seeds[0] else f"-s{seed}"
        found.append(Arm(f"full{end}", "full", 1.0, seed))
        for selector in task.selectors:
            found += [Arm(f"{selector}@{ratio:g}{end}", selector, ratio, seed) for ratio in task.ratios]
    return found

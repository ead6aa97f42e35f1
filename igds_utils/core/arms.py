"""The arms of a task: one trained model each, named by what it was trained on."""

from dataclasses import dataclass

from igds_utils.config.config import ConfigError
from igds_utils.config.settings import TaskConfig

CHECKS = ("clean", "corrupted")  # samples of the pool: the ends of the ruler for selectors
WHOLE = ("full", "full_steps")  # the whole pool: for an epoch, and in as many steps as a selection


@dataclass(frozen=True)
class Arm:
    """One training; `original` is the untrained model, `full` trains on the whole pool."""

    name: str
    selector: str
    ratio: float  # of the pool; 0: not trained
    seed: int

    @property
    def is_check(self) -> bool:
        """Whether the arm tests what the task can see, rather than a selector."""
        return self.selector in CHECKS

    @property
    def trained(self) -> bool:
        return self.ratio > 0

    def size(self, pool: int) -> int:
        """How many of `pool` samples the arm is trained on."""
        return selection_size(self.ratio, pool) if self.trained else 0


def selection_size(ratio: float, pool: int) -> int:
    """How many of `pool` samples a ratio selects: ratio x pool, rounded (halves to the even one),
    at least one. Raises `ConfigError` for a ratio outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise ConfigError(f"a ratio must lie in (0, 1], not {ratio}")
    return max(1, round(ratio * pool))


def arms(task: TaskConfig) -> list[Arm]:
    """All arms of a task: `original`, for every seed `full`, `<selector>@<ratio>` and the curve's.

    The first seed goes unnamed; the others end in -s<seed>. Random's further draws follow. Where a
    part of the pool is corrupted, `clean@<ratio>` and `corrupted@<ratio>` come last, for two seeds:
    as many samples of each as the smaller side has (`corruptions.ruler`). `only_arms` of the task
    keeps some; raises `ConfigError` if it names none of these.
    """

    def arm(selector: str, ratio: float, seed: int) -> Arm:
        name = selector if selector in WHOLE else f"{selector}@{ratio:g}"
        return Arm(name if seed == task.seeds[0] else f"{name}-s{seed}", selector, ratio, seed)

    asked = [(whole, 1.0) for whole in WHOLE[: 1 + task.full_steps]]
    asked += [(selector, task.ratio) for selector in task.selectors]
    if curve := task.curve:
        asked += [(selector, ratio) for ratio in curve.ratios for selector in curve.selectors]
    found = [Arm("original", "original", 0.0, task.seeds[0])]
    found += [arm(selector, ratio, seed) for seed in task.seeds for selector, ratio in asked]
    if "random" in task.selectors:
        further = task.seeds_of("random")[len(task.seeds) :]
        found += [arm("random", task.ratio, seed) for seed in further]
    if task.corrupted:
        ratio = min(task.corrupted, 1 - task.corrupted)
        found += [arm(side, ratio, seed) for seed in task.seeds[:2] for side in CHECKS]
    return found if task.only_arms is None else [arm_of(name, found) for name in task.only_arms]


def main_arms(task: TaskConfig) -> list[Arm]:
    """Those that tables compare: all but checks and the curve's."""
    whole, compared = ("original", *WHOLE), [arm for arm in arms(task) if not arm.is_check]
    return [arm for arm in compared if arm.selector in whole or arm.ratio == task.ratio]


def asked_in_general(task: TaskConfig) -> list[Arm]:
    """Arms of a task that answer general questions (`capabilities`): those that it names and
    `original`, or all of `main_arms`. Raises `ConfigError` for a name that no arm has."""
    if task.capabilities is None:
        return []
    if (named := task.capabilities.arms) is None:
        return main_arms(task)
    every = arms(task.model_copy(update={"only_arms": None}))
    wanted = [arm_of(name, every) for name in ("original", *named)]
    return [arm for arm in arms(task) if arm in wanted]


def arm_of(name: str, known: list[Arm]) -> Arm:
    """The first arm of that name or selector; raises `ConfigError` with those that there are."""
    for arm in known:
        if name in (arm.name, arm.selector):
            return arm
    raise ConfigError(f"no arm {name!r}; known: {', '.join(arm.name for arm in known)}")

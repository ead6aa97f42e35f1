"""What a large preset would take on machines that are not at hand: time, what fits, and when one is not enough.

Operations come from `costs`, peaks and the shares of them that are assumed to be reached from hardware.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile

import pandas as pd

from igds_utils.config.settings import Preset, Shape, TaskConfig
from igds_utils.core import costs
from igds_utils.core.costs import Machine
from igds_utils.running import space
from igds_utils.running.workload import stages

DEPTH = 0.6  # share of the blocks up to a task feature (Table 1: layers 14 of 26, 19 of 32, 16 of 36)
USABLE = 0.9  # share of a device's memory that is planned with; the rest is the allocator's and the driver's
LEAST_TOKENS = 2048  # of a pass, and the
LEAST_CACHE_GB = 2  # below which nothing is gained by going on
DAY = 86400
LATER = {"evaluation", "capabilities", "stability"}  # stability identifies once more, in a later notebook
# What is held in memory, in the order of a run -> the notebook that holds it, and stages of the plan.
STEPS = {
    "identify": ("02_causal_intervention", {"recall", "causal filter"}),
    "score": ("03_data_scoring", {"scoring"}),
    "train": ("04_sft", {"training"}),
    "evaluate": ("04_sft", LATER),
}


@dataclass(frozen=True)
class Way:
    """A machine and what of a preset is changed to run there."""

    preset: Preset  # with the changes
    machine: Machine  # with those of its devices that work
    name: str
    changes: dict[str, str | int | float]
    idle: int = 0  # devices that the preset's processes leave idle

    @cached_property
    def memory(self) -> dict[str, list[space.Part]]:
        return space.on_gpu(self.preset)

    @property
    def room(self) -> float:
        """Bytes of one device that are planned with."""
        return USABLE * self.machine.memory_gb * 1e9

    def fits(self, step: str) -> bool:
        return space.held(self.memory[step]) <= self.room

    @property
    def missed(self) -> list[str]:
        """The first step that does not fit, where a run stops, and all after it."""
        return list(dropwhile(self.fits, STEPS))

    @cached_property
    def hours(self) -> pd.Series:
        """Hours of every row of `workload.stages` that a run comes to; nan for the others."""
        missed = set().union(*(STEPS[step][1] for step in self.missed))
        rows = stages(self.preset).to_dict("records")
        return pd.Series([math.nan if r["stage"] in missed else _seconds(self, r) / 3600 for r in rows])

    @property
    def given(self) -> str:
        """The changes as `make` takes them."""
        return f'SET="{" ".join(f"{field}={value}" for field, value in self.changes.items())}"'


def ways(preset: Preset) -> list[Way]:
    """How a preset, which states its model's shape, could run on each machine: as given, and so that it fits and all
    devices work, where that is another way."""
    found = []
    for name, machine in costs.machines().items():
        devices = machine.devices * preset.launch.machines
        given = _way(preset, name, machine, min(devices, preset.launch.processes), devices, {})
        best = _changed(preset, name, machine, devices)
        if not best.changes or given.idle and given.fits("identify"):
            found.append(given)
        if best.changes:
            found.append(best)
    return found


def _way(preset: Preset, name: str, machine: Machine, used: int, devices: int, changes: dict) -> Way:
    device = name.partition(" x ")[2]
    working = machine.model_copy(update={"devices": used})
    return Way(preset, working, f"{used} x {device}", changes, devices - used)


def _changed(preset: Preset, name: str, machine: Machine, devices: int) -> Way:
    """A preset with what puts all devices to work, and makes fit what can."""

    def way(changes: dict) -> Way:
        return _way(_with(preset, changes), name, machine, devices, devices, changes)

    changes = {} if preset.launch.processes == devices else {"launch.processes": devices}
    if devices > 1 and not preset.launch.training and not way(changes).fits("train"):
        changes["launch.training"] = "fsdp"
    tried = [way(changes | less) for less in _less_at_a_time(preset)]
    for steps in (("identify", "score"), ("identify",)):
        for one in tried:
            if all(map(one.fits, steps)):
                return one
    return tried[-1]


def _less_at_a_time(preset: Preset) -> Iterator[dict[str, float]]:
    """What changes how much a GPU holds while it reads and steers, from nothing to the least that makes sense."""
    tokens, asked = preset.batch_tokens, preset.intervention.cache_gb
    while True:
        shorter = {} if tokens == preset.batch_tokens else {"batch_tokens": tokens}
        yield shorter
        for half_gb in range(math.ceil(2 * asked) - 1, 2 * LEAST_CACHE_GB - 1, -1):
            yield shorter | {"intervention.cache_gb": half_gb / 2}
        if tokens <= LEAST_TOKENS:
            return
        tokens //= 2


def _with(preset: Preset, changes: dict) -> Preset:
    """A preset with some fields changed, its own (`batch_tokens`) or those of a part (`launch.processes`)."""
    for place, value in changes.items():
        part, _, field = place.rpartition(".")
        change = {part: getattr(preset, part).model_copy(update={field: value})} if part else {field: value}
        preset = preset.model_copy(update=change)
    return preset


def _seconds(way: Way, row: dict) -> float:
    """Seconds of one row of the plan."""
    shape, machine, task = way.preset.chosen.shape, way.machine, way.preset.tasks.get(row["task"])
    if task is None:
        return row["starts"] * machine.start_seconds
    length = task.prompt_tokens + task.target_tokens
    seconds = machine.seconds(costs.forward_flops(shape, row["read"], length), "read")
    if row["steps"]:
        context = task.prompt_tokens + task.max_new_tokens
        width, rows = space.BYTES[way.preset.chosen.dtype], row["generate"] / row["steps"]
        seconds += costs.decode_seconds(shape, machine, row["generate"], rows, context, width)
    again = task.sft.gradient_checkpointing
    return seconds + machine.seconds(costs.training_flops(shape, row["train"], length, again), "train")


def against_loss(shape: Shape, task: TaskConfig) -> float:
    """Operations of FRS over those of Loss on the same pool: IGDS / Loss of Table 4, from the sizes alone."""
    igds, loss = (_of_one(shape, task, need) for need in ("task_feature_activations", "target_loss"))
    return igds / loss


def samples_a_day(shape: Shape, task: TaskConfig, machine: Machine, need: str) -> float:
    """Pool samples that a machine measures for a selector in a day."""
    return DAY / machine.seconds(_of_one(shape, task, need), "read")


def _of_one(shape: Shape, task: TaskConfig, need: str) -> float:
    """Operations that measure one pool sample."""
    blocks = round(DEPTH * shape.layers)
    return costs.selection_cost(shape, [need], 1, task.prompt_tokens, task.target_tokens, blocks).flops


# ---- for people ------------------------------------------------------------------------------------------


def memory_rows(found: list[Way]) -> list[list[str]]:
    """What each step holds on one GPU in every way, in GB, as rows of a table."""
    rows = [["GB on one GPU", *(way.name for way in found), f"on {found[0].name}"]]
    for step in STEPS:
        sizes = [
            f"{'too much: ' if not way.fits(step) else ''}{space.held(way.memory[step]) / 1e9:.1f}"
            for way in found
        ]
        rows.append([step, *sizes, space.listed(found[0].memory[step])])
    return [*rows, ["usable", *(f"{way.room / 1e9:.1f}" for way in found), f"{USABLE:.0%} of what there is"]]


def advice(found: list[Way]) -> list[str]:
    """How to run a preset in each way, how long it takes, how far it comes, and what to do then."""
    said = [
        f"{way.name}, {f'with {way.given}' if way.changes else 'as given'}: {_outcome(way)}" for way in found
    ]
    if any(way.missed and way.fits("identify") for way in found):
        said.append(
            "Where a run stops, the same command on a larger machine, with results/ copied there, goes on from there"
        )
    return said


def _outcome(way: Way) -> str:
    taken = f"about {_shown(way.hours.sum())} hours"
    if not way.missed:
        return f"{taken}; {way.idle} GPUs are idle" if way.idle else taken
    step = way.missed[0]
    parts, notebook = way.memory[step], STEPS[step][0]
    most = max(parts, key=lambda part: part[1])[0]
    needed, usable = f"{space.held(parts) / 1e9:.0f} GB", f"{way.room / 1e9:.0f}"
    why = f"{notebook} needs {needed} where {usable} are usable, most of it for {most}"
    if step == "identify":
        return f"does not fit: {why}"
    alone = 'SET="tasks.<task>.selectors=[random,igds] tasks.<task>.curve=null"'
    one_model = f" (IGDS alone reads one: {alone})" if step == "score" else ""
    return f"{taken}, then it stops, for {why}{one_model}"


def _shown(number: float) -> str:
    return f"{number:.1f}" if number < 20 else f"{number:,.0f}"


def pool_lines(preset: Preset, found: list[Way]) -> list[str]:
    """What IGDS costs against Loss, and the size of a pool that one machine no longer scores in a day."""
    shape, said = preset.chosen.shape, []
    for name, task in preset.tasks.items():
        said.append(
            f"IGDS / Loss on {name}: {against_loss(shape, task):.2f} of the operations (prompts of "
            f"{task.prompt_tokens} tokens, targets of {task.target_tokens}, a feature at {DEPTH:.0%} of the depth). "
            "Scored in a day, in millions of samples:"
        )
        for way in found:
            igds, loss = (
                samples_a_day(shape, task, way.machine, need) / 1e6
                for need in ("task_feature_activations", "target_loss")
            )
            said.append(f"  {way.name}: {_shown(igds)} for IGDS, {_shown(loss)} for Loss")
    processes = 4 * max(machine.devices for machine in costs.machines().values())
    return [
        *said,
        f'A pool that takes longer outgrows the machine: SET="launch.machines=4 launch.processes={processes}" shares '
        "it out over four, `igds run --profile slurm` makes jobs of a cluster; products and results are the same.",
    ]

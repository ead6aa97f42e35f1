"""What a preset would cost, as text: nothing is fetched or run for it.

print(render(load_preset("quick")))
"""

from __future__ import annotations

import json
import math

import pandas as pd

from igds_utils.config.config import PROJECT
from igds_utils.config.refs import FolderRef, HubRef, Ref, TinyRef
from igds_utils.config.settings import ModelConfig, Preset
from igds_utils.core.arms import arms
from igds_utils.core.costs import sae_bytes
from igds_utils.core.manifest import made_in
from igds_utils.running import forecast
from igds_utils.running.space import disk, held, listed, peak_memory
from igds_utils.running.workload import stages


def render(preset: Preset) -> str:
    """The plan as text: what is run, what every stage costs, what it needs, and how to run it."""
    lines = [
        f"Preset {preset.name}: {preset.description.strip()}",
        f"Model  {preset.model}: {_about(preset.chosen)}",
    ]
    for name, task in preset.tasks.items():
        lines.append(f"Task   {name}: {', '.join(arm.name for arm in arms(task))}")
    return "\n".join([*lines, "", *(_at_speeds(preset) if preset.speeds else _on_machines(preset))])


def _at_speeds(preset: Preset) -> list[str]:
    """The plan at the speeds that a preset states, and how near it comes to a run."""
    frame = stages(preset)
    minutes, memory = frame["minutes"].sum(), peak_memory(preset)
    lines = _table(frame, {"minutes": frame["minutes"]})
    lines += ["", f"Time   about {show_minutes(minutes)} at the preset's speeds"]
    if memory is not None:
        lines.append(f"Memory about {memory / 1e9:.1f} GB at the peak{_of_sae(preset)}")
    return [*lines, *_disk(preset), *_measured(preset, minutes, memory)]


def _on_machines(preset: Preset) -> list[str]:
    """The plan on the machines of hardware.yaml: hours, what fits, and what to run."""
    frame = stages(preset)
    if preset.chosen.shape is None:
        return [*_table(frame, {}), "", "Time is not known: the preset states no speeds", *_disk(preset)]
    found = forecast.ways(preset)
    hours = {way.name: way.hours for way in found}
    return [
        *_table(frame, hours),
        "Hours follow from operations and bytes, at shares of the machines' peaks that igds_utils/core/hardware.yaml "
        "assumes and nobody measured.",
        "",
        *_aligned(forecast.memory_rows(found), left={0, len(found) + 1}),
        "",
        *forecast.advice(found),
        "",
        *forecast.pool_lines(preset, found),
        "",
        *_disk(preset),
    ]


def _of_sae(preset: Preset) -> str:
    size = sae_bytes(preset.chosen.shape)
    return f"; one SAE at a time, of {size / 1e9:.2g} GB" if size else ", without the SAEs"


def _disk(preset: Preset) -> list[str]:
    parts = disk(preset)
    if not parts:
        return [f"Memory and disk are not known: the preset states no shape of model {preset.model}"]
    return [f"Disk   about {held(parts) / 1e9:.1f} GB beside the data: {listed(parts)}"]


def _measured(preset: Preset, minutes: float, memory: float | None) -> list[str]:
    """What the reference run of a preset took, and how far the plan is from it."""
    file = PROJECT / "results" / "reference" / preset.name / "timings.json"
    if not file.exists() or memory is None:
        return []
    runs = made_in(json.loads(file.read_text(encoding="utf8"))).values()
    took, peak = sum(run["seconds"] for run in runs) / 60, max(run["peak_bytes"] for run in runs)
    return [
        f"Ran    in {took:.0f} min with {peak / 1e9:.1f} GB at the peak when results/reference was made: the plan is "
        f"{minutes / took - 1:+.0%} and {memory / peak - 1:+.0%} from that"
    ]


def _table(frame: pd.DataFrame, times: dict[str, pd.Series]) -> list[str]:
    """Stages with their tokens, and one column of times each, with totals."""
    tokens = frame[["read", "generate", "train"]]
    rows = [["task", "stage", "what", *tokens.columns, *times]]
    for place, row in enumerate(frame.to_dict("records")):
        counted = [f"{row[c]:,}" if row[c] else "-" for c in tokens.columns]
        taken = [
            "-" if math.isnan(column.iloc[place]) else f"{column.iloc[place]:,.1f}"
            for column in times.values()
        ]
        rows.append([row["task"], row["stage"], row["what"], *counted, *taken])
    totals = [*(f"{n:,}" for n in tokens.sum()), *(f"{column.sum():,.1f}" for column in times.values())]
    return _aligned([*rows, ["total", "", "", *totals]], left={0, 1, 2})


def _aligned(rows: list[list[str]], left: set[int]) -> list[str]:
    """Rows of a table as lines; left: columns that are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def show_minutes(minutes: float) -> str:
    return f"{max(minutes, 1):.0f} min" if minutes < 120 else f"{minutes / 60:,.0f} hours"


def _about(model: ModelConfig) -> str:
    same = model.identify == model.train
    models = (
        _origin(model.identify)
        if same
        else f"identify on {_origin(model.identify)}, train {_origin(model.train)}"
    )
    layers = (
        "all layers" if model.saes.layers == "all" else f"layers {', '.join(map(str, model.saes.layers))}"
    )
    return f"{models}, {model.dtype}; SAEs: {model.saes.source} {model.saes.name}, {layers}"


def _origin(ref: Ref) -> str:
    if isinstance(ref, HubRef):
        return f"{ref.hub} ({ref.revision[:8]})"
    if isinstance(ref, FolderRef):
        return ref.folder
    if isinstance(ref, TinyRef):
        return f"a tiny random {ref.tiny}"
    return f"{ref.file} of {ref.wheel} {ref.version}"

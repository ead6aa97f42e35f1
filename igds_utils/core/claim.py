"""Whose results a folder holds: another preset file of the same name does not replace them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from igds_utils.config.config import PRESETS, ConfigError, preset_file
from igds_utils.core.store import write_whole
from igds_utils.data.hub import sha256


def claim(root: Path, preset: str) -> None:
    """Keep beside the results of a preset which file it is; `ConfigError` where that is another one.

    The recorded file may change, and it may be moved. A copy of the same content may use the results while it is
    one; the record stays with the first file for as long as that exists.
    """
    file, record = preset_file(preset), root / "preset.json"
    shipped = file.resolve().parent == PRESETS
    own = {"file": file.stem if shipped else str(file.resolve()), "sha256": sha256(file)}
    try:
        kept = json.loads(record.read_text(encoding="utf8"))
    except (OSError, ValueError):
        kept = None
    moved = kept and kept["file"] != own["file"]
    if moved and kept["sha256"] != own["sha256"]:
        raise ConfigError(
            f"{root} holds the results of another preset of this name, {kept['file']}: change `name` in {file.name}, "
            "or give another folder of results"
        )
    if kept != own and not (moved and preset_file(kept["file"]).is_file()):
        with suppress(OSError):  # results that may only be read
            write_whole(record, json.dumps(own))

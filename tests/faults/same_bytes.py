"""Two runs of a preset beside each other, product by product: python tests/faults/same_bytes.py PRESET FIRST SECOND

FIRST, SECOND: two result folders of the preset, made by the same code on one machine. Compared are the tables as CSV
and all products of the models' folders: recalled and chosen features, selections, scores, losses, answers. The preset's
rows of results/reference/faults/same_bytes.csv are made anew; the exit code is 1 where two differ. Left out is what
tells the time: columns of seconds (of the others it is the content that is compared), the claim that one selector is
cheaper than another, and the files of LEFT_OUT.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import pandas as pd

from igds_utils.config.config import PROJECT

TABLE = PROJECT / "results/reference/faults/same_bytes.csv"
LEFT_OUT = {
    "*.made.json": "seconds that a product took",
    "manifest.json": "time and memory of every notebook",
    "table4.csv": "selectors in seconds, and their ratios",
    "llama_factory/*": "copies of the selections",
}


def digest(file: Path) -> str:
    """sha256, its first 16 digits."""
    content = file.read_bytes()
    if file.suffix == ".csv":
        content = b"".join(line for line in content.splitlines(True) if b"is cheaper than" not in line)
    if file.suffix in (".csv", ".parquet"):
        table = pd.read_csv(file, dtype=str) if file.suffix == ".csv" else pd.read_parquet(file)
        if timed := [name for name in table if name.lower() == "seconds"]:
            content = table.drop(columns=timed).to_csv().encode()
    return sha256(content).hexdigest()[:16]


def products(folder: Path) -> dict[str, str]:
    """Everything that two runs must share."""
    found = [*folder.glob("tables/*.csv"), *folder.glob("*/*.json")]
    found += [file for kind in ("parquet", "json", "jsonl") for file in folder.glob(f"*/*/**/*.{kind}")]
    kept = {file for file in found if not any(file.match(name) for name in LEFT_OUT)}
    return {str(file.relative_to(folder)): digest(file) for file in sorted(kept)}


def main(preset: str, first: str, second: str) -> int:
    rows = pd.DataFrame({"first": products(Path(first)), "second": products(Path(second))})
    rows = rows.fillna("missing").rename_axis("product")
    rows = rows.reset_index().assign(preset=preset)[["preset", "product", "first", "second"]]
    known = pd.read_csv(TABLE, dtype=str) if TABLE.exists() else rows[:0]
    table = pd.concat([known[known["preset"] != preset], rows]).sort_values(["preset", "product"])
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, index=False, lineterminator="\n")
    differ = rows[rows["first"] != rows["second"]]
    print(differ.to_string(index=False) if len(differ) else "no product differs", f"of {len(rows)}")
    return int(len(differ) > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

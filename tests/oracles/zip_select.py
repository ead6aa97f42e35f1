"""ZIP beside the authors' ZIP.py: the order in which samples are taken, repeats included.

Theirs compresses the text of a Python list of records, ours instructions and targets: here both
compress ours. All else is their program, first as it is, where `torch.topk` takes any of those that
are equal in single precision, and then in double precision with the smaller id first, as ours.
"""

import json
import runpy
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from parity import checkout, quiet, record, samples

from igds_utils.selectors.base import document
from igds_utils.selectors.diversity import LEVEL, entropy_law

REPOSITORY, SIZE = "USTC-StarTeam/ZIP", 300
NUMBERS = {"k1": 120, "k2": 40, "k3": 20}


def ratio(records: list[dict]) -> float:
    whole = "".join(one["text"] for one in records).encode()
    return len(whole) / len(zlib.compress(whole, LEVEL))


def first_of_lowest(values: torch.Tensor, k: int, largest: bool):
    indices = values.sort(stable=True, descending=largest).indices[:k]
    return None, indices.sort().values if k == NUMBERS["k1"] else indices


folder, commit = checkout(REPOSITORY)
source = "ZIP.py", REPOSITORY, commit
members = samples(400)
records = [{"source": "", "id": one.id, "text": f"{document(one)}\n"} for one in members]
theirs = runpy.run_path(str(folder / "ZIP.py"))["ZIP_select"]
theirs.__globals__["get_compression_ratio"] = ratio
pool = SimpleNamespace(samples=members, ids=[one.id for one in members])
order = entropy_law(pool, SIZE, mode="official", **NUMBERS).order
of_ours = [pool.ids[i] for i in order]


def chosen() -> list[str]:
    with TemporaryDirectory() as work, quiet():
        theirs(records, f"{work}/chosen.json", SIZE, **NUMBERS)
        taken = json.loads(Path(f"{work}/chosen.json").read_text())
    return list(dict.fromkeys(one["id"] for one in taken))[:SIZE]


as_it_is = chosen()
record(*source, "samples, as it is", len(as_it_is), len({*of_ours} & {*as_it_is}))
torch.topk = first_of_lowest
torch.set_default_dtype(torch.float64)
in_order = chosen()
same = sum(map(str.__eq__, of_ours, in_order))
record(*source, "order, ties broken alike", len(in_order), same)

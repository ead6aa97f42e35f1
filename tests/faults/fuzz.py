"""Random damage to pools, tasks and presets: each is read, or refused by an error of our own.

    PYTHONPATH=tests python -m faults.fuzz --minutes 10 --seed 0
"""

import argparse
import gzip
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import pandas as pd
from faults.bad_input import FINE, JSONL, MORE, lines, table

from igds_utils import tasks
from igds_utils.config.config import PRESETS, ConfigError
from igds_utils.core.experiment import open_run
from igds_utils.data.hub import SourceError
from igds_utils.running import runner
from igds_utils.selection.tool import select

RECORDS = [FINE, MORE, *({"id": i, "question": f"{i} + é?", "target": str(i)} for i in range(3))]
FRAME = pd.DataFrame(RECORDS).astype(str)
WHOLE = {
    JSONL: lines(*RECORDS),
    "a.json": b"[" + lines(*RECORDS).strip().replace(b"\n", b",\n") + b"]",
    "a.csv": FRAME.to_csv(index=False).encode(),
    "a.tsv": FRAME.to_csv(index=False, sep="\t").encode(),
    "a.parquet": table(list(FRAME), *(FRAME[name] for name in FRAME)),
    "a.jsonl.gz": gzip.compress(lines(*RECORDS), mtime=0),
    "preset.yaml": (PRESETS / "smoke.yaml").read_bytes(),
    "task.yaml": (PRESETS / "tasks/math.yaml").read_bytes(),
}
PIECES = rb"""{ } [ ] : , " ' \ # & * ! % - ? | > < ~ @ ` { [ {{ }} {0} : 0 -1 1e999 .nan NaN 1e-400 null true [] {}
[[ !!int !!binary !!timestamp !!set &x *x <<: 2024-13-45 0x 0o9 \ud83d \u0000 00 99999999999999999999 ---""".split()
PIECES += [b"\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", "é".encode(), "é".encode("utf-16"), b"[" * 9999, b""]


def damaged(content: bytes, random: Random) -> bytes:
    """Some of its bytes replaced, cut out, doubled or moved; now and then in another encoding."""
    for _ in range(random.choice([1, 1, 2, 4, 9])):
        start, end = sorted(random.choices(range(len(content) + 1), k=2))
        if random.random() < 0.8:
            end = min(end, start + random.choice([0, 1, 1, 4, 30]))
        if b":" in content and random.random() < 0.3:  # a value, whole
            start = random.choice([i + 1 for i, byte in enumerate(content) if byte == ord(":")])
            end = start + len(re.match(rb"[^\n,}]*", content[start:])[0])
        piece = random.choice([*PIECES, content[start:end] * 2, random.randbytes(2), content[:start]])
        content = content[:start] + piece + content[end:]
    if random.random() < 0.05:
        content = content.decode("latin-1").encode(random.choice(["utf-16", "utf-8-sig", "utf-32"]))
    return content


def fuzz(seconds: float, seed: int) -> Counter:
    """How many files of each kind were read and how many refused; raises whatever else is raised."""
    end, random, counts = time.monotonic() + seconds, Random(seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        run = open_run("smoke", tasks=["math"], results=f"{folder}/results")
        run.store.log = lambda line: None
        while time.monotonic() < end:
            name = random.choice(list(WHOLE))
            file, content = Path(folder, name), damaged(WHOLE[name], random)
            if name.endswith(".gz") and random.random() < 0.7:  # what it holds, not how it is packed
                content = gzip.compress(damaged(WHOLE[JSONL], random), mtime=0)
            file.write_bytes(content)
            try:
                if name == "preset.yaml":
                    runner.asked(str(file), results=folder, stages=[])
                elif name == "task.yaml":
                    tasks.get("mine", str(file))
                else:
                    select(run, "math", str(file), f"{folder}/out", "longest", skip_bad=random.random() < 0.5)
                counts[f"{name} read"] += 1
            except (ConfigError, SourceError):
                counts[f"{name} refused"] += 1
            except BaseException:
                Path("fuzz.failed").write_bytes(content)
                print(f"after {counts.total()} files, seed {seed}: {name}, kept as fuzz.failed")
                raise
    return counts


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=1)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    counts = fuzz(60 * given.minutes, given.seed)
    print(f"{counts.total()} files:", ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()

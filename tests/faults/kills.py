"""Kills runs of the smoke preset at random moments, and compares what they end with.

    make test-faults          50 kills over 5 runs; given again, it goes on where it was stopped

One run is left alone. Each other one is started again after every SIGKILL, with the first notebook
that has not come to its end, until it has had its share of kills; then it runs to its end.
`kills.csv` has a row a kill:

run, kill: their numbers. stage: what was at work; product: the last one begun in that attempt.
victim: the `kernel`, the `runner` (its jobs end by themselves), or `all` processes of the run.
seconds: from the start of the attempt to its kill.
identical: whether the run ended with the files of the undisturbed one, byte by byte. Times are left
    out: columns of seconds, `TIMED` files and the row of a `TIMED_CLAIM`; so are hidden files: one
    that was being written at a kill may stay, under a temporary name.
made_again: finished products and stored parts that the run made a second time, those in the making
    at a kill aside.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
from filelock import FileLock
from tqdm import tqdm

from igds_utils.config.config import PROJECT
from igds_utils.core.store import write_whole
from igds_utils.running.runner import STAGES

BEGUN = re.compile(r"\] (\d\d_\w+)$", re.MULTILINE)  # [3/12] 03_data_scoring
MAKING = re.compile(r"\] (\d\d_\w+)$|(\S+): making it", re.MULTILINE)
TIMED = re.compile(r"made\.json$|manifest|benefit|selection_costs|table4|ladder\.(md|tex)")
TIMED_CLAIM = b"IGDS is cheaper"
COLUMNS = "run kill stage product victim seconds identical made_again".split()
LONGEST = 45
PATIENCE = 300  # seconds until all processes of a killed run have ended


class Run:
    """A run of smoke in a folder of its own, in as many attempts as it takes."""

    def __init__(self, folder: Path, tasks: str):
        self.folder, self.log = folder, folder / "run.log"
        self.root = folder / "results" / "smoke"
        self.command = [sys.executable, "-m", "igds_utils.cli", "run", "--preset", "smoke"]
        self.command += ["--tasks", tasks, "--results", str(self.root.parent)]
        self.root.mkdir(parents=True, exist_ok=True)

    def left(self) -> list[str]:
        """The stages that have not come to their end, or the last one."""
        executed = self.root / "notebooks"
        return [one for one in STAGES if not (executed / f"{one}.ipynb").exists()] or [STAGES[-1]]

    def start(self) -> psutil.Popen:
        with FileLock(self.root / ".runner.lock", timeout=PATIENCE):  # no other is at work here
            pass
        # a notebook at a time: the log says what was at work
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        streams = {"stderr": subprocess.STDOUT, "start_new_session": True, "env": alone}
        with self.log.open("ab") as log:
            first = ["--first", self.left()[0][:2]]
            return psutil.Popen([*self.command, *first], stdout=log, **streams)

    def said(self, since: int = 0) -> str:
        return self.log.read_bytes()[since:].decode("utf8", "replace").replace("\r", "\n")

    def finish(self) -> None:
        """Run all notebooks that are left, undisturbed."""
        process = self.start()
        try:
            if process.wait():
                raise RuntimeError(f"a run that nobody killed failed: {self.log}")
        finally:
            strike(process, "all")

    def kill(self, number: int, stage: str, sign: str, delay: float, victim: str) -> None:
        """Go on with the run, and kill it `delay` seconds after the log shows a sign of a stage."""
        since = self.log.stat().st_size if self.log.exists() else 0
        process, started = self.start(), time.monotonic()
        try:
            while process.poll() is None and not reached(self.said(since), stage, sign):
                time.sleep(0.05)
            with suppress(psutil.TimeoutExpired):
                process.wait(delay)
            ended, seconds = process.poll() is not None, time.monotonic() - started
            struck = strike(process, victim)
        finally:
            strike(process, "all")
        if ended:  # before its kill
            return self.kill(number, stage, sign, delay / 2, victim)
        made = [product for _, product in MAKING.findall(self.said(since)) if product]
        row = {"kill": number, "stage": (BEGUN.findall(self.said(since)) or self.left())[-1]}
        row |= {"product": made[-1] if made else "", "victim": struck, "seconds": round(seconds, 1)}
        kept = {"row": row, "stored": self.stored()}
        write_whole(self.folder / f"kill-{number:03d}.json", json.dumps(kept))

    def kills(self) -> list[dict]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("kill-*.json"))]

    def stored(self) -> dict[str, int]:
        """When finished products' records and parts of unfinished ones were written."""
        files = [*self.root.rglob("*.made.json"), *self.root.rglob("*.parts-*/*")]
        return {str(file.relative_to(self.root)): file.stat().st_mtime_ns for file in files}

    def made_again(self) -> list[str]:
        """What was finished and written again, and what the log says was made too often."""
        kills, last = self.kills(), self.stored()
        moments = [*(kill["stored"] for kill in kills), last]
        again = {
            name
            for before, after in zip(moments, moments[1:], strict=False)
            for name, written in before.items()
            if after.get(name, written if ".parts-" in name or "/weights/" in name else 0) != written
        }
        struck = Counter(kill["row"]["product"] for kill in kills)
        made = Counter(product for _, product in MAKING.findall(self.said()) if product)
        return sorted(again | {name for name in made if made[name] > 1 + struck[name]})

    def compare(self, expected: dict[str, bytes]) -> None:
        """Keep which files differ from the expected ones, and what was made again."""
        found = self.contents()
        names = sorted({*expected, *found})
        differ = [one for one in names if expected.get(one) != found.get(one)]
        outcome = {"differ": differ, "made_again": self.made_again()}
        write_whole(self.folder / "outcome.json", json.dumps(outcome, indent=1))

    def outcome(self) -> dict[str, list[str]]:
        """What `compare` kept; nothing of a run that has not come to its end."""
        file = self.folder / "outcome.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def rows(self) -> list[dict]:
        """The kills as rows of the table."""
        end, rows = self.outcome(), [kill["row"] for kill in self.kills()]
        found = {"identical": not end["differ"], "made_again": len(end["made_again"])} if end else {}
        return [{**row, **found} for row in rows]

    def contents(self) -> dict[str, bytes]:
        """Products and tables by name, without times."""
        found = {}
        for file in self.root.glob("t*/**/*"):  # tables/ and tiny-llama/
            if file.is_dir() or TIMED.search(file.name) or file.name.startswith("."):
                continue
            content = file.read_bytes()
            if read := {".parquet": pd.read_parquet, ".csv": pd.read_csv}.get(file.suffix):
                table = read(file)
                timed = [column for column in table if "seconds" in column.lower()]
                content = table.drop(columns=timed).to_parquet() if timed else content
            lines = content.split(b"\n")
            kept = [line for line in lines if not line.lstrip(b"| ").startswith(TIMED_CLAIM)]
            found[str(file.relative_to(self.root))] = b"\n".join(kept)
        return found


def reached(text: str, stage: str, sign: str) -> bool:
    """Whether a log shows a sign of a stage, its end, or a later stage."""
    later = {*STAGES[STAGES.index(stage) + 1 :]}
    return sign in text or f"] {stage}: " in text or bool(later & {*BEGUN.findall(text)})


def strike(process: psutil.Popen, victim: str) -> str:
    """Kill a victim, and wait until nothing of its run is left; who was killed."""
    with suppress(psutil.NoSuchProcess):
        tree = process.children(recursive=True)
        kernels = [one for one in tree if "ipykernel" in " ".join(of_living(one.cmdline, []))]
        if victim == "kernel" and kernels:
            of_living(kernels[-1].kill)
            if psutil.wait_procs([process], 30)[1]:  # it had done its work
                return strike(process, "all")
        elif victim == "runner":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            victim = "all"
            for one in [process, *tree]:
                of_living(one.kill)
        if left := psutil.wait_procs([process, *tree], PATIENCE)[1]:
            raise RuntimeError(f"{victim} was killed, and these go on: {left}")
    return victim


def of_living(call, default=None):
    with suppress(psutil.NoSuchProcess):
        return call()
    return default


def moments(undisturbed: Run, number: int, kills: int) -> list[tuple[str, str, float]]:
    """A run's kills in their order: stage, sign in the log, and the delay in seconds after it.

    In odd runs each falls within two seconds of the start of a product, in even ones anywhere in
    the undisturbed run, up to `LONGEST` seconds of a stage; `kills` equal stretches have one each.
    """
    draw = random.Random(number)
    places = [(place + draw.random()) / kills for place in range(kills)]
    if number % 2:
        stage, products = "", []
        for begun, product in MAKING.findall(undisturbed.said()):
            stage = begun or stage
            products += [(stage, f"{product}: making it")] if product else []
        return [(*products[int(at * len(products))], draw.uniform(0, 2)) for at in places]
    timings = json.loads((undisturbed.root / "timings.json").read_text())
    found, took = [], [min(LONGEST, timings[stage]["seconds"]) for stage in STAGES]
    for at in places:
        left = at * sum(took)
        for stage, seconds in zip(STAGES, took, strict=True):
            if left < seconds:
                found.append((stage, f"] {stage}\n", left))
                break
            left -= seconds
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="kill runs of the smoke preset")
    parser.add_argument("--kills", type=int, default=50, help="in all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tasks", default="math", help="of smoke; empty: all")
    parser.add_argument("--results", type=Path, default=PROJECT / "results/reference/faults")
    parser.add_argument("--work", type=Path, default=PROJECT / "results/faults", help="is kept")
    options = parser.parse_args()
    undisturbed = Run(options.work / "undisturbed", options.tasks)
    runs = [Run(options.work / f"run{n + 1}", options.tasks) for n in range(options.runs)]
    each = options.kills // options.runs

    def write() -> None:
        rows = [{"run": n, **row} for n, run in enumerate(runs, 1) for row in run.rows()]
        table = pd.DataFrame(rows).convert_dtypes().reindex(columns=COLUMNS)
        write_whole(options.results / "kills.csv", table.to_csv(index=False))

    if not (undisturbed.root / "report.html").exists():
        print("the run that is left alone", flush=True)
        undisturbed.finish()
    expected = undisturbed.contents()
    write()
    with tqdm(total=each * len(runs), desc="kills", unit="kill") as bar:
        for number, run in enumerate(runs, 1):
            planned, draw = moments(undisturbed, number, each), random.Random(-number)
            victims = [draw.choice(("kernel", "runner", "all")) for _ in planned]
            bar.update(done := len(run.kills()))
            for kill in range(done, each):
                bar.set_postfix_str(f"run {number}, {planned[kill][0]}")
                run.kill(kill + 1, *planned[kill], victims[kill])
                write()
                bar.update()
            if not run.outcome():
                run.finish()
                run.compare(expected)
                bar.write(f"run {number}: {run.outcome()}")
                write()
    return int(any(any(run.outcome().values()) for run in runs))


if __name__ == "__main__":
    sys.exit(main())

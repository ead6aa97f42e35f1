"""The runner on two toy notebooks: order, refusals, failures, and being killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from igds_utils import cli
from igds_utils.config.config import PRESETS, ConfigError, load_preset
from igds_utils.core import manifest
from igds_utils.core.arms import arms
from igds_utils.core.launch import PROFILES
from igds_utils.running import runner

PARAMETERS = 'preset = "quick"\nmodel = ""\ntasks = []\noverrides = {}\nresults = "results"'
FIRST = "from pathlib import Path\nPath(results, 'made').write_text(f'{tasks} {overrides}')\nprint('first is here')"
# The second waits as long as there is a file `hold`, and fails without tasks.
SECOND = """import os, sys, time
from pathlib import Path
folder = Path(results)
(folder / 'at_work').write_text(str(os.getpid()))
while (folder / 'hold').exists():
    time.sleep(0.05)
print((folder / 'made').read_text(), sys.executable, sum([1 / len(tasks)]))"""
PRESET = yaml.safe_load((PRESETS / "smoke.yaml").read_text(encoding="utf8")) | {"name": "toy"}


def write_notebook(file: Path, *cells: str, parameters: str = PARAMETERS) -> None:
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = [first, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), file)


class Toy:
    """A preset, two notebooks and a results folder of their own."""

    def __init__(self, folder: Path):
        self.results = folder / "results"
        self.root = self.results / "toy"
        self.executed = self.root / "notebooks"
        self.started: list[subprocess.Popen] = []
        self.results.mkdir()
        (folder / "toy.yaml").write_text(yaml.safe_dump(PRESET))
        write_notebook(folder / "first.ipynb", FIRST)
        write_notebook(folder / "second.ipynb", SECOND)
        self.request = {"preset": str(folder / "toy.yaml"), "results": str(self.results)}
        self.request |= {"stages": ("first", "second"), "notebooks": str(folder)}

    def run(self, **more):
        return runner.run(**self.request, **more)

    def start(self) -> tuple[subprocess.Popen, psutil.Process]:
        """A runner in its own process, and the kernel of its second notebook, which is waiting."""
        (self.results / "hold").touch()
        code = f"from igds_utils.running import runner; runner.run(**{self.request!r}, tasks=['math'])"
        process = subprocess.Popen([sys.executable, "-c", code])
        at_work = self.results / "at_work"
        self.started.append(process)
        wait_for(lambda: at_work.is_file() and at_work.read_text(), 300)
        return process, psutil.Process(int(at_work.read_text()))

    def notebooks(self) -> list[str]:
        return [file.name for file in self.executed.iterdir() if not file.name.startswith(".")]


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "OneDrive - University" / "o'neil {x} $(touch ran);&"  # names that shells read
    folder.mkdir(parents=True)
    made = Toy(folder)
    yield made
    for process in made.started:  # where a test failed half-way; its jobs follow by themselves
        process.kill()
        process.wait()


def test_a_killed_run_continues_and_a_failed_one_says_where_to_read(toy, capfd):
    # one runner at a time
    process, kernel = toy.start()
    with pytest.raises(ConfigError, match="another run works in .*toy: wait for it"):
        toy.run()
    assert kernel.is_running()

    # killed without a chance to clean up: nothing of it goes on, nothing half-written bears a final name
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: not kernel.is_running(), 60)  # although nobody has asked for the killed runner yet
    process.wait()
    assert toy.notebooks() == ["first.ipynb"]

    # the lock is not left behind; a notebook that fails is kept for reading, with its error told
    (toy.results / "hold").unlink()
    with pytest.raises(runner.RunError) as caught:
        toy.run()
    assert "[2/2] second: ZeroDivisionError: division by zero" in capfd.readouterr().out
    failed = toy.executed / "second.failed.ipynb"
    assert str(failed) in str(caught.value)
    assert "ZeroDivisionError" in failed.read_text()
    assert not (toy.executed / "second.ipynb").exists()

    # and then it works, though the clock was set back since; a stopped run has left the record of what it finished
    (toy.root / "benchmarks/first.tsv").write_text("s\tmax_rss\n777.5\t100.5\n")
    for file in toy.root.rglob("*"):
        os.utime(file, (time.time() + 86400,) * 2)
    capfd.readouterr()
    assert toy.run(tasks=["math"], overrides={"seed": 3}) == toy.root
    assert sorted(toy.notebooks()) == ["first.ipynb", "second.ipynb"]
    shown = capfd.readouterr().out
    assert shown.index("first is here") < shown.index("['math'] {'seed': 3}")
    assert str(Path(sys.executable)) in shown  # the kernel is this environment's
    assert "[2/2] second: done in" in shown

    # an executed notebook names no folder of this machine, beside what its cells print
    for stage in toy.request["stages"]:
        notebook = nbformat.read(toy.executed / f"{stage}.ipynb", 4)
        given = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
        told = json.dumps([notebook.metadata, given, [cell.metadata for cell in notebook.cells]])
        assert "results" in told and str(toy.results.parent) not in told and '"/' not in told

    # the longest run of each notebook counts
    timings = json.loads((toy.root / "timings.json").read_text())
    assert sorted(timings) == ["first", "second"] and all(one["seconds"] > 0 for one in timings.values())
    assert timings["first"]["seconds"] == 777.5
    record = toy.root / "benchmarks/first.tsv"
    for seconds, kept in (("999.5", 999.5), ("1.0", 999.5)):
        record.write_text(f"s\tmax_rss\n{seconds}\t100.5\n")
        assert manifest.timings(toy.root)["first"] == {"seconds": kept, "peak_bytes": 100.5 * 2**20}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_takes_its_notebook_with_it(toy, number):
    process, kernel = toy.start()
    process.send_signal(number)
    process.wait(timeout=300)
    assert process.returncode != 0
    wait_for(lambda: not kernel.is_running(), 30)
    assert toy.notebooks() == ["first.ipynb"]
    (toy.results / "hold").unlink()
    assert toy.run(tasks=["math"]) == toy.root


def test_a_kernel_that_dies_is_told_and_its_notebook_runs_when_it_is_given_again(toy, capfd):
    second, run = Path(toy.request["notebooks"], "second.ipynb"), runner.asked(**toy.request)
    write_notebook(second, "import os; os.kill(os.getpid(), 9)")
    assert not runner.execute(run, "second")
    assert "second: the kernel died" in capfd.readouterr().out
    assert toy.notebooks() == ["second.failed.ipynb"]
    write_notebook(second, "print('lives')")
    assert runner.execute(run, "second") and "second.ipynb" in toy.notebooks()


def test_a_parameter_that_a_notebook_does_not_know_is_refused(toy):
    write_notebook(Path(toy.request["notebooks"], "second.ipynb"), parameters='preset = "quick"\ntaks = []')
    with pytest.raises(ConfigError) as caught:
        toy.run()
    assert "second.ipynb: no parameter model, tasks" in str(caught.value)
    assert "has preset, taks" in str(caught.value)
    assert not toy.root.exists()  # refused before anything was made


def written(folder, **what):
    """The file of what is asked for, as jobs read it."""
    (folder / "run.json").write_text(json.dumps(runner.asked(**what)))
    return folder / "run.json"


def dry_run(folder, *options):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(runner.NOTEBOOKS / "Snakefile")]
    command += ["--directory", str(folder), "--dry-run", "--forceall", "--nolock", *options]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_on_a_cluster_every_arm_is_a_job_with_as_many_gpus_as_it_has_processes(tmp_path):
    """The profile itself, with snakemake's own executor in the place of SLURM's."""
    what = {"preset": "smoke", "overrides": {"launch.processes": 4}, "results": tmp_path}
    run = written(tmp_path, **what, split=True)
    profile = ["--profile", str(PROFILES / "slurm"), "--executor", "local", "--cores", "64"]
    shown = dry_run(tmp_path, *profile, "--config", f"run={run}")
    names = [(t, arm.name) for t, task in load_preset("smoke").tasks.items() for arm in arms(task)]
    jobs = [block for block in shown.split("\n[") if "rule arm:" in block]
    assert len(jobs) == len(names)
    for task, arm in names:
        (job,) = [block for block in jobs if f"output: notebooks/04_sft.{task}.{arm}.ipynb" in block]
        assert "notebooks/03_data_scoring.ipynb" in job and "threads: 32" in job
        assert "mem_mb=240000" in job and "gpu=4" in job
        assert "tasks_per_gpu=0" in job  # or SLURM's executor asks for 8 tasks of 16 processors each
    collecting = next(block for block in shown.split("\n[") if "output: notebooks/04_sft.ipynb" in block)
    assert collecting.count("notebooks/04_sft.") == len(names) + 1  # the arms, and itself
    assert "gpu=1" in collecting


def test_shares_of_a_notebook_are_jobs_before_the_one_that_joins_them(tmp_path):
    what = {"preset": "smoke", "overrides": {"launch.parts": 3}, "results": tmp_path}
    for split, each in ((True, "threads: 8"), (False, "threads: 4")):  # of 12 cores
        run = written(tmp_path, **what, split=split)
        blocks = dry_run(tmp_path, "--cores", "12", "--printshellcmds", "--config", f"run={run}").split("\n[")
        shares = [block for block in blocks if "rule part:" in block]
        assert len(shares) == 3 * len(runner.PART_STAGES)
        for stage in runner.PART_STAGES:
            before = runner.STAGES[runner.STAGES.index(stage) - 1]
            (joined,) = [block for block in blocks if f"output: notebooks/{stage}.ipynb" in block]
            for number in (1, 2, 3):
                name = f"notebooks/{stage}.part{number}of3.ipynb"
                (share,) = [block for block in shares if f"output: {name}" in block]
                assert f"input: notebooks/{before}.ipynb" in share and each in share
                assert f"{stage} {number}/3" in share and name in joined


def test_a_job_of_a_share_ends_where_all_shares_are_needed_and_one_of_an_arm_has_it_alone(toy):
    file = Path(toy.request["notebooks"], "second.ipynb")
    write_notebook(file, "print(tasks, overrides, part)", "1 / 0", parameters=f'{PARAMETERS}\npart = ""')
    notebook = nbformat.read(file, 4)
    notebook.cells[1].metadata["tags"] = ["parts"]
    nbformat.write(notebook, file)
    run = runner.asked(**toy.request, overrides={"seed": 3})
    assert runner.execute(run, "second", "3/8")
    assert toy.notebooks() == ["second.part3of8.ipynb"]
    assert "[] {'seed': 3} 3/8" in (toy.executed / "second.part3of8.ipynb").read_text()
    assert not runner.execute(run, "second", "math", "igds@0.5")  # to its end, which fails
    shown = (toy.executed / "second.math.igds@0.5.failed.ipynb").read_text()
    assert "['math'] {'seed': 3, 'tasks.math.only_arms': ['igds@0.5']}" in shown


@pytest.mark.parametrize("stage", runner.PART_STAGES)
def test_the_notebooks_that_are_shared_say_where_a_share_ends(stage):
    notebook = nbformat.read(runner.NOTEBOOKS / f"{stage}.ipynb", 4)
    cells = len(notebook.cells)
    assert 1 < len(runner.until_shared(notebook).cells) < cells
    assert 'part = ""' in notebook.cells[1].source


def test_an_unknown_profile_is_refused(toy):
    with pytest.raises(ConfigError, match="no slrm/config.yaml: give slurm"):
        toy.run(profile="slrm")


def test_the_command_line_hands_on_what_it_was_given(monkeypatch):
    calls = []
    monkeypatch.setattr(runner, "run", lambda *arguments, **what: calls.append((*arguments, what)))
    arguments = ["run", "--preset", "p", "--tasks", "math, translation", "--model", "m", "--results", "r"]
    arguments += ["--first", "05"]
    changes = ["--set", "sft.lr=5e-5", "--set", "a.b=[0.2, 0.5]", "--set", "c=chat", "--set", "d=3"]
    assert cli.main([*arguments, *changes]) == 0
    what = {"model": "m", "tasks": ["math", "translation"], "results": "r"}
    what["stages"] = list(runner.STAGES[4:])
    what["overrides"] = {"sft.lr": "5e-5", "a.b": [0.2, 0.5], "c": "chat", "d": 3}
    assert calls == [("p", "", what)]


def test_a_refused_request_is_one_message_and_code_2(toy, capsys):
    assert cli.main(["plan", "--preset", toy.request["preset"], "--set", "sft.lrr=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("igds: toy.yaml: ") and "sft: unknown key 'lrr' (did you mean 'lr'?)" in message
    assert cli.main(["run", "--first", "13"]) == 2
    assert "--first 13: give the number of a notebook: 01, 02" in capsys.readouterr().err


def test_a_run_that_fails_is_one_message_and_code_1(monkeypatch, capsys):
    def fail(*_, **__):
        raise runner.RunError("broke")

    monkeypatch.setattr(runner, "run", fail)
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err == "igds: broke\n"

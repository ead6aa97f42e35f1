"""Training and answering in several processes, and which processes and presets own what.

Where the preset asks for several processes (`launch.processes`), a notebook starts them with `accelerate launch`,

    launch.call(run, "igds_utils.training.trained:train", "math", "igds@0.5", training=True)

and reads the products from the store afterwards. Every process opens the same run and calls the function; what the
function makes with `run.make` is made by all and written once (`engine.distributed`).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from igds_utils.config.config import PRESETS, ConfigError, preset_file
from igds_utils.config.settings import LaunchConfig, Preset
from igds_utils.core.store import write_whole
from igds_utils.data.hub import sha256
from igds_utils.engine import distributed

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
# One task on each machine, inside a job step: that holds the job's resources and counts as a task of one machine.
STARTER = ("srun", "--overlap", "--nodes={machines}", "--ntasks={machines}", "--ntasks-per-node=1", "-K1")


class LaunchError(RuntimeError):
    """Processes that did not end well; what they said stands above."""


def call(run: Run, function: str, *arguments: Any, training: bool = False) -> None:
    """Call `function(run, *arguments)`, named "module:function", in `run.preset.launch.processes` processes.

    arguments: plain values. training: whether the model may be sharded as `launch.training` says. Several machines must
    share the folder of results, and this process must run on the first of them; it unloads its models. Raises
    `ConfigError` for too few GPUs, and `LaunchError` if a process fails; products that were finished until then stay.
    """
    check_gpus(run.preset)
    run.unload()
    launch = run.preset.launch
    request = {
        "preset": run.preset.model_dump(mode="json"),
        "root": str(run.root.resolve()),
        "function": function,
        "arguments": arguments,
        "training": training,
        "caller": this_process(),
        "address": [platform.node(), _free_port()],
    }
    name = f"launch-{uuid4().hex}.json"  # process numbers repeat on other machines, which share the folder
    run.store.write(name, request)
    file = (run.store.root / name).resolve()
    try:
        if launch.machines > 1:
            starter = [part.format(machines=launch.machines) for part in STARTER]
            command = [*starter, sys.executable, "-m", "igds_utils.core.launch", str(file)]
        else:
            command = _accelerate(launch, request, file, machine=0)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        _show(subprocess.Popen(command, env=_environment(launch), **streams), function)
    finally:
        file.unlink()


def check_gpus(preset: Preset, parts: int = 1) -> None:
    """Raise `ConfigError` where this machine has GPUs, but not one for each of its processes (`launch`) or `parts`.

    Without a GPU, processes share the processors.
    """
    launch = preset.launch
    if launch.processes == parts == 1:
        return
    import torch

    gpus, here = torch.cuda.device_count(), launch.processes // launch.machines
    if 0 < gpus < parts:
        raise ConfigError(f'launch.parts {parts}: this machine has {gpus} GPUs, give SET="launch.parts={gpus}"')
    if not 0 < gpus < here:
        return
    raise ConfigError(
        f"launch.processes {launch.processes} needs {here} GPUs on this machine, one a process, and it has {gpus}: "
        f'give SET="launch.processes={gpus * launch.machines}"; `make plan` with it says what fits'
    )


def _accelerate(launch: LaunchConfig, request: dict[str, Any], file: Path, machine: int) -> list[str]:
    """The command that starts the processes of one machine, the machine-th of all."""
    host, port = request["address"]
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if request["training"] and launch.training:
        command += ["--config_file", str(configuration(launch.training))]
    else:
        # torchrun for every kind of machine: accelerate's own way to several processes without a GPU needs MPI
        command += ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--num_processes", str(launch.processes), "--num_machines", str(launch.machines)]
    command += ["--machine_rank", str(machine), "--main_process_ip", host, "--main_process_port", str(port)]
    return [*command, "--module", "igds_utils.core.launch", str(file)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def configuration(name: str) -> Path:
    """The accelerate configuration file of that name or path; raises `LaunchError` where there is none."""
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise LaunchError(f"launch.training: no {name!r}; known are {known}, or give the path of a YAML file")
    return file


def _environment(launch: LaunchConfig) -> dict[str, str]:
    """Ours, with the threads of this process dealt out to those of one machine."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, threads * launch.machines // launch.processes))}


def _show(process: subprocess.Popen, function: str) -> None:
    """Pass on what the processes say, as it comes, until they end."""
    try:
        while text := process.stdout.read1():
            print(text.decode("utf8", "replace"), end="", flush=True)
        if process.wait():
            raise LaunchError(f"{function} failed in one of its processes (exit code {process.returncode})")
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes
            process.wait()


# ---- owners ----------------------------------------------------------------------------------------------


def this_process() -> str:
    """Machine, id and birth (an id can be used again) of a runner, for the environment of its jobs."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time()}"


def follow(runner: str) -> None:
    """End this job and its kernel once the runner is gone (killed, so that it could not do it itself)."""
    machine, pid, created = runner.split()
    while machine == platform.node():
        time.sleep(0.5)
        try:
            process = psutil.Process(int(pid))
            # one that was killed stays in the list until its parent asks for it
            alive = (
                abs(process.create_time() - float(created)) < 1 and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            for child in psutil.Process().children(recursive=True):
                child.kill()
            os._exit(1)


def claim(root: Path, preset: str) -> None:
    """Record beside the results of a preset which file it is; `ConfigError` where that is another one.

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


def main() -> None:
    """One of the processes; or, where STARTER called it, one of the machines, which starts its processes."""
    file = Path(sys.argv[1])
    request = json.loads(file.read_text(encoding="utf8"))
    preset = Preset.model_validate(request["preset"])
    if "RANK" not in os.environ:
        machine = int(os.environ["SLURM_NODEID"])
        os.execv(sys.executable, _accelerate(preset.launch, request, file, machine))
    import torch

    from igds_utils.core.experiment import Run

    if not torch.cuda.is_available():
        # accelerate would number it (cpu:0), and torch reads no checkpoint to a numbered one
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    threading.Thread(target=follow, args=(request["caller"],), daemon=True).start()
    distributed.start()
    module, _, function = request["function"].partition(":")
    getattr(import_module(module), function)(Run(preset, Path(request["root"])), *request["arguments"])
    distributed.end()


if __name__ == "__main__":
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # one bar is enough; read when tqdm is imported
    main()

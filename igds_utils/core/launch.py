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
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from igds_utils.config.config import PRESETS, ConfigError, preset_file
from igds_utils.config.settings import Preset
from igds_utils.core.store import write_whole
from igds_utils.engine import distributed

if TYPE_CHECKING:
    from igds_utils.core.experiment import Run

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
REQUEST = "IGDS_LAUNCH"  # environment variable that tells the processes what to do


class LaunchError(RuntimeError):
    """Processes that did not end well; what they said stands above."""


def call(run: Run, function: str, *arguments: Any, training: bool = False) -> None:
    """Call `function(run, *arguments)`, named "module:function", in `run.preset.launch.processes` processes.

    arguments: plain values. training: whether the model may be sharded as `launch.training` says. This process unloads
    its models. Raises `ConfigError` for too few GPUs, and `LaunchError` if a process fails; products that were
    finished until then stay.
    """
    check_gpus(run.preset)
    run.unload()
    launch = run.preset.launch
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(launch.processes)]
    if training and launch.training:
        command += ["--config_file", str(configuration(launch.training))]
    else:
        # torchrun for every kind of machine: accelerate's own way to several processes without a GPU needs MPI
        command += ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "--module", "igds_utils.core.launch"]  # 0: any that is free
    request = {
        "preset": run.preset.model_dump(mode="json"),
        "root": str(run.root.resolve()),
        "function": function,
        "arguments": arguments,
        "caller": this_process(),
    }
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // launch.processes
    environment = os.environ | {REQUEST: json.dumps(request), "OMP_NUM_THREADS": str(max(1, threads))}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            while text := process.stdout.read1():  # as it comes
                print(text.decode("utf8", "replace"), end="", flush=True)
        except BaseException:
            process.terminate()  # torchrun ends its processes
            raise
    if process.returncode:
        raise LaunchError(f"{function} failed in one of its processes (exit code {process.returncode})")


def main() -> None:
    """One of the processes."""
    import torch

    from igds_utils.core.experiment import Run

    request = json.loads(os.environ[REQUEST])
    if not torch.cuda.is_available():
        # accelerate would number it (cpu:0), and torch reads no checkpoint to a numbered one
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    threading.Thread(target=follow, args=(request["caller"],), daemon=True).start()
    distributed.start()
    module, _, function = request["function"].partition(":")
    run = Run(Preset.model_validate(request["preset"]), Path(request["root"]))
    getattr(import_module(module), function)(run, *request["arguments"])
    distributed.end()


def check_gpus(preset: Preset, parts: int = 1) -> None:
    """Raise `ConfigError` where this machine has GPUs, but not one for each process (`launch`) or for each of `parts`.

    Without a GPU, processes share the processors.
    """
    asked = {"parts": parts, "processes": preset.launch.processes}
    if max(asked.values()) == 1:
        return
    import torch

    gpus = torch.cuda.device_count()
    for field, number in asked.items():
        if 0 < gpus < number:
            raise ConfigError(
                f"launch.{field} {number} needs a GPU each, and this machine has {gpus}: "
                f'give SET="launch.{field}={gpus}"; `make plan` with it says what fits'
            )


def configuration(name: str) -> Path:
    """The accelerate configuration file of that name or path; raises `LaunchError` where there is none."""
    file = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise LaunchError(f"launch.training: no {name!r}; known are {known}, or give the path of a YAML file")
    return file


# ---- owners ----------------------------------------------------------------------------------------------


def this_process() -> str:
    """Machine, id and birth (an id can be used again) of a runner, for the environment of its jobs."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time()}"


def follow(runner: str) -> None:
    """End this job and its kernel once the runner is gone (killed, so that it could not do it itself)."""
    machine, pid, created = runner.split()
    while machine == platform.node():
        time.sleep(0.5)
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            # one that was killed stays in the list until its parent asks for it
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and abs(process.create_time() - float(created)) < 1:
                continue
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(1)


def claim(root: Path, preset: str) -> None:
    """Record beside the results of a preset which file it is; `ConfigError` where that is another one.

    The recorded file may change, and it may be moved. A copy of the same content may use the results while it is one.
    """
    file, record = preset_file(preset).resolve(), root / "preset.json"
    own = file.stem if file.parent == PRESETS else str(file)
    try:
        kept = json.loads(record.read_text(encoding="utf8"))["file"]
    except (OSError, ValueError):
        kept = ""
    known = preset_file(kept)
    if known.is_file() and known.resolve() != file:
        if known.read_bytes() != file.read_bytes():
            raise ConfigError(
                f"{root} holds the results of another preset of this name, {kept}: change `name` in {file.name}, "
                "or give another folder of results"
            )
    elif kept != own:
        with suppress(OSError):  # results that may only be read
            write_whole(record, json.dumps({"file": own}))


if __name__ == "__main__":
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # one bar is enough; read when tqdm is imported
    main()

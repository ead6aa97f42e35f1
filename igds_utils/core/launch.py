"""Training and answering in several processes, and to whom processes and results belong.

Where the preset asks for several processes, `accelerate launch` starts them:

    launch.call(run, "igds_utils.training.trained:make_products", "math", "igds@0.5", training=True)

Every process opens the same run and calls the function; what that makes with `run.make` is made by
all, written once (`engine.distributed`), and read from the store afterwards.
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
from pathlib import Path
from pkgutil import resolve_name
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


def call(run: Run, function: str, *arguments: Any, training: bool = False) -> None:
    """Call `function(run, *arguments)`, named "module:function", in `launch.processes` processes.

    arguments: plain values. training: whether the model may be sharded as `launch.training` says.
    This process unloads its models. Raises `ConfigError` for too few GPUs, and `RuntimeError` if a
    process fails; products that were finished until then stay.
    """
    check_gpus(run.preset)
    run.unload()
    launch = run.preset.launch
    # torchrun, GPU or not: accelerate's own way to several processes without a GPU needs MPI
    how = "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    if training and launch.training:
        how = ["--config_file", str(configuration(launch.training))]
    command = [sys.executable, "-m", "accelerate.commands.launch", *how]
    command += f"--num_processes {launch.processes} --main_process_port 0".split()  # any free port
    command += ["--module", "igds_utils.core.launch"]
    request = {"preset": run.preset.model_dump(mode="json"), "root": str(run.root.resolve())}
    request |= {"function": function, "arguments": arguments, "caller": this_process()}
    with subprocess.Popen(command, env=os.environ | {REQUEST: json.dumps(request)}) as process:
        try:
            process.wait()
        except BaseException:
            process.terminate()  # torchrun ends its processes
            raise
    if process.returncode:
        raise RuntimeError(f"{function} failed in a process (exit code {process.returncode})")


def main() -> None:
    """One of the processes."""
    import torch

    from igds_utils.core.experiment import Run

    request = json.loads(os.environ[REQUEST])
    if not torch.cuda.is_available():
        # accelerate would number it (cpu:0), and torch reads no checkpoint to a numbered one
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    threading.Thread(target=follow, args=(request["caller"],), daemon=True).start()
    # before a model is loaded: connected, one process alone reads a sharded one's weights
    distributed.connected()
    run = Run(Preset.model_validate(request["preset"]), Path(request["root"]))
    resolve_name(request["function"])(run, *request["arguments"])
    distributed.wait_for_everyone()
    torch.distributed.destroy_process_group()  # one that just ends may crash on its connections


def check_gpus(preset: Preset, parts: int = 1) -> None:
    """Raise `ConfigError` where this machine has GPUs, but not one for each process or part."""
    for field, number in {"parts": parts, "processes": preset.launch.processes}.items():
        if number > 1:
            import torch

            if 0 < (gpus := torch.cuda.device_count()) < number:
                asked = f"launch.{field} {number} needs a GPU each, this machine has {gpus}"
                raise ConfigError(f'{asked}: give SET="launch.{field}={gpus}"')


def configuration(name: str) -> Path:
    """The accelerate configuration file of that name or path; raises `ConfigError` without one."""
    for file in (PROFILES / f"{name}.yaml", Path(name)):
        if file.is_file():
            return file
    raise ConfigError(f"launch.training: no {name!r}; give fsdp, zero3 or the path of a YAML file")


def this_process() -> str:
    """Machine and id of a runner, for the environment of its jobs."""
    return f"{platform.node()} {os.getpid()}"


def follow(runner: str) -> None:
    """End this job and its kernel once the runner is gone (killed, so that it could not do it)."""
    machine, pid = runner.split()
    if machine != platform.node():
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(pid))
        # one that was killed stays in the list until its parent asks for it
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def claim(root: Path, preset: str) -> None:
    """Record which preset file results are of; `ConfigError` where it is another one."""
    file, record = preset_file(preset).resolve(), root / "preset.json"
    own = file.stem if file.parent == PRESETS else str(file)
    if not record.is_file():
        write_whole(record, json.dumps({"file": own}))
    elif (other := json.loads(record.read_text(encoding="utf8"))["file"]) != own:
        mend = f"change `name` in {file.name}, or remove {record.name} if the file was moved"
        raise ConfigError(f"{root} holds results of another preset of this name, {other}: {mend}")


if __name__ == "__main__":
    main()

"""Stand-ins for SLURM's commands, as programs on PATH: one machine, one queue, jobs start at once.

`sbatch` starts the job's script in the background (an array: one process for each task), `srun`
runs its command once per task, `scontrol requeue` has the script run once more after it has ended,
and `sacct` tells the states. What was asked of them is in `calls.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol", "sacct", "_job")


def install(folder: Path) -> dict[str, str]:
    """Puts the programs into ``folder``; returns the environment in which they are found."""
    folder.mkdir()
    for name in NAMES:
        program = folder / name
        command = shlex.join([sys.executable, __file__, name])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SUBMITIT_"))}
    return {
        **kept,
        "PATH": f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "STANDIN_SLURM": str(folder),
    }


def calls(folder: Path) -> list[list[str]]:
    """Name and arguments of every call so far."""
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def end_all(folder: Path) -> None:
    """Kills the jobs that are still there."""
    for path in folder.glob("group_*"):
        state = path.with_name(path.name.replace("group", "state"))
        if not state.exists() or state.read_text() == "RUNNING":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)


def _options(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.M)
    return {name: " ".join(shlex.split(value)) for name, value in found}


def sbatch(home: Path, arguments: list[str]) -> int:
    script = Path(arguments[-1])
    options = _options(script.read_text())
    number = 1000 + len(list(home.glob("submitted_*")))
    (home / f"submitted_{number}").touch()
    tasks = options.get("array", "").partition("%")[0]
    first, _, last = tasks.partition("-")
    for task in range(int(first), int(last or first) + 1) if tasks else [None]:
        words = [str(home / "_job"), str(script.resolve()), str(number)]
        words += [] if task is None else [str(task)]
        job = subprocess.Popen(
            words, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (home / f"group_{'_'.join(words[2:])}").write_text(str(job.pid))
    print(f"Submitted batch job {number}")
    return 0


def _job(home: Path, arguments: list[str]) -> int:
    """One job from its start to its last end; not a command of SLURM."""
    script, number, *task = arguments
    name = "_".join([number, *task])
    options = _options(Path(script).read_text())
    environment = {
        **os.environ, "SLURM_JOB_ID": str(int(number) + 500 + int(task[0]) if task else number),
        "SLURM_JOB_NAME": options.get("job-name", "job"), "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_START_TIME": "1700000000", "SLURM_NTASKS_PER_NODE":
        options.get("ntasks-per-node", "1"), "SLURM_NTASKS": options.get("ntasks-per-node", "1"),
        "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task[0]}
    output = options.get("output", str(home / "slurm-%j.out"))
    for pattern, value in (("%A", number), ("%a", (task or ["0"])[0]), ("%j", name)):
        output = output.replace(pattern, value)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    restarts = 0
    while True:
        (home / f"state_{name}").write_text("RUNNING")
        environment["SLURM_RESTART_COUNT"] = str(restarts)
        with open(output, "a") as file:
            code = subprocess.call(
                ["bash", script], env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        with (home / "ends.jsonl").open("a") as file:
            file.write(json.dumps([name, code]) + "\n")
        requeue = home / f"requeue_{name}"
        if not requeue.exists() or restarts == 3:
            break
        requeue.unlink()
        restarts += 1
    (home / f"state_{name}").write_text("COMPLETED" if code == 0 else "FAILED")
    return code


def srun(home: Path, arguments: list[str]) -> int:
    arguments, options = list(arguments), {}
    while arguments and arguments[0].startswith("--"):
        name, equals, value = arguments.pop(0)[2:].partition("=")
        takes_value = name in ("output", "error", "ntasks", "ntasks-per-node")
        options[name] = value if equals or not takes_value else arguments.pop(0)
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    for name in ("ntasks", "ntasks-per-node"):
        tasks = int(options.get(name, tasks))
    processes = []
    for task in range(tasks):
        environment = {
            **os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task),
            "SLURM_NODEID": "0", "SLURM_NTASKS": str(tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
        }  # fmt: skip
        job = os.environ.get("SLURM_JOB_ID", "0")
        array = os.environ.get("SLURM_ARRAY_JOB_ID", job)
        place = os.environ.get("SLURM_ARRAY_TASK_ID", "0")
        files = {}
        for stream in ("output", "error"):
            if stream in options:
                path = options[stream]
                for pattern, value in (("%A", array), ("%a", place), ("%j", job), ("%t", task)):
                    path = path.replace(pattern, str(value))
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                files[stream] = open(path, "a")  # noqa: SIM115 - for the process
        processes.append(
            subprocess.Popen(
                arguments, env=environment, stdout=files.get("output"), stderr=files.get("error")
            )
        )
    codes = [process.wait() for process in processes]
    return max((128 - code if code < 0 else code) for code in codes)


def scontrol(home: Path, arguments: list[str]) -> int:
    if arguments[0] != "requeue" or not (home / f"state_{arguments[1]}").exists():
        print(f"scontrol: no such job: {arguments}", file=sys.stderr)
        return 1
    (home / f"requeue_{arguments[1]}").touch()
    return 0


def sacct(home: Path, arguments: list[str]) -> int:
    print("JobID|State|NodeList")
    for path in sorted(home.glob("state_*")):
        print(f"{path.name.removeprefix('state_')}|{path.read_text()}|localhost")
    return 0


if __name__ == "__main__":
    _, command, *given = sys.argv
    place = Path(os.environ["STANDIN_SLURM"])
    with (place / "calls.jsonl").open("a") as log:
        log.write(json.dumps([command, *given]) + "\n")
    sys.exit(globals()[command](place, given))

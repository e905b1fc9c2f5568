"""Environments that hold the package's dependencies and those of chosen extras, and nothing else.

Site-packages are linked, distribution by distribution, so they are made in a second.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def _project(pyproject: dict, extras: Sequence[str]) -> list[str]:
    project = pyproject["project"]
    return project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]


def installed(pyproject: dict, extras: Sequence[str]) -> dict[str, Distribution]:
    """The distributions that the package needs with ``extras``, by name."""
    found: dict[str, Distribution] = {}
    wanted = [(Requirement(line), "") for line in _project(pyproject, extras)]
    seen = set()
    while wanted:
        requirement, extra = wanted.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name == "multimodal":
            inner = _project(pyproject, list(requirement.extras))
            wanted += [(Requirement(line), "") for line in inner]
            continue
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        for each in ("", *requirement.extras):
            wanted += [(Requirement(line), each) for line in found[name].requires or ()]
    return found


def missing(pyproject: dict, extra: str) -> list[str]:
    """What ``extra`` lists and is not installed."""
    lines = pyproject["project"]["optional-dependencies"][extra]
    names = {canonicalize_name(Requirement(line).name) for line in lines} - {"multimodal"}
    return sorted(names - places().keys())


@functools.cache
def places() -> dict[str, tuple[Path, set[tuple[str, ...]]]]:
    """Distribution -> its folder, and what it has there, two levels deep."""
    found = {}
    for each in distributions():
        lines = (each.read_text("RECORD") or "").splitlines()
        files = {tuple(line.partition(",")[0].split("/")[:2]) for line in lines}
        parts = {part for part in files if part[0] not in ("..", "__pycache__", "")}
        found[canonicalize_name(each.metadata["Name"])] = (Path(each.locate_file("")), parts)
    return found


def make(folder: Path, pyproject: dict, extras: Sequence[str]) -> Path:
    """A folder for the path, with links to what ``extras`` need."""
    kept = installed(pyproject, extras)
    owners: dict[str, set[str]] = {}
    for name, (_, parts) in places().items():
        for part in parts:
            owners.setdefault(part[0], set()).add(name)
    for name in kept:
        home, parts = places()[name]
        # A folder that another distribution shares is made, and what is in it linked.
        for part in {part[:1] if len(owners[part[0]]) == 1 else part for part in parts}:
            target = folder.joinpath(*part)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to(home.joinpath(*part).absolute())
    return folder


def run(folder: Path, *words: str, **options) -> subprocess.CompletedProcess[str]:
    """Python with that folder in the place of its site-packages."""
    path = os.pathsep.join([str(folder), str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-S", *words],
        env=env, capture_output=True, text=True, timeout=500, check=False, **options,
    )  # fmt: skip


# Each program in a process of its own, forked from one that has imported what all environments
# hold and takes longest.
_FORKS = """
import json, os, sys, traceback
import torch, pytorch_lightning
base = list(sys.path)
for name, (site, cwd, program) in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        os.chdir(cwd)
        printed = os.open("printed", os.O_CREAT | os.O_WRONLY)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.path[:] = [site, *base]
        status = 1
        try:
            exec(compile(program, name, "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
"""


def run_forked(
    base: Path, programs: Mapping[str, tuple[Path, Path, str]]
) -> dict[str, tuple[int, str]]:
    """Runs programs in environments that hold all that ``base`` holds.

    Args:
        base: the folder of an environment without extras.
        programs: name -> the folder of its environment, its working folder, its text.

    Returns:
        Name -> its exit status and what it printed.
    """
    given = {name: (str(site), str(cwd), text) for name, (site, cwd, text) in programs.items()}
    ended = run(base, "-c", _FORKS, json.dumps(given))
    assert ended.returncode == 0, ended.stderr[-3000:]
    statuses = dict(json.loads(line) for line in ended.stdout.splitlines())
    return {
        name: (status, (programs[name][1] / "printed").read_text())
        for name, status in statuses.items()
    }

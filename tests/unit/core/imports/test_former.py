"""What release 0.1 called its modules and classes still works, in configurations and in Python."""

import importlib
import json
import warnings
from pathlib import Path

import pytest
from hydra.utils import get_object

from multimodal.config.targets.resolving import TargetError, allowed_packages, resolve
from multimodal.core.imports.former import RENAMED, renamed

RELEASE = Path(__file__).parents[3] / "vectors" / "release_0_1" / "targets.json"
TARGETS = json.loads(RELEASE.read_text())
MODULES = [old for old, now in RENAMED.items() if now.rpartition(".")[2].islower()]
NAMES = RENAMED.keys() - set(MODULES)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_of_release_0_1_is_still_there(target):
    """It leads to the class of the same name, which a room of ours offers."""
    now = renamed(target)
    found = get_object(now)
    assert found.__name__ == now.rpartition(".")[2]
    assert target.rpartition(".")[2] in (found.__name__, *FORMER.get(found.__name__, ()))
    assert len(now.split(".")) == 3, "a room, and a name in it"


FORMER = {
    "BadSampleError": ["BadSample"],
    "ConfigProblem": ["Fault"],
    "Constant": ["constant"],
    "DataMismatchError": ["OtherBatches"],
    "TooManyBadSamplesError": ["TooManyBadSamples"],
    "TowerOptim": ["Rates"],
    "WarmupCosine": ["warmup_cosine"],
}


def test_a_new_path_is_not_renamed_again():
    for target in TARGETS:
        assert renamed(renamed(target)) == renamed(target)
    for module, room in RENAMED.items():
        assert room not in RENAMED, module


@pytest.mark.parametrize("target", sorted({*TARGETS, *NAMES}))
def test_pythons_own_imports_of_it_work_with_a_warning(target):
    """`from multimodal.heads import LinearHead`; none of what a module defines as before."""
    module, _, name = target.rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(importlib.import_module(module), name)
    assert found is get_object(renamed(target))
    if name not in vars(importlib.import_module(module)):
        (warning,) = [each for each in caught if each.category is DeprecationWarning]
        assert str(warning.message) == f"{target} is now {renamed(target)}"
        assert warning.filename == __file__


def test_the_warning_is_at_the_users_import(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text("from multimodal.embedding import Embedder\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(DeprecationWarning, match="is now multimodal.inference.Embedder") as caught:
        importlib.import_module("own_code")
    assert caught[0].filename == str(tmp_path / "own_code.py")


@pytest.mark.parametrize("name", ["Unheard", "_private", "torch", "Tensor", "os"])
def test_an_old_module_has_what_a_room_offers_and_no_more(name):
    with pytest.raises(AttributeError, match=f"'{name}'"):
        getattr(importlib.import_module("multimodal.heads"), name)
    with pytest.raises(TargetError):
        resolve(f"multimodal.heads.{name}", allowed_packages([]))


def test_what_never_was_is_not_found():
    for name in ("multimodal.unheard", "multimodal.tuning.Rates", "multimodal.head"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


@pytest.mark.parametrize(
    "name", ["_hidden", "__init__", "LinearHead.forward", "torch.load", "TYPE_CHECKING", "sys"]
)
def test_an_old_name_widens_nothing(name):
    """A stranger's file may name by it what a room offers, and nothing else."""
    for old in MODULES:
        with pytest.raises(TargetError):
            resolve(f"{old}.{name}", allowed_packages([]))

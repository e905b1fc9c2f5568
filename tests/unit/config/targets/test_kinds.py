"""What may stand where: every public thing of the allowed packages, at every place."""

import importlib
import inspect
import json
import pkgutil
import warnings
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from marks import some
from omegaconf import OmegaConf
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from multimodal.config import check, config_dir, stored_config
from multimodal.config.portable import portable_yaml
from multimodal.config.targets.judging import foreign_targets, misplaced
from multimodal.config.targets.kinds import PARTIAL, PLACES, fits, kinds_at
from multimodal.config.targets.resolving import ALLOWED, TargetError, refused_name, resolve

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
OWN = config_dir().parent / "tests" / "own_configs"


def modules(package):
    """A package and all that can be imported in it."""
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        try:
            yield importlib.import_module(info.name)
        except Exception:  # of an extra that is not installed
            continue


def paths():
    """Every dotted path to something callable: attributes, their attributes and so on."""
    for package in ALLOWED:
        for module in modules(package):
            for name, member in list(vars(module).items()):
                path = f"{module.__name__}.{name}"
                if callable(member):
                    yield path, member
                if inspect.isclass(member):
                    for inner, method in list(vars(member).items()):
                        yield f"{path}.{inner}", method
                if isinstance(member, ModuleType) and member.__name__ != path:
                    yield from ((f"{path}.{n}", m) for n, m in list(vars(member).items()))


@pytest.fixture(scope="module")
def public():
    """Class -> one of its paths; and the paths of all else that was refused."""
    classes, refused = {}, set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, _ in paths():
            try:
                found = resolve(path, ALLOWED)
            except TargetError:
                refused.add(path)
                continue
            if inspect.isclass(found):
                classes.setdefault(found, path)
            else:
                refused.add(path)
                assert list(misplaced({"_target_": path}, ALLOWED, True, ("loss",)))
    return classes, refused


def at(place, block):
    tree = block
    for key in reversed(place.replace("*", "x").split(".")):
        tree = {key: tree}
    return tree


def test_only_the_kinds_of_a_place_pass_there(public):
    classes, _ = public
    assert len(classes) > 600
    for place, dotted in PLACES.items():
        base = resolve(dotted.removeprefix(PARTIAL), (*ALLOWED, "torch"))
        path = place.replace("*", "x").split(".")
        kinds = kinds_at(path)
        passed = {each for each in classes if fits(each, kinds, ALLOWED)}
        assert passed, place
        for each in passed:
            home = each.__module__
            assert home.startswith((*ALLOWED, "lightning_fabric")), (place, each)
            if getattr(base, "_is_protocol", False):
                assert home.startswith("multimodal."), (place, each)
            else:
                assert issubclass(each, base), (place, each)
            if base is nn.Module:
                assert not issubclass(each, LightningModule), (place, each)
                assert home.startswith(("torch.nn.modules.", "multimodal.")), (place, each)
        block = {"_target_": classes[min(set(classes) - passed, key=str)]}
        assert list(misplaced(at(place, block), ALLOWED, True)), place
    assert {each.__name__ for each in classes if fits(each, kinds_at(("loss",)), ALLOWED)} >= {
        "InfoNCE", "SigLIP", "Triplet"
    }  # fmt: skip


def test_what_reads_writes_or_trains_passes_nowhere(public):
    classes, refused = public
    names = ("TorchCheckpointIO", "AtomicCheckpointIO", "PartWriter", "ShardCache")
    bad = {Trainer, *(each for each in classes if each.__name__ in names)}
    assert len(bad) > 4
    for place in PLACES:
        kinds = kinds_at(place.replace("*", "x").split("."))
        assert not [each for each in bad if fits(each, kinds, ALLOWED)], place
    for words in ("load_from_checkpoint", "torch.load", "pl_load", "read_url"):
        assert any(words in path for path in refused), words


@pytest.mark.parametrize(
    "path",
    [
        "pytorch_lightning.utilities.compile.torch.load",
        "pytorch_lightning.LightningModule.load_from_checkpoint",
        "pytorch_lightning.core.saving._load_from_checkpoint",
        "multimodal.training.anchor._train",
        "multimodal.models.heads.nn.Linear",
        "multimodal.config.instantiating.hydra.utils.instantiate",
        "multimodal.cli.main.sys.exit",
        "torch.nn.Module.__init__",
        "torch.nn.functional.torch.hub.load",
        "multimodal..heads.LinearHead",
        "multimodal.models.LinearHead ",
        "torch.nn.modules.module.torch.nn.Linear",
    ],
)
def test_paths_that_lead_out_of_a_package(path):
    with pytest.raises(TargetError):
        resolve(path, ALLOWED)


def test_names_are_judged_before_anything_is_imported():
    tree = {"model": {"_target_": "multimodal.models.EmbeddingModel", "x": {"_target_": "os.abc"}}}
    assert [problem.where for problem in foreign_targets(tree, ALLOWED)] == ["model.x._target_"]
    assert refused_name("multimodal.a._b", ALLOWED)
    assert refused_name(["multimodal.a"], ALLOWED)
    assert refused_name("multimodalx.a", ALLOWED)


def test_judging_calls_nothing(monkeypatch):
    def called(*args, **kwargs):
        raise AssertionError("was instantiated")

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(
            "train", ["+experiment=clip_scratch", "negatives=filtered", "negatives.threshold=0.9"]
        )
    for path in ("softmax_losses.InfoNCE", "negatives.Filtered", "candidates.AllRanks"):
        found = resolve(f"multimodal.objectives.{path}", ALLOWED)
        monkeypatch.setattr(found, "__init__", called)
    check(cfg)


@pytest.mark.parametrize("experiment", some(EXPERIMENTS, every=4))
def test_what_our_experiments_store_is_allowed(experiment):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"+experiment={experiment}"])
    cfg.logger = None  # its folder is known in a job only
    stored_config(portable_yaml(cfg), "ours.ckpt")


@pytest.mark.parametrize("experiment", ["sensor", "sensor_fusion"])
def test_what_own_configurations_store_is_allowed(experiment, monkeypatch, tmp_path):
    monkeypatch.setenv("SENSOR_SHARDS", str(tmp_path))
    words = [f"hydra.searchpath=[file://{OWN}]", f"+experiment={experiment}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", words)
    cfg.logger = None
    stored_config(portable_yaml(cfg), "ours.ckpt")


@pytest.mark.parametrize("group", ["loss", "negatives", "candidates", "optimizer", "scheduler"])
def test_every_choice_of_ours_may_be_stored(group):
    for path in sorted((config_dir() / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        assert list(misplaced({group: node}, ALLOWED, True)) == [], path.stem


def test_own_classes_may_stand_at_their_places(monkeypatch, tmp_path):
    (tmp_path / "own_classes.py").write_text(
        "from torch import nn\n"
        "class Encoder(nn.Module):\n"
        "    def __init__(self, inner, width: int = 4):\n"
        "        super().__init__()\n"
        "class Transform:\n"
        "    def __call__(self, value, draw): ...\n"
        "    def collate(self, inputs): ...\n"
        "class Deletes:\n"
        "    pass\n"
        "def head(width): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    packages = (*ALLOWED, "own_classes")
    inner = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    tower = {
        "_target_": "multimodal.models.Tower",
        "encoder": {"_target_": "own_classes.Encoder", "inner": inner},
        "head": None,
    }
    tree = {
        "model": {"_target_": "multimodal.models.EmbeddingModel", "towers": {"a": tower}},
        "data": {"transforms": {"a": {"_target_": "own_classes.Transform"}}},
    }
    assert list(misplaced(tree, packages, True)) == []
    tree["data"]["transforms"]["a"]["_target_"] = "own_classes.Deletes"
    tower["head"] = {"_target_": "own_classes.head", "_partial_": True}
    tree = json.loads(json.dumps(tree))
    found = {problem.where for problem in misplaced(tree, packages, True)}
    assert found == {"model.towers.a.head._target_", "data.transforms.a._target_"}
    assert torch

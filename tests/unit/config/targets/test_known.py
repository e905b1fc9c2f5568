"""The table of our own classes that only a training builds."""

import pytest
import torch

import multimodal.training
from multimodal.config.targets.judging import misplaced
from multimodal.config.targets.kinds import fits, kinds_at
from multimodal.config.targets.known import KNOWN, PARTIALS, is_known
from multimodal.config.targets.resolving import allowed_packages, resolve

PACKAGES = allowed_packages([])
ENTRIES = [(place, name) for place, names in KNOWN.items() for name in names]


@pytest.mark.parametrize(("place", "name"), ENTRIES)
def test_each_is_of_the_kind_of_its_place(place, name):
    found = resolve(name, PACKAGES)
    kind = fits(found, kinds_at(place.replace("*", "x").split(".")), PACKAGES)
    assert kind is not None
    assert kind.partial is (place in PARTIALS)


def test_another_place_another_name_and_arguments_in_order_are_not_known():
    block = {"_target_": "multimodal.training.CSVLogger"}
    assert is_known(("logger", "csv"), block)
    assert not is_known(("callbacks", "csv"), block)
    assert not is_known(("logger",), block)
    assert not is_known(("logger", "csv"), {**block, "_partial_": True})
    for odd in ("yes", 0, None, [], {}, {"_target_": "torch.load"}):
        assert not is_known(("logger", "csv"), {**block, "_partial_": odd}), odd
    assert not is_known(("logger", "csv"), {**block, "_args_": []})
    assert not is_known(("logger", "csv"), {"_target_": "torch.load"})
    schedule = {"_target_": "multimodal.training.Constant", "_partial_": True}
    assert is_known(("scheduler",), schedule)
    assert not is_known(("scheduler",), {**schedule, "_partial_": False})
    prefixed = {"_target_": "partial multimodal.training.Constant", "_partial_": False}
    assert not is_known(("scheduler",), prefixed)


def test_what_is_nested_in_one_is_still_judged():
    tree = {
        "callbacks": {
            "stop": {
                "_target_": "multimodal.training.StopOnSignal",
                "grace_s": {"_target_": "multimodal.models.LinearHead"},
            }
        }
    }
    (problem,) = misplaced(tree, PACKAGES, strict=True)
    assert problem.where == "callbacks.stop.grace_s._target_"


def test_every_class_that_only_a_training_builds_is_listed():
    """One that is not is imported to be judged, Lightning with it, by all who use a checkpoint."""
    classes = {
        name
        for name in multimodal.training.__all__
        if isinstance(getattr(multimodal.training, name), type)
    }
    others = {
        name
        for name in classes
        if issubclass(getattr(multimodal.training, name), torch.optim.Optimizer)
    }
    listed = {
        name.rpartition(".")[2]
        for names in KNOWN.values()
        for name in names
        if name.startswith("multimodal.training.")
    }
    assert others  # optimizers are judged by torch's class, without Lightning
    assert listed == classes - others - {"ContrastiveModule", "FusionModule"}

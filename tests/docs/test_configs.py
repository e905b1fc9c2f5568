"""The YAML files: each fits the class that it names, each experiment composes and is right."""

import inspect
import re

import pytest
from hydra import compose, initialize_config_dir
from marks import some
from omegaconf import OmegaConf

from multimodal.config import check, config_dir, defaults_bound, normalize_args
from multimodal.config.targets.signatures import BUILT_BY_US, GIVEN_TO_MODEL, HYDRA_KEYS, resolve
from multimodal.config.tree import nodes

FILES = sorted(path for path in config_dir().rglob("*.yaml") if "hydra" not in path.parts)
NAMES = [str(path.relative_to(config_dir())) for path in FILES]
EXPERIMENTS = [path.stem for path in FILES if path.parent.name == "experiment"]


# An evaluation reads its sources once, whole.
ONLY_IN_TRAINING = {"batch_size", "repeat", "weight"}


NO_BLOCKS = ("ex", "debug", "train.", "sweep", "launcher")  # they build on others


@pytest.mark.parametrize("name", some((n for n in NAMES if not n.startswith(NO_BLOCKS)), every=2))
def test_a_yaml_holds_every_parameter_of_its_classes_and_no_other(name):
    composed = OmegaConf.load(config_dir() / name)
    if "defaults" in composed:  # Hydra takes ten times as long, for the same where there are none
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose(name.removesuffix(".yaml"))
    problems = []
    for where, node in nodes(OmegaConf.to_container(composed, resolve=False)):
        target = str(node.get("_target_", ""))
        if not target.startswith("multimodal."):
            continue
        parameters = dict(inspect.signature(resolve(target, ("multimodal",))).parameters)
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values()), target
        given = node.keys() - set(HYDRA_KEYS)
        exempt = ONLY_IN_TRAINING if name.startswith("evaluation") else set()
        exempt = exempt | (set(GIVEN_TO_MODEL) if name.startswith("model") else set())
        # The code that calls a partial gives what has no default.
        exempt |= {n for n, p in parameters.items() if p.default is p.empty and "_partial_" in node}
        problems += [f"{where}: unknown {key}" for key in given - parameters.keys()]
        problems += [f"{where}: lacks {key}" for key in parameters.keys() - given - exempt]
    assert problems == []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_first_comment_is_the_command_that_runs_it(path):
    comments = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# python scripts/\w+\.py( \S+)*$", comments[0]), comments[0]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_hydra_reads_the_package_in_the_first_line_only(path):
    assert "# @package" not in "".join(path.read_text().splitlines(keepends=True)[1:])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_right(experiment):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"+experiment={experiment}"])
    check(cfg)
    check(defaults_bound(cfg))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_says_what_differs_and_no_more(experiment):
    lines = (config_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert len(lines) < 40


@pytest.mark.parametrize(
    "words",
    some(
        ([f"{group}={path.stem}"] for group in ("trainer", "logger", "optimizer", "scheduler",
          "callbacks", "loss", "negatives", "candidates", "similarity", "debug")
          for path in sorted((config_dir() / group).glob("*.yaml"))),
        every=4,
    ),
    ids=lambda words: " ".join(words),
)  # fmt: skip
def test_every_choice_goes_with_clip(words):
    partners = {"optimizer=schedule_free": "scheduler=constant", "candidates=ring": "loss=siglip"}
    partner = [partners[word] for word in words if word in partners]
    experiment = "distill" if "affinity" in words[0] else "clip_scratch"  # needs a teacher
    words = normalize_args([f"+experiment={experiment}", *words, *partner])
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        check(compose("train", words))


@pytest.mark.parametrize("path", [path for path, _ in BUILT_BY_US.values()])
def test_the_classes_of_plain_blocks_are_there(path):
    assert inspect.isclass(resolve(path, ("multimodal",)))

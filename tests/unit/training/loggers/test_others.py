"""TensorBoard and MLflow beside the table."""

import sys
from pathlib import Path

import pytest
from experiment_helpers import losses, train_here, write_sensor_shards

from multimodal.training.loggers.others import MLflowLogger


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_sensor_shards(tmp_path_factory.mktemp("shards"))


WORDS = ("trainer.max_steps=4", "trainer.log_every_n_steps=1", "trainer.val_check_interval=2",
         "~evaluation")  # fmt: skip


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def test_several_loggers_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    store = f"file:{tmp_path / 'mlruns'}"
    train_here(
        tmp_path / "run", *WORDS, "logger=[csv,tensorboard,mlflow]",
        f"logger.tensorboard.folder={tmp_path / 'run' / 'tensorboard'}",
        f"logger.mlflow.folder={tmp_path / 'run'}", f"logger.mlflow.tracking_uri='{store}'",
    )  # fmt: skip
    rows = {step: float(loss) for step, loss in losses(tmp_path / "run").items()}
    assert sorted(rows) == [1, 2, 3, 4]
    logged = events(tmp_path / "run" / "tensorboard")
    assert dict(logged["train/loss"]) == pytest.approx(rows)
    assert [step for step, _ in logged["val/measured/image_to_sensor_r@1"]] == [2, 4]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    run_id = (tmp_path / "run" / "mlflow.txt").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    history = client.get_metric_history(run_id, "train.loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx(rows)
    recall = client.get_metric_history(run_id, "val.measured.image_to_sensor_r_at_1")
    assert [metric.step for metric in recall] == [2, 4]
    again = MLflowLogger("multimodal", tracking_uri=store, folder=str(tmp_path / "run"))
    assert again.run_id == run_id  # a resumed run is the same run


def test_a_server_that_is_not_there_ends_the_logging_only(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train_here(
        tmp_path / "run", *WORDS, "logger=mlflow", f"logger.mlflow.folder={tmp_path / 'run'}",
        "logger.mlflow.tracking_uri='http://127.0.0.1:9'",
    )  # fmt: skip
    assert len(losses(tmp_path / "run")) == 4
    shown = capsys.readouterr().err
    assert shown.count("WARNING: MLflow has failed") == 1
    assert not (tmp_path / "run" / "mlflow.txt").exists()


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")]
)
def test_without_its_package_the_extra_is_named(tmp_path, monkeypatch, name, package):
    from multimodal.core.errors import MissingExtraError
    from multimodal.training.loggers import others

    monkeypatch.setitem(sys.modules, name, None)
    made = {"tensorboard": lambda: others.TensorBoardLogger(str(tmp_path)),
            "mlflow": lambda: others.MLflowLogger("x")}  # fmt: skip
    with pytest.raises(MissingExtraError, match=rf"logger={name} needs .*multimodal\[{name}\]"):
        made[name]()

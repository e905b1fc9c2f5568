"""TensorBoard and MLflow beside the table."""

import sys
from pathlib import Path

import pytest
from experiment_helpers import losses, train_here, write_sensor_shards

from multimodal.training.loggers.logged import LoggedSteps
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


@pytest.mark.heavy
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


@pytest.mark.slow
def test_a_resumed_run_logs_no_step_twice(shards, tmp_path, monkeypatch):
    """Resumed at step 2 of 4: steps 3 and 4 are logged already, 5 and 6 are new."""
    monkeypatch.setenv("SENSOR_SHARDS", str(shards))
    store, run = f"file:{tmp_path / 'mlruns'}", tmp_path / "run"
    words = (
        *WORDS, "logger=[csv,tensorboard,mlflow]", f"logger.tensorboard.folder={run / 'tb'}",
        f"logger.mlflow.folder={run}", f"logger.mlflow.tracking_uri='{store}'",
        "callbacks.checkpoint.every_n_train_steps=2", "callbacks.checkpoint.keep_last=9",
    )  # fmt: skip
    train_here(run, *words)
    middle = run / "checkpoints" / "step=00000002.ckpt"
    train_here(run, *words, "trainer.max_steps=6", f"resume='{middle}'")
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    logged = [
        (value.tag, event.step)
        for file in sorted((run / "tb").glob("events.*"))
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    steps = [step for name, step in logged if name == "train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len(set(logged)) == len(logged)
    client = MlflowClient(store)
    run_id = (run / "mlflow.txt").read_text().strip()
    for name, expected in (("train.loss", steps), ("val.score", [2, 4, 6])):
        assert [metric.step for metric in client.get_metric_history(run_id, name)] == expected


def test_another_run_in_the_same_folder_begins_anew(tmp_path):
    first = LoggedSteps(tmp_path / "logged.json", "one")
    first.note({"a": 1.0}, 5)
    assert LoggedSteps(tmp_path / "logged.json", "one").new({"a": 1.0, "b": 2.0}, 5) == {"b": 2.0}
    assert LoggedSteps(tmp_path / "logged.json", "one").new({"a": 1.0}, 4) == {}
    assert LoggedSteps(tmp_path / "logged.json", "two").new({"a": 1.0}, 5) == {"a": 1.0}
    assert first.new({"a": 1.0}, None) == {"a": 1.0}
    (tmp_path / "logged.json").write_text("{")
    assert LoggedSteps(tmp_path / "logged.json", "one").step == -1


@pytest.mark.heavy
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

"""`data=stream`: shard lists without a manifest, over HTTP, and what they cannot promise."""

from __future__ import annotations

import functools
import http.server
import itertools
import logging
import threading

import numpy as np
import pytest
from data_helpers import npy_bytes, number_samples, shard_bytes, tar_bytes
from experiment_helpers import losses, run_training

from multimodal.data.errors import TooManyBadSamplesError
from multimodal.data.loading.tally import Rejection
from multimodal.data.shards.paths import SAMPLES_FOLDER
from multimodal.data.streaming.datamodule import StreamDataModule
from multimodal.data.streaming.shard import Streamed, read_shard
from multimodal.data.streaming.source import StreamSource
from multimodal.data.transforms.array import ArrayTransform

X = {"x": {"member": "x.npy"}}


@pytest.fixture
def server(tmp_path):
    """Three shards of ten samples behind HTTP."""
    for number in range(3):
        content = shard_bytes(number_samples(10, 10 * number))
        (tmp_path / f"part-{number}.tar").write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{httpd.server_port}/part-{{0..2}}.tar"
        httpd.shutdown()
        thread.join()


def module(urls, num_workers=0, **options) -> StreamDataModule:
    sources = {"far": StreamSource(urls, X, positive_key="label")}
    transforms = {"x": ArrayTransform([1])}
    return StreamDataModule(
        sources, transforms, 4, 6, options.pop("seed", 0), 20, num_workers=num_workers, **options
    )


def numbers(loader) -> list[list[float]]:
    return [batch.inputs["x"].flatten().tolist() for batch in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [0, 5])
def test_it_ends_with_fewer_shards_than_workers(server, num_workers, caplog):
    _, urls = server
    with caplog.at_level(logging.WARNING):
        loader = module(urls, num_workers).train_dataloader()
    assert "an epoch may miss samples and repeat others" in caplog.text
    epochs = [numbers(loader) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [6, 6] == [len(loader)] * 2
    for epoch in epochs:
        assert all(len(batch) == 4 and set(batch) <= set(range(30)) for batch in epoch)
    assert epochs[0] != epochs[1]
    assert loader.counter.delivered == 48
    # The same seed, workers and ranks give the same draws.
    again = module(urls, num_workers).train_dataloader()
    assert numbers(again) == epochs[0]
    assert numbers(module(urls, num_workers, seed=1).train_dataloader()) != epochs[0]


@pytest.mark.slow
def test_it_trains_over_http_with_fewer_shards_than_workers(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SAMPLES_FOLDER))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/emoji-train-00{{0..1}}.tar"
        run = run_training(
            [
                "+experiment=clip_scratch", "data=stream", "debug=fast", "~evaluation",
                "data.batch_size=16", "data.num_workers=3", "data.epoch_steps=3",
                f"data.sources.emoji.urls=['{url}']", f"hydra.run.dir={tmp_path}",
            ]
        )  # fmt: skip
        httpd.shutdown()
    assert run.returncode == 0, run.stderr[-3000:]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]
    assert "an epoch may miss samples and repeat others" in run.stdout + run.stderr


def test_a_resumed_stream_says_that_it_makes_new_draws(server, caplog):
    _, urls = server
    loader = module(urls).train_dataloader()
    first = numbers(loader)
    resumed = module(urls).train_dataloader()
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(loader.state_dict())
    assert "other draws" in caplog.text
    assert numbers(resumed) != first


def test_commands_are_rejected_unless_allowed_by_name(server, tmp_path):
    command = f"pipe:touch {tmp_path}/executed; cat {tmp_path}/part-0.tar"
    with pytest.raises(ValueError, match=r"would run a command: add `allow: \[pipe\]`"):
        StreamSource(command, X)
    assert not (tmp_path / "executed").exists()
    allowed = StreamSource(command, X, allow=["pipe"])
    assert len(list(read_shard("far", allowed.urls[0]))) == 10
    assert (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="urls is empty"):
        StreamSource([], X)


@pytest.mark.parametrize("cut", ["member", "header", "boundary", "html", "missing", "empty"])
def test_a_damaged_shard_never_gives_a_mixed_or_half_sample(tmp_path, cut):
    def pair(number: int) -> list[tuple[str, bytes]]:
        value = npy_bytes(np.array([number], np.float32))
        return [(f"k{number}.a.npy", value), (f"k{number}.b.npy", value)]

    content = tar_bytes([member for number in range(4) for member in pair(number)])
    path = tmp_path / "a.tar"
    lengths = {"member": 3 * 2048 + 600, "header": 3 * 2048 + 100, "boundary": 3 * 2048 + 1024}
    path.write_bytes(content[: lengths[cut]] if cut in lengths else content)
    if cut == "html":
        path.write_bytes(b"<!DOCTYPE html>" * 100)
    elif cut == "empty":
        path.write_bytes(b"")
    elif cut == "missing":
        path.unlink()
    *samples, last = read_shard("s", str(path))
    assert isinstance(last, Rejection)
    assert last.shard == "a.tar"
    assert all(isinstance(sample, Streamed) for sample in samples)
    # It is unknown whether k2 was complete, as the error follows directly.
    whole = {"member": ["k0", "k1"], "header": ["k0", "k1"], "boundary": ["k0", "k1", "k2"]}
    assert [sample.keys[0] for sample in samples] == whole.get(cut, [])
    for sample in samples:
        assert sample.members["a.npy"] == sample.members["b.npy"]


def test_bad_shards_and_samples_are_counted_and_too_many_stop(server):
    folder, urls = server
    (folder / "part-1.tar").write_bytes(b"<html>")
    broken = number_samples(10, 20)
    broken[4][1]["x.npy"] = b"no array"
    (folder / "part-2.tar").write_bytes(shard_bytes(broken))
    loader = module(urls, max_bad_fraction=1.0).train_dataloader()
    found = {n for batch in itertools.chain(numbers(loader), numbers(loader)) for n in batch}
    assert found <= {*range(10), *range(20, 30)} - {24}
    assert loader.counter.reasons["corrupt"] > 0
    assert loader.counter.reasons["shard_cut"] > 0
    with pytest.raises(TooManyBadSamplesError, match=r"max_bad_fraction=0.*shard part-"):
        numbers(module(urls, max_bad_fraction=0.0).train_dataloader())
    for number in range(3):
        (folder / f"part-{number}.tar").unlink()
    with pytest.raises(TooManyBadSamplesError, match="in a row are bad"):
        numbers(module(urls, max_bad_fraction=1.0, max_bad_run=5).train_dataloader())

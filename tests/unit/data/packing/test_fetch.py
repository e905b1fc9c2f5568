"""URLs in a column: fetched in bounds, tried again, listed where they are refused."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from packing_helpers import jpeg, metadata, refused, run, samples

from multimodal.data.errors import BadSampleError
from multimodal.data.packing import fetch as fetch_module
from multimodal.data.packing.fetch import fetch, is_url

pytest.importorskip("aiohttp")
fsspec = pytest.importorskip("fsspec")


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[Counter] = Counter()

    def do_GET(self):
        name = self.path.strip("/").partition("?")[0]
        Handler.asked[name] += 1
        status = {"gone.jpg": 404, "forbidden.jpg": 403, "broken.jpg": 500}.get(name, 200)
        if name == "flaky.jpg" and Handler.asked[name] < 3:
            status = 503
        data = b"x" * 5000 if name == "large.jpg" else jpeg(len(name))
        self.send_response(status)
        if name != "endless.jpg":
            self.send_header("Content-Length", str(len(data) + 9 * (name == "cut.jpg")))
        self.end_headers()
        try:
            if name == "endless.jpg":
                for _ in range(1 << 16):
                    self.wfile.write(bytes(1 << 16))
            self.wfile.write(data)
        except OSError:
            pass

    def do_HEAD(self):
        self.send_error(405)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(fetch_module, "_PAUSE", 0.01)
    Handler.asked = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_column_of_urls_is_fetched(web, tmp_path, capsys):
    names = ["a.jpg", "b.JPG?size=3", "photo?id=7", "flaky.jpg", "gone.jpg", "forbidden.jpg",
             "broken.jpg", "cut.jpg"]  # fmt: skip
    rows = [{"url": f"{web}/{name}", "TEXT": f"dog {name}"} for name in names]
    rows.append({"url": "nope://x/a.jpg", "TEXT": "nothing"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "t.jsonl", tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert found["train:000000000"]["url.jpg"] == jpeg(5)
    assert found["train:000000002"]["url.jpg"] == jpeg(5)
    assert found.keys() == {f"train:{n:09d}" for n in range(4)}
    assert metadata(tmp_path / "out")["000000003"] == {"TEXT": "dog flaky.jpg"}
    assert refused(tmp_path / "out") == {
        **{f"{n:09d}": "unreachable" for n in range(4, 8)},
        "000000008": "bad_url",
    }
    said = capsys.readouterr().err
    assert "left out: 4 unreachable" in said
    assert Handler.asked["gone.jpg"] == Handler.asked["forbidden.jpg"] == 1
    assert Handler.asked["broken.jpg"] == Handler.asked["flaky.jpg"] == 3


def test_what_is_larger_than_it_may_be_is_not_read_to_its_end(web):
    for name in ("large.jpg", "endless.jpg"):
        with pytest.raises(BadSampleError) as caught:
            fetch(f"{web}/{name}", 4000)
        assert caught.value.reason == "too_large"
        assert Handler.asked[name] == 1


def test_any_file_system_of_fsspec_is_read_and_none_is_chained(tmp_path):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/a.jpg", jpeg(3))
    assert fetch("memory://bucket/a.jpg", 1 << 20) == jpeg(3)
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    for url in (f"simplecache::memory://{tmp_path}/secret.jpg", f"file://{tmp_path}/secret.jpg",
                f"local://{tmp_path}/secret.jpg", "nope://x"):  # fmt: skip
        with pytest.raises(BadSampleError) as caught:
            fetch(url, 1 << 20)
        assert caught.value.reason == "bad_url"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a.b/c.jpg", True),
        ("s3://bucket/c", True),
        ("a/b.jpg", False),
        ("see https://a.b", False),
        ("http://", False),
        ("C://x", True),
    ],
)
def test_what_is_a_url(text, expected):
    assert is_url(text) is expected


def test_coco_without_pictures_is_fetched(web, tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "coco_url": f"{web}/a.jpg"}]
    notes = [{"image_id": 1, "caption": "a dog"}]
    own = tmp_path / "own"  # pictures are looked for beside it: in no folder of another test
    own.mkdir()
    (own / "c.json").write_text(json.dumps({"images": images, "annotations": notes}))
    assert run(own / "c.json", tmp_path / "out") == 0
    assert samples(tmp_path / "out")["train:a"]["jpg"] == jpeg(5)

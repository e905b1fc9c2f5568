"""The search page: what it answers, what it refuses, and how it looks in a browser."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser import needs_chromium, visit
from data_helpers import audio_bytes, image_bytes
from search_helpers import WORDS, make_embedder, write_things

from multimodal.inference.search.builder import build_table
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import FolderItems
from multimodal.inference.search.server import make_app
from multimodal.inference.search.serving import Server
from multimodal.inference.search.table import Table, fitting, read_table

MAX_BODY = 4 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_things(tmp_path_factory.mktemp("serve") / "things")


@pytest.fixture(scope="module")
def table(folder) -> Table:
    output = folder.parent / "t.parquet"
    build_table(make_embedder(folder.parent), FolderItems(folder), output, {}, previews=True)
    return read_table(output)


@pytest.fixture(scope="module")
def port(folder, table):
    """A server on a free port, in a thread."""
    index = Index(table.vectors, [row.modality for row in table.rows])
    app = make_app(make_embedder(folder.parent), table, index, "My things", max_body=MAX_BODY)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.05)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(30)


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())
    finally:
        connection.close()


def form(terms, files=(), k: str = "3") -> tuple[bytes, str]:
    edge = "edge-of-parts"
    parts = []
    text = terms if isinstance(terms, str) else json.dumps(terms)
    for name, value in (("terms", text), ("k", k)):
        parts.append(
            f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        )
    encoded = [part.encode() for part in parts]
    for name, filename, data in files:
        head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"'
        encoded.append(head.encode() + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(encoded) + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def search(port: int, terms, files=(), k: str = "3"):
    body, kind = form(terms, files, k)
    status, answer, _ = ask(port, "POST", "/search", body, Content_Type=kind)
    return status, json.loads(answer)


def upload(port: int, filename: str, data: bytes, **term):
    return search(port, [{"file": "f", **term}], [("f", filename, data)])


def test_an_upload_finds_itself_and_sums_find_their_parts(port, folder, table):
    data = (folder / "2.png").read_bytes()
    status, answer = upload(port, "holiday.PNG", data)
    assert status == 200
    assert set(answer["results"]) == {"image", "text", "audio"}
    best = answer["results"]["image"][0]
    assert (best["key"], round(best["score"], 4), best["type"]) == ("2.png", 1.0, "image/webp")
    status, answer = search(port, [{"text": WORDS[1]}])
    assert answer["results"]["text"][0]["text"] == WORDS[1]
    rows = {row.key: number for number, row in enumerate(table.rows)}
    terms = [{"row": rows["1.png"]}, {"row": rows["words/2.txt"], "weight": 0.01}]
    status, answer = search(port, terms)
    assert answer["results"]["image"][0]["key"] == "1.png"
    terms = [{"row": rows["1.png"], "weight": -1}]
    status, answer = search(port, terms, k="50")
    assert answer["results"]["image"][-1]["key"] == "1.png"
    assert answer["results"]["image"][-1]["score"] == pytest.approx(-1, abs=1e-4)


def test_previews_are_served_by_row(port, table):
    for number in (0, 5):
        status, content, headers = ask(port, "GET", f"/media/{number}")
        assert (status, content) == (200, table.rows[number].preview)
        assert headers["content-type"].split(";")[0] == table.rows[number].preview_type
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


def huge_png() -> bytes:
    """A header that promises 20,000 x 20,000 pixels, and a little data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(60_001))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


BAD = {
    "a text named .jpg": ("notes.jpg", b"just words", 422, "notes.jpg: cannot be read as .jpg"),
    "a picture of 20k x 20k": ("big.png", huge_png(), 422, "too_large"),
    "an empty WAV": ("a.wav", audio_bytes(np.zeros((1, 0)), 16000), 422, "no samples"),
    "no bytes": ("a.wav", b"", 422, "no bytes"),
    "a path": ("../../etc/passwd.txt", b"x", 400, "a path"),
    "a type that is none": ("run.exe", b"MZ", 415, "expected one of png"),
    "a pickle in an array": ("a.npy", b"\x80\x04K\x01.", 415, "name its modality"),
    "a cut picture": ("a.png", image_bytes(np.zeros((9, 9, 3), np.uint8))[:40], 422, "corrupt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_reported_and_the_server_continues(port, name):
    filename, data, status, expected = BAD[name]
    found, answer = upload(port, filename, data)
    assert (found, list(answer)) == (status, ["error"])
    assert expected in answer["error"]
    assert search(port, [{"text": "still there"}])[0] == 200


def test_the_20k_picture_is_a_picture_but_for_its_size():
    from PIL import Image

    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        assert Image.open(io.BytesIO(huge_png())).size == (20_000, 20_000)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_bodies_are_cut_off_at_the_limit(port):
    # One that says how long it is: refused before it is sent.
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    with connection:
        head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {100 << 20}\r\n"
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        answer = connection.recv(4096)
    assert b" 413 " in answer.split(b"\r\n")[0]
    # One that does not: stopped while it comes.
    sent = 0
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    with connection:
        head = "POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
        piece = bytes(1 << 16)
        try:
            connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            while sent < 100 << 20:
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
            answer = connection.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    assert answer or sent < 100 << 20, "all of it was taken"
    assert search(port, [{"text": "still there"}])[0] == 200


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ("no json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "from 1 to 8 terms"),
        ([{"text": "a"}] * 9, "from 1 to 8 terms"),
        ([{"text": " "}], "from 1 to 2,000 characters"),
        ([{"text": "a", "weight": 0}], "weight"),
        ([{"text": "a", "weight": "NaN"}], "weight"),
        ([{"text": "a"}, {"text": "a", "weight": -1}], "sum to zero"),
        ([{"row": 10_000}], "no row 10000"),
        ([{"row": -1}], "no row -1"),
        ([{"row": "../x"}], "no row '../x'"),
        ([{"file": "/etc/passwd"}], "'file' that is uploaded"),
        ([3], "must be an object"),
    ],
)
def test_bad_queries_are_reported(port, terms, expected):
    status, answer = search(port, terms)
    assert status in (400, 422)
    assert expected in answer["error"]


def test_no_path_of_a_request_is_opened(port, monkeypatch):
    opened = []
    real = io.open

    def watched(file, *arguments, **options):
        opened.append(str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", watched)
    monkeypatch.setattr("io.open", watched)
    for path in ("/media/../../etc/passwd", "/etc/passwd", "/page.html", "/media/x", "/media/9999"):
        assert ask(port, "GET", path)[0] == 404
    assert search(port, [{"text": "/etc/passwd"}])[0] == 200
    assert upload(port, "a.txt", b"/etc/passwd")[0] == 200
    assert not [name for name in opened if "passwd" in name or "media" in name]


def test_other_names_and_methods_are_rejected(port):
    assert ask(port, "GET", "/", Host="evil.example")[0] == 400
    assert ask(port, "GET", "/search")[0] == 405
    assert ask(port, "POST", "/search", b"{}", Content_Type="application/json")[0] == 400
    assert search(port, [{"text": "a"}], k="0")[1]["error"].startswith("k must be")


def test_a_table_of_another_model_is_rejected(folder, table):
    with pytest.raises(ValueError, match="the table is of another model"):
        fitting(make_embedder(folder.parent), Table(table.vectors[:, :5], table.rows, {}))


@needs_chromium
@pytest.mark.parametrize("width", [pytest.param("phone", marks=pytest.mark.slow), "desktop"])
def test_a_browser_searches(port, folder, tmp_path, width):
    home = f"http://127.0.0.1:{port}/"
    with visit(width) as seen:
        page = seen.page
        page.goto(home)
        seen.until("document.title === 'My things'")
        assert "7 image" in page.inner_text("#about")

        page.fill("#text", WORDS[4])  # looks like markup, and is words
        page.click("text=Add")
        page.wait_for_selector("#of-text .card")
        assert page.inner_text("#of-text .card >> nth=0 >> p") == WORDS[4]
        assert page.locator("#results script").count() == 0

        page.set_input_files("#file", str(folder / "3.png"))
        page.wait_for_selector(".term >> nth=1")
        page.click(".term >> nth=0 >> button >> nth=1")  # the words go
        seen.until("document.querySelectorAll('.term').length === 1")
        seen.until("document.querySelector('#of-image footer span')?.textContent > .99")
        first = page.locator("#of-image .card img").first
        first.scroll_into_view_if_needed()
        seen.until("document.querySelector('#of-image .card img')?.naturalWidth > 0")
        assert first.get_attribute("alt") == "3"

        sound = page.locator("#of-audio audio").first
        length = sound.evaluate(
            "a => new Promise((done, fail) => { a.onloadedmetadata = () => done(a.duration);"
            " a.onerror = () => fail(new Error('does not play')); a.load(); a.preload = 'auto'; })"
        )
        assert length == pytest.approx(0.5, abs=0.02)

        page.click("[aria-label='take away 3.png']")
        seen.until(
            "!document.querySelector('#results').classList.contains('busy') &&"
            "document.querySelector('#of-image footer span')?.textContent < .99"
        )
        assert page.locator(".term.minus").count() == 1
        page.click("[aria-label='add 3.png']")
        page.locator("#of-audio .card button").first.click()  # a sound is added to the query
        seen.until("document.querySelectorAll('.term').length === 2")
        page.wait_for_selector("#of-text .card")

        broken = tmp_path / "notes.jpg"
        broken.write_text("words")
        page.set_input_files("#file", str(broken))
        page.wait_for_selector("#error:not([hidden])")
        assert "notes.jpg: cannot be read as .jpg" in page.inner_text("#error")
        page.locator(".term >> nth=2 >> button >> nth=1").click()
        page.wait_for_selector("#of-image .card")
        assert page.locator("#error").is_hidden()

        assert seen.overflow() == 0
        assert seen.outside(home) == []
        assert seen.errors == []
        page.screenshot(path=tmp_path / f"search-{width}.png", full_page=True)

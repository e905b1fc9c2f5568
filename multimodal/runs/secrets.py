"""Keys and passwords have no place in a configuration; what looks like one is not written down."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from multimodal.core.files import write_text

REDACTED = "<redacted>"

_NAMES = r"(?:api_?key|key|secret|token|password|passwd|passphrase|credentials?)"
_KEY = re.compile(rf"(^|_){_NAMES}$", re.IGNORECASE)
# In the words of a command line: `a.api_key=...`, `{api_key: ...}`.
_ASSIGNED = re.compile(
    rf"(?:^|[\s{{,._+]){_NAMES}['\"]?\s*[=:]\s*['\"]?([^\s'\",}}]+)", re.IGNORECASE
)
_VALUE = re.compile(
    r"sk-[\w-]{16,}|hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|"
    r"xox[abp]-[\w-]{10,}|wandb_v\d_\w{20,}|AIza[\w-]{30,}|\b[0-9a-f]{40}\b|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]+:[^/\s@]{3,}(?=@)"
)
_SHORTEST = 12  # of a value that is secret by the name of its key alone


def secrets_in(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, secret text) of what looks like a key or a password in nested dicts and lists.

    By its form (the known kinds of access keys, a password in a URL), or by the name of its key
    (``api_key``, ``token``, ``password``), in a tree or in a word like ``a.token=...``: there a
    value counts that is one word of 12 characters or more with a digit in it.
    """
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from secrets_in(child, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from secrets_in(child, f"{where}[{index}]")
    elif isinstance(tree, str):
        found = [match.group(0) for match in _VALUE.finditer(tree)]
        if _KEY.search(where.split("[")[0].split(".")[-1]):
            found += [tree] if _is_long_word(tree) else []
        found += [word for word in _ASSIGNED.findall(tree) if _is_long_word(word)]
        for text in found:
            yield where, text


def _is_long_word(text: str) -> bool:
    is_word = re.fullmatch(rf"\S{{{_SHORTEST},}}", text) and re.search(r"\d", text)
    return bool(is_word) and not text.startswith("${")


def redacted(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every one of ``secrets`` replaced, longer ones first."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return text


class RedactingFilter(logging.Filter):
    """Replaces secrets in every record of a handler."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = list(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through, redacted."""
        record.msg, record.args = redacted(record.getMessage(), self._secrets), ()
        return True


def redact_records(secrets: Iterable[str]) -> None:
    """Replaces secrets in every record that this process logs from now on.

    Unlike a filter this outlives that handlers are configured anew, as Hydra's launchers do.
    """
    make, known = logging.getLogRecordFactory(), list(secrets)

    def redacting(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        record.msg, record.args = redacted(record.getMessage(), known), ()
        return record

    logging.setLogRecordFactory(redacting)


def redact_files(paths: Iterable[Path], secrets: Iterable[str]) -> None:
    """Rewrites those of the text files ``paths`` that hold a secret."""
    secrets = list(secrets)
    for path in paths:
        text = path.read_text()
        if (clean := redacted(text, secrets)) != text:
            write_text(path, clean)

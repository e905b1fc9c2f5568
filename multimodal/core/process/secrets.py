"""Finds keys and passwords in configurations, and redacts them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.core.files import write_text

REDACTED = "<redacted>"

# By these names alone a value is secret, whatever it looks like.
_SURE = (
    r"password|passwd|passphrase|pwd|secret|credentials?|authorization|auth|connection_?string|"
    r"(?:api|access|account|secret|secret_?access|private|license)_?key(?:_?id)?|"
    r"(?:access|auth|api|bearer|refresh|session|sas|security)_?token|apitoken"
)
# These also name other things (a column, a mask token): a long word with a digit is secret.
_LIKELY = r"key|token"
_KEY_SURE = re.compile(rf"(^|[_-])(?:{_SURE})$", re.IGNORECASE)
_KEY_LIKELY = re.compile(rf"(^|[_-])(?:{_LIKELY})$", re.IGNORECASE)
_BEGIN, _IS = r"(?:^|[\s{,._+\"'])", r"['\"]?\s*[=:]\s*['\"]?"
# In command-line arguments: `a.api_key=...`, `{api_key: ...}`.
_ASSIGNED = [
    (re.compile(rf"{_BEGIN}(?:{names}){_IS}([^\s'\",}}]+)", re.IGNORECASE), sure)
    for names, sure in ((_SURE, True), (_LIKELY, False))
]
# Of an address: what signs it, or lets one in.
_QUERY_NAMES = (
    r"(?:[\w-]*(?:token|signature|credential|secret|passw(?:or)?d|api-?key|access-?key)|sig|sas|"
    r"key|pwd|auth|code|awsaccesskeyid)"
)
_QUERY = re.compile(rf"[?&;]{_QUERY_NAMES}=([^&;#\s'\"]+)", re.IGNORECASE)
_VALUE = re.compile(
    r"sk-[\w-]{16,}|hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"A[KS]IA[0-9A-Z]{16}|xox[abp]-[\w-]{10,}|wandb_v\d_\w{20,}|AIza[\w-]{30,}|\b[0-9a-f]{40}\b|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|"
    r"(?<=https://)[^/\s:@]{8,}(?=@)|(?<=[Bb]earer )\s*[\w.~+/=-]{6,}|(?<=[Bb]asic )[\w+/=]{8,}"
)
# Variables of the environment whose name says what they hold.
_VARIABLE = re.compile(r"\$\{oc\.env:\s*['\"]?(\w+)")
_SECRET_VARIABLE = re.compile(
    r"(?:^|_)(?:\w*PASS(?:WORD|WD|PHRASE)|PASS|SECRETS?|(?:API|ACCESS)?KEY|(?:API)?TOKEN|"
    r"CREDENTIALS?|AUTH)(?:_|\d|$)|_(?:PWD|PAT)$",
    re.IGNORECASE,
)
_SCHEMES = ("basic", "bearer", "digest", "none", "null", "oauth", "iam", "true", "false", REDACTED)
_SHORTEST = 12  # of a value that is secret by the likely name of its key
_DISTINCT = 8  # minimum characters of a secret that is replaced anywhere
_WORD = 4  # and from which on it is as a whole word


def secrets_in(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, secret text) of what looks like a key or a password in nested dicts and lists.

    By its form (the known kinds of access keys, a password or a signature in an address, what
    follows ``Bearer``), or by the name of its key, in a tree or in a word like ``a.token=...``:
    ``password``, ``api_key``, ``auth`` and the like hold secrets whatever they are; ``key`` and
    ``token`` where a value is one word of 12 characters or more with a digit in it. Where a value
    asks for a variable of the environment whose name says that it is secret, that variable's.
    """
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from secrets_in(child, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            yield from secrets_in(child, f"{where}[{index}]")
    elif isinstance(tree, str):
        for text in dict.fromkeys(_secrets_of_text(tree, _name(where))):
            yield where, text
    elif isinstance(tree, int | float) and _KEY_SURE.search(_name(where)):
        yield where, str(tree)


def _name(where: str) -> str:
    return where.split("[")[0].split(".")[-1]


def _secrets_of_text(text: str, name: str) -> Iterator[str]:
    yield from (match.group(0).strip() for match in _VALUE.finditer(text))
    yield from _QUERY.findall(text)
    if (_KEY_SURE.search(name) and _is_given(text)) or (
        _KEY_LIKELY.search(name) and _is_long_word(text)
    ):
        yield text
    for pattern, sure in _ASSIGNED:
        accepted = _is_given if sure else _is_long_word
        yield from (word for word in pattern.findall(text) if accepted(word))
    for variable in secret_variables(text):
        if value := os.environ.get(variable):
            yield value


def secret_variables(text: str) -> list[str]:
    """The variables that ``text`` asks the environment for and that are secret by their names."""
    return [name for name in _VARIABLE.findall(text) if _SECRET_VARIABLE.search(name)]


def _is_given(text: str) -> bool:
    return bool(text) and not text.startswith("${") and text.lower() not in _SCHEMES


def _is_long_word(text: str) -> bool:
    is_word = re.fullmatch(rf"\S{{{_SHORTEST},}}", text) and re.search(r"\d", text)
    return bool(is_word) and not text.startswith("${")


def redacted(text: str, secrets: Iterable[str]) -> str:
    """``text`` with every one of ``secrets`` replaced, longer ones first.

    A short one is replaced as a whole word, a very short one or a number only behind a name that
    says what it is: a password of ``3`` does not change all other threes.
    """
    for secret in sorted(set(secrets), key=len, reverse=True):
        quoted = re.escape(secret)
        if len(secret) >= _DISTINCT:
            text = text.replace(secret, REDACTED)
        elif len(secret) >= _WORD and not secret.isdigit():
            text = re.sub(rf"(?<!\w){quoted}(?!\w)", REDACTED, text)
        else:
            named = rf"({_BEGIN}(?:{_SURE}|{_LIKELY}){_IS}|[?&;]{_QUERY_NAMES}=)"
            text = re.sub(rf"{named}{quoted}(?!\w)", rf"\g<1>{REDACTED}", text, flags=re.IGNORECASE)
    return text


def redacted_tree(tree: Any, raw: Any, secrets: Iterable[str], name: str = "") -> Any:
    """Nested dicts and lists with every secret replaced.

    Args:
        tree: resolved.
        raw: the same, with its interpolations.
        secrets: of the whole.
        name: the key of ``tree``.
    """
    secrets = list(secrets)
    if isinstance(tree, Mapping):
        inner = raw if isinstance(raw, Mapping) else {}
        return {k: redacted_tree(v, inner.get(k), secrets, str(k)) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        known = isinstance(raw, list | tuple) and len(raw) == len(tree)
        items = zip(tree, raw if known else [None] * len(tree), strict=True)
        return [redacted_tree(child, inner, secrets, name) for child, inner in items]
    if tree is None or isinstance(tree, bool):
        return tree
    asked = isinstance(raw, str) and raw.startswith("${") and bool(secret_variables(raw))
    by_name = bool(_KEY_SURE.search(name)) and _is_given(str(tree))
    if asked or by_name or (isinstance(tree, str) and tree in secrets):
        return REDACTED
    return redacted(tree, secrets) if isinstance(tree, str) else tree


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

    Unlike a filter, this survives a reconfiguration of handlers, as Hydra's launchers do.
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


def secrets_of(cfg: DictConfig) -> list[tuple[str, str]]:
    """(dotted key, secret) of a configuration, with what its interpolations lead to."""
    trees = (OmegaConf.to_container(cfg, resolve=False), _resolved(cfg))
    return list(dict.fromkeys(item for tree in trees for item in secrets_in(tree)))


def _resolved(node: Any) -> Any:
    """``node`` as plain values; what does not resolve here is left out, others report it."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    made: dict[Any, Any] = {}
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys:
        with contextlib.suppress(OmegaConfBaseException):
            made[key] = _resolved(node[key])
    return list(made.values()) if isinstance(node, ListConfig) else made

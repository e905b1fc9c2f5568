"""Which key is to blame for an error of a constructor: by what its message names or quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from multimodal.config.problems import ConfigProblem, nearest
from multimodal.config.tree import join
from multimodal.core.process.exits import message_of

# Their messages speak for themselves; of other kinds the name is part of the message.
_SPEAKING = (ValueError, TypeError, ImportError, OSError, RuntimeError)
_RANGES = {
    r"Invalid (learning rate|epsilon value|lr_decay|weight_decay value|momentum value)": "from 0",
    r"Invalid (initial_accumulator_value|lambd|momentum_decay|clip_threshold)": "from 0",
    r"Invalid (beta parameter|rho value|alpha value|dampening|etas)": "from 0 to below 1",
}
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")


def fault_of(error: BaseException, where: str, block: Mapping[str, Any]) -> ConfigProblem:
    """``error``, raised by what ``block`` at ``where`` describes, as an error of its key."""
    message = _message(error)
    while isinstance(value := block, Mapping):  # a message may begin with the block that it means
        leaves = dict(_leaves(block))
        leaf = _named(error, message, where, leaves)
        if leaf is None:
            value = None
            break
        where, value = _join(where, leaf), leaves[leaf]
        message = message.removeprefix(f"{where}: ").removeprefix(f"{leaf}: ")
        block = value
    return ConfigProblem(
        where or "configuration", _problem(message, value).replace("\n", "\n      ")
    )


def _problem(message: str, value: Any) -> str:
    """``message`` with the value that was given, and the nearest right one, if it lacks them."""
    if value is None:
        return message
    message = _with_expectation(message)
    guess = _guess(value, message) if isinstance(value, str) else None
    if guess and "did you mean" not in message:
        message = f"{message}; did you mean '{guess}'?"
    return message if _shows(message, value) else f"given {_text(value)}: {message}"


def _with_expectation(message: str) -> str:
    """``message`` with the range that it leaves out: of values that torch's optimizers refuse."""
    for pattern, expected in _RANGES.items():
        if re.match(pattern, message):
            return f"{message}; expected a number {expected}"
    return message


def _message(error: BaseException) -> str:
    text = message_of(error) or str(error)
    kind = type(error)
    speaks = issubclass(kind, _SPEAKING) or kind.__name__ == "MisconfigurationException"
    if not text:
        return f"{kind.__name__}, without a message"
    return text if speaks else f"{kind.__name__}: {text}"


def _leaves(block: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The values of ``block``, also of blocks inside it, by their dotted paths."""
    for name, value in block.items():
        if str(name).startswith("_") or callable(value):
            continue
        path = _join(where, str(name))
        yield path, value
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        elif isinstance(value, list | tuple):
            items = {f"[{index}]": item for index, item in enumerate(value)}
            yield from _leaves(items, path)


def _join(where: str, name: str) -> str:
    return f"{where}{name}" if name.startswith("[") else join(where, name)


def _named(error: BaseException, message: str, where: str, leaves: Mapping[str, Any]) -> str | None:
    """The leaf that is meant: by its key, as ``name=``, as the first word, or as a value."""
    plain = {path: value for path, value in leaves.items() if not isinstance(value, Mapping)}
    for leaf in (
        _written_out(message, where, leaves),
        sorted(
            (path for path in plain if f"{_name(path)}={plain[path]}" in message),
            key=lambda path: message.index(f"{_name(path)}="),
        ),
        _mentioned(message, plain, r"(?<!\w)`?{}`?="),
        _mentioned(message, plain, r"^[`'\"]?{}\b"),
        _texts(message, plain, quoted=True),
        _mentioned(message, plain, r"(?<!\w){}(?!\w)"),
        _texts(message, plain, quoted=False),
        _numbers(message, plain) if not isinstance(error, RuntimeError) else [],
        _paths(plain) if isinstance(error, OSError) else [],
    ):
        if leaf:
            return _preferred(leaf, leaves)
    words = [path for path in plain if path.rpartition(".")[2].replace("_", " ") in message]
    return words[0] if words else None


def _written_out(message: str, where: str, leaves: Mapping[str, Any]) -> list[str]:
    """Leaves whose dotted path is in the message, as it is or below ``where``; long ones first."""
    paths = {
        path
        for path in leaves
        for key in (path, _join(where, path))
        if "." in key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)", message)
    }
    return sorted(paths, key=len, reverse=True)


def _mentioned(message: str, leaves: Mapping[str, Any], pattern: str) -> list[str]:
    """Leaves whose name is in the message in this form, the first that it mentions first."""
    matches = {path: re.search(pattern.format(re.escape(_name(path))), message) for path in leaves}
    mentions = [(match.start(), path.count("."), path) for path, match in matches.items() if match]
    return [path for *_, path in sorted(mentions)]


def _name(path: str) -> str:
    return path.rpartition(".")[2]


def _texts(message: str, leaves: Mapping[str, Any], quoted: bool) -> list[str]:
    """Leaves whose text is in the message: in quotes or a path, which no word is by chance."""
    texts = []
    for path, value in leaves.items():
        if not isinstance(value, str) or len(value) < 2:
            continue
        text = re.escape(value)
        chance = quoted and "/" not in value
        pattern = rf"['\"`]{text}['\"`]" if chance else rf"(?<![\w.]){text}(?!\w)"
        if match := re.search(pattern, message):
            refused = re.search(r"\bno [\w ]*$", message[: match.start()])  # "has no key 'x'"
            texts.append((not refused, match.start(), path))
    return [path for *_, path in sorted(texts)]


def _numbers(message: str, leaves: Mapping[str, Any]) -> list[str]:
    given = {float(number) for number in _NUMBER.findall(message)}
    words = set(re.findall(r"(?<![\w.])-?(?:nan|inf)(?!\w)", message.lower()))
    return [
        path
        for path, value in leaves.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and (float(value) in given or str(float(value)) in words)
    ]


def _paths(leaves: Mapping[str, Any]) -> list[str]:
    """The only leaf that is a path or an address."""
    paths = [path for path, value in leaves.items() if isinstance(value, str) and "/" in value]
    return paths if len(paths) == 1 else []


def _preferred(paths: Sequence[str], leaves: Mapping[str, Any]) -> str:
    """The one that the command line gives, if it gives any of them; else the first with a value."""
    if HydraConfig.initialized():
        words = [word.lstrip("+~").partition("=")[0] for word in HydraConfig.get().overrides.task]
        for path in paths:
            if any(word.endswith(f".{path}") or word == path for word in words):
                return path
    return next((path for path in paths if leaves[path] is not None), paths[0])


def _shows(problem: str, value: Any) -> bool:
    return _text(value).strip("'") in problem or str(value) in problem


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _guess(value: str, message: str) -> str | None:
    """A file beside the one that is missing, or a word of the message, that is nearly ``value``."""
    if "/" in value or "." in value:
        for path in (Path(value).expanduser(), *map(Path, re.findall(r"/[\w.\-/]+", message))):
            if path.parent.is_dir() and not path.exists():
                names = [file.name for file in path.parent.iterdir()]
                if close := nearest(path.name, names):
                    return f"{value.removesuffix(path.name)}{close[0]}"
        return None
    if not re.search(r"expected|one of|must be|known|there are|choose", message):
        return None
    words = {word.strip(".") for word in re.findall(r"[\w.\-]{3,}", message)} - {value}
    close = nearest(value, words)
    return close[0] if close else None

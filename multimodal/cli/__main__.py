"""One program: `multimodal COMMAND [words]`, or `python -m multimodal.cli COMMAND [words]`.

Without a command's name it trains, as `multimodal-train` does: `multimodal +experiment=NAME`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

from multimodal.cli.program.commands import COMMANDS, find
from multimodal.core.suggest import nearest

_NAME = re.compile(r"[A-Za-z][\w-]*")  # what can only be meant as a command's name


def main() -> None:
    """Runs the command that is the first word of the command line."""
    words = sys.argv[1:]
    first = words[0] if words else "help"
    if first in ("help", "-h", "--help"):
        print(overview())
    elif first == "--version":
        from multimodal import __version__

        print(f"multimodal {__version__}")
    elif command := find(first):
        del sys.argv[1]
        importlib.import_module(f"multimodal.cli.{command.module}").command()
    elif _NAME.fullmatch(first):
        sys.exit(_refuse(first, words[1:]))
    else:
        from multimodal.cli.main import command as train

        train()


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<12}{entry.purpose}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "multimodal COMMAND [words]", "", *lines, "",
            "`multimodal COMMAND --help` has the words of each.",
        ]
    )  # fmt: skip


def _refuse(name: str, words: Sequence[str]) -> int:
    close = nearest(name, list(COMMANDS))
    rest = " ".join(["multimodal", close[0], *words]) if close else ""
    guess = f"did you mean `{rest}`?" if close else f"commands: {', '.join(COMMANDS)}"
    print(f"multimodal has no command '{name}'; {guess}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()

"""Completion: `multimodal completion bash|zsh|fish` prints what a shell has to evaluate.

bash, in ~/.bashrc        eval "$(multimodal completion bash)"
zsh, in ~/.zshrc          eval "$(multimodal completion zsh)"
fish, in config.fish      multimodal completion fish | source
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from multimodal.cli.program.commands import COMMANDS, Command, find

# Each shell asks `multimodal completion query LINE` for the words that may end the line. Bash
# takes characters as `=` for ends of words, and replaces only what follows the last of them.
_SHELLS = {
    "bash": r"""_multimodal() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n' found begun
    local word="${line##*[[:space:]]}" last="${COMP_WORDS[COMP_CWORD]}"
    [[ "$COMP_WORDBREAKS" == *"${last:-x}"* ]] && last=
    begun="${word%"$last"}"
    COMPREPLY=()
    for found in $(multimodal completion query "$line" 2>/dev/null); do
        COMPREPLY+=("${found#"$begun"}")
    done
}
complete -o nospace -F _multimodal multimodal
""",
    "zsh": r"""_multimodal() {
    local -a found
    found=("${(@f)$(multimodal completion query "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
    compadd -Q -S '' -- $found
}
compdef _multimodal multimodal
""",
    "fish": r"""function __multimodal
    multimodal completion query (commandline -cp) 2>/dev/null
end
complete -c multimodal -f -a '(__multimodal)'
""",
}
_ADDED = ("debug", "launcher", "sweep")  # groups that take no plus: `normalize_args` adds it


def candidates(line: str) -> list[str]:
    """The words that may stand in place of the last one of ``line``, sorted."""
    words = _split(line)
    begun = words.pop() if words and not line[-1:].isspace() else ""
    words = words[1:]  # without the program
    if not words:
        return sorted(f"{name} " for name in COMMANDS if name.startswith(begun))
    command = find(words[0])
    completions: Iterable[str]
    if command is None:
        completions = []
    elif command.config is None:
        completions = _options(command, words[1:], begun)
    else:
        completions = _overrides(command.config, words[1:], begun)
    return sorted(set(completions))


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is still open
        return line.split()


def _options(command: Command, words: list[str], begun: str) -> Iterable[str]:
    """Options by the command's own help, its sub-commands, and files."""
    forms = [form.split()[0] for form in command.words.split("|")]
    nested = [form for form in forms if form.islower()]
    if begun.startswith("-"):
        chosen = [word for word in words[:1] if word in nested]
        text = _help(command, chosen)
        return [f"{name} " for name in re.findall(r"--[\w-]+", text) if name.startswith(begun)]
    sub = [f"{name} " for name in nested if not words and name.startswith(begun)]
    return [*sub, *_files(begun)]


def _help(command: Command, words: list[str]) -> str:
    shown, given = io.StringIO(), sys.argv
    sys.argv = [command.module, *words, "--help"]
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(f"multimodal.cli.{command.module}").command()
    sys.argv = given
    return shown.getvalue()


def _overrides(config: str, words: list[str], begun: str) -> Iterable[str]:
    """Groups, their options, keys and their values, by Hydra; files where those are wanted."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.errors import HydraException
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin
    from omegaconf.errors import OmegaConfBaseException

    from multimodal.config import config_dir, normalize_args

    class Words(DefaultCompletionPlugin):
        """Hydra's own completion, for any shell."""

        def query(self, config_name: str | None) -> None:
            """Asked by `_query`."""

    key, equals, value = begun.partition("=")
    loader = ConfigLoaderImpl(create_config_search_path(str(config_dir())))
    options = loader.get_group_options(key.lstrip("+").partition("@")[0]) if equals else []
    if options:
        return [f"{key}={name}" for name in options if name.startswith(value)]
    try:
        matches = Words(loader)._query(config, " ".join([*normalize_args(words), begun]))
    except (HydraException, OmegaConfBaseException, SystemExit):
        matches = []
    if equals:
        return [*matches, *(f"{key}={file}" for file in _files(value))]
    added = [*(f"{group}=" for group in _ADDED), "+experiment="] if config == "train" else []
    return [*matches, *(word for word in added if word.startswith(begun))]


def _files(begun: str) -> list[str]:
    folder, _, name = begun.rpartition("/")
    given = f"{folder}/" if "/" in begun else ""
    with contextlib.suppress(OSError):
        entries = sorted(os.scandir(Path(given or ".").expanduser()), key=lambda entry: entry.name)
        return [
            f"{given}{entry.name}{'/' if entry.is_dir() else ''}"
            for entry in entries
            if entry.name.startswith(name) and (name or not entry.name.startswith("."))
        ]
    return []


def command() -> None:
    """`multimodal completion`."""
    words = sys.argv[1:]
    if words[:1] == ["query"]:
        print("\n".join(candidates(" ".join(words[1:]))))
    elif len(words) == 1 and words[0] in _SHELLS:
        print(_SHELLS[words[0]], end="")
    elif words and words[0] in ("-h", "--help"):
        print(__doc__)
    else:
        sys.exit(__doc__)

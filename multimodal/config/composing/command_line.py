"""The first check: whether the command line composes, with suggestions, within a second."""

from __future__ import annotations

import re
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from multimodal.config.composing.confinement import NAMES, leaves, wandering_names, wandering_option
from multimodal.config.composing.libyaml import parse_with_libyaml
from multimodal.config.problems import ConfigError, ConfigProblem, did_you_mean, nearest
from multimodal.config.tree import keys

parse_with_libyaml()

VERSION_BASE = "1.3"
_PLUGINS = ("hydra/sweeper", "hydra/launcher")
_EXTRA = "Optuna, joblib and submitit come with pip install 'multimodal[sweep]'"


def config_dir() -> Path:
    """The folder of our configs: inside an installed package, or at the root of a checkout.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs beside or inside {package}: install the package again")


def compose_or_explain(argv: Sequence[str], config_name: str) -> DictConfig | None:
    """Composes what the command line asks for, as a dry run.

    Hydra answers a misspelt key with the advice to append it with a plus; this suggests the nearest
    valid key instead. ``--help`` and the like are left to Hydra, as is a ``--config-path``.

    Args:
        argv: the command line after the program's name.
        config_name: of the root config, where ``--config-name`` names no other.

    Returns:
        The configuration of a single run, with its `hydra` block; None of a sweep, or where nothing
        is run.

    Raises:
        ConfigError: if an argument is invalid; the message names every such argument.
    """
    args = get_args_parser().parse_args(argv)
    if args.help or args.hydra_help or args.shell_completion or args.config_path:
        return None
    try:
        overrides = OverridesParser.create().parse_overrides(args.overrides)
    except HydraException as error:
        word = str(getattr(error, "override", "") or "command line")
        reason = (str(error).splitlines()[1:2] or [str(error)])[0]
        advice = ""
        if "=" in word:
            quoted = QuotedString(word.partition("=")[2], Quote.single).with_quotes()
            advice = f'; a text that holds anything is {word.partition("=")[0]}="{quoted}"'
        message = f"is not a valid override (expected key=value): {reason}{advice}"
        raise ConfigError([ConfigProblem(word, message)]) from None
    try:
        cfg = _compose_or_explain(args, config_name, overrides)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
        problem = getattr(error, "problem", None) or error
        raise ConfigError([ConfigProblem(where, f"is not valid YAML: {problem}")]) from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([_unreadable(error)]) from error
    single = not args.multirun and cfg.hydra.mode in (None, RunMode.RUN)
    return cfg if single and args.cfg is None and args.info is None else None


def _unreadable(error: Exception) -> ConfigProblem:
    """A file that Hydra could not read, which the stack holds and the error does not."""
    named = [
        frame.f_locals["full_path"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("full_path"), str)
    ]
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigProblem(
        named[-1] if named else "a configuration file",
        f"cannot be read: {reason}; expected a text in UTF-8 that holds keys with their values",
    )


def _compose_or_explain(args: Namespace, config_name: str, overrides: list[Override]) -> DictConfig:
    composer = _Composer(args.config_name or config_name, args.config_dir, args.overrides)
    _refuse_wandering(composer, args, overrides)
    if unknown := [problem for o in overrides for problem in _unknown_options(composer, o)]:
        raise ConfigError(unknown)
    words = [word for override in overrides for word in composer.first_choice(override)]
    try:
        cfg = composer.compose(words)
    except HydraException as error:
        raise ConfigError(_explain(composer, overrides, error)) from None
    if wandering := list(wandering_names(cfg)):
        raise ConfigError(wandering)
    if args.cfg is None and args.info is None and (problems := _missing(composer, cfg)):
        raise ConfigError(problems)
    return cfg


def _refuse_wandering(composer: _Composer, args: Namespace, overrides: list[Override]) -> None:
    """Refuses options and names that lead out of their folders, in every job of a sweep."""
    name = args.config_name or ""
    problems = list(wandering_option(f"--config-name {name}", "", [name]))
    for override in overrides:
        key, word = override.key_or_group, str(override.input_line)
        if key in NAMES or leaves(key) or composer.repository.group_exists(key):
            values = [] if override.is_delete() else composer.choices(override)
            problems += wandering_option(word, key, values)
    if problems:
        raise ConfigError(problems)


class _Composer:
    """Hydra's config loader, as `hydra.main` will set it up."""

    def __init__(self, config_name: str, extra_dir: str | None, words: Sequence[str]) -> None:
        setup_globals()
        setbase(VERSION_BASE)
        path = create_config_search_path(str(config_dir()))
        if extra_dir is not None:
            folder = Path(extra_dir).absolute()
            if not folder.is_dir():
                raise ConfigError(
                    [ConfigProblem(f"--config-dir {extra_dir}", f"there is no {folder}")]
                )
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(path)
        self._config_name = config_name
        searched = [word for word in words if word.startswith("hydra.searchpath=")]
        # Knows the folders of `hydra.searchpath` too.
        self.repository: Any = self._loader._parse_overrides_and_create_caching_repo(
            config_name, searched
        )[1]

    def compose(self, words: Sequence[str]) -> DictConfig:
        return self._loader.load_configuration(self._config_name, list(words), RunMode.RUN)

    def options(self, group: str) -> list[str]:
        return list(self.repository.get_group_options(group, ObjectType.CONFIG))

    def groups(self) -> list[str]:
        groups = self.repository.get_group_options("", ObjectType.GROUP)
        return [group for group in groups if group != "hydra"]

    def first_choice(self, override: Override) -> list[str]:
        """The override as one word, a sweep by its first value; nothing for a continuous one."""
        if not override.is_sweep_override():
            return [str(override.input_line)]
        return [f"{override.get_key_element()}={value}" for value in self.choices(override)[:1]]

    def choices(self, override: Override) -> list[str]:
        """The values that the override asks for: one, or those of a sweep that can be listed."""
        if not override.is_sweep_override():
            value = override.value()
            return [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if not override.is_discrete_sweep():
            return []
        override.config_loader = self._loader
        return list(override.sweep_string_iterator())


def _explain(
    composer: _Composer, overrides: list[Override], error: Exception
) -> list[ConfigProblem]:
    """The problems of the first kind that occurs; later kinds could be its consequences."""
    chosen = [o for o in overrides if composer.repository.group_exists(o.key_or_group)]
    given = [o for o in overrides if o not in chosen]
    # An override of a choice within another one (`encoder@towers.x=...`) needs the outer one first.
    chosen.sort(key=lambda override: override.package is not None)
    problems: list[ConfigProblem] = []
    words: list[str] = []
    try:
        base = composer.compose(words)
    except HydraException as root_error:
        return [ConfigProblem("command line", _reason(composer, root_error, []))]
    for override in chosen:
        added = composer.first_choice(override)
        choices = base.hydra.runtime.choices
        try:
            base = composer.compose([*words, *added])
            words += added
        except HydraException as choice_error:
            problems.append(_wrong_choice(composer, override, choice_error, list(choices)))
    problems += [] if problems else [f for o in given for f in _wrong_key(composer, o, base)]
    return problems or [ConfigProblem("command line", _reason(composer, error, []))]


def _missing(composer: _Composer, cfg: DictConfig) -> list[ConfigProblem]:
    missing = [str(key) for key in cfg if OmegaConf.is_missing(cfg, key)]
    if "model" in missing and "experiment" not in cfg.hydra.runtime.choices:
        options = ", ".join(composer.options("experiment"))
        return [ConfigProblem("command line", f"choose +experiment=NAME, one of {options}")]
    return [ConfigProblem(key, f"has no value: set it with {key}=...") for key in missing]


def _unknown_options(composer: _Composer, override: Override) -> Iterator[ConfigProblem]:
    group = override.key_or_group
    if override.is_delete() or not composer.repository.group_exists(group):
        return
    for option in composer.choices(override):
        if option in ("None", "null"):
            key = override.get_key_element().lstrip("+")
            yield ConfigProblem(str(override.input_line), f"to remove '{key}', write ~{key}")
        elif not composer.repository.config_exists(f"{group}/{option}"):
            options = composer.options(group)
            close = nearest(option, options)
            if group in _PLUGINS and not close:
                yield ConfigProblem(
                    str(override.input_line), f"'{group}' has no '{option}'; {_EXTRA}"
                )
                continue
            guess = f"did you mean {override.get_key_element()}={close[0]}? " if close else ""
            yield ConfigProblem(
                str(override.input_line),
                f"'{group}' has no option '{option}'; {guess}options: {', '.join(options)}",
            )


def _wrong_choice(
    composer: _Composer, override: Override, error: Exception, choices: list[str]
) -> ConfigProblem:
    word = str(override.input_line)
    key = override.get_key_element().lstrip("+~")
    if override.is_add() and key in choices:
        return ConfigProblem(word, f"'{key}' is already chosen; write {word.lstrip('+')}")
    if not override.is_add() and key not in choices:
        close = nearest(key, [c for c in choices if "/" not in c or "@" in c]) if "@" in key else []
        advice = f"did you mean '{close[0]}'?" if close else f"write +{word.lstrip('+~')}"
        return ConfigProblem(word, f"'{key}' is not in the defaults list; {advice}")
    return ConfigProblem(word, _reason(composer, error, choices))


def _wrong_key(
    composer: _Composer, override: Override, base: DictConfig
) -> Iterator[ConfigProblem]:
    word, key = str(override.input_line), override.key_or_group
    known = list(keys(base))
    there = key in known or _in_a_list(base, key)
    if override.is_add() and there and not isinstance(override.value(), dict | list):
        if OmegaConf.select(base, key, throw_on_missing=False) is not None:
            yield ConfigProblem(word, f"'{key}' exists already; write {word.lstrip('+')}")
    elif not there and not override.is_add() and not override.is_force_add():
        yield ConfigProblem(word, f"no key '{key}'; {_nearest_key(key, known, composer.groups())}")


def _in_a_list(base: DictConfig, key: str) -> bool:
    head, _, last = key.replace("[", ".").replace("]", "").rpartition(".")
    parent = OmegaConf.select(base, head, throw_on_missing=False) if head else None
    return isinstance(parent, ListConfig) and last.isdigit() and int(last) < len(parent)


def _nearest_key(key: str, known: list[str], groups: list[str]) -> str:
    """In the deepest existing block; else a key of that name elsewhere; else any close one."""
    known = [name for name in known if not name.rpartition(".")[2].startswith("_")]
    head, parts = "", key.split(".")
    while parts and f"{head}{parts[0]}" in known:
        head += f"{parts.pop(0)}."
    inner = [k.removeprefix(head).split(".")[0] for k in known if k.startswith(head)]
    inner += [] if head else groups
    if parts and (close := nearest(parts[0], inner)):
        return f"did you mean '{'.'.join([head + close[0], *parts[1:]])}'?"
    elsewhere = [k for k in known if k.endswith(f".{parts[-1]}")] if parts else []
    elsewhere = [k for k in elsewhere if not k.startswith("hydra.")] or elsewhere
    if elsewhere:
        return f"did you mean '{min(elsewhere, key=len)}'?"
    if not head and nearest(key, known):
        return did_you_mean(key, known)
    return f"known: {', '.join(sorted(set(inner)))}" if inner else f"'{head[:-1]}' has no keys"


def _reason(composer: _Composer, error: Exception, choices: list[str]) -> str:
    """Hydra's own message, shortened, with the nearest valid name if there is one."""
    first = str(error).split("\n")[0].removesuffix(" No match in the defaults list.")
    first = first.rstrip(".:")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group in _PLUGINS:
            return f"{first}; {_EXTRA}"
        options = error.options or composer.options(group)
        return f"{first}; {did_you_mean(option, options)}"
    if error.__cause__ is not None:
        first = f"{first}: {str(error.__cause__).splitlines()[0]}"
    quoted = re.search(r"Could not override '([^'@]+)(@?)", first)
    if quoted and quoted[2] and quoted[1] in choices:
        return f"{first}. Is `# @package _global_` the first line of that file?"
    return f"{first}; {did_you_mean(quoted[1], choices)}" if quoted and choices else first

"""YAML files are parsed in C where PyYAML has libyaml: OmegaConf takes its parser in Python.

That one is a third of the time of composing a configuration. What is read is the same, for only
the parser is another; faults are said in the words of OmegaConf's own.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import omegaconf._utils
import yaml


def parse_with_libyaml() -> None:
    """Gives OmegaConf the faster loader, once; nothing where there is no libyaml."""
    ours = _loader()
    if ours is not None:
        omegaconf._utils.get_yaml_loader = lambda: ours


@cache
def _loader() -> Any:
    if not yaml.__with_libyaml__:
        return None
    from yaml.cyaml import CParser

    theirs: Any = omegaconf._utils.get_yaml_loader()

    class Loader(CParser, theirs):  # type: ignore[misc]
        """OmegaConf's resolvers and constructors behind the other parser."""

        def __init__(self, stream: Any) -> None:
            self.text = stream if isinstance(stream, str | bytes) else stream.read()
            self.is_text = self.text is stream
            self.origin = getattr(stream, "name", "<file>")
            CParser.__init__(self, self.text)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        def get_single_data(self) -> Any:
            try:
                return super().get_single_data()
            except (yaml.YAMLError, ValueError):
                again = self.text
                if not self.is_text:  # of a file, faults are said without the line's text
                    again = io.BytesIO(again) if isinstance(again, bytes) else io.StringIO(again)
                    again.name = self.origin
                return theirs(again).get_single_data()

    return Loader

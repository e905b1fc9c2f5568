"""A configuration that can be kept: every default bound in, and no secrets."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.config.targets.renamed import with_new_names
from multimodal.config.targets.resolving import allowed_packages, resolve
from multimodal.config.targets.signatures import blocks, parameters_of
from multimodal.core.process.secrets import redacted_tree, secrets_of


def defaults_bound(cfg: DictConfig) -> DictConfig:
    """A copy of ``cfg`` in which every block holds all parameters of what it builds.

    Saved with a run, it documents the run even if the defaults change later. Defaults that are not
    plain values (functions, objects) are left out.
    """
    tree: Any = with_new_names(OmegaConf.to_container(cfg, resolve=False))
    packages = allowed_packages(tree.get("allowed_packages"))
    for _, node, target, _, given in list(blocks(tree)):
        for name, parameter in parameters_of(resolve(target, packages)).items():
            if name not in (*node, *given) and _is_plain(parameter.default):
                node[name] = _listed(parameter.default)
    bound: DictConfig = OmegaConf.create(tree)
    return bound


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def portable_yaml(cfg: DictConfig) -> str:
    """The configuration as YAML, interpolations resolved and every default of a class bound in.

    Keys and passwords are left out.
    """
    bound = defaults_bound(cfg)
    raw, tree = (OmegaConf.to_container(bound, resolve=resolve) for resolve in (False, True))
    secrets = [secret for _, secret in secrets_of(cfg)]
    return str(OmegaConf.to_yaml(OmegaConf.create(redacted_tree(tree, raw, secrets))))

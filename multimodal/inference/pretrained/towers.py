"""Fills a run's towers from the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from multimodal.config import ConfigProblem
from multimodal.config.composing.catalogue import Entry, entry
from multimodal.core.errors import ConfigError
from multimodal.inference.filling import fill_tower
from multimodal.inference.importing import WeightSource, plan_of
from multimodal.inference.pretrained.fetching import fetch
from multimodal.models.encoders.connected import ConnectedEncoder
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.pretrained import files
from multimodal.models.pretrained.keys import Diff, WeightsError
from multimodal.models.pretrained.plan import Plan, TowerPlan
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import plain_state

TRANSFORMERS = "transformers"  # the importer of models that run unchanged


def pretrained_names(cfg: DictConfig) -> dict[str, str]:
    """Modality -> entry, of the towers that are filled from the catalogue.

    Those of the run's anchor come with its checkpoint.
    """
    towers, anchored = cfg.model.towers, OmegaConf.select(cfg, "anchor.towers") or ()
    return {
        str(name): str(towers[name].pretrained)
        for name in towers
        if isinstance(towers[name], DictConfig)
        and towers[name].get("pretrained")
        and name not in anchored
    }


def fetch_all(cfg: DictConfig) -> dict[str, Path]:
    """Entry -> its folder, of all that the run's towers name; fetched where need be."""
    return {name: fetch(entry(name)) for name in sorted(set(pretrained_names(cfg).values()))}


def fill_towers(model: EmbeddingModel, cfg: DictConfig) -> list[str]:
    """Fills every tower that names an entry; fetches missing ones.

    Encoders are filled, and heads where the entry has one of the same shape. Towers that the
    anchor's run gives (``anchor.towers``) are left to it.

    Args:
        model: of the run.
        cfg: its configuration.

    Returns:
        what was changed on the way, a line each.

    Raises:
        ConfigError: if an entry does not fit a tower; lists all of them.
        FetchError: if weights cannot be had.
    """
    folders, notes = fetch_all(cfg), list[str]()
    read: dict[str, tuple[Plan, Mapping[str, Tensor]]] = {}
    problems = []
    anchored = (cfg.get("anchor") or {}).get("towers") or ()
    for modality, name in pretrained_names(cfg).items():
        if modality in anchored:
            continue
        one = entry(name)
        config = OmegaConf.to_container(cfg.model.towers[modality], resolve=True)
        assert isinstance(config, dict)
        tower, config = _own_encoder(model.tower(modality), config)
        path = folders[name] / one.weights if one.weights else folders[name]
        try:
            if one.importer == TRANSFORMERS:
                _fill_transformers(tower, one, path)
            else:
                if name not in read:
                    read[name] = _read(one, path)
                plan, state = read[name]
                _fill(modality, tower, cast("dict[str, Any]", config), plan, state, notes)
        except (WeightsError, ValueError) as error:
            fits = one.use.towers.get(modality) or ", ".join(one.use.towers.values())
            problems.append(
                ConfigProblem(
                    f"model.towers.{modality}.pretrained",
                    f"{name} does not fit this tower ({error}); what fits: "
                    f"tower@model.towers.{modality}={fits}",
                )
            )
    if problems:
        raise ConfigError(problems)
    return notes


def _read(one: Entry, path: Path) -> tuple[Plan, Mapping[str, Tensor]]:
    source = cast("WeightSource", one.importer)
    plan, state, _, _ = plan_of(files.read_state(path), files.read_config(None, path), source)
    return plan, state


def _own_encoder(tower: Tower, config: dict[Any, Any]) -> tuple[Tower, dict[Any, Any]]:
    """A tower and its configuration; of a connected encoder, of that alone which it connects."""
    connected = tower.encoder
    if not isinstance(connected, ConnectedEncoder):
        return tower, config
    alone = Tower(connected.encoder, None)
    tower.train(tower.training)  # a new tower trains
    return alone, {**config, "encoder": config["encoder"]["encoder"]}


def _fill_transformers(tower: Tower, one: Entry, folder: Path) -> None:
    encoder = tower.encoder
    if not isinstance(encoder, HuggingFaceEncoder):
        raise WeightsError(f"a model of transformers, but the encoder is a {_kind(encoder)}")
    encoder.load_folder(folder, one.use.encoder.get("part", "whole"))
    _require_head(tower, [])


def _fill(
    modality: str,
    tower: Tower,
    config: dict[str, Any],
    plan: Plan,
    state: Mapping[str, Tensor],
    notes: list[str],
) -> None:
    chosen = _tower_plan(modality, tower, plan)
    if differing := _differing(chosen.config["encoder"], config["encoder"]):
        raise WeightsError("; ".join(differing))
    own = plain_state(tower)
    heads = [key for key in own if key.startswith("head.")]
    fitting = [key for key in heads if _fits(own[key], chosen, key, state)]
    if heads and len(fitting) < len(heads):
        notes.append(f"{modality}: its head is new, the encoder is pretrained")
    diff = Diff()
    part = "" if len(fitting) == len(heads) else "encoder."
    fill_tower(modality, tower, chosen, state, diff, notes, part=part)
    left = [
        key for key, (names, _) in chosen.key_map.items()
        if key.startswith("encoder.") and key not in own and all(n in state for n in names)
        and not _left_out(tower.encoder, key.removeprefix("encoder."))
    ]  # fmt: skip
    diff.unexpected += left
    diff.missing = [
        line for line in diff.missing if not line.startswith(f"towers.{modality}.scale")
    ]
    if diff:
        raise WeightsError(str(diff))
    _require_head(tower, fitting)


def _left_out(encoder: Any, key: str) -> bool:
    """Whether an encoder that is part of a trained one says that a tensor is of the rest."""
    return hasattr(encoder, "leaves_out") and bool(encoder.leaves_out(key))


def _require_head(tower: Tower, filled: list[str]) -> None:
    parameters = [] if tower.head is None else [f"head.{n}" for n, _ in
                  tower.head.named_parameters()]  # fmt: skip
    if tower.frozen is True and set(parameters) - set(filled):
        raise WeightsError(
            "the entry has no head of this shape, and frozen=true would keep a random one; set "
            "frozen=encoder"
        )


def _fits(own: Tensor, plan: TowerPlan, key: str, state: Mapping[str, Tensor]) -> bool:
    source = plan.key_map.get(key)
    if source is None or not all(name in state for name in source.names):
        return False
    return source.change(*(state[name] for name in source.names)).shape == own.shape


def _tower_plan(modality: str, tower: Tower, plan: Plan) -> TowerPlan:
    """The entry's tower of that modality, or else the one with the same kind of encoder."""
    own = plan.own_towers()
    if modality in own:
        return own[modality]
    kind = _kind(tower.encoder)
    alike = [each for each in own.values() if each.config["encoder"]["_target_"].endswith(kind)]
    if len(alike) != 1:
        raise WeightsError(f"it has towers of {', '.join(own)}, none of them a {kind}")
    return alike[0]


def _kind(encoder: object) -> str:
    return type(encoder).__name__


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Settings that no tensor's shape shows: those of the trunk, and how padding is read."""
    differing = []
    for key in ("trunk", "attend_padding"):
        wanted, given = theirs.get(key), ours.get(key)
        if isinstance(wanted, Mapping) and isinstance(given, Mapping):
            differing += [
                f"trunk.{name}: {wanted[name]!r} there, {given[name]!r} here"
                for name in wanted
                if name in given and name not in ("_target_", "drop_path")
                and wanted[name] != given[name]
            ]  # fmt: skip
        elif wanted is not None and given is not None and wanted != given:
            differing.append(f"{key}: {wanted!r} there, {given!r} here")
    return differing

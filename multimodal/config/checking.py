"""The second gate: everything that can be known of a configuration before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from multimodal.config import (
    judging,
    rules,
    rules_cluster,
    rules_data,
    rules_evaluation,
    rules_fusion,
    rules_pretrained,
    rules_ranges,
    rules_tuning,
    targets,
)
from multimodal.config.addresses import unnamed_addresses
from multimodal.config.choices import unfit_choices
from multimodal.config.faults import ConfigError, Fault
from multimodal.config.resolving import allowed_packages
from multimodal.config.schema import Train
from multimodal.config.tree import plain
from multimodal.config.values import mismatches

Tree = dict[str, Any]


def foreign_targets(tree: Tree) -> Iterator[Fault]:
    """Every `_target_` is a public name of an allowed package."""
    return judging.foreign_targets(tree, allowed_packages(tree.get("allowed_packages")))


def misplaced_targets(tree: Tree) -> Iterator[Fault]:
    """Every `_target_` stands where its kind belongs; what is foreign has been told."""
    packages = allowed_packages(tree.get("allowed_packages"))
    if not any(judging.foreign_targets(tree, packages)):
        yield from judging.misplaced(tree, packages, strict=False)


RULES = (
    foreign_targets,
    unnamed_addresses,
    rules.towers_of_pairs,
    rules.sources_of_pairs,
    rules.pairs_of_sources,
    rules.modalities_of_sources,
    rules.transforms_of_sources,
    rules.shared_towers,
    rules.one_embed_dim,
    rules.something_to_learn,
    rules.choices_of_pairs,
    rules.weight_or_repeat,
    rules.towers_of_anchor,
    rules_tuning.frozen_or_tuned,
    rules_tuning.frozen_towers_are_aligned,
    rules.modalities_of_evaluation,
    rules_evaluation.modalities_of_tasks,
    rules_evaluation.sets_in_training,
    rules_data.frozen_towers_to_cache,
    rules_cluster.what_can_be_split,
    rules_pretrained.inputs_of_models,
    rules_pretrained.tokenizers_of_models,
    rules_fusion.tasks_or_pairs,
    rules_fusion.targets_of_tasks,
    rules_fusion.fused_modalities,
    rules_fusion.optional_modalities,
    rules_fusion.one_pass,
    rules_fusion.captions_see_no_later_words,
    rules_ranges.numbers_in_range,
    misplaced_targets,     # these two import what the configuration names, hence last
    targets.unbound,
)  # fmt: skip


def check(cfg: DictConfig, schema: type = Train) -> None:
    """Refuses a configuration that cannot work, before data or weights are touched.

    Args:
        cfg: as Hydra composed it.
        schema: a dataclass of the root's keys.

    Raises:
        ConfigError: listing every fault, each with what was given, what was expected and the
            nearest right name.
    """
    tree, faults = plain(cfg)
    faults += mismatches(tree, schema, "")
    for rule in RULES:
        faults += rule(tree)
    faults += unfit_choices(tree, faults)
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))

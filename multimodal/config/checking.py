"""The second check: everything that can be validated before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from multimodal.config.annotations import mismatches
from multimodal.config.choices import incompatible_choices
from multimodal.config.problems import ConfigError, ConfigProblem
from multimodal.config.removed import without_removed
from multimodal.config.rules import (
    connected,
    data,
    distributed,
    evaluation,
    fusion,
    joint,
    learning,
    listed,
    monitors,
    optimizers,
    pairs,
    pretrained,
    ranges,
    similarity,
)
from multimodal.config.schema import Train
from multimodal.config.targets import judging, signatures
from multimodal.config.targets.addresses import unnamed_addresses
from multimodal.config.targets.renamed import with_new_names
from multimodal.config.targets.resolving import allowed_packages
from multimodal.config.tree import plain

Tree = dict[str, Any]


def foreign_targets(tree: Tree) -> Iterator[ConfigProblem]:
    """Every `_target_` is a public name of an allowed package."""
    return judging.foreign_targets(tree, allowed_packages(tree.get("allowed_packages")))


def misplaced_targets(tree: Tree) -> Iterator[ConfigProblem]:
    """Every `_target_` has the kind of its place; foreign ones are reported elsewhere."""
    packages = allowed_packages(tree.get("allowed_packages"))
    if not any(judging.foreign_targets(tree, packages)):
        yield from judging.misplaced(tree, packages, strict=False)


RULES = (
    foreign_targets,
    unnamed_addresses,
    pairs.towers_of_pairs,
    pairs.sources_of_pairs,
    pairs.pairs_of_sources,
    pairs.modalities_of_sources,
    pairs.transforms_of_sources,
    pairs.shared_towers,
    pairs.one_embed_dim,
    pairs.something_to_learn,
    pairs.choices_of_pairs,
    pairs.prefixes_of_embeddings,
    similarity.late_interaction,
    learning.self_distilled_towers,
    pairs.weight_or_repeat,
    pairs.towers_of_anchor,
    data.teachers_of_pairs,
    data.what_teachers_need,
    learning.frozen_or_tuned,
    learning.frozen_towers_are_aligned,
    connected.backbones_of_towers,
    connected.tokenizers_of_backbones,
    connected.what_of_connected_towers_learns,
    pairs.modalities_of_evaluation,
    evaluation.modalities_of_tasks,
    evaluation.sets_in_training,
    joint.joint_embeddings,
    joint.joint_sides_of_pairs,
    joint.joint_queries,
    joint.joint_templates,
    data.frozen_towers_to_cache,
    data.standardized_features,
    listed.listed_negatives_are_used,
    listed.own_negatives_of_streams,
    distributed.fsdp_constraints,
    optimizers.optimizer_constraints,
    pretrained.inputs_of_models,
    pretrained.tokenizers_of_models,
    pretrained.entries_of_towers,
    fusion.tasks_or_pairs,
    fusion.targets_of_tasks,
    fusion.fused_modalities,
    fusion.optional_modalities,
    fusion.one_pass,
    fusion.captions_see_no_later_words,
    ranges.numbers_in_range,
    ranges.shares_of_batches,
    monitors.monitored_metrics,
    misplaced_targets,     # these two import what the configuration names, hence last
    signatures.invalid_arguments,
)  # fmt: skip


def check(cfg: DictConfig, schema: type = Train) -> None:
    """Rejects an invalid configuration before data or weights are touched.

    Args:
        cfg: as Hydra composed it.
        schema: a dataclass of the root's keys.

    Raises:
        ConfigError: if anything is wrong; the message lists every problem with the given value, the
            expected one and the nearest valid name.
    """
    tree, problems = plain(with_new_names(cfg))
    tree = without_removed(tree)
    problems += mismatches(tree, schema, "")
    for rule in RULES:
        problems += rule(tree)
    problems += incompatible_choices(tree, problems)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))

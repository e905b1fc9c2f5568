"""Which modality pairs a run trained on, and their temperatures."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from multimodal.config import require_named
from multimodal.core.names.modalities import TEACHER, side_name
from multimodal.data.shards.manifest import load_manifest

TrainedPairs = Mapping[frozenset[str], frozenset[str] | None]
Temperatures = Mapping[frozenset[str], float]


def trained_pairs(*configs: DictConfig | None) -> dict[frozenset[str], frozenset[str] | None]:
    """The pairs of modalities that any of the runs, or their anchors, trained together.

    What is compared with a teacher's embeddings is not a pair of modalities.

    Returns:
        Pair -> names of the manifests it was trained on, None for whatever had both: a pair that
        is restricted to some sources never met in the others, and is emergent there.

    Raises:
        ConfigError: if such a manifest is at an address that only a file names.
    """
    pairs: dict[frozenset[str], frozenset[str] | None] = {}
    for cfg in configs:
        if cfg is None:
            continue
        for ends in OmegaConf.select(cfg, "anchor.pairs") or ():
            pairs[frozenset(ends)] = None
        for pair in cfg.pairs.values():
            ends, sources = (
                frozenset(map(side_name, (pair.anchor, pair.other))),
                pair.get("sources"),
            )
            if any(end.startswith(TEACHER) for end in ends):
                continue
            before = pairs.get(ends, frozenset())
            if sources is None or before is None:
                pairs[ends] = None
            else:
                pairs[ends] = before | {_manifest_name(cfg, name) for name in sources}
    return pairs


def _manifest_name(cfg: DictConfig, source: str) -> str:
    manifest = cfg.data.sources[source].manifest
    manifests = [manifest] if isinstance(manifest, str) else list(manifest)
    for each in manifests:
        require_named(cfg, f"data.sources.{source}.manifest", str(each))
    return load_manifest(manifests[0]).name

"""A checkpoint, ready to embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from multimodal.config import build
from multimodal.core.hf_files import input_settings
from multimodal.data.settings import EvaluationData
from multimodal.inference.checkpoint.input_check import check_inputs
from multimodal.inference.checkpoint.load import Loaded, load_checkpoint
from multimodal.inference.checkpoint.locate import checkpoint_at
from multimodal.inference.device import device_of
from multimodal.inference.embedder import Embedder
from multimodal.inference.export import manifest
from multimodal.inference.export.reading import load_exported
from multimodal.models.pretrained import files
from multimodal.models.token_merging import merge_tokens
from multimodal.models.towers import EmbeddingKind, EmbeddingModel


def embedder_of(
    model: EmbeddingModel,
    run_cfg: DictConfig,
    device: str | None,
    batch_size: int = 64,
    kind: EmbeddingKind = "normalized",
    temperatures: Mapping[frozenset[str], float] | None = None,
) -> Embedder:
    """The model of a run with the run's transforms, on ``device`` or a GPU where there is one."""
    place = device_of(device)
    transforms = {
        str(name): build(run_cfg, "data", "transforms", str(name), convert="all")
        for name in run_cfg.data.transforms
        if name in model.towers
    }
    check_inputs(model, transforms)
    data = EvaluationData(transforms, batch_size)
    return Embedder(model.to(place).eval(), data, kind, temperatures)


def load_embedder(
    path: str | Path,
    device: str | None = None,
    allowed_packages: Sequence[str] = (),
    batch_size: int = 64,
    kind: EmbeddingKind = "normalized",
    weights: str | None = None,
    allowed_addresses: Sequence[str] = (),
    dim: int | None = None,
    token_merging: int | None = None,
) -> Embedder:
    """A trained model with the transforms and the tokenizer that feed it: `multimodal.load`.

    Args:
        path: of a run's folder (its best checkpoint, else its newest), of a checkpoint, or of a
            model's folder: what `multimodal export` wrote, or one from a hub (`model.safetensors`
            and `config.json` of `transformers`, or OpenCLIP's files; as `multimodal import` reads
            them; or the modules of sentence-transformers, see `load_sentences`).
        device: to embed on; None: a GPU where there is one.
        allowed_packages: of the caller's own, that the checkpoint's towers may come from.
        batch_size: inputs embedded at once.
        kind: of the embeddings, see `Embedder`.
        weights: ``average`` or ``raw``, of a run with `callbacks=ema`; None: as it evaluates.
        allowed_addresses: that the checkpoint's configuration may open.
        dim: first numbers of each embedding that are kept, see `Embedder`.
        token_merging: tokens that each block of a ViT merges into others, see `merge_tokens`.

    Raises:
        CheckpointError: if the checkpoint cannot be used, see `load_checkpoint`.
        ExportError: if an exported folder is damaged, or of another version.
        WeightsError: if a hub's weights do not fit our towers.
        ConfigError: if its configuration may not be built.
    """
    folder = Path(path).expanduser()
    if manifest.is_exported(folder):
        loaded = load_exported(folder, allowed_packages, allowed_addresses)
    elif files.is_model_folder(folder) or (folder / files.MODULES).is_file():
        loaded = _import_folder(folder)
    else:
        checkpoint = checkpoint_at(folder)
        loaded = load_checkpoint(checkpoint, allowed_packages, weights, addresses=allowed_addresses)
    made = embedder_of(loaded.model, loaded.cfg, device, batch_size, kind, loaded.temperatures)
    if token_merging is not None:
        merge_tokens(made.model, token_merging)
    return made.at(dim)


def _import_folder(folder: Path) -> Loaded:
    """The model of a hub's folder, without a checkpoint in between."""
    from multimodal.inference.imported import run_config, take_tokenizer
    from multimodal.inference.importing import import_weights
    from multimodal.inference.publish.sentences_reading import is_sentences, load_sentences

    if is_sentences(folder):
        return load_sentences(folder)

    imported = import_weights(files.read_state(folder), files.read_config(None, folder))
    take_tokenizer(imported, folder)
    image, settings = imported.transforms.get("image"), input_settings(str(folder))
    if image is not None:
        image |= {key: settings[key] for key in ("mean", "std") if key in settings}
    temperatures = {}
    if imported.pair is not None and imported.logit_scale:
        temperatures[frozenset(imported.pair)] = 1 / imported.logit_scale
    return Loaded(imported.model, run_config(imported, folder.name), temperatures)

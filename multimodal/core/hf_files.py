"""Input settings of a model of ``transformers``, from the files beside its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from multimodal.core import strict_json
from multimodal.core.extras import module_of

PREPROCESSOR = "preprocessor_config.json"
# Files of a tokenizer, by the libraries that write them.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
# Their audio features differ from Kaldi filter banks.
OWN_FEATURES = ("WhisperFeatureExtractor", "ClapFeatureExtractor", "Wav2Vec2FeatureExtractor")
# These take pictures of any size: positions are resized, or there are none.
ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext", "convnext",
            "convnextv2", "resnet")  # fmt: skip


def import_transformers(required_by: str) -> Any:
    """The package ``transformers``, half of which has no types.

    Raises:
        MissingExtraError: if it is not installed; the message names ``required_by`` and the extra.
    """
    return module_of("huggingface", "transformers", required_by)


def chat_of(tokenizer: object) -> Callable[..., tuple[str, str]]:
    """A tokenizer's `HuggingFaceTokenizer.chat`.

    Raises:
        ValueError: if it is of a kind without chat templates.
    """
    chat: Callable[..., tuple[str, str]] | None = getattr(tokenizer, "chat", None)
    if chat is None:
        raise ValueError(
            f"chat: {type(tokenizer).__name__} has no chat template; a model's own tokenizer has "
            "(tokenizer=huggingface)"
        )
    return chat


def file_of(name: str, file: str) -> Path | None:
    """A file of a model: in its folder, or what the hub's cache holds of it; None: not there."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, file)
    except Exception:  # not installed, or not a name on the hub: reported when the model is built
        return None
    return Path(cached) if isinstance(cached, str) else None


def content_of(name: str, file: str) -> dict[str, Any]:
    """The JSON object in a file of a model; empty where there is none."""
    path = file_of(name, file)
    content = {} if path is None else strict_json.read(path)
    return content if isinstance(content, dict) else {}


def input_settings(name: str) -> dict[str, Any]:
    """A model's input settings, under the names of our transforms.

    Args:
        name: a folder, or a name on the hub that is in its cache.

    Returns:
        ``mean``, ``std`` and ``size`` of pictures; ``sample_rate``, ``num_mel_bins``, ``mean`` and
        ``std`` of sounds; whichever the ``preprocessor_config.json`` has.
    """
    content = content_of(name, PREPROCESSOR)
    size = content.get("crop_size") or content.get("size") or {}
    if "merge_size" in content:  # Qwen-VL: its edges are numbers of pixels, of pictures of any size
        size = None
    elif isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    mean, std = content.get("image_mean"), content.get("image_std")
    if content.get("feature_extractor_type") == "ASTFeatureExtractor":
        # It divides by twice its std.
        mean, std = content.get("mean"), 2 * content.get("std", 0.0)
    names = {
        "mean": mean, "std": std, "size": size,
        "sample_rate": content.get("sampling_rate"), "num_mel_bins": content.get("num_mel_bins"),
    }  # fmt: skip
    return {key: value for key, value in names.items() if value}

"""Builds models of ``transformers``: what may be set of them, and what determines their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from multimodal.core.hf_files import import_transformers

ModelPart = Literal["whole", "vision", "text", "audio", "encoder"]

# Where a model of several modalities keeps the tower of one.
PARTS: dict[str, tuple[str, ...]] = {
    "vision": ("vision_model",),
    "text": ("text_model",),
    "audio": ("audio_model",),
    "encoder": ("encoder",),
}
# Models of several parts, with the class of the one that reads.
THINKERS = {"qwen2_5_omni": "Qwen2_5OmniThinkerModel"}
ATTENTION = "attn_implementation"
# Keys of a configuration by which the library would import, fetch or load something else.
OPTIONS = (
    "trust_remote_code", "auto_map", "quantization_config", "name_or_path", "config", "state_dict",
    "adapter_kwargs", "use_kernels", "kernel_config", "experts_implementation", "weights_only",
    "local_files_only",
)  # fmt: skip
# Keys of a configuration that say nothing of what the model computes.
METADATA = (
    "architectures", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id",
    "use_cache", "gradient_checkpointing", "problem_type", "attn_implementation",
    "output_attentions", "output_hidden_states", "return_dict", "classifier_dropout",
)  # fmt: skip


def build_model(name: str | None, config: Mapping[str, Any] | None, offline: bool) -> Any:
    """A model by name, or random weights from ``config``; see ``HuggingFaceEncoder``.

    Raises:
        ValueError: if there is no such model, or a setting that it does not have.
    """
    transformers = import_transformers("encoder=huggingface")
    given: dict[str, Any] = _plain(config or {})
    _refuse_options(given)
    if name is None:
        kind = given.pop("model_type", None)
        if kind is None:
            raise ValueError("give name (a folder or a name on the hub), or config.model_type")
        try:
            made = transformers.AutoConfig.for_model(kind, **given)
        except (KeyError, ValueError) as error:
            raise ValueError(f"transformers has no model_type {kind!r}") from error
        return transformers.AutoModel.from_config(made, trust_remote_code=False)
    local = Path(name).expanduser().is_dir()
    path = str(Path(name).expanduser()) if local else name
    reading = {"local_files_only": local or offline, "trust_remote_code": False}
    try:
        settings, auto = transformers.AutoConfig.from_pretrained(path, **reading), "AutoModel"
        if settings.model_type in THINKERS:  # the part of the model that speech is made of
            auto = THINKERS[settings.model_type]
            settings = settings.thinker_config
        known = settings.to_dict()
        if strays := sorted(given.keys() - known.keys() - {ATTENTION}):
            raise ValueError(f"config.{strays[0]}: {name} has no such setting")
        model = getattr(transformers, auto)
        return model.from_pretrained(path, **reading, weights_only=True, **given)
    except OSError as error:
        hint = "; offline=false would ask the hub" if offline and not local else ""
        raise ValueError(f"no model {name}: {str(error).splitlines()[0]}{hint}") from error


def _plain(value: Any) -> Any:
    """Nested mappings and lists of any kind as dicts and lists, which alone the library takes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each) for each in value]
    return value


def _refuse_options(given: Mapping[str, Any]) -> None:
    """Settings describe a model: none of them may choose code that runs, or files that are read.

    Raises:
        ValueError: naming the setting.
    """
    for key, value in given.items():
        if str(key).startswith("_") or key in OPTIONS:
            raise ValueError(f"config.{key} is an option of the library, not a setting of a model")
        if key == ATTENTION and not str(value).isidentifier():  # a name on the hub: its code
            raise ValueError(f"config.{key}={value!r}: expected one that transformers itself has")
        if isinstance(value, Mapping):
            _refuse_options(value)


def settings_of(config: Any) -> dict[str, Any]:
    """What of a configuration determines what a model computes."""
    content: dict[str, Any] = config.to_dict()
    return {
        key: _plain_value(value) for key, value in content.items()
        if not key.startswith("_") and key not in METADATA and not key.endswith("_token_id")
    }  # fmt: skip


def _plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def part_of(model: Any, part: ModelPart) -> Any:
    """The part of a model that is the encoder.

    Raises:
        ValueError: if it does not have that part, or several towers and none is chosen.
    """
    if part == "whole":
        several = [
            name for name in ("vision_model", "text_model", "audio_model") if hasattr(model, name)
        ]
        if len(several) > 1:
            names = " or ".join(name.removesuffix("_model") for name in several)
            raise ValueError(f"{type(model).__name__} has several towers: choose part={names}")
        return model
    for attribute in PARTS[part]:
        if hasattr(model, attribute):
            return getattr(model, attribute)
    raise ValueError(f"{type(model).__name__} has no part {part!r}")

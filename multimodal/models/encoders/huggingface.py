"""Any backbone of ``transformers`` as an encoder; the only user of its models.

Needs the extra ``huggingface``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.core.hf_files import import_transformers, input_settings
from multimodal.models.encoders.huggingface_models import (
    PARTS,
    ModelPart,
    build_model,
    part_of,
    settings_of,
)
from multimodal.models.encoders.transformer import check_mask
from multimodal.models.layers.pooling import FirstPool, LastPool, MeanPool, Pooling, make_pooler
from multimodal.models.layers.transformer import Transformer
from multimodal.models.tuning import load_plain

# What the models call their input; the first that a model's forward has is used.
INPUT_NAMES = ("pixel_values", "input_ids", "input_values", "input_features", "inputs_embeds")
LAYERS = ("layers", "layer", "blocks", "h")  # what a list of equal layers may be called


class HuggingFaceEncoder(nn.Module):
    """A model of ``transformers``, its pooling stated.

    Args:
        name: a folder, or a name on the hub; None builds random weights from ``config``.
        config: settings of the model's configuration, ``model_type`` among them where there is no
            ``name``; with a name they replace those of the file.
        pooling: ``class`` (the first token), ``mean``, ``last`` (of the real tokens) or
            ``attention`` (a learned query).
        part: ``vision``, ``text`` or ``audio`` of a model that has several, ``encoder`` of one that
            also has a decoder (Whisper, T5), or ``whole``.
        offline: takes a name on the hub from its local cache only.
        gradient_checkpointing: recompute every layer in the backward.
        swap_audio_axes: the model takes ``[B, frames, bins]`` while our transforms give
            ``[B, 1, bins, frames]`` (AST); CLAP's takes ``[B, 1, frames, bins]``. Whisper's
            ``[B, bins, frames]`` and waveforms ``[B, T]`` need no swap.

    Attributes:
        width: of the features.
        settings: what the model's files say of its inputs (mean, std, size, sampling rate), for
            the transform; see ``multimodal.core.hf_files``.

    Raises:
        ImportError: if ``transformers`` is not installed.
        ValueError: if given a model that is not there, or choices that it does not have.
    """

    def __init__(
        self,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        pooling: Pooling = "class",
        part: ModelPart = "whole",
        offline: bool = True,
        gradient_checkpointing: bool = False,
        swap_audio_axes: bool = False,
    ) -> None:
        super().__init__()
        for given, choices, key in ((pooling, Pooling, "pooling"), (part, ModelPart, "part")):
            if given not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ValueError(f"{key}={given!r}: expected one of {expected}")
        self.model = part_of(build_model(name, config, offline), part)
        self.settings = {} if name is None else input_settings(name)
        settings = self.model.config
        width = getattr(settings, "hidden_size", None) or getattr(settings, "d_model", None)
        self.width = int(width or settings.hidden_sizes[-1])
        if getattr(
            settings, "use_cache", False
        ):  # keys and values of words to come: there are none
            settings.use_cache = False
        self.swap_audio_axes = swap_audio_axes
        parameters = inspect.signature(self.model.forward).parameters
        self.input_name = next(key for key in INPUT_NAMES if key in parameters)
        self._takes_mask = "attention_mask" in parameters
        self._takes_patches = "spatial_shapes" in parameters  # SigLIP 2 of any size and ratio
        self._takes_lengths = "is_longer" in parameters  # CLAP
        self.pool = self._pooler(pooling)
        if gradient_checkpointing:
            # Reentrant checkpoints would lose the gradient of a model whose inputs have none.
            model = self.model  # the name of it before transformers 5.20
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def _pooler(self, pooling: Pooling) -> nn.Module:
        if pooling != "attention":
            return {"class": FirstPool, "mean": MeanPool, "last": LastPool}[pooling]()
        heads = getattr(self.model.config, "num_attention_heads", None) or self.width // 64 or 1
        return make_pooler("attention", Transformer(self.width, 1, int(heads)))

    def load_folder(self, folder: str | Path, part: ModelPart) -> None:
        """Fills the model from a folder of the same configuration.

        Args:
            folder: as ``transformers`` writes it.
            part: of the model there.

        Raises:
            ValueError: if there is no model, its configuration differs from this one's, or it
                lacks weights.
        """
        transformers = import_transformers("pretrained towers of transformers")
        transformers.utils.logging.disable_progress_bar()
        try:
            theirs, report = transformers.AutoModel.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, weights_only=True,
                output_loading_info=True,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(f"no model {folder}: {str(error).splitlines()[0]}") from error
        model = part_of(theirs, part)
        ours, other = (settings_of(each.config) for each in (self.model, model))
        if differing := sorted(k for k in ours.keys() & other.keys() if ours[k] != other[k]):
            listed = "; ".join(f"{k}: {other[k]!r} there, {ours[k]!r} here" for k in differing)
            raise ValueError(f"{folder} is of another configuration: {listed}")
        attribute = "" if part == "whole" else f"{PARTS[part][0]}."
        if missing := sorted(k for k in report["missing_keys"] if k.startswith(attribute)):
            raise ValueError(f"{folder} lacks {', '.join(missing[:8])}")
        load_plain(self.model, model.state_dict())

    def layers(self) -> nn.ModuleList:
        """The list of equal layers, for freezing, adapters and layer-wise learning rates.

        Raises:
            ValueError: if the model has none.
        """
        for path, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and path.rsplit(".", 1)[-1] in LAYERS:
                return module
        raise ValueError(f"{type(self.model).__name__} does not expose its layers")

    def after_layers(self) -> list[nn.Parameter]:
        """What the model names after its layers (final norms, poolers), and our pooling."""
        inside = {id(p) for p in self.layers().parameters()}
        parameters = list(self.model.parameters())
        last = max(i for i, p in enumerate(parameters) if id(p) in inside)
        return [*parameters[last + 1 :], *self.pool.parameters()]

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch.

        Args:
            inputs: pictures ``[B, 3, H, W]``, ids ``[B, T]``, waveforms ``[B, T]``, spectrograms.
            mask: bool ``[B, T]`` of ids or waveforms, True where a value is real.

        Raises:
            ValueError: if given a mask mismatched shapes, or one that the model does not take.
        """
        self._check_mask(inputs, mask)
        try:
            return self._encode(inputs, mask)
        except ValueError as error:  # how these models refuse pictures of another size
            raise InputMismatchError(f"{type(self.model).__name__}: {error}") from error

    def token_table(self) -> nn.Embedding:
        """The table that turns ids into vectors ``[width]``, for a ``ConnectedEncoder``.

        Raises:
            ValueError: if the model does not take such vectors.
        """
        table = self.model.get_input_embeddings() if self.input_name == "input_ids" else None
        takes = "inputs_embeds" in inspect.signature(self.model.forward).parameters
        if not takes or not isinstance(table, nn.Embedding) or table.embedding_dim != self.width:
            raise ValueError(
                f"{type(self.model).__name__} takes no vectors of its width in place of token ids"
            )
        return table

    def encode_embedded(self, embedded: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """As `forward`, of vectors ``[B, T, width]`` in place of token ids.

        Raises:
            InputMismatchError: if there are more than the model has positions for.
        """
        if (most := self.longest()) is not None and embedded.shape[1] > most:
            name, given = type(self.model).__name__, embedded.shape[1]
            raise InputMismatchError(f"{name} expects at most {most} tokens, got {given}")
        extra = {} if mask is None else {"attention_mask": mask.long()}
        tokens = cast("Tensor", self.model(inputs_embeds=embedded, **extra)[0])
        return EncoderOutput(self.pool(tokens, mask), tokens, mask)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what the model cannot take, as far as it shows without values.

        Raises:
            InputMismatchError: naming the model and what it says.
        """
        self._check_mask(inputs, mask)
        name = type(self.model).__name__
        if (most := self.longest()) is not None and inputs.shape[-1] > most:
            raise InputMismatchError(f"{name} expects at most {most} tokens, got {inputs.shape[1]}")
        state = {
            key: torch.empty_like(value, device="meta")
            for key, value in (*self.named_parameters(), *self.named_buffers())
        }
        given = (inputs.to("meta"), None if mask is None else mask.to("meta"))
        training = self.training
        try:
            with torch.no_grad():
                torch.func.functional_call(self.eval(), state, given)
        except InputMismatchError:
            raise
        except Exception as error:
            if "meta" in str(error) or isinstance(error, NotImplementedError):
                return  # it looks at values, so the first batch has to tell
            reason = str(error).splitlines()[0]
            raise InputMismatchError(
                f"{name} cannot take {inputs.dtype} {list(inputs.shape)}: {reason}"
            ) from error
        finally:
            self.train(training)

    def longest(self) -> int | None:
        """The most tokens of a text where positions are looked up; None without a limit."""
        for path, module in self.model.named_modules():
            named = path.rsplit(".", 1)[-1] in ("position_embedding", "position_embeddings")
            if named and isinstance(module, nn.Embedding) and self.input_name == "input_ids":
                padding = module.padding_idx
                return module.num_embeddings - (0 if padding is None else padding + 1)
        return None

    def _check_mask(self, inputs: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            return
        check_mask(mask, inputs.shape[:2])
        if not self._takes_mask or inputs.ndim != 2:  # pictures and spectrograms are whole
            raise InputMismatchError(f"{type(self.model).__name__} takes no mask")

    def _encode(self, inputs: Tensor, mask: Tensor | None) -> EncoderOutput:
        if self.swap_audio_axes:
            inputs = inputs.transpose(-1, -2)
            inputs = inputs[:, 0] if self.input_name == "input_values" else inputs
        extra = {} if mask is None else {"attention_mask": mask.long()}
        if self._takes_patches:
            inputs, extra = self._patches(inputs)
        if self._takes_lengths:  # a window is no longer than the model's
            extra["is_longer"] = inputs.new_zeros(inputs.shape[0], 1, dtype=torch.bool)
        output = self.model(**{self.input_name: inputs}, **extra)
        tokens = cast("Tensor", output[0])
        if tokens.ndim == 4:  # convolutional: [B, W, h, w]
            tokens = tokens.flatten(2).transpose(1, 2)
        kept = (
            mask
            if mask is None or mask.shape[1] == tokens.shape[1]
            else self._shorter(mask, tokens)
        )
        return EncoderOutput(self.pool(tokens, kept), tokens, kept)

    def _patches(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B, C, H, W]`` as ``[B, N, patch * patch * C]``, all real, and their grid."""
        side = self.model.config.patch_size
        if pictures.shape[2] % side or pictures.shape[3] % side:
            height, width = pictures.shape[2:]
            raise ValueError(
                f"pictures of {height} x {width} are not multiples of the patch, {side}"
            )
        grid = (pictures.shape[2] // side, pictures.shape[3] // side)
        cut = pictures.reshape(*pictures.shape[:2], grid[0], side, grid[1], side)
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        shapes = torch.tensor(grid, device=patches.device).expand(patches.shape[0], 2)
        return patches, {"pixel_attention_mask": mask, "spatial_shapes": shapes}

    def _shorter(self, mask: Tensor, tokens: Tensor) -> Tensor:
        """The mask after the strides of a waveform model."""
        lengths = mask.sum(dim=1)
        lengths = self.model._get_feat_extract_output_lengths(lengths)
        within: Tensor = torch.arange(tokens.shape[1], device=mask.device) < lengths[:, None]
        return within

"""Any picture model of ``timm`` as an encoder. Needs the extra ``timm``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.core.extras import module_of
from multimodal.models.layers.pooling import FirstPool, MeanPool

TimmPooling = Literal["model", "class", "mean"]


class TimmEncoder(nn.Module):
    """A model of ``timm`` without its classifier.

    Nothing is fetched: weights are random, or those of a file that is there
    (``hf download timm/NAME model.safetensors``).

    Args:
        name: as ``timm.list_models`` has it, such as ``vit_base_patch16_224.augreg_in21k``.
        weights: a safetensors file of the model, its classifier ignored; None: random weights.
        pooling: ``model``: the model's own, up to what its classifier reads; ``class``: the first
            token; ``mean``: of the tokens that are places of the picture.
        image_size: of pictures, for models that are built for one; None: the model's.
        in_channels: of pictures.
        options: further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Attributes:
        width: of the features.
        settings: what the model says of its inputs (``mean``, ``std``, ``size``), for the
            transform.

    Raises:
        MissingExtraError: if ``timm`` is not installed.
        ValueError: if there is no such model, an option is one of ours, or the weights are not
            the model's.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        pooling: TimmPooling = "model",
        image_size: int | None = None,
        in_channels: int = 3,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in get_args(TimmPooling):
            expected = ", ".join(get_args(TimmPooling))
            raise ValueError(f"pooling={pooling!r}: expected one of {expected}")
        own = {"model_name", "pretrained", "num_classes", "in_chans", "img_size", "checkpoint_path",
               "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable"}  # fmt: skip
        if taken := sorted(own & {*(options or {})}):
            raise ValueError(f"options.{taken[0]}: is set by this encoder; give its own arguments")
        if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
            raise ValueError(
                f"name={name!r}: expected the name of an architecture; give its file as weights"
            )
        timm = module_of("timm", "timm", "encoder=timm")
        sizes = {} if image_size is None else {"img_size": image_size}
        try:
            self.model = timm.create_model(
                name, pretrained=False, num_classes=0, in_chans=in_channels, **sizes,
                **(options or {}),
            )  # fmt: skip
        except (RuntimeError, TypeError) as error:  # of an unknown name, of a wrong argument
            raise ValueError(f"timm: {str(error).splitlines()[0]}") from error
        self.in_channels = in_channels
        self.pooling = pooling
        self.prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        if pooling == "class" and not self.prefix:
            raise ValueError(f"pooling=class: {name} has no class token; expected model or mean")
        pooled = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        self.width = int(pooled if pooling == "model" else self.model.num_features)
        self.pool = FirstPool() if pooling == "class" else MeanPool()
        known = dict(getattr(self.model, "pretrained_cfg", None) or {})
        size = known.get("input_size")
        self.settings: dict[str, Any] = {k: list(known[k]) for k in ("mean", "std") if k in known}
        self.settings |= {} if size is None else {"size": image_size or size[-1]}
        if weights is not None:
            self._load(Path(weights).expanduser(), known.get("classifier"))

    def _load(self, path: Path, classifier: str | tuple[str, ...] | None) -> None:
        """Fills the model from a file; only the classifier's tensors may be left over."""
        if not path.is_file():
            raise ValueError(
                f"weights={path}: there is no such file. hf download timm/NAME model.safetensors "
                "gives one"
            )
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        state = {
            key: tensor
            for key, tensor in load_file(str(path)).items()
            if not key.startswith(tuple(f"{head}." for head in heads))
        }
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"weights={path}: not those of the model: {reason}") from error

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses inputs that are not pictures of the model's channels.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        if mask is not None or inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise InputMismatchError(
                f"TimmEncoder expects pictures [B, {self.in_channels}, H, W] without a mask, got "
                f"{list(inputs.shape)}"
            )

    def layers(self) -> nn.ModuleList:
        """The list of equal layers, of a transformer.

        Raises:
            ValueError: if the model has none.
        """
        blocks = getattr(self.model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise ValueError(f"{type(self.model).__name__} does not expose its layers")
        return blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList(blocks)

    def after_layers(self) -> list[nn.Parameter]:
        """What the model names after its layers: final norms, poolers."""
        inside = {id(p) for p in self.layers().parameters()}
        parameters = list(self.model.parameters())
        last = max(i for i, p in enumerate(parameters) if id(p) in inside)
        return parameters[last + 1 :]

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode pictures ``[B, C, H, W]``; tokens are those of the model, class tokens first.

        Raises:
            InputMismatchError: if they are not what the model takes.
        """
        self.check_inputs(inputs, mask)
        try:
            spatial: Tensor = self.model.forward_features(inputs)
        except (AssertionError, RuntimeError) as error:
            if torch.compiler.is_compiling() or "size" not in str(error).lower():
                raise
            given = list(inputs.shape)
            raise InputMismatchError(f"{type(self.model).__name__}: {given}: {error}") from error
        tokens = self._sequence(spatial)
        if self.pooling == "model":
            features: Tensor = self.model.forward_head(spatial, pre_logits=True)
        else:
            features = self.pool(tokens if self.pooling == "class" else tokens[:, self.prefix :])
        return EncoderOutput(features, tokens)

    def _sequence(self, spatial: Tensor) -> Tensor:
        """``[B, N, W]`` of maps ``[B, W, h, w]`` or ``[B, h, w, W]``, or of tokens."""
        if spatial.ndim == 3:
            return spatial
        last = str(getattr(self.model, "output_fmt", "NCHW")).upper().endswith("NHWC")
        places = spatial if last else spatial.permute(0, 2, 3, 1)
        return places.flatten(1, 2)

"""A vision-language model of ``transformers`` as one encoder of pictures and texts.

Needs the extra ``huggingface``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.core.hf_files import input_settings
from multimodal.models.encoders.connected import PLACE, TemplateTokenizer, real_first
from multimodal.models.encoders.flexible import PLACE as PLACE_NUMBERS
from multimodal.models.encoders.huggingface_models import build_model
from multimodal.models.encoders.transformer import check_mask
from multimodal.models.layers.pooling import LastPool, MeanPool

VisionLanguagePooling = Literal["last", "mean"]
# Kinds that take pictures as patches of their own size and a grid for each.
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


class VisionLanguageEncoder(nn.Module):
    """A model of the Qwen-VL kinds: texts, and pictures within a template, one at a time.

    Both go through the same language model, and what it makes of the last token is the embedding.
    One tower is shared by both modalities (``towers.image: text``), so its weights are in memory
    once. Inputs tell themselves apart: token ids are integers, pictures are not.

    Pictures are patches of whole tokens, as a `PatchTransform` makes them of ``patch_size`` times
    ``merge_size`` pixels, each at its own size and aspect; mean and std are the model's. They get
    the model's three-dimensional positions. Padding is behind the real tokens, and the language
    model is causal, so an embedding does not depend on its batch.

    Sources: Wang et al. 2024, "Qwen2-VL", sections 2.1 and 2.2; Jiang et al. 2025, "VLM2Vec", for
    embeddings from the last token.

    Args:
        tokenizer: the model's.
        name: a folder, or a name on the hub; None builds random weights from ``config``.
        config: settings of the model's configuration, ``model_type`` among them where there is no
            ``name``; with a name they replace those of the file.
        template: text with ``{}`` at the place of a picture's tokens: the chat template and the
            instruction of pictures. That of texts is their transform's ``instruction``.
        pooling: ``last`` (of the real tokens) or ``mean``.
        offline: takes a name on the hub from its local cache only.
        gradient_checkpointing: recompute every layer in the backward.

    Attributes:
        width: of the features.
        side: of the square of pixels that is one token.
        settings: what the model's files say of its inputs; see ``multimodal.core.hf_files``.

    Raises:
        ImportError: if ``transformers`` is not installed.
        ValueError: if there is no such model, it is of another kind, the template has not one
            ``{}`` or ids that the model does not have, or given another pooling.
    """

    def __init__(
        self,
        tokenizer: TemplateTokenizer,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        template: str = PLACE,
        pooling: VisionLanguagePooling = "last",
        offline: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in get_args(VisionLanguagePooling):
            expected = ", ".join(get_args(VisionLanguagePooling))
            raise ValueError(f"pooling={pooling!r}: expected one of {expected}")
        if template.count(PLACE) != 1:
            raise ValueError(
                f"template={template!r}: expected one {PLACE}, where the picture's tokens go"
            )
        self.model = build_model(name, config, offline)
        settings = self.model.config
        if settings.model_type not in KINDS:
            raise ValueError(
                f"model_type={settings.model_type}: encoder=vlm takes {', '.join(KINDS)}; one "
                "tower of a model that has several is encoder=huggingface with a part"
            )
        self.settings = {} if name is None else input_settings(name)
        self.width = int(settings.text_config.hidden_size)
        vision = settings.vision_config
        self.channels = int(getattr(vision, "in_channels", getattr(vision, "in_chans", 3)))
        self.frames = int(vision.temporal_patch_size)
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.side = self.patch * self.merge
        self.image_token = int(settings.image_token_id)
        before, after = map(tokenizer.encode, template.split(PLACE))
        start, end = ([] if i is None else [i] for i in (tokenizer.start, tokenizer.end))
        self.before: Tensor
        self.after: Tensor
        self._check_template([*start, *before, *after, *end])
        self.register_buffer("before", torch.tensor([*start, *before], dtype=torch.int64))
        self.register_buffer("after", torch.tensor([*after, *end], dtype=torch.int64))
        self.pool = {"last": LastPool, "mean": MeanPool}[pooling]()
        if gradient_checkpointing:
            # Reentrant checkpoints would lose the gradient of a model whose inputs have none.
            model = self.model  # the name of it before transformers 5.20
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def _check_template(self, ids: list[int]) -> None:
        rows = self.token_table().num_embeddings
        if (most := max([*ids, self.image_token])) >= rows:
            raise ValueError(
                f"the template has the token id {most}, but the model knows {rows}: its tokenizer "
                "is another one"
            )
        if self.image_token in ids:
            raise ValueError(
                f"the template has the token of a picture's place (id {self.image_token}): write "
                f"{PLACE} in its stead"
            )

    def layers(self) -> nn.ModuleList:
        """The language model's list of equal layers, for adapters, freezing and their rates."""
        layers: nn.ModuleList = self.model.language_model.layers
        return layers

    def after_layers(self) -> list[nn.Parameter]:
        """The language model's final norm."""
        return [*self.model.language_model.norm.parameters()]

    def token_table(self) -> nn.Embedding:
        """The table that turns ids into vectors ``[width]``, for a ``ConnectedEncoder``."""
        table: nn.Embedding = self.model.get_input_embeddings()
        return table

    def encode_embedded(self, embedded: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """As `forward` of texts, of vectors ``[B, T, width]`` in place of token ids."""
        return self._pooled(self.model.language_model, mask, inputs_embeds=embedded)

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses inputs that are neither token ids nor patches of the model's size.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        features = PLACE_NUMBERS + self.channels * self.side**2
        text = inputs.ndim == 2 and inputs.dtype == torch.int64
        picture = inputs.ndim == 3 and inputs.is_floating_point() and inputs.shape[2] == features
        if not text and not picture:
            raise InputMismatchError(
                f"{type(self.model).__name__} expects token ids [B, T] or pictures as patches "
                f"[B, T, {features}] (data/transform=image_patches with patch_size={self.side}), "
                f"got {inputs.dtype} {list(inputs.shape)}"
            )
        check_mask(mask, inputs.shape[:2])

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of texts, or one of pictures.

        Args:
            inputs: ids int64 ``[B, T]``; or patches float ``[B, T, 2 + C * side ** 2]``, row by
                row, of a grid each: the place of a patch's middle as shares of height and width,
                then its pixels by channel, row and column.
            mask: bool ``[B, T]``, True where an id or a patch is real; padding is behind.

        Returns:
            the pooled features ``[B, width]``, and the tokens, the template's among them.

        Raises:
            InputMismatchError: if given anything else.
        """
        if inputs.ndim == 2:
            self.check_inputs(inputs, mask)
            return self._pooled(self.model, mask, input_ids=inputs)
        before, after = (each.expand(len(inputs), -1) for each in (self.before, self.after))
        return self.encode_parts([(before, None), (inputs, mask), (after, None)])

    def encode_parts(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> EncoderOutput:
        """Encodes sequences of texts and of one picture, in order; the template is not added.

        Args:
            parts: inputs and mask of each, as of `forward`; where a sample's mask is all False, it
                lacks the part.

        Raises:
            InputMismatchError: if there are several pictures, or patches not of whole ones.
        """
        ids, masks, picture = [], [], dict[str, Tensor]()
        for inputs, mask in parts:
            self.check_inputs(inputs, mask)
            real = inputs.new_ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask
            masks.append(real)
            if inputs.ndim == 2:
                ids.append(inputs)
                continue
            if picture:
                raise InputMismatchError("a sequence takes one picture")
            ids.append(torch.full_like(real, self.image_token, dtype=torch.int64))
            given = real.any(dim=1)
            picture["image_grid_thw"] = self._grids(inputs[given], real[given])
            picture["pixel_values"] = self._pixels(inputs[..., PLACE_NUMBERS:][real])
        framed, kept = real_first(torch.cat(ids, dim=1)[..., None], torch.cat(masks, dim=1))
        assert kept is not None
        joined = framed[..., 0].masked_fill(~kept, 0)
        if not picture or not len(picture["image_grid_thw"]):
            return self._pooled(self.model, kept, input_ids=joined)
        picture["mm_token_type_ids"] = (joined == self.image_token).int()
        return self._pooled(self.model, kept, input_ids=joined, **picture)

    def _pooled(self, model: nn.Module, mask: Tensor | None, **given: Tensor) -> EncoderOutput:
        extra = {} if mask is None else {"attention_mask": mask.long()}
        tokens: Tensor = model(use_cache=False, **extra, **given)[0]
        return EncoderOutput(self.pool(tokens, mask), tokens, mask)

    def _grids(self, inputs: Tensor, real: Tensor) -> Tensor:
        """Frames, rows and columns of the model's patches ``[B, 3]``, from the first's place."""
        first = inputs[:, 0, :PLACE_NUMBERS].float()
        tokens = (0.5 / first).round().long()
        if not torch.equal(tokens.prod(dim=1), real.sum(dim=1)):
            raise InputMismatchError(
                f"{type(self.model).__name__} expects the patches of whole pictures, row by row: "
                f"their places are of grids {tokens.tolist()}, but they are "
                f"{real.sum(dim=1).tolist()}"
            )
        return torch.cat([torch.ones_like(tokens[:, :1]), tokens * self.merge], dim=1)

    def _pixels(self, pixels: Tensor) -> Tensor:
        """Tokens ``[N, C * side ** 2]`` as the model's patches ``[N * merge ** 2, ...]``.

        Theirs follow each other within a token, and repeat the picture for every frame.
        """
        cut = pixels.view(-1, self.channels, self.merge, self.patch, self.merge, self.patch)
        patches = cut.permute(0, 2, 4, 1, 3, 5)[:, :, :, :, None]
        return patches.expand(-1, -1, -1, -1, self.frames, -1, -1).flatten(3).flatten(0, 2)

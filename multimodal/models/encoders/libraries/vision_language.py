"""A model of ``transformers`` as one encoder of texts, pictures and clips, and of sounds.

Needs the extra ``huggingface``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import InputMismatchError
from multimodal.core.hf_files import chat_of, input_settings
from multimodal.models.encoders.connected import PLACE, TemplateTokenizer
from multimodal.models.encoders.huggingface_models import build_model
from multimodal.models.encoders.libraries.interleaving import OMNI, Interleaved, Marks
from multimodal.models.encoders.libraries.visual_parts import Patches
from multimodal.models.encoders.transformer import check_mask
from multimodal.models.layers.pooling import LastPool, MeanPool

VisionLanguagePooling = Literal["last", "mean"]
CLIPS = 5  # dimensions of a batch of clips
# Kinds that take pictures as patches of their own size and a grid for each.
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", OMNI)
Kind = Literal["text", "picture", "clip", "sound"] | None


class VisionLanguageEncoder(nn.Module):
    """A model of the Qwen-VL and Qwen-Omni kinds: texts, and what is seen or heard in a template.

    All go through the same language model, and what it makes of the last token is the embedding.
    One tower is shared by the modalities (``towers.image: text``), so its weights are in memory
    once. Inputs tell themselves apart: ids are integers, pictures are rows of patches, and clips
    have frames.

    Pictures are patches of whole tokens, as a `PatchTransform` makes them of ``patch_size`` times
    ``merge_size`` pixels, each at its own size and aspect; mean and std are the model's. They get
    the model's three-dimensional positions. Clips are those of a `VideoTransform` whose sides and
    frames are whole tokens; Qwen3-VL is told the time of each frame in words, as by its processor,
    the others by positions. Qwen2.5-Omni also takes sounds, those of a `WhisperTransform` of its
    bins, as long as they are. Padding is behind the real tokens, and the language
    model is causal, so an embedding does not depend on its batch.

    Sources: Wang et al. 2024, "Qwen2-VL", sections 2.1 and 2.2; Jiang et al. 2025, "VLM2Vec", for
    embeddings from the last token.

    Args:
        tokenizer: the model's.
        name: a folder, or a name on the hub; None builds random weights from ``config``.
        config: settings of the model's configuration, ``model_type`` among them where there is no
            ``name``; with a name they replace those of the file.
        template: text with ``{}`` at the place of a picture's tokens, the instruction among it.
            That of texts is their transform's ``instruction``.
        chat: the model's own chat template stands around, as of a message of the user; the
            template is its words alone, without the tokens that enclose a picture. For texts it
            is the transform's ``chat``.
        pooling: ``last`` (of the real tokens) or ``mean``.
        seconds_per_frame: of clips, from one frame to the next (their ``clip_seconds`` over their
            ``num_frames``).
        offline: takes a name on the hub from its local cache only.
        gradient_checkpointing: recompute every layer in the backward.

    Attributes:
        width: of the features.
        side: of the square of pixels that is one token.
        input_dims: dimensions of a batch of clips; one more is several clips of each sample.
        settings: what the model's files say of its inputs; see ``multimodal.core.hf_files``.

    Raises:
        ImportError: if ``transformers`` is not installed.
        ValueError: if there is no such model, it is of another kind, the template has not one
            ``{}`` or ids that the model does not have, the tokenizer has no chat template, given
            another pooling, or a time between frames that is not above 0.
    """

    def __init__(
        self,
        tokenizer: TemplateTokenizer,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        template: str = PLACE,
        chat: bool = False,
        pooling: VisionLanguagePooling = "last",
        seconds_per_frame: float = 0.5,
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
        if not seconds_per_frame > 0:
            raise ValueError(f"seconds_per_frame={seconds_per_frame}: expected a number above 0")
        self.seconds_per_frame = seconds_per_frame
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
        self.patches = Patches(
            int(getattr(vision, "in_channels", getattr(vision, "in_chans", 3))),
            int(vision.temporal_patch_size),
            int(vision.patch_size),
            int(vision.spatial_merge_size),
        )
        self.side = self.patches.token_side
        self.input_dims = CLIPS
        self.marks = Marks.of(settings)
        self.num_mel_bins = int(settings.audio_config.num_mel_bins) if self.marks.omni else 0
        self.tokenizer = tokenizer
        before, after = self._framing(template, chat)
        self.before: Tensor
        self.after: Tensor
        self.register_buffer("before", torch.tensor(before, dtype=torch.int64))
        self.register_buffer("after", torch.tensor(after, dtype=torch.int64))
        self.pool = {"last": LastPool, "mean": MeanPool}[pooling]()
        if gradient_checkpointing:
            # Reentrant checkpoints would lose the gradient of a model whose inputs have none.
            model = self.model  # the name of it before transformers 5.20
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def _framing(self, template: str, chat: bool) -> tuple[list[int], list[int]]:
        """Ids before and after a picture's tokens."""
        words, tokenizer = template.split(PLACE), self.tokenizer
        start, end = ([] if i is None else [i] for i in (tokenizer.start, tokenizer.end))
        if chat:
            words = [*chat_of(tokenizer)((words[0], words[1]), self.marks.picture)]
            start, end = [], []  # the template has its own
        before, after = map(tokenizer.encode, words)
        self._check_template([*start, *before, *after, *end])
        return [*start, *before], [*after, *end]

    def _check_template(self, ids: list[int]) -> None:
        rows = self.token_table().num_embeddings
        if (most := max([*ids, self.marks.picture, self.marks.clip])) >= rows:
            raise ValueError(
                f"the template has the token id {most}, but the model knows {rows}: its tokenizer "
                "is another one"
            )
        for what, token in (("picture", self.marks.picture), ("clip", self.marks.clip)):
            if token in ids:
                raise ValueError(
                    f"the template has the token of a {what}'s place (id {token}): write {PLACE} "
                    "in its stead"
                )
        for token in self.marks.seen:
            if ids.count(token) > 1:
                raise ValueError(
                    f"the template encloses a picture twice (id {token}): with chat=true, "
                    f"`template` is words and {PLACE} alone"
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

    def _kind(self, inputs: Tensor, mask: Tensor | None) -> Kind:
        """What inputs are, by their shape and type; None of what is none."""
        if inputs.ndim == 2 and inputs.dtype == torch.int64:
            return "text"
        if not inputs.is_floating_point():
            return None
        if inputs.ndim == CLIPS and self.patches.takes_clips(inputs.shape):
            return "clip"
        if inputs.ndim != 3:
            return None
        picture = inputs.shape[2] == self.patches.features
        sound = self.marks.sound is not None and inputs.shape[1] == self.num_mel_bins
        if picture and sound:  # as many frames as a patch has numbers: their mask tells
            sound = mask is not None and mask.shape[1] == inputs.shape[2]
            picture = not sound
        return "picture" if picture else "sound" if sound else None

    def check_inputs(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Refuses what is neither token ids, nor patches of the model's size, clips, or sounds.

        Raises:
            InputMismatchError: naming the expected and the given input.
        """
        kind = self._kind(inputs, mask)
        if kind is None:
            sounds = f", or log-mel [B, {self.num_mel_bins}, frames]" if self.num_mel_bins else ""
            raise InputMismatchError(
                f"{type(self.model).__name__} expects token ids [B, T], pictures as patches "
                f"[B, T, {self.patches.features}] (data/transform=image_patches with "
                f"patch_size={self.side}), or clips [B, {self.patches.channels}, frames, height, "
                f"width] of a multiple of {self.patches.frames} frames and of {self.side} "
                f"pixels{sounds}, got {inputs.dtype} {list(inputs.shape)}"
            )
        check_mask(mask, (inputs.shape[0], inputs.shape[2 if kind == "sound" else 1]))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Encode a batch of texts, of pictures, of clips, or of sounds.

        Args:
            inputs: ids int64 ``[B, T]``; or patches float ``[B, T, 2 + C * side ** 2]``, row by
                row, of a grid each: the place of a patch's middle as shares of height and width,
                then its pixels by channel, row and column; or clips float
                ``[B, C, frames, height, width]``; or log-mel float ``[B, bins, frames]``.
            mask: bool ``[B, T]``, True where an id, a patch or a frame is real; padding is behind.
                None for clips.

        Returns:
            the pooled features ``[B, width]``, and the tokens, the template's among them.

        Raises:
            InputMismatchError: if given anything else.
        """
        if inputs.ndim == 2:
            self.check_inputs(inputs, mask)
            return self._pooled(self.model, mask, input_ids=inputs)
        before, after = self.before, self.after
        frames = inputs.ndim == CLIPS and self.model.config.model_type == "qwen3_vl"
        if frames or self.marks.omni:  # they stand around each frame of a clip, or each part
            start, end = self.marks.seen
            before = before[:-1] if before[-1:].tolist() == [start] else before
            after = after[1:] if after[:1].tolist() == [end] else after
        around = [(each.expand(len(inputs), -1), None) for each in (before, after)]
        return self.encode_parts([around[0], (inputs, mask), around[1]])

    def encode_parts(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> EncoderOutput:
        """Encodes sequences of texts, pictures, clips and sounds, in order, without the template.

        Args:
            parts: inputs and mask of each, as of `forward`; where a sample's mask is all False, it
                lacks the part. The mask of clips may have any second side.

        Raises:
            InputMismatchError: if given other inputs, or patches not of whole pictures.
        """
        made = Interleaved(self.patches, self.marks)
        for inputs, mask in parts:
            kind = self._kind(inputs, mask)
            self.check_inputs(inputs, None if kind == "clip" else mask)
            length = inputs.shape[2 if kind == "sound" else 1]
            real = mask
            if real is None:
                real = inputs.new_ones((len(inputs), length), dtype=torch.bool)
            if kind == "clip":
                made.add_clips(inputs, real.any(dim=1), self._told_of_clip(inputs))
            elif kind == "picture":
                made.add_pictures(inputs, real)
            elif kind == "sound":
                made.add_sounds(inputs, real)
            else:
                made.add_texts(inputs, real)
        step = self.seconds_per_frame * self.patches.frames
        ids, kept, seen = made.inputs(step, self.model.config.model_type)
        return self._pooled(self.model, kept, input_ids=ids, **seen)

    def _told_of_clip(self, clips: Tensor) -> Tensor:
        """Ids of a clip: places for its tokens, and of Qwen3-VL the time of each frame."""
        frames, rows, columns = self.patches.clip_grid(clips.shape)
        places = [self.marks.clip] * (rows * columns // self.patches.merge**2)
        if self.model.config.model_type != "qwen3_vl":
            return torch.tensor(places * frames, device=clips.device)
        told, (start, end) = list[int](), self.marks.seen
        for frame in range(frames):
            middle = (frame + 0.5) * self.patches.frames - 0.5  # of the patch, in frames
            when = f"<{middle * self.seconds_per_frame:.1f} seconds>"
            told += [*self.tokenizer.encode(when), start, *places, end]
        return torch.tensor(told, device=clips.device)

    def _pooled(self, model: nn.Module, mask: Tensor | None, **given: Tensor) -> EncoderOutput:
        extra = {} if mask is None else {"attention_mask": mask.long()}
        tokens: Tensor = model(use_cache=False, **extra, **given)[0]
        return EncoderOutput(self.pool(tokens, mask), tokens, mask)

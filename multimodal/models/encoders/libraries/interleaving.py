"""Texts, pictures, clips and sounds in one sequence, as a model of the Qwen kinds takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multimodal.models.encoders.connected import real_first
from multimodal.models.encoders.flexible import PLACE
from multimodal.models.encoders.libraries.visual_parts import Patches, Seen

OMNI = "qwen2_5_omni_thinker"
LEAST_FRAMES = 3  # of a sound: of fewer the model makes no token
Pair = tuple[int, int]


@dataclass(frozen=True)
class Marks:
    """Ids that stand for what is no text.

    Attributes:
        picture: of each token of a picture.
        clip: of each token of a clip.
        seen: before and after a picture or clip.
        sound: of each token of a sound; None where the model hears nothing.
        heard: before and after a sound.
        omni: whether the model asks for `seen` and `heard` around every part; those of a template
            do for the others.
    """

    picture: int
    clip: int
    seen: Pair
    sound: int | None = None
    heard: Pair | None = None
    omni: bool = False

    @staticmethod
    def of(config: Any) -> Marks:
        """Those of a model's configuration."""
        omni = config.model_type == OMNI
        return Marks(
            int(config.image_token_id),
            int(config.video_token_id),
            (int(config.vision_start_token_id), int(config.vision_end_token_id)),
            int(config.audio_token_id) if omni else None,
            (int(config.audio_start_token_id), int(config.audio_end_token_id)) if omni else None,
            omni,
        )


@dataclass
class Heard:
    """The sounds of a batch of sequences, in the order that the model reads them."""

    places: list[Pair] = field(default_factory=list)  # sample, number of the part
    sounds: list[Tensor] = field(default_factory=list)  # each [frames, bins]

    def inputs(self) -> dict[str, Tensor]:
        """As the model's forward names them; nothing where there are none."""
        if not self.places:
            return {}
        order = sorted(range(len(self.places)), key=self.places.__getitem__)
        sounds = [self.sounds[i] for i in order]
        lengths = torch.tensor([len(sound) for sound in sounds])
        padded = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
        real = torch.arange(padded.shape[1]) < lengths[:, None]
        return {
            "input_features": padded.transpose(1, 2),
            "feature_attention_mask": real.long().to(padded.device),
        }


class Interleaved:
    """Collects the parts of a batch of sequences, in order; a sample may lack any of them.

    Args:
        patches: how the model cuts what it sees.
        marks: its ids.
    """

    def __init__(self, patches: Patches, marks: Marks) -> None:
        self.patches, self.marks = patches, marks
        self._ids: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._pictures, self._clips, self._sounds = Seen(), Seen(), Heard()

    def add_texts(self, ids: Tensor, real: Tensor) -> None:
        """Ids int64 ``[B, T]``, and where they are real."""
        self._ids.append(ids)
        self._masks.append(real)

    def add_pictures(self, inputs: Tensor, real: Tensor) -> None:
        """Patches ``[B, T, 2 + C * side ** 2]`` of whole pictures, and where they are real.

        Raises:
            InputMismatchError: if they are not of whole pictures.
        """
        given = real.any(dim=1)
        pixels = self.patches.of_picture(inputs[..., PLACE:][real])
        counts = (real[given].sum(dim=1) * self.patches.merge**2).tolist()
        grids = self.patches.picture_grids(inputs[given], real[given])
        self._pictures.add(len(self._ids), given, grids, [*torch.split(pixels, counts)])
        ids = torch.full_like(real, self.marks.picture, dtype=torch.int64)
        self._add(ids, real, given, self.marks.seen)

    def add_clips(self, clips: Tensor, given: Tensor, told: Tensor) -> None:
        """Clips ``[B, C, T, H, W]`` of the ``given`` samples, told by ids ``[L]``."""
        here = clips[given]
        grid = torch.tensor(self.patches.clip_grid(clips.shape), device=clips.device)
        patches = [*self.patches.of_clips(here)]
        self._clips.add(len(self._ids), given, grid.expand(len(here), 3), patches)
        real = given[:, None].expand(-1, len(told))
        self._add(told.expand(len(clips), -1), real, given, self.marks.seen)

    def add_sounds(self, inputs: Tensor, real: Tensor) -> None:
        """Log-mel ``[B, bins, frames]``, and which frames are real; the model halves them twice."""
        assert self.marks.sound is not None
        assert self.marks.heard is not None
        given = real.any(dim=1)
        lengths = real.sum(dim=1).clamp(min=LEAST_FRAMES)
        short = max(0, LEAST_FRAMES - inputs.shape[2])
        quiet = inputs.masked_fill(~real[:, None], 0.0)  # what is behind a sound of a frame
        frames = torch.nn.functional.pad(quiet, (0, short)).transpose(1, 2)
        for row in given.nonzero()[:, 0].tolist():
            self._sounds.places.append((row, len(self._ids)))
            self._sounds.sounds.append(frames[row, : lengths[row]])
        tokens = ((lengths - 1) // 2 - 1) // 2 + 1
        places = torch.arange(int(tokens.max()), device=inputs.device)
        kept = (places < tokens[:, None]) & given[:, None]
        ids = torch.full_like(kept, self.marks.sound, dtype=torch.int64)
        self._add(ids, kept, given, self.marks.heard)

    def _add(self, ids: Tensor, real: Tensor, given: Tensor, around: Pair) -> None:
        if self.marks.omni:
            before, after = (ids.new_full((len(ids), 1), each) for each in around)
            ids = torch.cat([before, ids, after], dim=1)
            real = torch.cat([given[:, None], real, given[:, None]], dim=1)
        self.add_texts(ids, real)

    def inputs(
        self, seconds_per_grid: float, kind: str
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Ids ``[B, T]`` with padding behind, where they are real, and what is seen and heard.

        Args:
            seconds_per_grid: of clips, from one of the model's frames to the next.
            kind: the model's, for the names of what it takes.
        """
        framed, real = real_first(torch.cat(self._ids, dim=1)[..., None], torch.cat(self._masks, 1))
        assert real is not None
        ids = framed[..., 0].masked_fill(~real, 0)
        given = self._pictures.inputs("image_grid_thw", "pixel_values")
        given |= self._clips.inputs("video_grid_thw", "pixel_values_videos")
        if given and kind != OMNI:
            kinds = (ids == self.marks.picture).int() + 2 * (ids == self.marks.clip).int()
            given["mm_token_type_ids"] = kinds
        clock = {"qwen2_5_vl": "second_per_grid_ts", OMNI: "video_second_per_grid"}.get(kind)
        if self._clips.places and clock is not None:
            times = [seconds_per_grid] * len(self._clips.places)
            given[clock] = torch.tensor(times).to(ids.device)
        return ids, real, given | self._sounds.inputs()

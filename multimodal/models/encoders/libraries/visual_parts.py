"""Pictures and clips of a sequence as a model of the Qwen-VL kinds takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.flexible import PLACE


@dataclass(frozen=True)
class Patches:
    """How a model cuts what it sees.

    Attributes:
        channels: C.
        frames: of a patch.
        side: of a patch, in pixels.
        merge: patches along the side of a token.
    """

    channels: int
    frames: int
    side: int
    merge: int

    @property
    def features(self) -> int:
        """Numbers of a token of a picture: its place, and its pixels."""
        return PLACE + self.channels * self.token_side**2

    @property
    def token_side(self) -> int:
        """Of the square of pixels that is one token."""
        return self.side * self.merge

    def picture_grids(self, inputs: Tensor, real: Tensor) -> Tensor:
        """Frames, rows and columns of patches ``[B, 3]``, from the place of each first token.

        Args:
            inputs: tokens ``[B, T, 2 + C * token_side ** 2]`` of whole pictures, row by row.
            real: bool ``[B, T]``.

        Raises:
            InputMismatchError: if they are not of whole pictures.
        """
        first = inputs[:, 0, :PLACE].float()
        tokens = (0.5 / first).round().long()
        if not torch.equal(tokens.prod(dim=1), real.sum(dim=1)):
            raise InputMismatchError(
                "expected the patches of whole pictures, row by row: their places are of grids "
                f"{tokens.tolist()}, but they are {real.sum(dim=1).tolist()}"
            )
        return torch.cat([torch.ones_like(tokens[:, :1]), tokens * self.merge], dim=1)

    def of_picture(self, pixels: Tensor) -> Tensor:
        """Tokens ``[N, C * token_side ** 2]`` as the model's patches ``[N * merge ** 2, ...]``.

        Theirs follow each other within a token, and repeat the picture for every frame.
        """
        m, p = self.merge, self.side
        cut = pixels.view(-1, self.channels, m, p, m, p)
        patches = cut.permute(0, 2, 4, 1, 3, 5)[:, :, :, :, None]
        return patches.expand(-1, -1, -1, -1, self.frames, -1, -1).flatten(3).flatten(0, 2)

    def clip_grid(self, shape: torch.Size) -> tuple[int, int, int]:
        """Frames, rows and columns of patches in clips ``[B, C, T, H, W]``."""
        return shape[2] // self.frames, shape[3] // self.side, shape[4] // self.side

    def takes_clips(self, shape: torch.Size) -> bool:
        """Whether clips of a shape are cut into whole tokens."""
        s = self.token_side
        return shape[1] == self.channels and not (shape[2] % self.frames or shape[3] % s
                                                  or shape[4] % s)  # fmt: skip

    def of_clips(self, clips: Tensor) -> Tensor:
        """Clips ``[B, C, T, H, W]`` as the model's patches ``[B, t * h * w, ...]``.

        Those of a token follow each other; a patch is by channel, frame, row and column.
        """
        (t, h, w), m, p = self.clip_grid(clips.shape), self.merge, self.side
        cut = clips.view(len(clips), self.channels, t, self.frames, h // m, m, p, w // m, m, p)
        patches = cut.permute(0, 2, 4, 7, 5, 8, 1, 3, 6, 9)
        return patches.flatten(6).flatten(1, 5)


@dataclass
class Seen:
    """The pictures, or the clips, of a batch of sequences, in the order that the model reads them.

    That is sample by sample, and within a sample as its parts stand.
    """

    places: list[tuple[int, int]] = field(default_factory=list)  # sample, number of the part
    grids: list[Tensor] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)

    def add(self, part: int, given: Tensor, grids: Tensor, pixels: list[Tensor]) -> None:
        """Adds a part of the sequences.

        Args:
            part: its number among them.
            given: bool ``[B]``, which samples have it; G of them.
            grids: ``[G, 3]``.
            pixels: of each, ``[patches, ...]``.
        """
        rows = given.nonzero()[:, 0].tolist()
        self.places += [(row, part) for row in rows]
        self.grids += list(grids)
        self.pixels += pixels

    def inputs(self, grid_name: str, pixels_name: str) -> dict[str, Tensor]:
        """As the model's forward names them; nothing where there are none."""
        if not self.places:
            return {}
        order = sorted(range(len(self.places)), key=self.places.__getitem__)
        return {
            grid_name: torch.stack([self.grids[i] for i in order]),
            pixels_name: torch.cat([self.pixels[i] for i in order]),
        }

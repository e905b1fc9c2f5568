# python scripts/benchmark/naflex.py
"""Pictures of mixed aspects at their own, beside squares padded to the largest.

Forward and backward of a ViT-B/16, fp32, one thread, processor time. The pictures have the aspects
of photographs (4:3, 3:2, 16:9, 1:1, 2:1, upright or not) and areas from a quarter of the largest
up, drawn by a seed. `square` puts every picture into the corner of a square as large as the longest
side of the batch, on a border, and encodes all of it, as a ViT of one size has to. `padded` encodes
each at its own aspect, padded to the most tokens of the batch and masked; `packed` leaves the
padding out. Each is a process of its own, they take turns, and the ratio is the median of the
rounds' own, with the quartiles beside it. Tokens are those encoded, without class tokens, and what
share of them is of a picture.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from measuring import Step, in_turns, processor_time, ratio, table
from torch import Tensor, nn

from multimodal.cli.jobs.cpu import keep_freed_memory
from multimodal.data.transforms.patches import PatchTransform, patch_grid, patches
from multimodal.models.encoders.flexible import FlexibleVisionTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer

PATCH = 16
ASPECTS = (4 / 3, 3 / 2, 16 / 9, 1.0, 2.0)


def pictures_of(number: int, batch: int, max_tokens: int) -> list[Tensor]:
    """The pictures of a step, ``[3, H, W]``, sides of whole patches: the same for all sides."""
    generator = torch.Generator().manual_seed(number)
    made = []
    for _ in range(batch):
        aspect = ASPECTS[int(torch.randint(len(ASPECTS), (), generator=generator))]
        upright = bool(torch.randint(2, (), generator=generator))
        share = 0.25 + 0.75 * float(torch.rand((), generator=generator))
        height = (share * max_tokens * PATCH**2 / aspect) ** 0.5
        sides = (height * aspect, height) if upright else (height, height * aspect)
        rows, columns = patch_grid(round(sides[0]), round(sides[1]), PATCH, max_tokens)
        made.append(torch.randn(3, PATCH * rows, PATCH * columns, generator=generator))
    return made


def trunk(layers: int) -> Transformer:
    """Of ViT-B."""
    return Transformer(768, layers, 12, pre_norm=True)


def square(max_tokens: int, batch: int, layers: int) -> Step:
    """Squares padded to the largest."""
    keep_freed_memory()
    stem = partial(PatchStem, patch_size=PATCH, bias=False)
    side = PATCH * max_side(max_tokens)
    encoder = VisionTransformer(side, 3, stem, trunk(layers)).train()

    def prepare(number: int) -> tuple[tuple[Tensor, ...], int]:
        made = pictures_of(number, batch, max_tokens)
        longest = max(max(picture.shape[1:]) for picture in made)
        canvas = torch.zeros(batch, 3, longest, longest)
        for place, picture in zip(canvas, made, strict=True):
            place[:, : picture.shape[1], : picture.shape[2]] = picture
        # Every batch is as large as its largest: a ViT of that size, with its part of the table.
        grid = longest // PATCH
        encoder.size = (longest, longest)
        return (canvas,), batch * grid * grid

    return measured(encoder, prepare, batch, max_tokens)


def max_side(max_tokens: int) -> int:
    """Most patches of a side, of the longest aspect."""
    return int((max_tokens * max(ASPECTS)) ** 0.5) + 2


def own_aspect(packed: bool, max_tokens: int, batch: int, layers: int) -> Step:
    """Each at its own aspect."""
    keep_freed_memory()
    stem = partial(PatchStem, patch_size=PATCH, bias=False)
    encoder = FlexibleVisionTransformer(14, 3, stem, trunk(layers), packed=packed).train()
    transform = PatchTransform(PATCH, max_tokens, [0.5] * 3, [0.5] * 3)

    def prepare(number: int) -> tuple[tuple[Tensor, ...], int]:
        cut = [patches(picture, PATCH) for picture in pictures_of(number, batch, max_tokens)]
        inputs, mask = transform.collate(cut)
        assert mask is not None
        return (inputs, mask), int(mask.sum()) if packed else mask.numel()

    return measured(encoder, prepare, batch, max_tokens)


def measured(
    encoder: nn.Module,
    prepare: Callable[[int], tuple[tuple[Tensor, ...], int]],
    batch: int,
    max_tokens: int,
) -> Step:
    """Forward and backward; the batch is made before the clock starts."""

    def step(number: int) -> dict[str, float]:
        inputs, tokens = prepare(number)
        real = sum(p[0].numel() for p in pictures_of(number, batch, max_tokens)) / PATCH**2
        encoder.zero_grad(set_to_none=True)
        begun = processor_time()
        encoder(*inputs).features.square().mean().backward()
        seconds = processor_time() - begun
        return {"step": seconds, "tokens": float(tokens), "used": real / tokens}

    return step


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=196, help="of a picture")
    parser.add_argument("--layers", type=int, default=4, help="of the 12: all cost the same")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    sides: dict[str, Callable[..., Step]] = {
        "square": square,
        "padded": partial(own_aspect, False),
        "packed": partial(own_aspect, True),
    }
    given = {"max_tokens": args.max_tokens, "batch": args.batch, "layers": args.layers}
    found = in_turns(sides, args.rounds, **given)
    base = found["square"]["step"]
    rows = [["", "ms", "of square", "quartiles", "tokens", "of pictures", "peak MB"]]
    for name, parts in found.items():
        low, middle, high = ratio(parts["step"], base)
        rows.append(
            [
                name,
                f"{1e3 * statistics.median(parts['step']):.0f}",
                f"{middle:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{statistics.mean(parts['tokens']):.0f}",
                f"{statistics.mean(parts['used']):.0%}",
                f"{parts['peak MB'][0]:.0f}",
            ]
        )
    print(table(rows))


if __name__ == "__main__":
    main()

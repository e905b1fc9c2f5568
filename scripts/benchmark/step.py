# python scripts/benchmark/step.py
"""A training step of CLIP by its parts, beside transformers' CLIPModel and, installed, open_clip.

Forward, loss, backward, clipping and AdamW of one batch, random pictures and captions of 8 to 20
tokens, weights from nothing, one thread, processor time. `ours` is what `multimodal train` runs:
texts padded to the longest of the batch, the optimizer of configs/optimizer/adamw.yaml, the
allocator's settings. `ours, packed` computes no padding of texts at all (encoder.packed=true), and
`ours, padded` pads them to 77 tokens as the others do. The others take
torch.optim.AdamW as it comes, and `fused` its fused kernel. Each is a process of its own, they take
turns, and the ratio is the median of the rounds' own, with the quartiles beside it.

FLOPs are counted in one step of each by torch.utils.flop_counter; MFU is given where the device's
peak is known (multimodal/training/flops.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from measuring import Step, in_turns, processor_time, ratio, table
from torch import Tensor, nn

from multimodal.cli.jobs.cpu import keep_freed_memory
from multimodal.config import config_dir
from multimodal.core.batch import Batch
from multimodal.training.flops import count_flops, peak_flops

CONTEXT, END = 77, 49407
PARTS = ("image", "text", "forward", "loss", "backward", "clip", "optimizer")


def batch_of(number: int, size: int, pixels: int, shortest: int, longest: int) -> Batch:
    """The batch of a step: the same for all sides."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(shortest, longest + 1, (size,), generator=generator)
    ids = torch.randint(1, END - 1, (size, int(lengths.max())), generator=generator)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    ids = ids.masked_fill(~mask, 0)
    ids[torch.arange(size), lengths - 1] = END
    pictures = torch.randn(size, 3, pixels, pixels, generator=generator)
    rows = torch.arange(size)
    inputs, masks = {"image": pictures, "text": ids}, {"text": mask}
    return Batch(inputs, masks, rows, rows, torch.zeros_like(rows), "captions", number)


def padded(values: Tensor, fill: Any) -> Tensor:
    """``[B, T]`` to ``[B, 77]``."""
    return nn.functional.pad(values, (0, CONTEXT - values.shape[1]), value=fill)


class Clock:
    """Seconds of the parts of a step; on a GPU, which works on by itself, waits for each."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._since = self._began = self._now()

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return processor_time()

    def part(self, name: str) -> None:
        """Ends a part."""
        now = self._now()
        self.parts[name], self._since = now - self._since, now

    def done(self) -> dict[str, float]:
        """All parts, with the whole."""
        return self.parts | {"step": self._since - self._began}


def ours(
    pad: bool, words: list[str], experiment: str, batch: dict[str, int], bf16: bool, device: str
) -> Step:
    """The step of `multimodal train`, with what the trainer does around it."""
    from multimodal.training.build import build_module

    keep_freed_memory()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [f"+experiment={experiment}", *words])
    module = build_module(cfg).train().to(device)
    optimizer, _ = module.make_optimizer()

    def step(number: int) -> dict[str, float]:
        data = batch_of(number, **batch)
        if pad:
            data.inputs["text"] = padded(data.inputs["text"], 0)
            data.masks["text"] = padded(data.masks["text"], False)
        data = data.to(device)
        clock = Clock()
        embeddings = {}
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            for name in ("image", "text"):
                embeddings[name] = module.model.embed(name, data.inputs[name], data.masks.get(name))
                clock.part(name)
            keys = data.sample_ids, data.positive_keys
            loss = module.objective(embeddings, *keys, number, 0, data.source).loss
        clock.part("loss")
        finish(loss, module, optimizer, clock)
        return clock.done()

    return counted(step)


def theirs(
    fused: bool | None, library: str, batch: dict[str, int], bf16: bool, device: str, **_: Any
) -> Step:
    """The step of another library's CLIP of the same size, with its own loss."""
    forward, model = LIBRARIES[library](batch["pixels"])
    model.train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.2, fused=fused)

    def step(number: int) -> dict[str, float]:
        data = batch_of(number, **batch).to(device)
        ids, mask = padded(data.inputs["text"], 0), padded(data.masks["text"], False)
        clock = Clock()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = forward(data.inputs["image"], ids, mask)
        clock.part("forward")
        finish(loss, model, optimizer, clock)
        return clock.done()

    return counted(step)


def finish(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """From the loss to new weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clock.part("backward")
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    clock.part("clip")
    optimizer.step()
    clock.part("optimizer")


def of_transformers(pixels: int) -> tuple[Callable[..., Tensor], nn.Module]:
    """CLIPModel, B/32."""
    import transformers

    vision = {"patch_size": 32, "image_size": pixels}
    config = transformers.CLIPConfig(
        vision_config=vision, text_config={"eos_token_id": END}, projection_dim=512
    )
    model = transformers.CLIPModel(config)

    def forward(pictures: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        output = model(
            input_ids=ids, pixel_values=pictures, attention_mask=mask.long(), return_loss=True
        )
        loss: Tensor = output.loss
        return loss

    return forward, model


def of_open_clip(pixels: int) -> tuple[Callable[..., Tensor], nn.Module]:
    """ViT-B-32."""
    import open_clip

    model = open_clip.create_model("ViT-B-32", force_image_size=pixels)
    loss = open_clip.loss.ClipLoss()

    def forward(pictures: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        value: Tensor = loss(*model(pictures, ids))
        return value

    return forward, model


LIBRARIES = {"transformers": of_transformers, "open_clip": of_open_clip}


def counted(step: Step) -> Step:
    """``step`` that counts its first call's FLOPs and has them among its parts from then on."""
    flops: list[int] = []

    def count(number: int) -> dict[str, float]:
        if flops:
            return step(number) | {"GFLOP": flops[0] / 1e9}
        total, parts = count_flops(lambda: step(number))
        flops.append(total)
        measured: dict[str, float] = parts
        return measured

    return count


def main() -> None:
    """Prints the table of parts, and that of the sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--tokens", type=int, nargs=2, default=(8, 20), help="of the captions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--experiment", default="clip_vit_b32")
    parser.add_argument("--only", nargs="*", default=[], help="sides; transformers among them")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shortest, longest = args.tokens
    batch = {"size": args.batch, "pixels": args.pixels, "shortest": shortest, "longest": longest}
    given = {"experiment": args.experiment, "batch": batch, "bf16": args.bf16, "device": device}
    sides: dict[str, Callable[..., Step]] = {
        "ours": partial(ours, False, []),
        "ours, packed": partial(ours, False, ["model.towers.text.encoder.packed=true"]),
        "ours, padded": partial(ours, True, []),
        "transformers": partial(theirs, None, "transformers"),
        "transformers, fused": partial(theirs, True, "transformers"),
    }
    if importlib.util.find_spec("open_clip"):
        sides["open_clip"] = partial(theirs, None, "open_clip")
    sides = {name: side for name, side in sides.items() if name in args.only or not args.only}
    measured = in_turns(sides, args.rounds, **given)

    rows = [["ms of the step", *PARTS]]
    for name, parts in measured.items():
        cells = [f"{1e3 * statistics.median(parts[p]):.0f}" if p in parts else "" for p in PARTS]
        rows.append([name, *cells])
    print(table(rows), end="\n\n")

    peak = peak_flops(torch.device(device), "half" if args.bf16 else "tf32")
    base = measured["transformers"]["step"]
    rows = [["", "ms", "of transformers", "quartiles", "samples/s", "GFLOP", "MFU", "peak MB"]]
    for name, parts in measured.items():
        flops = 1e9 * parts["GFLOP"][0]
        seconds = statistics.median(parts["step"])
        low, middle, high = ratio(parts["step"], base)
        mfu = "unknown peak" if peak is None else f"{flops / seconds / peak:.1%}"
        numbers = [f"{1e3 * seconds:.0f}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
        speed = [f"{args.batch / seconds:.2f}", f"{flops / 1e9:.0f}", mfu]
        rows.append([name, *numbers, *speed, f"{parts['peak MB'][0]:.0f}"])
    print(table(rows))


if __name__ == "__main__":
    main()

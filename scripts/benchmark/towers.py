"""Our ViT and text tower beside those of transformers: python scripts/benchmark/towers.py.

Forward and backward of one batch, one thread, process time, with equal shapes and as many
parameters: CLIP's ViT-B/32 and its text tower, fp32 and bf16 autocast. Each round takes both, in
turns the one or the other first. The ratio is the median of the rounds' own, so that what slows the
machine for a while slows both sides of it; beside it the lower and upper quartile. A ratio above 1:
ours are faster. With `--patch-dropout 0.5` our ViT-B/16 with and without it, and the share of the
time that it takes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import Tensor, nn

from multimodal.inference.imported import count
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer


def towers(num_layers: int) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Name -> ours and theirs."""
    trunk = Transformer(768, num_layers, 12, pre_norm=True)
    vision = VisionTransformer(224, 3, partial(PatchStem, patch_size=32, bias=False), trunk)
    text = TextTransformer(49408, 77, Transformer(512, num_layers, 8, causal=True))
    common = {"num_hidden_layers": num_layers, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        vision_config={"patch_size": 32, **common},
        text_config={"eos_token_id": 49407, "bos_token_id": 49406, **common},
    )
    clip = transformers.CLIPModel(config)
    pairs = {"vision": (vision, clip.vision_model), "text": (text, clip.text_model)}
    for name, (ours, theirs) in pairs.items():
        assert count(ours) == count(theirs), name
    return pairs


def step(model: nn.Module, inputs: Tensor, bf16: bool) -> None:
    """One forward and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(inputs)
        features = output.features if hasattr(output, "features") else output.pooler_output
        loss = features.float().square().mean()
    model.zero_grad(set_to_none=True)
    loss.backward()


def seconds(run: Callable[[], None]) -> float:
    """Process time of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def measured(pair: tuple[nn.Module, nn.Module], inputs: Tensor, bf16: bool, rounds: int) -> str:
    """A row of the table: median milliseconds of both, and quartiles of their ratio."""
    runs = [partial(step, model.train(), inputs, bf16) for model in pair]
    for run in runs:
        run()
    ours, theirs = [], []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        times = {side: seconds(runs[side]) for side in order}
        ours.append(1000 * times[0])
        theirs.append(1000 * times[1])
    low, middle, high = statistics.quantiles(
        [b / a for a, b in zip(ours, theirs, strict=True)], n=4, method="inclusive"
    )
    medians = f"{statistics.median(ours):9.0f} {statistics.median(theirs):16.0f}"
    return f"{medians} {middle:6.2f}  {low:.2f}-{high:.2f}"


def with_and_without(dropout: float, layers: int, batch: int, rounds: int) -> str:
    """Median milliseconds of our ViT-B/16 that leaves patches out, and of the whole one."""
    whole = VisionTransformer(
        224, 3, partial(PatchStem, patch_size=16), Transformer(768, layers, 12, pre_norm=True)
    )
    fewer = copy.deepcopy(whole)
    fewer.patch_dropout = dropout
    pair, inputs = (fewer, whole), torch.randn(batch, 3, 224, 224)
    return measured(pair, inputs, False, rounds)


def main() -> None:
    """Prints a row for every tower and precision as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20, help="in fp32")
    parser.add_argument("--bf16-rounds", type=int, default=8)
    parser.add_argument("--patch-dropout", type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.patch_dropout is not None:
        print("      fewer ms         whole ms  whole / fewer  quartiles", flush=True)
        print(with_and_without(args.patch_dropout, args.layers, args.batch, args.rounds))
        return
    ids = torch.randint(1, 49405, (args.batch, 77))
    ids[:, -1] = 49407
    inputs = {"vision": torch.randn(args.batch, 3, 224, 224), "text": ids}
    print("tower   precision   ours ms  transformers ms  ratio  quartiles", flush=True)
    for name, pair in towers(args.layers).items():
        for bf16 in (False, True):
            rounds = args.bf16_rounds if bf16 else args.rounds
            row = measured(pair, inputs[name], bf16, rounds)
            print(f"{name:7} {'bf16' if bf16 else 'fp32':9} {row}", flush=True)


if __name__ == "__main__":
    main()

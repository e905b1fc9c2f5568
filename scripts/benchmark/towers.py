"""Our ViT and text tower beside those of transformers: python scripts/benchmark/towers.py.

Forward and backward of one batch, one thread, process time, A B A B, medians, with equal shapes:
CLIP's ViT-B/32 and its text tower, fp32 and bf16 autocast. A ratio above 1: ours are faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import transformers
from torch import Tensor, nn

from multimodal.encoders.text import TextTransformer
from multimodal.encoders.vision import VisionTransformer
from multimodal.layers.stems import PatchStem
from multimodal.layers.transformer import Transformer


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
    return {"vision": (vision, clip.vision_model), "text": (text, clip.text_model)}


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


def main() -> None:
    """Prints a row for every tower and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(1, 49405, (args.batch, 77))
    ids[:, -1] = 49407
    inputs = {"vision": torch.randn(args.batch, 3, 224, 224), "text": ids}
    print("tower   precision  ours ms  transformers ms  ratio")
    for name, pair in towers(args.layers).items():
        for bf16 in (False, True):
            runs = [partial(step, model.train(), inputs[name], bf16) for model in pair]
            for run in runs:
                run()
            times = [[seconds(run) for run in runs] for _ in range(args.rounds)]
            ours, theirs = (1000 * statistics.median(column) for column in zip(*times, strict=True))
            precision = "bf16" if bf16 else "fp32"
            print(f"{name:7} {precision:9} {ours:8.0f} {theirs:16.0f} {theirs / ours:6.2f}")


if __name__ == "__main__":
    main()

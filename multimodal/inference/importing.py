"""Imports foreign weights into our towers: the public entry point.

imported = import_weights(state, cfg, source="open_clip")
imported.model.embed("image", images)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from torch import Tensor

from multimodal.config import build
from multimodal.inference.filling import fill_model
from multimodal.models.pretrained import (
    efficientnet,
    huggingface,
    imagebind,
    names,
    open_clip,
    siglip,
    whisper,
)
from multimodal.models.pretrained.keys import Diff, WeightsError
from multimodal.models.pretrained.plan import (
    Plan,
    as_video,
    with_context_length,
    with_image_size,
)
from multimodal.models.towers import EmbeddingModel

log = logging.getLogger(__name__)

WeightSource = Literal[
    "openai", "open_clip", "siglip", "huggingface", "imagebind", "efficientnet", "whisper"
]


@dataclass
class Imported:
    """A foreign model as one of ours.

    Attributes:
        model: the towers, filled, in evaluation mode.
        config: the block that builds it.
        transforms: blocks of the transforms that feed the towers, as far as the source says.
        pair: anchor and other of the trained pair, None where the source has none.
        logit_scale: the pair's multiplier of cosines, None without a pair.
        logit_bias: the pair's bias, None where the loss has none.
        diff: what was left over and allowed to be.
        notes: what was changed on the way (positions resized, kernels inflated).
    """

    model: EmbeddingModel
    config: dict[str, Any]
    transforms: dict[str, dict[str, Any]]
    pair: tuple[str, str] | None
    logit_scale: float | None
    logit_bias: float | None
    diff: Diff
    notes: list[str]


def import_weights(
    state: Mapping[str, Tensor],
    cfg: Mapping[str, Any] | None = None,
    source: WeightSource | None = None,
    *,
    allow: Sequence[str] = (),
    prefix: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    num_frames: int | None = None,
    tubelet: int = 2,
) -> Imported:
    """Builds our towers for a foreign model and fills them; every tensor is accounted for.

    Args:
        state: the foreign state dict.
        cfg: the foreign configuration: OpenCLIP's (``embed_dim``, ``vision_cfg``, ``text_cfg``),
            the ``config.json`` of ``transformers``, or ImageBind's sizes. None: OpenAI's weights
            say it themselves, as Whisper's do; ImageBind's released size and EfficientNet-Lite0's
            are meant.
        source: the project that the weights are from; None: inferred from the names.
        allow: names, or patterns with ``*``, of tensors that may be left over on either side.
        prefix: what stands before the names of the model's tensors; those without it are left
            out. None: what DDP, torch.compile, Lightning and the like have put before most names
            is taken off.
        image_size: another picture size; positions are resized (bicubic).
        context_length: longest text in tokens; positions are stretched (linear) where it is longer,
            and cut where it is shorter.
        num_frames: make the image tower one for clips of so many frames as well.
        tubelet: frames per patch then.

    Raises:
        WeightsError: if a tensor of ours stays empty, one of theirs is not used, or two differ in
            shape, and ``allow`` does not name it; if one that is used is not finite; or for a model
            that our towers cannot be.
    """
    every = len(state)
    plan, state, source, preprocessing = plan_of(state, cfg, source, prefix)
    if context_length is not None and "text" in plan.own_towers():
        with_context_length(plan.own_towers()["text"], context_length)
    notes = _adapt(plan, image_size, num_frames, tubelet)
    if left := every - len(state):
        notes.append(f"prefix={prefix}: {left} tensors without it are left out")
    config = _model_config(plan)
    model = build(OmegaConf.create({"model": config}), "model")
    assert isinstance(model, EmbeddingModel)
    diff = fill_model(model, plan, state, allow, notes)
    for note in notes:
        log.info("%s", note)
    if diff:
        raise WeightsError(f"the weights do not fit ({source}):\n{diff}\n{_hint(diff)}")
    transforms = _transforms(plan, preprocessing)
    scale, bias = _number(state, plan.scale), _number(state, plan.bias)
    scale = None if scale is None else math.exp(scale)
    return Imported(model.eval(), config, transforms, plan.pair, scale, bias, diff, notes)


def _known(source: WeightSource) -> WeightSource:
    """Checks what a caller, or a command line, has given."""
    if source not in get_args(WeightSource):
        known = ", ".join(get_args(WeightSource))
        raise WeightsError(f"source={source!r}: expected one of {known}")
    return source


def _transforms(plan: Plan, preprocessing: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Blocks of the towers' transforms; pictures are normalised as the file itself says."""
    transforms = {
        name: tower.transform for name, tower in plan.own_towers().items() if tower.transform
    }
    image = transforms.get("image", {})
    image |= {key: preprocessing[key] for key in ("mean", "std") if image and key in preprocessing}
    return transforms


def plan_of(
    state: Mapping[str, Tensor],
    cfg: Mapping[str, Any] | None = None,
    source: WeightSource | None = None,
    prefix: str | None = None,
) -> tuple[Plan, Mapping[str, Tensor], WeightSource, Mapping[str, Any]]:
    """The plan of foreign weights; the arguments are those of `import_weights`.

    Returns:
        the plan; the tensors by their project's own names; the project; its preprocessing, as far
        as the configuration says.

    Raises:
        WeightsError: if the project or its configuration is not known.
    """
    cfg, preprocessing = _unwrapped(cfg)
    state = names.bare(state, prefix, recognised)
    source = _known(source or recognise(state, cfg))
    return describe(source, cfg, state), state, source, preprocessing


def _unwrapped(
    cfg: Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    """The model's part of an ``open_clip_config.json``, and the preprocessing's."""
    if cfg is None or "model_cfg" not in cfg:
        return cfg, {}
    return cfg["model_cfg"], cfg.get("preprocess_cfg") or {}


def _number(state: Mapping[str, Tensor], name: str | None) -> float | None:
    return float(state[name]) if name is not None and name in state else None


def _hint(diff: Diff) -> str:
    wanted = [name for entry in diff.missing for name in entry.partition(" <- ")[2].split(" + ")]
    theirs = [entry.partition(" [")[0] for entry in diff.unexpected]
    if prefix := names.prefix_hint([name for name in wanted if name], theirs):
        return f"Some of ours are there behind '{prefix}': give prefix={prefix}"
    return "What may be left over, on either side, is named by allow=[NAME, PATTERN.*]"


MARKS: dict[WeightSource, str] = {
    "efficientnet": "_conv_stem.",
    "whisper": "encoder.conv1.",
    "imagebind": "modality_trunks.",
    "huggingface": "vision_model.",
    "siglip": "visual.trunk.",
    "open_clip": "visual.transformer.",
}


def recognised(state: Mapping[str, Tensor]) -> bool:
    """Whether some of the names are those of a source."""
    return any(name.startswith(tuple(MARKS.values())) for name in state)


def recognise(state: Mapping[str, Tensor], cfg: Mapping[str, Any] | None) -> WeightSource:
    """The project that the weights are from, by their names.

    Raises:
        WeightsError: if the project is unknown.
    """
    for source, mark in MARKS.items():
        if any(name.startswith(mark) for name in state):
            if source == "open_clip" and cfg is None:
                return "openai"
            return source
    raise WeightsError(
        "these weights are not of OpenAI CLIP, OpenCLIP, SigLIP, ImageBind, EfficientNet-Lite, "
        "Whisper, or CLIP and SigLIP of transformers; their names are "
        f"{', '.join(sorted(state)[:4])} and so on. If the model's own are behind a prefix, give "
        f"it: prefix=..., of {', '.join(names.beginnings(state)[:8])}"
    )


def describe(
    source: WeightSource, cfg: Mapping[str, Any] | None, state: Mapping[str, Tensor]
) -> Plan:
    """The source's model as our configuration.

    Raises:
        WeightsError: if it needs a configuration and has none, or is not built here.
    """
    if source == "efficientnet":
        return efficientnet.describe(cfg, state)
    if source == "whisper":
        return whisper.describe(cfg, state)
    if cfg is None:
        if source == "imagebind":
            cfg = imagebind.huge()
        elif source == "openai":
            cfg = open_clip.configuration_of(state)
        else:
            raise WeightsError(
                f"weights of {source} do not say how many heads they have: give the model's "
                "configuration (open_clip_config.json, or config.json of transformers)"
            )
    makers: dict[str, Callable[[], Plan]] = {
        "siglip": lambda: siglip.describe(cfg, state),
        "huggingface": lambda: huggingface.describe(cfg, state),
        "imagebind": lambda: imagebind.describe(cfg, state),
    }
    maker = makers.get(source, lambda: open_clip.describe(cfg, state, source))
    return maker()


def _adapt(plan: Plan, image_size: int | None, num_frames: int | None, tubelet: int) -> list[str]:
    notes = []
    image = plan.own_towers().get("image")
    if image_size is not None and image is not None:
        with_image_size(image, image_size)
    if num_frames is not None and image is not None:
        as_video(image, num_frames, tubelet)
        plan.towers["video"] = "image"
        notes.append(
            f"image: patches inflated over {tubelet} frames, for pictures and clips of {num_frames}"
        )
    return notes


def _model_config(plan: Plan) -> dict[str, Any]:
    towers = {n: t if isinstance(t, str) else t.config for n, t in plan.towers.items()}
    return {"_target_": "multimodal.models.EmbeddingModel", "towers": towers}

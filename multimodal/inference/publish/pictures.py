"""What ``transformers`` is told of preparing pictures: ``preprocessor_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multimodal.core.hf_files import PREPROCESSOR
from multimodal.data.transforms.image import ImageTransform
from multimodal.inference.export.preprocessing import settings_of

RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def write_processor(image: ImageTransform, folder: Path, squeezed: bool = False) -> None:
    """Writes the file into a folder.

    Args:
        image: the transform.
        folder: the model's.
        squeezed: pictures are resized to the square as SigLIP's, instead of cropped as CLIP's.
    """
    how = settings_of(image).settings
    size = how["size"]
    square = {"height": size, "width": size}
    content: dict[str, Any] = {
        "image_processor_type": "SiglipImageProcessor" if squeezed else "CLIPImageProcessor",
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "size": square if squeezed else {"shortest_edge": size},
        "resample": RESAMPLE[how["interpolation"]],
        "image_mean": list(how["mean"]), "image_std": list(how["std"]),
    }  # fmt: skip
    if not squeezed:
        content |= {"do_center_crop": True, "crop_size": square}
    (folder / PREPROCESSOR).write_text(json.dumps(content, indent=1) + "\n", "utf-8")

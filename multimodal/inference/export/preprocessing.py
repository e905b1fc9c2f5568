"""What a transform does to a value outside of training, as the settings of the runner.

A kind that the runner does not know is ``array`` without a change: values are prepared already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers

from multimodal.data.tokenizers.clip import CLIPTokenizer
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.imu import IMUTransform
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.sound.whisper import WhisperTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.data.transforms.thermal import ThermalTransform

_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # of ASCII, `string.punctuation`


@dataclass(frozen=True)
class Preprocessing:
    """How a value becomes a graph's input.

    Attributes:
        settings: of ``model.json``; ``kind`` chooses what the runner does.
        tokenizer: a file of the ``tokenizers`` library; None where there are no texts.
    """

    settings: dict[str, Any]
    tokenizer: str | None = None


def settings_of(transform: Transform) -> Preprocessing:
    """The preprocessing of a transform, with what every kind has.

    ``multiple``: the last side is filled up to a multiple of it, with ``pad``.
    """
    made = preprocessing_of(transform)
    return Preprocessing({"pad": 0, "multiple": 1, **made.settings}, made.tokenizer)


@singledispatch
def preprocessing_of(transform: Transform) -> Preprocessing:
    """The preprocessing of a transform; one that the runner does not know is named in it."""
    prepared = {"kind": "array", "mean": 0.0, "std": 1.0, "prepared_by": type(transform).__name__}
    return Preprocessing(prepared)


@preprocessing_of.register
def _image(transform: ImageTransform) -> Preprocessing:
    names = ("size", "interpolation", "mean", "std")
    return Preprocessing({"kind": "image", **{name: getattr(transform, name) for name in names}})


@preprocessing_of.register
def _depth(transform: DepthTransform) -> Preprocessing:
    return Preprocessing({"kind": "plane", "size": transform.size})


@preprocessing_of.register
def _thermal(transform: ThermalTransform) -> Preprocessing:
    return Preprocessing({"kind": "plane", "size": transform.size})


@preprocessing_of.register
def _imu(transform: IMUTransform) -> Preprocessing:
    return Preprocessing(
        {
            "kind": "signal",
            "rate": transform.rate_hz,
            "length": transform.length,
            "channels": transform.channels,
            "mean": transform.mean.flatten().tolist(),
            "std": transform.std.flatten().tolist(),
        }
    )


@preprocessing_of.register
def _array(transform: ArrayTransform) -> Preprocessing:
    return Preprocessing({"kind": "array", "mean": transform.mean, "std": transform.std})


@preprocessing_of.register
def _audio(transform: AudioTransform) -> Preprocessing:
    last = transform.num_clips - 1
    return Preprocessing(
        {
            "kind": "spectrogram",
            "rate": transform.sample_rate,
            "samples": transform.num_samples,
            "least": transform.num_samples,
            "silence": True,
            "places": [number / last for number in range(last + 1)] if last else [0.5],
        }
    )


@preprocessing_of.register
def _whisper(transform: WhisperTransform) -> Preprocessing:
    return Preprocessing(
        {
            "kind": "spectrogram",
            "rate": transform.sample_rate,
            "samples": transform.num_samples,
            "least": 2 * transform.hop,
            "silence": False,
            "places": [0.5],
            "multiple": 2,  # frames of a token
        }
    )


@preprocessing_of.register
def _text(transform: TextTransform) -> Preprocessing:
    tokenizer = transform.tokenizer
    to_json = getattr(tokenizer, "to_json", None)
    made = None if to_json is None else to_json()
    if made is None:
        return Preprocessing({"kind": "array", "mean": 0, "std": 1, "prepared_by": "TextTransform"})
    before, after = transform.before, transform.after
    known = isinstance(tokenizer, CLIPTokenizer | HuggingFaceTokenizer)
    return Preprocessing(
        {
            "kind": "text",
            "before": before,
            "after": after,
            "room": transform.context_length - len(before) - len(after),
            "pad": tokenizer.pad,
            "multiple": transform.context_length if transform.fill else 1,
            "unescape": isinstance(tokenizer, CLIPTokenizer),
            "encode_special_tokens": not known,
        },
        _normalising(made, tokenizer),
    )


def _normalising(made: str, tokenizer: object) -> str:
    """A tokenizer's file with what ours does to a text before it, and without cutting or filling.

    CLIP's joins white space; of SigLIP's texts punctuation and case go. CLIP's repair of texts of a
    wrong encoding (ftfy) is left out.
    """
    file = Tokenizer.from_str(made)
    file.no_truncation()
    file.no_padding()
    steps: list[Any] = []
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.canonical:
        steps += [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(_PUNCTUATION), ""),
            normalizers.Lowercase(),
        ]
    if steps or isinstance(tokenizer, CLIPTokenizer):
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        steps += [] if file.normalizer is None else [file.normalizer]
        file.normalizer = normalizers.Sequence(steps)
    return str(file.to_str())

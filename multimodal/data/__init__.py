"""Where a batch comes from: shards, decoding, transforms, loaders."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.data.datamodule import MultimodalDataModule
    from multimodal.data.decoding.values import Limits, Signal
    from multimodal.data.errors import (
        BadSampleError,
        DataMismatchError,
        DecodeError,
        ShardError,
        TooManyBadSamplesError,
    )
    from multimodal.data.sample_rng import SampleRNG
    from multimodal.data.shards.manifest import Manifest, load_manifest
    from multimodal.data.source import Source
    from multimodal.data.streaming.datamodule import StreamDataModule
    from multimodal.data.streaming.source import StreamSource
    from multimodal.data.tokenizers.bpe import BPETokenizer, TextTokenizer
    from multimodal.data.tokenizers.clip import CLIPTokenizer
    from multimodal.data.tokenizers.corpus import CorpusTokenizer
    from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
    from multimodal.data.transforms.array import ArrayTransform
    from multimodal.data.transforms.base import Stacked, Transform
    from multimodal.data.transforms.depth import DepthTransform
    from multimodal.data.transforms.depth_patches import DepthPatchTransform
    from multimodal.data.transforms.image import ImageTransform
    from multimodal.data.transforms.imu import IMUTransform
    from multimodal.data.transforms.patches import PatchTransform
    from multimodal.data.transforms.sound.audio import AudioTransform
    from multimodal.data.transforms.sound.huggingface import HuggingFaceSound
    from multimodal.data.transforms.sound.sound_patches import SoundPatchTransform
    from multimodal.data.transforms.sound.whisper import WhisperTransform
    from multimodal.data.transforms.target import LabelSetTransform, LabelTransform, NumberTransform
    from multimodal.data.transforms.text import TextTransform
    from multimodal.data.transforms.thermal import ThermalTransform
    from multimodal.data.transforms.video import VideoTransform
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "ArrayTransform",
    "AudioTransform",
    "BPETokenizer",
    "BadSampleError",
    "CLIPTokenizer",
    "CorpusTokenizer",
    "DataMismatchError",
    "DecodeError",
    "DepthPatchTransform",
    "DepthTransform",
    "HuggingFaceSound",
    "HuggingFaceTokenizer",
    "IMUTransform",
    "ImageTransform",
    "LabelSetTransform",
    "LabelTransform",
    "Limits",
    "Manifest",
    "MultimodalDataModule",
    "NumberTransform",
    "PatchTransform",
    "SampleRNG",
    "ShardError",
    "Signal",
    "SoundPatchTransform",
    "Source",
    "Stacked",
    "StreamDataModule",
    "StreamSource",
    "TextTokenizer",
    "TextTransform",
    "ThermalTransform",
    "TooManyBadSamplesError",
    "Transform",
    "VideoTransform",
    "WhisperTransform",
    "load_manifest",
]

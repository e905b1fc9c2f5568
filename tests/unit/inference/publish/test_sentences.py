"""A text tower in the layout of sentence-transformers, read module by module as it says there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_weights import SMALL_BERT, tokenizer_json
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.data.settings import EvaluationData
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.embedder import Embedder
from multimodal.inference.publish.sentences import write
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.heads import IdentityHead, LinearHead, MLPHead
from multimodal.models.pretrained.keys import WeightsError
from multimodal.models.towers import EmbeddingModel, Tower

TEXTS = ["a red chair", "dog", "a longer text than the tower takes"]
HEADS = {
    "mlp": partial(MLPHead, embed_dim=8, hidden=12, norm=True, dropout=0.1),
    "linear": partial(LinearHead, embed_dim=8),
    "identity": partial(IdentityHead, embed_dim=16),
}


def made(folder: Path, pooling: str, head: str | partial) -> Embedder:
    torch.manual_seed(0)
    (folder / "own.json").write_bytes(tokenizer_json())
    encoder = HuggingFaceEncoder(config={"model_type": "bert", **SMALL_BERT}, pooling=pooling)
    tower = Tower(encoder, HEADS.get(head, head)).eval()
    for norm in (part for part in tower.head.modules() if isinstance(part, nn.LayerNorm)):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    text = TextTransform(HuggingFaceTokenizer(str(folder / "own.json")), context_length=12)
    return Embedder(EmbeddingModel({"text": tower}), EvaluationData({"text": text}, 8))


def as_they_read_it(folder: Path) -> Tensor:
    """The modules of a folder, one after the other."""
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [each["type"].removeprefix("sentence_transformers.models.") for each in modules]
    assert kinds[:2] == ["Transformer", "Pooling"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens, mask = model(**given).last_hidden_state, given["attention_mask"]
    modes = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert modes["word_embedding_dimension"] == tokens.shape[2]
    (mode,) = [name for name, chosen in modes.items() if chosen is True]
    rows = {
        "pooling_mode_cls_token": tokens[:, 0],
        "pooling_mode_mean_tokens": (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
        "pooling_mode_lasttoken": tokens[torch.arange(len(tokens)), mask.sum(1) - 1],
    }[mode]
    for each, kind in zip(modules[2:], kinds[2:], strict=True):
        path = folder / each["path"]
        config = json.loads((path / "config.json").read_text())
        if kind == "Normalize":
            rows = F.normalize(rows, dim=1)
            continue
        weights = load_file(path / "model.safetensors")
        if kind == "LayerNorm":
            rows = F.layer_norm(rows, [config["dimension"]], *map(weights.get, _named("norm")))
        else:
            weight, bias = map(weights.get, _named("linear"))
            assert weight.shape == (config["out_features"], config["in_features"])
            assert (bias is not None) == config["bias"]
            rows = F.linear(rows, weight, bias)
            rows = {"GELU": F.gelu, "Identity": lambda x: x}[
                config["activation_function"].rsplit(".", 1)[-1]
            ](rows)
    assert kinds[-1] == "Normalize"
    return rows


def _named(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


@pytest.mark.parametrize(
    ("pooling", "head"), [("mean", "mlp"), ("class", "linear"), ("last", "identity")]
)
@torch.no_grad()
def test_the_modules_embed_the_same(tmp_path, pooling, head):
    embedder = made(tmp_path, pooling, head)
    (tmp_path / "out").mkdir()
    write(embedder, tmp_path / "out")
    ours = torch.as_tensor(embedder.embed(text=TEXTS))
    assert (as_they_read_it(tmp_path / "out") - ours).abs().max() < 1e-5


def test_what_has_no_place_there_is_said(tmp_path):
    standardizing = partial(MLPHead, embed_dim=8, standardize=True)
    for pooling, head, message in [
        ("attention", "linear", "its pooling is"),
        ("mean", standardizing, "that standardises"),
    ]:
        with pytest.raises(WeightsError, match=message):
            write(made(tmp_path, pooling, head), tmp_path)

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

import multimodal
from multimodal.data.settings import EvaluationData
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.embedder import Embedder
from multimodal.inference.publish.sentences import write
from multimodal.inference.publish.sentences_reading import is_sentences
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
    again = multimodal.load(tmp_path / "out", device="cpu")
    theirs, own = (each.model.state_dict() for each in (again, embedder))
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[key], own[key]) for key in own)
    assert (torch.as_tensor(again.embed(text=TEXTS)) - ours).abs().max() < 1e-6


def test_what_has_no_place_there_is_said(tmp_path):
    standardizing = partial(MLPHead, embed_dim=8, standardize=True)
    for pooling, head, message in [
        ("attention", "linear", "its pooling is"),
        ("mean", standardizing, "that standardises"),
    ]:
        with pytest.raises(WeightsError, match=message):
            write(made(tmp_path, pooling, head), tmp_path)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_pooling(out: Path) -> None:
    modules = json.loads((out / "modules.json").read_text())
    (out / "modules.json").write_text(json.dumps([modules[0], *modules[2:]]))


def move(out: Path) -> None:
    modules = json.loads((out / "modules.json").read_text())
    modules[1]["path"] = "../../elsewhere"
    (out / "modules.json").write_text(json.dumps(modules))


DENSE = "4_Dense/config.json"  # the second of an MLP behind its norm
TANH = {"activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_pooling, "expected a Transformer and a Pooling first"),
        (move, "outside of the folder"),
        (lambda out: (out / "modules.json").write_text("[{"), "cannot be read as JSON"),
        (lambda out: change(out / "1_Pooling/config.json", pooling_mode_cls_token=True),
         "expected one of"),
        (lambda out: change(out / DENSE, **TANH), "expected Identity"),
        (lambda out: (out / "3_Dense/model.safetensors").write_bytes(b"x"), "cannot be read"),
        (lambda out: change(out / DENSE, out_features=9), "its head"),
        (lambda out: change(out / "config_sentence_transformers.json",
                            prompts={"query": "query: "}, default_prompt_name="query"),
         "puts 'query: ' before every text"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_like_one_of_ours_is_refused(tmp_path, spoil, message):
    out = tmp_path / "out"
    out.mkdir()
    write(made(tmp_path, "mean", "mlp"), out)
    assert is_sentences(out)
    assert multimodal.load(out, device="cpu").model.embed_dim == 8
    spoil(out)
    with pytest.raises(WeightsError, match=message):
        multimodal.load(out, device="cpu")


TYPES = "sentence_transformers.base.modules.pooling.Pooling"


@pytest.mark.parametrize(("mode", "pooling"), [("mean", "mean"), ("cls", "class")])
def test_the_files_of_release_6(tmp_path, mode, pooling):
    """Other paths of the classes, another configuration of the pooling; the tokenizer's limit."""
    out = tmp_path / "out"
    out.mkdir()
    embedder = made(tmp_path, pooling, "linear")
    write(embedder, out)
    modules = json.loads((out / "modules.json").read_text())
    modules[1]["type"] = TYPES
    (out / "modules.json").write_text(json.dumps(modules))
    config = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}
    (out / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (out / "sentence_bert_config.json").unlink()
    again = multimodal.load(out, device="cpu")
    assert again.transforms["text"].context_length == 12
    ours, theirs = (torch.as_tensor(each.embed(text=TEXTS)) for each in (embedder, again))
    assert (ours - theirs).abs().max() < 1e-6


def test_a_model_of_the_hub_without_a_head(tmp_path):
    """As many are: pooled and not normalised, without a limit of their own."""
    embedder = made(tmp_path, "mean", "identity")
    out = tmp_path / "out"
    out.mkdir()
    write(embedder, out)
    modules = json.loads((out / "modules.json").read_text())
    (out / "modules.json").write_text(json.dumps(modules[:2]))
    change(out / "sentence_bert_config.json", max_seq_length=None, do_lower_case=True)
    change(out / "tokenizer_config.json", model_max_length=1e30)
    again = multimodal.load(out, device="cpu")
    assert again.transforms["text"].context_length == SMALL_BERT["max_position_embeddings"]
    expected = torch.as_tensor(embedder.embed(text=["a red chair"]))
    assert (torch.as_tensor(again.embed(text=["A red chair"])) - expected).abs().max() < 1e-6

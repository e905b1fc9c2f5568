"""A tower in the layout of sentence-transformers, read module by module as it says there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from small_weights import SMALL_BERT, tokenizer_json
from torch import Tensor, nn
from torch.nn import functional as F

import multimodal
from multimodal.data.settings import EvaluationData
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.image import ImageTransform
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


def as_they_read_it(folder: Path, pictures: list[Image.Image] | None = None) -> Tensor:
    """The modules of a folder, one after the other, on texts or on pictures."""
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [each["type"].removeprefix("sentence_transformers.models.") for each in modules]
    assert kinds[:2] == ["Transformer", "Pooling"]
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if pictures is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        length = settings["max_seq_length"]
        options = {"padding": True, "truncation": True, "return_tensors": "pt"}
        given = tokenizer(TEXTS, max_length=length, **options)
        tokens, mask = model(**given).last_hidden_state, given["attention_mask"]
    else:
        (given,) = settings["modality_config"].values()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        output = model(**processor(pictures, return_tensors="pt"))
        tokens = output[given["method_output_name"]]
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64)
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


def pictured(pooling: str, head: str) -> Embedder:
    torch.manual_seed(0)
    config = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    tower = Tower(HuggingFaceEncoder(config=config, pooling=pooling), HEADS[head]).eval()
    image = ImageTransform(size=32, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    return Embedder(EmbeddingModel({"image": tower}), EvaluationData({"image": image}, 8))


def pictures(side: int = 32) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (3, side, side + side // 2, 3))
    return [Image.fromarray(each.astype(np.uint8)) for each in pixels]


@pytest.mark.parametrize(("pooling", "head"), [("mean", "mlp"), ("class", "linear")])
@torch.no_grad()
def test_the_modules_embed_pictures_the_same(tmp_path, pooling, head):
    embedder, out = pictured(pooling, head), tmp_path / "out"
    out.mkdir()
    write(embedder, out)
    ours = torch.as_tensor(embedder.embed(image=pictures()))
    assert (as_they_read_it(out, pictures()) - ours).abs().max() < 1e-5
    assert is_sentences(out)
    again = multimodal.load(out, device="cpu")
    assert (torch.as_tensor(again.embed(image=pictures(50))) - torch.as_tensor(
        embedder.embed(image=pictures(50)))).abs().max() < 1e-6  # fmt: skip
    for name, value in {"std": None, "resample": 4}.items():
        content = json.loads((out / "preprocessor_config.json").read_text())
        change(out / "preprocessor_config.json", **{f"image_{name}": value, name: value})
        with pytest.raises(WeightsError, match="expected size, image_mean"):
            multimodal.load(out, device="cpu")
        (out / "preprocessor_config.json").write_text(json.dumps(content))
    change(out / "sentence_bert_config.json", modality_config={"image": {}, "text": {}})
    with pytest.raises(WeightsError, match=r"it takes .*'image', 'text'.*; expected one of"):
        multimodal.load(out, device="cpu")


@pytest.mark.slow
def test_sentence_transformers_opens_the_folders_and_embeds_the_same(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    for number, (embedder, name, given) in enumerate((
        (pictured("class", "mlp"), "image", pictures()),
        (pictured("mean", "linear"), "image", pictures()),
        (made(tmp_path, "mean", "mlp"), "text", TEXTS),
    )):  # fmt: skip
        out = tmp_path / str(number)
        out.mkdir()
        write(embedder, out, name)
        theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode(given)
        ours = torch.as_tensor(embedder.embed(**{name: given}))
        assert (torch.as_tensor(theirs) - ours).abs().max() < 1e-5, name


def test_one_tower_is_chosen(tmp_path):
    text, image = made(tmp_path, "mean", "linear"), pictured("class", "linear")
    towers = {"image": image.model.tower("image"), "text": text.model.tower("text")}
    transforms = {**image.transforms, **text.transforms}
    both = Embedder(EmbeddingModel(towers), EvaluationData(transforms, 8))
    for name, chosen in ((None, "text"), ("text", "text"), ("image", "image")):
        out = tmp_path / str(name)
        out.mkdir()
        write(both, out, name)
        assert list(multimodal.load(out, device="cpu").model.towers) == [chosen]
    with pytest.raises(WeightsError, match="no audio tower"):
        write(both, tmp_path, "audio")


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

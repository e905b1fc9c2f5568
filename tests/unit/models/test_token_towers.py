"""Towers that give an embedding of each token: trained, evaluated, embedded and compared."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from data_helpers import image_bytes
from experiment_helpers import composed, losses, train_here, write_sensor_shards
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

import multimodal
from multimodal.cli.embed import embed
from multimodal.cli.packing.mine import mine
from multimodal.cli.search import search
from multimodal.cli.serve import serve
from multimodal.config import ConfigError, check, config_dir
from multimodal.core.errors import UserError
from multimodal.core.similarity.similarities import MaxSim
from multimodal.inference.export.writing import Choices, export
from multimodal.inference.publish.publishing import publish
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.fusion_model import FusionModel
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.objective import make_objective

HEAD = partial(LinearHead, embed_dim=6, norm=True)


def model(attend_padding: bool = False) -> EmbeddingModel:
    torch.manual_seed(0)
    trunk = partial(Transformer, width=8, num_layers=1, num_heads=2)
    text = TextTransformer(30, 5, trunk(), "mean", attend_padding)
    image = VisionTransformer(8, 3, partial(PatchStem, patch_size=4), trunk())
    built = EmbeddingModel({"image": Tower(image, HEAD), "text": Tower(text, HEAD)}).double()
    built.compare_by(MaxSim())
    return built


IDS = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 8, 9, 2], [5, 0, 0, 0, 0]])
PICTURES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attend_padding", [False, True])
def test_the_head_is_applied_to_each_token_and_padding_is_zero(attend_padding):
    towers = model(attend_padding)
    mask = IDS > 0
    tokens = towers.embed("text", IDS, mask)
    encoded = towers.tower("text").encode(IDS, mask)
    expected = F.normalize(towers.tower("text").head(encoded.tokens), dim=-1) * mask[..., None]
    assert torch.equal(tokens, expected)
    assert torch.equal(tokens.any(dim=2), mask)
    patches = towers.embed("image", PICTURES)
    assert patches.shape == (3, 1 + 4, 6)
    torch.testing.assert_close(patches.norm(dim=2), torch.ones(3, 5, dtype=torch.float64))
    assert towers.embed("text", IDS, mask, "raw").any(dim=2).equal(mask)


def test_a_model_of_transformers_gives_its_last_hidden_states():
    settings = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    encoder = HuggingFaceEncoder(config={"model_type": "bert", **settings}, pooling="mean")
    towers = EmbeddingModel({"text": Tower(encoder, HEAD)}).eval()
    pooled = towers.embed("text", IDS, IDS > 0)
    towers.compare_by(MaxSim())
    tokens = towers.embed("text", IDS, IDS > 0)
    hidden = encoder.model(input_ids=IDS, attention_mask=(IDS > 0).long())[0]
    expected = F.normalize(towers.tower("text").head(hidden), dim=-1) * (IDS > 0)[..., None]
    torch.testing.assert_close(tokens, expected)
    assert pooled.shape == (3, 6)


def test_several_clips_are_one_document():
    built = EmbeddingModel({"sound": Tower(FeatureEncoder(10, 12, hidden=16), HEAD)})
    built.compare_by(MaxSim())
    clips = torch.randn(4, 3, 10)
    built.tower("sound").encoder.input_dims = 2
    expected = torch.cat([built.embed("sound", clips[:, i]) for i in range(3)], dim=1)
    assert torch.equal(built.embed("sound", clips), expected)
    assert expected.shape == (4, 3, 6)


def test_gradient_caching_is_exact():
    """The pieces' tokens are joined, also where a piece's encoder gives fewer of them."""
    towers = model()
    pairs = {"p": {"anchor": "image", "other": "text"}}
    objective = make_objective(pairs, InfoNCE(), InBatch(), AllRanks(), similarity=MaxSim())

    def text(ids: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        longest = int(mask.sum(dim=1).max())
        return towers.embed("text", ids[:, :longest], mask[:, :longest])

    def step(size: int | None) -> list[Tensor]:
        sides = {
            "image": encode_microbatched(
                lambda pixels, _: towers.embed("image", pixels), PICTURES, None, size
            ),
            "text": encode_microbatched(text, IDS, IDS > 0, size),
        }
        loss = objective(sides, torch.arange(3), torch.arange(3), 0, 0, "s").loss
        learned = [*towers.parameters(), *objective.parameters()]
        found = torch.autograd.grad(loss, learned, materialize_grads=True, allow_unused=True)
        return [loss, *found]

    torch.testing.assert_close(step(1), step(None), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step(2), step(None), rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, its folder and its shards."""
    folder = tmp_path_factory.mktemp("late")
    shards = write_sensor_shards(folder / "shards", train=32)
    words = ("similarity=maxsim", "similarity.query=sensor", "trainer.max_steps=2",
             "trainer.val_check_interval=2", "data.batch_size=8", "data.num_workers=0")  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SENSOR_SHARDS", str(shards))
        train_here(folder / "whole", *words)
        train_here(folder / "pieces", *words, "micro_batch_size=3", "~evaluation")
        yield folder


def test_a_run_trains_and_is_evaluated(trained):
    whole, pieces = (losses(trained / name) for name in ("whole", "pieces"))
    assert list(whole) == [1, 2]
    for step, value in whole.items():
        assert float(pieces[step]) == pytest.approx(float(value), rel=1e-4)
    metrics = json.loads((trained / "whole" / "metrics.json").read_text())
    assert {"image_to_sensor", "sensor_to_image"} <= metrics["unseen"].keys()
    missing = json.dumps(metrics["unseen"]["missing"])
    assert "SpaceTask" in missing
    assert "one embedding of each input" in missing
    assert "Token similarities" in (trained / "whole" / "report.html").read_text()


def test_a_checkpoint_embeds_tokens_and_compares_them(trained):
    loaded = multimodal.load(trained / "whole")
    assert loaded.model.similarity == MaxSim(query="sensor")
    random = np.random.default_rng(0)
    readings = [random.standard_normal(12).astype(np.float32) for _ in range(3)]
    pictures = [random.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in range(2)]
    asked, tokens = loaded.embed(sensor=readings), loaded.embed(image=pictures)
    assert asked.ndim == tokens.ndim == 3
    expected = torch.einsum("atd,cud->atcu", asked, tokens).amax(dim=3).mean(dim=1)
    torch.testing.assert_close(loaded.similarity(sensor=readings, image=pictures), expected)
    torch.testing.assert_close(loaded.similarity(image=pictures, sensor=readings), expected.T)
    with pytest.raises(ValueError, match="zero_shot averages prompts"):
        loaded.zero_shot(["a"], image=pictures)


def test_the_commands_embed_and_search(trained, monkeypatch, capsys):
    run, output = trained / "whole", trained / "tokens.parquet"
    given = {"checkpoint": run, "input": trained / "shards" / "measured.json", "output": output}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        embed(compose("embed", [f"{key}='{value}'" for key, value in given.items()]))
    assert "64 inputs, tokens of 16 numbers" in capsys.readouterr().out
    picture = trained / "picture.png"
    picture.write_bytes(image_bytes(np.zeros((16, 16, 3), np.uint8)))
    given = {"checkpoint": run, "index": output, "query": picture}
    for approximate in ("false", "true"):
        words = [*(f"{key}='{value}'" for key, value in given.items()), "k=2"]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            search(compose("search", [*words, f"approximate={approximate}"]))
        shown = capsys.readouterr().out
        assert "similarity" in shown
        assert (shown.count("sensor"), shown.count("image")) >= (2, 2)


def test_a_manifest_is_searched_in_the_split_and_the_modalities_that_are_asked_for(
    trained, monkeypatch, capsys
):
    given = {"checkpoint": trained / "whole", "index": trained / "shards" / "measured.json"}
    picture = trained / "picture.png"
    picture.write_bytes(image_bytes(np.zeros((16, 16, 3), np.uint8)))
    given |= {"query": picture, "split": "val"}
    words = [*(f"{key}='{value}'" for key, value in given.items()), "k=1"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        search(compose("search", [*words, "modalities={image: {member: view.png}}"]))
        shown = capsys.readouterr()
        assert "embedding the 48 items" in shown.err
        assert "sensor" not in shown.out
        with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'"):
            search(compose("search", [*words, "split=tset"]))


@pytest.mark.parametrize("command", ["serve", "mine"])
def test_commands_of_one_vector_refuse(trained, command, tmp_path):
    words = {
        "serve": [f"checkpoint={trained / 'whole'}", f"index={tmp_path / 't.parquet'}"],
        "mine": [f"checkpoint={trained / 'whole'}", f"output={tmp_path / 'n.npz'}",
                 f"input={trained / 'shards' / 'measured.json'}", "anchor=image", "other=sensor"],
    }  # fmt: skip
    verb = {"serve": serve, "mine": mine}[command]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(command, words[command])
    with pytest.raises(UserError, match=f"{command} takes one embedding of each input"):
        verb(cfg)


def test_a_model_of_tokens_is_not_exported(trained, tmp_path):
    loaded = multimodal.load(trained / "whole")
    with pytest.raises(UserError, match="export takes one embedding of each input"):
        export(loaded, OmegaConf.create(), tmp_path / "out", Choices(), {})
    with pytest.raises(UserError, match="publish takes one embedding of each input"):
        publish(loaded, OmegaConf.create(), str(tmp_path / "out"), "", {})


RULES = {
    "a queue": ("candidates=queue", "pairs.image_text", "a queue keeps one embedding a sample"),
    "cached towers": ("data.cache_frozen=true", "data.cache_frozen", "compares tokens: false"),
    "a joint embedding": (
        "+joint@model.joint.both=weighted model.joint.both.modalities=[image,text]",
        "model.joint",
        "is of pooled embeddings",
    ),
    "an unknown query": ("similarity.query=txt", "similarity.query", "did you mean 'text'?"),
    "one of a pair": (
        "+pairs.image_text.similarity.query=text", "pairs.image_text.similarity", "no parameter"
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule):
    word, where, said = RULES[rule]
    with (
        composed("+experiment=clip", "similarity=maxsim", *word.split()) as cfg,
        pytest.raises(ConfigError) as caught,
    ):
        check(cfg)
    found = {problem.where: problem.message for problem in caught.value.problems}
    assert said in found[where], found


@pytest.mark.parametrize("word", ["loss=cosine", "negatives=debiased", "negatives=filtered"])
def test_sums_are_no_cosines(word):
    words = ("+experiment=clip_scratch", "similarity=maxsim", word)
    with composed(*words) as cfg:
        check(cfg)
    with (
        composed(*words, "similarity.reduction=sum") as cfg,
        pytest.raises(ConfigError, match=r"similarity\.reduction=mean"),
    ):
        check(cfg)


def test_a_fusion_has_pooled_pairs():
    with (
        composed("+experiment=albef", "similarity=maxsim") as cfg,
        pytest.raises(ConfigError, match="pairs compare pooled embeddings"),
    ):
        check(cfg)
    built = FusionModel(model().towers, lambda widths: _Fusion(widths))
    with pytest.raises(ValueError, match="take similarity=cosine"):
        built.compare_by(MaxSim())


class _Fusion(nn.Module):
    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.width, self.modalities = 8, tuple(widths)


def test_an_earlier_configuration_has_cosines():
    with composed("+experiment=clip_scratch") as cfg:
        OmegaConf.set_struct(cfg, False)
        del cfg["similarity"]
        check(cfg)

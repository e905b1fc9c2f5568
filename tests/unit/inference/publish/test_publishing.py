"""Published folders opened by transformers and by `multimodal.load`; what would leave, what may."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from hydra.utils import instantiate
from pretrained_helpers import case, clip_inputs, foreign_state
from safetensors.torch import load_file

import multimodal
from multimodal.cli.weights.publish import main
from multimodal.core.errors import UserError
from multimodal.inference.checkpoint.file import write_atomically
from multimodal.inference.imported import save, take_tokenizer
from multimodal.inference.importing import import_weights
from multimodal.models.pretrained import open_clip
from multimodal.models.pretrained.to_open_clip import as_open_clip

CLASSES = {"openai_quickgelu_a": "CLIPModel", "openclip_a": "CLIPModel", "siglip_a": "SiglipModel"}


def merges(path) -> None:
    """As many merges as CLIP's vocabulary has, of pairs of bytes."""
    known = alphabet()
    pairs = itertools.islice(itertools.product(known, known), 49408 - 512 - 2)
    path.write_text("\n".join(["#version: 0.2", *map(" ".join, pairs)]) + "\n", "utf-8")


def alphabet() -> list[str]:
    """The characters that stand for bytes, as GPT-2 chose them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(each) for each in shown] + [chr(256 + place) for place in range(256 - len(shown))]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of three small models of CLIP's and SigLIP's kind, each with what its file began as."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    merges(folder / "merges.txt")
    for name in CLASSES:
        described, _ = case(name)
        state = foreign_state(described["shapes"], described["seed"], described["std"])
        made[name] = (import_weights(state, described["cfg"]), described)
        take_tokenizer(made[name][0], folder)
        save(made[name][0], folder / f"{name}.ckpt", name)
    return folder, made


def unit(output) -> torch.Tensor:
    rows = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("openclip_a", marks=pytest.mark.slow),
        pytest.param("openai_quickgelu_a", marks=pytest.mark.heavy),
        "siglip_a",
    ],
)
@torch.no_grad()
def test_transformers_opens_the_folder_and_embeds_the_same(checkpoints, tmp_path, name, capsys):
    import transformers

    folder, made = checkpoints
    main([str(folder / f"{name}.ckpt"), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "layout: transformers\n" in printed
    assert all(path.name in printed for path in (tmp_path / "out").iterdir())
    model = getattr(transformers, CLASSES[name]).from_pretrained(tmp_path / "out").eval()
    imported, described = made[name]
    inputs = clip_inputs(described, cut="logit_bias" not in described["shapes"])
    theirs = {
        "image": unit(model.get_image_features(pixel_values=inputs["image"])),
        "text": unit(model.get_text_features(input_ids=inputs["text"])),
    }
    for modality, rows in theirs.items():
        ours = imported.model.embed(modality, inputs[modality])
        assert (rows - ours).abs().max() < 1e-5, modality
    scale = float(model.logit_scale.exp())
    assert scale == pytest.approx(imported.logit_scale, rel=1e-5)

    again = multimodal.load(tmp_path / "out", device="cpu")
    for key, tensor in imported.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor)
    assert again.temperatures[frozenset(("image", "text"))] == pytest.approx(1 / scale, rel=1e-5)
    if "text" in again.transforms:
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a chair").input_ids
        assert tokens == again.transforms["text"]("a chair", None).tolist()[: len(tokens)]
        modules = json.loads((tmp_path / "out" / "modules.json").read_text())
        assert [each["type"].rsplit(".", 1)[-1] for each in modules] == ["CLIPModel", "Normalize"]
    prepared = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert prepared["image_mean"] == pytest.approx(again.transforms["image"].mean)
    assert (
        (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    )


def test_the_scale_and_bias_that_were_trained_are_published(checkpoints, tmp_path):
    """Of the pair of pictures and texts, whatever its name."""
    import transformers

    content = torch.load(checkpoints[0] / "siglip_a.ckpt", weights_only=True)
    config = yaml.safe_load(content["config"])
    config["pairs"]["captions"] = config["pairs"].pop("image_text")
    content["config"] = yaml.safe_dump(config)
    for name, value in (("scale", 2.5), ("bias", -7.25)):
        del content["state_dict"][f"objective.pairs.image_text.logit_{name}"]
        content["state_dict"][f"objective.pairs.captions.logit_{name}"] = torch.tensor(value)
    write_atomically(content, tmp_path / "trained.ckpt")
    main([str(tmp_path / "trained.ckpt"), str(tmp_path / "out")])
    model = transformers.SiglipModel.from_pretrained(tmp_path / "out")
    assert float(model.logit_bias) == -7.25
    assert float(model.logit_scale) == 2.5


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["openai_quickgelu_a", "openclip_a"])
def test_open_clips_folder_holds_the_tensors_that_the_model_came_from(checkpoints, tmp_path, name):
    folder, made = checkpoints
    main([str(folder / f"{name}.ckpt"), str(tmp_path / "out"), "--layout", "open_clip"])
    imported, described = made[name]
    original = foreign_state(described["shapes"], described["seed"], described["std"])
    stored = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    masks = {key for key in original if key.endswith("attn_mask")}
    assert stored.keys() == original.keys() - masks
    for key, tensor in stored.items():
        atol = 1e-6 * (key == "logit_scale")
        torch.testing.assert_close(tensor, original[key], rtol=0, atol=atol)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert {"quick_gelu": False, **config["model_cfg"]} == described["cfg"]
    again = multimodal.load(tmp_path / "out", device="cpu")
    assert config["preprocess_cfg"]["mean"] == pytest.approx(again.transforms["image"].mean)
    for key, tensor in imported.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor)


@torch.no_grad()
def test_open_clips_folder_says_what_differs_from_clip(tmp_path):
    """Sizes, activation, masks, pooling and factors that OpenCLIP has by configuration."""
    cfg = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 8,
                       "mlp_ratio": 2.0, "no_ln_pre": True, "ls_init_value": 1e-5,
                       "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
        "text_cfg": {"context_length": 9, "vocab_size": 30, "width": 16, "layers": 1, "heads": 2,
                     "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "init_logit_bias": -10.0,
    }  # fmt: skip
    plan = open_clip.describe(cfg, {}, "open_clip")
    towers = {name: tower.config for name, tower in plan.own_towers().items()}
    model = instantiate({"_target_": "multimodal.models.EmbeddingModel", "towers": towers})
    written, state = as_open_clip(model, 10.0, bias=-10.0)
    assert written == cfg
    again = import_weights(state, written)
    assert (again.logit_scale, again.logit_bias) == (pytest.approx(10), -10)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor)


@pytest.mark.heavy
def test_a_dry_run_lists_every_file_and_leaves_none(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    checkpoint = str(checkpoints[0] / "openclip_a.ckpt")
    main([checkpoint, "hub://someone/small", "--dry-run"])
    printed = capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "README.md"):
        assert f"bytes  {name}" in printed
    assert "would be written: hub://someone/small" in printed
    main([checkpoint, str(tmp_path / "out"), "--dry-run"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_exported_folder_is_published_as_it_is(checkpoints, tmp_path, capsys):
    made = tmp_path / "made"
    main([str(checkpoints[0] / "openclip_a.ckpt"), str(made), "--layout", "ours"])
    (made / "notes.txt").write_text("not listed in model.json")
    main([str(made), str(tmp_path / "out")])
    assert "layout: ours" in capsys.readouterr().out
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sent == {p.name: p.read_bytes() for p in made.iterdir() if p.name != "notes.txt"}
    with pytest.raises(UserError, match=r"--layout open_clip: .* is exported"):
        main([str(made), str(tmp_path / "other"), "--layout", "open_clip"])
    with (made / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        main([str(made), str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_a_hub_gets_those_files_with_the_environments_token(checkpoints, monkeypatch, capsys):
    sent = {}

    def upload(repo_id, folder_path, commit_message):
        from pathlib import Path

        sent.update(name=repo_id, files={path.name for path in Path(folder_path).iterdir()})

    def api(token):
        sent["token"] = token
        made = SimpleNamespace(upload_folder=upload)
        made.create_repo = lambda name, exist_ok, private: sent.update(private=private)
        return made

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    main([str(checkpoints[0] / "openclip_a.ckpt"), "hub://someone/small"])
    assert (sent["token"], sent["name"], sent["private"]) == (
        "from-the-environment", "someone/small", True,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert all(name in printed for name in sent["files"])
    assert "from-the-environment" not in printed


def test_a_refusal_of_the_hub_does_not_say_the_token(checkpoints, monkeypatch):
    def api(token):
        raise_it = lambda *_, **__: (_ for _ in ()).throw(OSError(f"401 for {token}"))  # noqa: E731
        return SimpleNamespace(create_repo=raise_it)

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    with pytest.raises(UserError, match="hub://someone/small: OSError: 401 for <redacted>"):
        main([str(checkpoints[0] / "openclip_a.ckpt"), "hub://someone/small"])


def test_what_cannot_be_published_is_one_line(checkpoints, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    checkpoint = str(checkpoints[0] / "openclip_a.ckpt")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("kept")
    for words, said in [
        ((checkpoint, str(tmp_path / "there")), "exists: name a new folder"),
        ((checkpoint, "hub://nobody"), "expected hub://OWNER/NAME"),
        ((checkpoint, "hub://someone/small"), "needs a token in the environment's HF_TOKEN"),
        (
            (checkpoint, str(tmp_path / "x"), "--layout", "onix"),
            "layout=onix: expected one of auto",
        ),
        ((str(tmp_path / "none.ckpt"), str(tmp_path / "x")), "none.ckpt"),
    ]:
        with pytest.raises(UserError, match=said):
            main(list(words))
    assert (tmp_path / "there" / "mine.txt").read_text() == "kept"
    assert not (tmp_path / "x").exists()

"""From a foreign file to a checkpoint of ours, as a user does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretrained_helpers import case, clip_inputs, foreign_state
from safetensors.torch import save_file

from multimodal.inference import imported as checkpoint
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.importing import import_weights
from multimodal.models.pretrained import files
from multimodal.models.pretrained.keys import WeightsError

ROOT = Path(__file__).parents[3]


def siglip() -> tuple[dict, dict, dict]:
    """The smallest case, the outputs expected of it, and its weights."""
    described, expected = case("siglip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    return described, expected, state


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "import_weights.py"), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=500, check=False, cwd=ROOT
    )


@pytest.mark.heavy
def test_the_script_writes_a_checkpoint_that_embeds_as_the_reference(tmp_path):
    described, expected, state = siglip()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described["cfg"]}))
    output = tmp_path / "ours.ckpt"
    run = run_script(f"input={tmp_path}", f"output={output}")
    assert run.returncode == 0, run.stderr[-2000:]
    parameters = sum(tensor.numel() for tensor in state.values()) - 2  # scale and bias: the pair's
    shown = [line for line in run.stdout.splitlines() if "Transformer" in line]
    assert len(shown) == 2
    counts = [int(line.split("│")[-2].replace(",", "")) for line in shown]
    assert sum(counts) == parameters
    model, cfg = load_model(output)
    inputs = clip_inputs(described, cut=False)
    with torch.no_grad():
        for modality in ("image", "text"):
            error = (model.embed(modality, inputs[modality]) - expected[modality]).abs().max()
            assert error < 1e-5
    assert cfg.pairs.image_text.logit_scale.init == pytest.approx(10)
    assert cfg.data.transforms.image.mean == [0.5, 0.5, 0.5]
    kept = store.read(output)["state_dict"]
    assert kept["objective.pairs.image_text.logit_bias"] == -10


@pytest.mark.slow
def test_the_script_reports_misfits_without_a_traceback(tmp_path):
    described, _, state = siglip()
    state["more"] = torch.zeros(2)
    del state["visual.trunk.norm.bias"]
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(described["cfg"]))
    words = (f"input={tmp_path}/weights.safetensors", f"config={tmp_path}/c.json")
    run = run_script(*words, f"output={tmp_path}/ours.ckpt")
    assert run.returncode == 2
    assert "more [2]" in run.stderr
    assert "visual.trunk.norm.bias" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "ours.ckpt").exists()
    allowed = run_script(*words, f"output={tmp_path}/ours.ckpt", "allow=[more,visual.trunk.norm.*]")
    assert allowed.returncode == 0, allowed.stderr[-2000:]
    assert "left over: more [2]" in allowed.stdout


class Evil:
    ran = False

    def __reduce__(self):
        return (Evil.run, ())

    @staticmethod
    def run() -> None:
        Evil.ran = True


def test_a_pickle_that_would_run_code_is_rejected_and_not_executed(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1), "b": Evil()}}, tmp_path / "evil.bin")
    with pytest.raises(WeightsError, match="cannot be read with weights_only=True"):
        files.read_state(tmp_path / "evil.bin")
    assert not Evil.ran
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert Evil.ran  # the fault was a real one


def test_a_torchscript_archive_is_rejected_with_a_hint(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(WeightsError, match=r"TorchScript archive.*take the same weights as safet"):
        files.read_state(tmp_path / "ViT-B-32.pt")


def test_state_dicts_are_found_inside_what_trainers_write(tmp_path):
    weights = {"a": torch.arange(3.0)}
    for nested in (
        {"epoch": 1, "state_dict": weights},
        {"epoch": 1, "optimizer": {"state": {}}, "model_state_dict": weights},
        {"model": {"state_dict": weights}},
        {"model": {"name": "x"}, "net": weights},
    ):
        torch.save(nested, tmp_path / "epoch.pt")
        assert torch.equal(files.read_state(tmp_path / "epoch.pt")["a"], weights["a"])
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pt")
    with pytest.raises(WeightsError, match="not a state dict"):
        files.read_state(tmp_path / "mixed.pt")
    with pytest.raises(WeightsError, match="no file or folder"):
        files.read_state(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"holds none of model\.safetensors"):
        files.read_state(tmp_path / "empty")


WRAPPED = [
    "_orig_mod.module.{}", "module._orig_mod.{}", "model.{}", "model._orig_mod.module.model.{}",
    "net.model.module.{}", "_orig_mod.{}", "module.module.{}",
]  # fmt: skip


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_what_wrappers_put_before_the_names_is_taken_off(wrapped):
    described, expected, state = siglip()
    given = {wrapped.format(name): tensor for name, tensor in state.items()}
    model = import_weights(given, described["cfg"]).model
    image = clip_inputs(described, cut=False)["image"]
    with torch.no_grad():
        assert (model.embed("image", image) - expected["image"]).abs().max() < 1e-5


def test_compiled_and_wrapped_parts_of_a_model_are_taken_too():
    described, _, state = siglip()
    given = {
        name.replace("visual.", "visual._orig_mod.").replace("text.", "text.module."): tensor
        for name, tensor in state.items()
    }
    assert import_weights(given, described["cfg"]).diff.allowed == []


def test_most_names_decide_and_what_is_not_the_model_is_listed_with_the_way_out():
    described, _, state = siglip()
    given = {f"model.{name}": tensor for name, tensor in state.items()}
    given["loss.centre"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"loss\.centre \[3\]\n.*allow="):
        import_weights(given, described["cfg"])
    assert import_weights(given, described["cfg"], allow=["loss.*"]).diff.allowed


def test_one_of_two_models_is_named_by_its_prefix():
    described, _, state = siglip()
    given = {f"student.{name}": tensor for name, tensor in state.items()}
    given |= {f"teacher.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"prefix=\.\.\., of student\., teacher\."):
        import_weights(given, described["cfg"])
    for prefix in ("student", "student."):
        imported = import_weights(given, described["cfg"], prefix=prefix)
        assert imported.logit_scale == pytest.approx(10)
        left = f"prefix={prefix}: {len(state)} tensors without it are left out"
        assert imported.notes == [left]
    with pytest.raises(WeightsError, match=r"prefix=studnet: .*did you mean 'student\.'"):
        import_weights(given, described["cfg"], prefix="studnet")


def test_a_part_behind_a_prefix_of_its_own_is_named_in_the_hint():
    described, _, state = siglip()
    given = {n if "visual" in n else f"tower.{n}": tensor for n, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"give prefix=tower\."):
        import_weights(given, described["cfg"])


def test_two_tensors_of_one_name_are_not_mixed():
    described, _, state = siglip()
    given = {**state, **{f"module.{name}": tensor for name, tensor in state.items()}}
    with pytest.raises(WeightsError, match=r"are both .* give prefix="):
        import_weights(given, described["cfg"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_counted(value):
    described, _, state = siglip()
    name = next(name for name in sorted(state) if name.startswith("visual.trunk.blocks"))
    state[name] = state[name].clone()
    state[name].view(-1)[:2] = value
    shape, count = list(state[name].shape), state[name].numel()
    with pytest.raises(WeightsError) as error:
        import_weights(state, described["cfg"])
    assert f"{name} {shape}: 2 of {count} numbers are NaN or inf" in str(error.value)


def test_a_scale_that_is_not_finite_is_named():
    described, _, state = siglip()
    state["logit_scale"] = torch.tensor(float("nan"))
    with pytest.raises(WeightsError, match=r"logit_scale \[\]: 1 of 1 numbers"):
        import_weights(state, described["cfg"])


def test_a_file_that_is_no_safetensors_is_rejected(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read as safetensors"):
        files.read_state(tmp_path / "x.safetensors")


def test_sharded_safetensors_are_joined_and_stay_in_their_folder(tmp_path):
    for number in (1, 2):
        save_file(
            {f"t{number}": torch.full((2,), float(number))}, tmp_path / f"{number}.safetensors"
        )
    index = {"weight_map": {"t1": "1.safetensors", "t2": "2.safetensors"}}
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    assert sorted(files.read_state(tmp_path)) == ["t1", "t2"]
    index["weight_map"]["t2"] = "../2.safetensors"
    (tmp_path / files.INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside of its folder"):
        files.read_state(tmp_path)


def test_a_checkpoint_that_reads_back_otherwise_is_an_error(tmp_path, monkeypatch):
    described, _, state = siglip()
    imported = import_weights(state, described["cfg"])
    write = checkpoint_file.write_atomically

    def damaged(content, path):
        name = "model.towers.image.encoder.trunk.norm.bias"
        state = {**content["state_dict"], name: content["state_dict"][name] + 1e-6}
        write({**content, "state_dict": state}, path)

    monkeypatch.setattr(checkpoint_file, "write_atomically", damaged)
    with pytest.raises(WeightsError, match=r"trunk\.norm\.bias differs from what was written"):
        checkpoint.save(imported, tmp_path / "ours.ckpt")

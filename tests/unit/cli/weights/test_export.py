"""`multimodal export`, on release 0.1: a fusion with its task, and what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_programs import run_program

from multimodal.data.source import Source
from multimodal.inference.export.runner import Model
from multimodal.inference.load import load_embedder

ROOT = Path(__file__).parents[4]
STORED = ROOT / "tests" / "vectors" / "release_0_1"
FUSION = STORED / "fusion"


def exported(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`scripts/export.py` with these words."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return run_program([str(ROOT / "scripts/export.py"), *words], env, ROOT, folder, 300.0)


@pytest.mark.slow
def test_a_fusion_and_its_task_through_the_runner(tmp_path):
    output = tmp_path / "fused"
    done = exported(tmp_path, f"checkpoint={FUSION}", f"output={output}", "formats=[onnx]")
    assert done.returncode == 0, done.stderr
    assert f"written: {output}" in done.stdout
    about = json.loads((output / "model.json").read_text())
    assert about["opset"] == 20
    task = about["fusion"]["tasks"]["highest"]
    assert task["kind"] == "Classification"
    assert len(task["classes"]) > 1

    embedder = load_embedder(FUSION, device="cpu")
    source = Source(
        str(STORED / "shards" / "measured.json"),
        {"image": {"member": "view.png"}, "sensor": {"member": "reading.npy"}}, "val",
    )  # fmt: skip
    decoded = [source.decode(i, None, ["image", "sensor"]).values for i in range(6)]
    samples = [dict(each) for each in decoded]
    del samples[1]["sensor"], samples[4]["image"]
    got = Model(output).fuse(samples)

    inputs, presence = {}, {}
    for name, transform in embedder.transforms.items():
        whole = [transform(each[name], None) for each in decoded]
        inputs[name] = transform.collate(whole)[0]
        presence[name] = torch.tensor([name in each for each in samples])
    with torch.no_grad():
        fused = embedder.model(inputs, {}, presence).fused.features
        logits = embedder.model.tasks["highest"].head(fused)
    assert np.abs(got["fused"] - fused.numpy()).max() < 1e-3  # pixels may round differently
    assert np.abs(got["highest"] - logits.numpy()).max() < 1e-3
    assert got["highest"].shape == (6, len(task["classes"]))


def damaged(folder: Path) -> Path:
    run = folder / "run"
    shutil.copytree(FUSION, run)
    (file,) = (run / "checkpoints").glob("*.ckpt")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def foreign(folder: Path) -> Path:
    torch.save({"state_dict": {}}, folder / "other.ckpt")
    return folder / "other.ckpt"


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        (damaged, (), "damaged"),
        (foreign, (), "not written by this framework"),
        (lambda folder: folder / "gone.ckpt", (), "no checkpoint at"),
        (lambda _: FUSION, ("towers=[imagee]",), "did you mean 'image'?"),
    ],
    ids=["damaged", "foreign", "missing", "tower"],
)
def test_what_cannot_be_exported_is_one_line_and_exit_status_2(make, words, said, tmp_path):
    done = exported(tmp_path, f"checkpoint={make(tmp_path)}", f"output={tmp_path / 'out'}", *words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

"""Exported folders: equal to the model on real samples, also through the runner without torch."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from export_cases import MODALITIES, embedder, real_samples, write_files

import multimodal
from multimodal.data.decoding.decode import Signal
from multimodal.inference.export import manifest
from multimodal.inference.export.graphs import ExportError
from multimodal.inference.export.runner import Model
from multimodal.inference.export.writing import Choices, export

pytestmark = pytest.mark.slow
ANIMALS = {"classes": ["cat", "dog", "red chair"], "prompts": ["a photo of a {}", "{}"]}
ALLOWED = {"numpy", "onnxruntime", "soundfile", "PIL", "tokenizers"}

# Runs with a hook that refuses every import of torch and of this package.
WITHOUT = """
import json, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "multimodal", "transformers"):
            raise ImportError(f"{name} may not be imported")
sys.meta_path.insert(0, Refused())
sys.path[:] = [p for p in sys.path if p != sys.argv[3]]
import numpy
sys.path.insert(0, sys.argv[1])
import run
model = run.Model(sys.argv[1])
given = json.load(open(sys.argv[2]))
rows = {name: model.embed(name, values) for name, values in given.items()}
rows["shares"] = model.classify("animals", "image", given["image"])
numpy.savez(sys.argv[2] + ".npz", **rows)
assert not {"torch", "multimodal"} & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, the embedder that it was made of, and 32 samples of each modality."""
    folder = tmp_path_factory.mktemp("exported")
    model, cfg = embedder(folder)
    choices = Choices(zero_shot={"animals": ANIMALS})
    export(model, cfg, folder / "small", choices, {"checkpoint": "none"})
    return folder / "small", model, real_samples(32)


def prepared(model, modality, values):
    transform = model.transforms[modality]
    return [
        each for each in transform.collate([transform(v, None) for v in values]) if each is not None
    ]


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_graph_equals_the_model_on_real_samples(made, modality):
    folder, model, samples = made
    about = json.loads((folder / "model.json").read_text())["towers"][modality]
    session = onnxruntime.InferenceSession(str(folder / about["onnx"]))
    program = torch.export.load(folder / about["program"]).module()
    for batch in (1, 7, 32):
        tensors = prepared(model, modality, samples[modality][:batch])
        if modality == "speech" and tensors[0].shape[2] % 2:  # tokens of two frames
            tensors = [torch.nn.functional.pad(each, (0, 1)) for each in tensors]
        with torch.no_grad():
            expected = model.model.embed(modality, *tensors)
            assert (program(*tensors) - expected).abs().max() < 1e-4
        fed = {e.name: t.numpy() for e, t in zip(session.get_inputs(), tensors, strict=True)}
        (got,) = session.run(None, fed)
        assert np.abs(got - expected.numpy()).max() < 1e-4


def test_the_runner_agrees_where_neither_torch_nor_this_package_can_be_imported(made, tmp_path):
    folder, model, samples = made
    few = {name: values[:3] for name, values in samples.items()}
    few["imu"] = [Signal(value.samples, 25.0) for value in few["imu"]]  # as a .npy is read
    (tmp_path / "given.json").write_text(json.dumps(write_files(few, tmp_path)))
    here = str(Path(__file__).parents[4])
    words = [str(folder), str(tmp_path / "given.json"), here]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = np.load(tmp_path / "given.json.npz")
    for modality in MODALITIES:
        expected = model.values(modality, few[modality]).numpy()
        # Pillow rounds some pixels of a resized picture to the other of two bytes.
        near = 5e-3 if modality == "image" else 1e-4
        assert np.abs(rows[modality] - expected).max() < near, modality
    shares = model.zero_shot(ANIMALS["classes"], ANIMALS["prompts"], image=few["image"])
    assert np.abs(rows["shares"] - shares.numpy()).max() < 2e-2


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_quantised_folder_is_smaller_and_near_on_real_samples(made, tmp_path, kind):
    full, model, samples = made
    choices = Choices(towers=["text", "imu"], formats=["onnx"], quantize=kind)
    agreements = export(model, made_config(tmp_path), tmp_path / "out", choices, {})
    assert json.loads((tmp_path / "out" / "model.json").read_text())["quantize"] == kind
    assert all(each.cosine > 0.99 for each in agreements)
    texts = samples["text"]
    rows = Model(tmp_path / "out").embed("text", texts)
    assert (rows * model.values("text", texts).numpy()).sum(1).min() > 0.995
    sizes = [(folder / "text.onnx").stat().st_size for folder in (tmp_path / "out", full)]
    assert sizes[0] < (0.45 if kind == "int8" else 0.62) * sizes[1]  # of so small a graph


def test_nothing_in_the_folder_names_the_machine_that_exported(made):
    for file in (path for path in made[0].iterdir() if path.is_file()):
        assert str(Path(__file__).parents[4]).encode() not in file.read_bytes(), file.name


def test_the_runner_is_short_and_stands_alone(made):
    folder, _, _ = made
    source = (folder / "run.py").read_text()
    assert len(source.splitlines()) <= 150
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert names - set(sys.stdlib_module_names) <= ALLOWED


def test_multimodal_loads_the_folder_wherever_it_lies(made, tmp_path):
    folder, model, samples = made
    shutil.copytree(folder, tmp_path / "elsewhere")
    again = multimodal.load(tmp_path / "elsewhere", device="cpu")
    for modality in MODALITIES:
        few = samples[modality][:4]
        assert torch.equal(again.values(modality, few), model.values(modality, few))
    assert again.temperatures == model.temperatures


def changed(folder: Path, **entries) -> None:
    about = json.loads((folder / "model.json").read_text()) | entries
    (folder / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "image.onnx").write_bytes(b"cut"), "image.onnx is damaged"),
        (lambda f: (f / "text.onnx").unlink(), "lacks 'text.onnx'"),
        (lambda f: changed(f, version=2), "version 2, this reads 1: install a newer multimodal"),
        (lambda f: changed(f, version=0), "version 0, this reads 1: export the model anew"),
        (lambda f: changed(f, format="other"), "format is 'other'"),
        (lambda f: (f / "model.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "model.json").write_text("[]"), "is not of an exported model"),
    ],
    ids=["damaged", "missing", "newer", "older", "foreign", "cut", "list"],
)
def test_a_folder_that_cannot_be_used_says_why(made, tmp_path, break_it, said):
    shutil.copytree(made[0], tmp_path / "bad")
    break_it(tmp_path / "bad")
    with pytest.raises(ExportError, match=said) as refused:
        multimodal.load(tmp_path / "bad")
    assert refused.value.exit_status == 2
    code = [sys.executable, str(made[0] / "run.py"), "text=a"]
    shutil.copy(made[0] / "run.py", tmp_path / "bad" / "run.py")
    code[1] = str(tmp_path / "bad" / "run.py")
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("run.py: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (
            Choices(towers=["imagee"]),
            "towers=imagee: the model has no such tower; did you mean 'image'",
        ),
        (Choices(quantize="int4"), "quantize=int4: did you mean"),
        (Choices(formats=["program"], quantize="int8"), "quantize needs formats="),
        (
            Choices(towers=["imu"], formats=["onnx"], quantize="int8", least_cosine=1.1),
            "below least_cosine=1.1: take quantize=int8_weights or fp16",
        ),
        (Choices(formats=["onix"]), "formats=onix: did you mean 'onnx'"),
        (Choices(towers=["imu"], formats=["onnx"], opset=9), "opset=9: expected 18 to 23"),
        (Choices(towers=["imu"], tolerance=1e-12), "differs from the model by"),
    ],
    ids=["tower", "kind", "no_onnx", "cosine", "format", "opset", "tolerance"],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(made, tmp_path, choices, said):
    _, model, _ = made
    with pytest.raises(ExportError, match=said):
        export(model, made_config(tmp_path), tmp_path / "out", choices, {})
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def made_config(folder: Path):
    return embedder(folder)[1]


def test_a_folder_that_is_there_is_not_written_over(made, tmp_path):
    _, model, _ = made
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(ExportError, match="exists: name a new folder"):
        export(model, made_config(tmp_path), tmp_path / "out", Choices(), {})
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_a_manifest_names_only_files_of_its_folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "bad")
    changed(tmp_path / "bad", files={"../outside": "0" * 64})
    with pytest.raises(ExportError, match=r"lacks '\.\./outside'"):
        manifest.read(tmp_path / "bad")

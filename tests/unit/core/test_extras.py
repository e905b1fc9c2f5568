"""Every extra is tried alone: what it promises works, what others promise names them."""

import ast
import json
import textwrap
from pathlib import Path

import environments
import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = sorted(set(PYPROJECT["project"]["optional-dependencies"]) - {"dev"})

# What each extra promises, in few lines.
PROMISED = {
    "dask": """
        from multimodal.data.packing.parallel import in_cluster
        try:
            in_cluster("no address")(len, [], print, len)
        except ValueError as error:
            assert "no Dask scheduler" in str(error)
    """,
    "dicom": """
        import pydicom, pylibjpeg, openjpeg, jpeg_ls
        from multimodal.data.decoding.dicom import header_values
        try:
            header_values(b"", ["Modlity"])
        except ValueError as error:
            assert "not a DICOM keyword" in str(error)
    """,
    "docs": """
        import material, mkdocs.commands.build, mkdocstrings_handlers.python
    """,
    "export": """
        import onnx, onnxruntime, torch
        from torch import nn
        torch.onnx.export(nn.Linear(2, 1), (torch.ones(3, 2),), "linear.onnx", dynamo=True)
        session = onnxruntime.InferenceSession("linear.onnx")
        (name,) = [each.name for each in session.get_inputs()]
        (out,) = session.run(None, {name: torch.ones(3, 2).numpy()})
        assert out.shape == (3, 1)
    """,
    "heic": """
        import io, pillow_heif
        from PIL import Image
        from multimodal.data.decoding.decode import Limits, decode
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.new("RGB", (64, 48))).save(file)
        assert decode("heic", file.getvalue(), Limits()).shape == (48, 64, 3)
    """,
    "huggingface": """
        from multimodal.core.hf_files import import_transformers
        assert import_transformers("encoder=huggingface").AutoModel
    """,
    "lora": """
        from torch import nn
        from multimodal.models.encoders.text import TextTransformer
        from multimodal.models.layers.transformer import Transformer
        from multimodal.models.tuning import LoRA
        tower = nn.Module()
        trunk = Transformer(width=8, num_layers=1, num_heads=2)
        tower.encoder = TextTransformer(9, 4, trunk, pooling="mean")
        tower.head = nn.Linear(8, 2)
        LoRA(rank=1)(tower)
        assert any("lora_A" in name for name in tower.encoder.state_dict())
    """,
    "mteb": """
        import mteb
        from types import SimpleNamespace
        from torch import nn
        from multimodal.evaluation import MTEBEncoder
        model = SimpleNamespace(towers=["text"], parameters=nn.Linear(2, 1).parameters)
        embedder = SimpleNamespace(
            model=model, transforms=["text"], embed_dim=2, need_pooled=lambda name: None
        )
        meta = MTEBEncoder(embedder, "me/mine").mteb_model_meta
        assert (meta.name, meta.modalities, meta.n_parameters) == ("me/mine", ["text"], 3)
    """,
    "samples": "import pandas, pyarrow, resvg_py",
    "search": """
        from pathlib import Path
        import numpy as np
        from multimodal.inference.search.index import Index
        from multimodal.inference.search.table import PartWriter, Row, read_table
        writer = PartWriter(Path("table.parquet"), {}, "x")
        vectors = np.eye(3, dtype=np.float32)
        writer.write(0, vectors, [Row(str(n), "image", "") for n in range(3)])
        assert writer.finish(1) == 3
        table = read_table(Path("table.parquet"))
        found = Index(table.vectors, ["image"] * 3, "exact").search(vectors[1], 1)
        assert found["image"][0][0] == 1
    """,
    "serve": """
        import faiss, pyarrow, uvicorn, multipart
        from multimodal.inference.search.server import make_app
        assert uvicorn.Config(make_app).app is make_app
    """,
    "shards": """
        from pathlib import Path
        import pyarrow
        from pyarrow import parquet
        from multimodal.data.packing.layouts.find import items_of
        parquet.write_table(pyarrow.table({"text": ["a", "b"]}), "t.parquet")
        assert len(list(items_of(Path("t.parquet")))) == 2
    """,
    "stream": """
        import aiohttp
        from multimodal.data.streaming.source import StreamSource
        source = StreamSource("{0..3}.tar", {"text": {"member": "txt"}})
    """,
    "sweep": """
        import sys
        from multimodal.config import compose_or_explain
        words = ["-m", "+experiment=clip_scratch", "+launcher=local", "+sweep=optuna", "seed=0,1"]
        compose_or_explain(words, "train")
        from multimodal.cli.jobs.sweep import _trials
        assert _trials("sqlite:///study.db", "x") == (0, 0)
    """,
    "tiff": """
        import io, numpy, tifffile
        from multimodal.data.decoding.decode import Limits, decode
        file = io.BytesIO()
        tifffile.imwrite(file, numpy.zeros((5, 16, 16), "u2"), compression="lzw")
        assert decode("tif", file.getvalue(), Limits(), kind="array").shape == (5, 16, 16)
    """,
    "timm": """
        from multimodal.models.encoders.libraries.timm import TimmEncoder
        assert TimmEncoder("test_vit").width
    """,
    "triton": """
        import os
        os.environ["TRITON_INTERPRET"] = "1"
        from multimodal.objectives.kernels.tiles import choose_tiles
        choose_tiles("triton")
    """,
    "video": """
        from multimodal.data.decoding.tracks import open_container
        import av
        try:
            open_container(b"no film", "mp4", "it")
        except av.FFmpegError:
            pass
    """,
    "wandb": """
        from multimodal.training.loggers.wandb import WandbLogger
        WandbLogger(project="x", name=None, save_dir=".", offline=True)
    """,
    "tensorboard": """
        from multimodal.training.loggers.others import TensorBoardLogger
        TensorBoardLogger("logs").log_metrics({"a": 1.0}, 1)
    """,
    "mlflow": """
        from multimodal.training.loggers.others import MLflowLogger
        logger = MLflowLogger("x", tracking_uri="file:runs", folder=".")
        logger.log_metrics({"a": 1.0}, 1)
        assert open("mlflow.txt").read().strip() == logger.run_id
    """,
}
# What needs an extra, in an environment without any -> its name.
MISSED = {
    "dask": (
        "from multimodal.data.packing.parallel import in_cluster;"
        "in_cluster('tcp://127.0.0.1:9')(len, [], print, len)"
    ),
    "dicom": (
        "from multimodal.data.decoding.decode import Limits, decode;"
        "decode('dcm', bytes(128) + b'DICM', Limits())"
    ),
    "heic": (
        "from multimodal.data.decoding.decode import Limits, decode;"
        "decode('jpg', bytes([0, 0, 0, 12]) + b'ftypheic', Limits())"
    ),
    "huggingface": (
        "from multimodal.core.hf_files import import_transformers; import_transformers('it')"
    ),
    "lora": "from multimodal.models.tuning import LoRA; LoRA(rank=1)(None)",
    "timm": (
        "from multimodal.models.encoders.libraries.timm import TimmEncoder; TimmEncoder('vit')"
    ),
    "mteb": (
        "from types import SimpleNamespace; from multimodal.evaluation import MTEBEncoder;"
        "model = SimpleNamespace(towers=['text']);"
        "MTEBEncoder(SimpleNamespace(model=model, transforms=['text'], need_pooled=id), 'a/b')"
        ".mteb_model_meta"
    ),
    "search": (
        "import numpy; from multimodal.inference.search.index import Index;"
        "Index(numpy.eye(2, dtype='float32'), ['a'] * 2, 'exact')"
    ),
    "search ": (
        "from pathlib import Path; from multimodal.inference.search.table import read_table;"
        "Path('x.parquet').write_bytes(b''); read_table(Path('x.parquet'))"
    ),
    "shards": (
        "from pathlib import Path; from multimodal.data.packing.layouts.find import items_of;"
        "Path('t.parquet').write_bytes(b'x'); list(items_of(Path('t.parquet')))"
    ),
    "stream": (
        "from multimodal.data.streaming.source import StreamSource;"
        "StreamSource('a.tar', {'text': {'member': 'txt'}})"
    ),
    "sweep": (
        "from multimodal.config import compose_or_explain;"
        "compose_or_explain(['+experiment=clip_scratch', '+sweep=optuna'], 'train')"
    ),
    "sweep ": (
        "from multimodal.config import compose_or_explain;"
        "compose_or_explain(['+experiment=clip_scratch', '+launcher=local'], 'train')"
    ),
    "tiff": (
        "from multimodal.data.decoding.decode import Limits, decode;"
        "decode('tif', b'II*' + bytes(9), Limits(), kind='array')"
    ),
    "triton": (
        "from multimodal.objectives.kernels.tiles import choose_tiles; choose_tiles('triton')"
    ),
    "video": (
        "from multimodal.data.decoding.tracks import open_container;"
        "open_container(b'', 'mp4', 'it')"
    ),
    "tensorboard": (
        "from multimodal.training.loggers.others import TensorBoardLogger; TensorBoardLogger('x')"
    ),
    "mlflow": "from multimodal.training.loggers.others import MLflowLogger; MLflowLogger('x')",
    "wandb": (
        "from multimodal.training.loggers.wandb import WandbLogger;"
        "WandbLogger(project='x', name=None, save_dir='.', offline=True)"
    ),
}
WITH_SEARCH = ("embed.py", "search.py")  # programs, by the extra that they need
WITH_SERVE = ("serve.py",)
# Modules that import what the extra ``serve`` installs.
SERVING = {
    f"multimodal.inference.search.{name}" for name in ("guard", "server", "serving", "terms")
} | {f"multimodal.inference.service.{name}" for name in ("api", "requests")}


def imports_of(*scripts: str) -> str:
    """A program that imports all that ``scripts`` do, at their beginning or later."""
    nodes = [
        node
        for script in scripts
        for node in ast.walk(ast.parse((ROOT / "scripts" / script).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    lines = dict.fromkeys(ast.unparse(node) for node in nodes)
    return "\n".join(line for line in lines if "__future__" not in line)


def test_every_extra_has_a_promise():
    assert sorted(PROMISED) == EXTRAS


HEAVY = {
    "docs", "export", "huggingface", "lora", "mlflow", "mteb", "samples", "stream", "sweep",
    "tensorboard", "wandb",
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory, request):
    """Extra -> exit status and output of its promise, for those that were collected."""
    chosen = {
        item.callspec.params["extra"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    programs = {}
    for extra in sorted(chosen):
        if environments.missing(PYPROJECT, extra):
            continue
        folder = tmp_path_factory.mktemp(extra)
        site = environments.make(folder / "site", PYPROJECT, [extra])
        scripts = {"search": WITH_SEARCH, "serve": (*WITH_SEARCH, *WITH_SERVE)}.get(extra, ())
        program = f"{imports_of(*scripts)}\n{textwrap.dedent(PROMISED[extra])}"
        programs[extra] = (site, folder, program)
    base = environments.make(tmp_path_factory.mktemp("base") / "site", PYPROJECT, [])
    return environments.run_forked(base, programs)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "extra",
    [pytest.param(e, marks=[pytest.mark.slow] if e in HEAVY else []) for e in EXTRAS],
)
def test_an_extra_alone_does_what_it_promises(extra, ended):
    if missing := environments.missing(PYPROJECT, extra):
        pytest.skip(f"not installed here: {', '.join(missing)}")
    status, printed = ended[extra]
    assert status == 0, printed[-3000:]


@pytest.mark.heavy
def test_without_any_extra_all_else_imports_and_each_feature_names_its_extra(tmp_path):
    folder = environments.make(tmp_path / "site", PYPROJECT, [])
    others = [
        path.name
        for path in (ROOT / "scripts").glob("*.py")
        if path.name not in (*WITH_SERVE, "make_sample_data.py")
    ]
    (tmp_path / "program.py").write_text(f"""
{imports_of(*others)}
import importlib, json, pkgutil, multimodal
from multimodal.core.process.exits import message_of
absent = []
for module in pkgutil.walk_packages(multimodal.__path__, "multimodal."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        absent.append(module.name)
told = {{}}
for extra, words in json.loads({json.dumps(MISSED)!r}).items():
    try:
        exec(words)
    except Exception as error:
        told[extra] = message_of(error)
print(json.dumps([absent, told]))
""")
    ended = environments.run(folder, "program.py", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    absent, told = json.loads(ended.stdout.splitlines()[-1])
    runner = "multimodal.inference.export.runner"  # goes out with exported models, on its own
    kernels = {f"multimodal.objectives.kernels.triton_{name}" for name in ("kernels", "tiles")}
    assert set(absent) == {*SERVING, *kernels, runner}
    assert told.keys() == MISSED.keys()
    for extra, message in told.items():
        assert message, extra
        assert f"multimodal[{extra.strip()}]" in message


@pytest.mark.slow
def test_training_and_evaluation_need_no_extra(tmp_path):
    folder = environments.make(tmp_path / "site", PYPROJECT, [])
    script = str(ROOT / "scripts" / "train.py")
    words = ["+experiment=clip_scratch", "debug=fast", f"hydra.run.dir={tmp_path}/run"]
    ended = environments.run(folder, script, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    script = str(ROOT / "scripts" / "evaluate.py")
    ended = environments.run(folder, script, f"checkpoint={checkpoint}", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (tmp_path / "a.txt").write_text("a cat")
    for name in ("embed", "serve", "search"):
        words = [f"checkpoint={checkpoint}", "input=." if name == "embed" else "index=t.parquet"]
        words += ["output=t.parquet"] * (name == "embed") + ["query=x"] * (name == "search")
        (tmp_path / "t.parquet").write_bytes(b"") if name != "embed" else None
        script = str(ROOT / "scripts" / f"{name}.py")
        ended = environments.run(folder, script, *words, cwd=tmp_path)
        assert ended.returncode == 1, ended.stderr[-3000:]
        assert "multimodal[" in ended.stderr
        assert "Traceback" not in ended.stderr

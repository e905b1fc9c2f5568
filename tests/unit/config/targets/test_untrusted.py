"""Checkpoints of strangers: nothing that their configurations name runs, is written or is sent."""

import http.server
import importlib.util
import json
import threading
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from multimodal.config import ConfigError, config_dir, for_use, named_by, stored_config
from multimodal.config.targets.addresses import is_address, is_named
from multimodal.data.shards.paths import SAMPLES_FOLDER
from multimodal.evaluation.run import build_sets
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import build_model, config_of, load_model
from multimodal.inference.checkpoint.weights import STATE, uses_average
from multimodal.inference.load import embedder_of
from multimodal.training.anchor import load_anchor
from multimodal.training.resume import resume

ROOT = Path(__file__).parents[4]
ENCODER = {"_target_": "multimodal.models.FeatureEncoder", "in_features": 4}
HEAD = {"_target_": "multimodal.models.LinearHead", "_partial_": True, "embed_dim": 8}
TOWER = {"_target_": "multimodal.models.Tower", "encoder": ENCODER, "head": HEAD, "frozen": False}
SOURCE = {
    "_target_": "multimodal.data.Source",
    "manifest": "samples://emoji.json",
    "modalities": {"image": {"member": "noto.webp"}},
}
LOSSES = "multimodal.objectives"
GOOD = {
    "name": "theirs",
    "seed": 0,
    "embed_dim": 8,
    "micro_batch_size": None,
    "resume": None,
    "resume_allow": [],
    "sweep_metric": None,
    "cache_frozen": {"views": None, "folder": "outputs/frozen"},
    "anchor": None,
    "debug": None,
    "allowed_packages": [],
    "model": {
        "_target_": "multimodal.models.EmbeddingModel",
        "towers": {"image": TOWER, "text": TOWER},
    },
    "pairs": {"image_text": {"anchor": "image", "other": "text"}},
    "loss": {"_target_": f"{LOSSES}.softmax_losses.InfoNCE"},
    "negatives": {"_target_": f"{LOSSES}.negatives.InBatch"},
    "candidates": {"_target_": f"{LOSSES}.candidates.AllRanks"},
    "data": {
        "_target_": "multimodal.data.MultimodalDataModule",
        "sources": {},
        "transforms": {
            "image": {"_target_": "multimodal.data.ArrayTransform", "shape": [4]},
            "text": {"_target_": "multimodal.data.ArrayTransform", "shape": [4]},
        },
        "batch_size": 4,
        "num_workers": 0,
        "seed": 0,
    },
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.001},
    "scheduler": None,
    "trainer": {"_target_": "pytorch_lightning.Trainer", "max_steps": 1},
    "callbacks": {},
    "logger": None,
    "evaluation": None,
}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def put(tree, place, value):
    *blocks, last = place.split(".")
    for key in blocks:
        tree[key] = tree.get(key) or {}
        tree = tree[key]
    tree[last] = value


def text_of(tree) -> str:
    return yaml.safe_dump(json.loads(json.dumps(tree)))  # which shares nothing, so has no alias


def written(path: Path, place: str | None = None, value: object = None) -> Path:
    """A checkpoint with good weights, and a configuration that has ``value`` at ``place``."""
    model = build_model(OmegaConf.create(GOOD))
    tree = json.loads(json.dumps(GOOD))
    if place is not None:
        put(tree, place, value)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": state, "config": text_of(tree), "global_step": 1}
    checkpoint_file.write_atomically(content, path)
    return path


@pytest.fixture
def listener():
    """The address of a server of this machine, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def attacks(tmp_path, listener):
    """Name -> block, and whether it has done nothing."""
    ran, kept, folder = tmp_path / "ran", tmp_path / "kept", tmp_path / "folder"
    kept.write_text("mine")
    folder.mkdir()
    pickled, lightning = tmp_path / "p.pt", tmp_path / "p.ckpt"
    torch.save(Payload(ran), pickled)
    torch.save({"state_dict": {}, "x": Payload(ran)}, lightning)
    assert not ran.exists()
    address, asked = listener
    pl = "pytorch_lightning"
    blocks = {
        "torch.load": {
            "_target_": f"{pl}.utilities.compile.torch.load", "f": str(pickled),
            "weights_only": False,
        },
        "load_from_checkpoint": {
            "_target_": f"{pl}.demos.boring_classes.BoringModel.load_from_checkpoint",
            "checkpoint_path": str(lightning), "weights_only": False,
        },
        "load_from_checkpoint of an address": {
            "_target_": f"{pl}.demos.boring_classes.BoringModel.load_from_checkpoint",
            "checkpoint_path": f"{address}/x.ckpt", "weights_only": False,
        },
        "cloud_io": {
            "_target_": f"{pl}.core.saving.pl_load", "path_or_url": str(lightning),
            "weights_only": False,
        },
        "TorchCheckpointIO": {
            "_target_": f"{pl}.plugins.io.TorchCheckpointIO.load_checkpoint", "self": "",
            "path": str(lightning), "weights_only": False,
        },
        "save_hparams_to_yaml": {
            "_target_": f"{pl}.core.saving.save_hparams_to_yaml", "config_yaml": str(ran),
            "hparams": {"a": 1},
        },
        "write_atomically": {
            "_target_": "multimodal.inference.checkpoint.file.write_atomically", "content": {},
            "path": str(ran),
        },
        "remove": {
            "_target_": "multimodal.inference.checkpoint.file.remove", "path": str(kept),
        },
        "remove_checkpoint": {
            "_target_": f"{pl}.plugins.io.TorchCheckpointIO.remove_checkpoint", "self": "",
            "path": str(folder),
        },
        "a process": {
            "_target_": "multimodal.training.anchor._train", "experiment": "clip",
            "overrides": [f"+hydra.run.dir={ran}"], "config_folders": [], "folder": str(ran),
        },
        "an address": {"_target_": "multimodal.data.shards.remote.read_url", "url": f"{address}/x"},
        "a Trainer": {"_target_": f"{pl}.Trainer", "default_root_dir": str(ran)},
        "hydra": {"_target_": "hydra.utils.get_method", "path": "os.getcwd"},
        "a class that makes a folder": {
            "_target_": "multimodal.inference.search.table.PartWriter", "output": str(ran) + ".npy",
            "about": {}, "identity": "",
        },
        "a logger": {"_target_": "multimodal.training.CSVLogger", "folder": str(ran)},
    }  # fmt: skip

    def idle() -> bool:
        parts = tmp_path / "ran.npy.parts"
        return kept.exists() and folder.exists() and not (ran.exists() or parts.exists() or asked)

    return blocks, idle


FORMS = {
    "alone": lambda block: block,
    "partial": lambda block: {**block, "_partial_": True},
    "in a list": lambda block: [block],
    "in a mapping": lambda block: {"within": block},
    "not recursive": lambda block: {**block, "_recursive_": False, "_convert_": "object"},
}
# Where something is built, and where nothing is; of two groups, as some lie in others.
OUTER = [
    "model", "fusion", "tasks.t", "data.transforms.image", "data.transforms.text.tokenizer",
    "data.sources.s", "data.val_sources.s", "data.limits", "optimizer", "scheduler", "loss",
    "negatives", "candidates", "pairs.image_text.loss", "pairs.image_text.negatives",
    "pairs.image_text.logit_scale", "pairs.own", "callbacks.c", "logger.l", "trainer.strategy",
    "trainer.profiler", "trainer.plugins", "evaluation.sets.s", "anchor", "cache_frozen", "seed",
    "own.key",
]  # fmt: skip
INNER = [
    "model.towers.image.head", "model.towers.image.tuning", "model.towers.image.rates",
    "model.towers.image.encoder.in_features", "model.towers.text.encoder", "model.towers.more",
    "data.transforms.image.shape", "optimizer.lr", "negatives.then", "candidates.size",
    "evaluation.sets.s.source", "evaluation.sets.s.probes", "evaluation.sets.s.own",
]  # fmt: skip


@pytest.mark.parametrize("places", [OUTER, INNER], ids=["outer", "inner"])
@pytest.mark.parametrize("form", FORMS)
def test_no_place_takes_what_runs(places, form, attacks):
    blocks, idle = attacks
    for name, block in blocks.items():
        tree = json.loads(json.dumps(GOOD))
        for place in places:
            put(tree, place, FORMS[form](block))
        with pytest.raises(ConfigError) as caught:
            config_of({"config": text_of(tree)}, "theirs.ckpt")
        told = [problem.where for problem in caught.value.problems]
        missed = {place for place in places if not any(w.startswith(place) for w in told)}
        if name == "a logger" and form in ("alone", "not recursive"):
            missed -= {"logger.l"}  # which is its place, though nobody builds it there
        assert not missed, name
        assert idle(), name


@pytest.mark.parametrize("place", ["model.towers.image.head", "data.transforms.image"])
@pytest.mark.parametrize("form", ["alone", "partial"])
def test_nothing_runs_that_a_checkpoint_names(place, form, attacks, tmp_path):
    blocks, idle = attacks
    for name, block in blocks.items():
        path = written(tmp_path / "theirs.ckpt", place, FORMS[form](block))
        with pytest.raises(ConfigError, match=place):
            load_model(path)
        assert idle(), name


def script(name):
    spec = importlib.util.spec_from_file_location(
        f"script_{name}", ROOT / "multimodal" / "cli" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def command(name, *words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, list(words))


@pytest.mark.parametrize("place", ["model.towers.image.head", "data.transforms.image"])
@pytest.mark.parametrize("name", ["embed", "search", "serve", "adapters", "evaluate"])
def test_nothing_runs_in_any_command(name, place, attacks, tmp_path):
    blocks, idle = attacks
    words = {
        "embed": [f"input={tmp_path}", f"output={tmp_path}/t.parquet"],
        "search": [f"index={tmp_path}/t.parquet", "query=a"],
        "serve": [f"index={tmp_path}/t.parquet"],
        "adapters": [f"output={tmp_path}/adapters"],
        "evaluate": ["evaluation=clip_sample", "hydra.run.dir=."],
    }[name]
    path = written(tmp_path / "theirs.ckpt", place, blocks["torch.load"])
    with pytest.raises((ConfigError, SystemExit), match="only imported there"):
        script(name)(command(name, f"checkpoint={path}", *words))
    assert idle()


def test_a_good_checkpoint_is_loaded(tmp_path):
    model, cfg = load_model(written(tmp_path / "good.ckpt"))
    assert list(model.towers) == ["image", "text"]
    assert "_target_" not in cfg.trainer  # a record only: nothing could build it


def test_what_is_pickled_is_not_read_even_where_yaml_can_make_objects(tmp_path):
    tree = text_of(GOOD)
    path = tmp_path / "x.ckpt"
    for text in (
        tree + "\nown: !!python/object/apply:os.system ['true']\n",
        tree + "\nown: !!python/object/apply:pathlib.PosixPath [x]\n",
        "- a list",
        "a: &a [1]\nb: *a\n",
        "a: " + "[" * 20_000,
        "{",
        "",
    ):
        checkpoint_file.write_atomically({"state_dict": {}, "config": text}, path)
        with pytest.raises(ConfigError):
            load_model(path)
    checkpoint_file.write_atomically({"state_dict": {}, "config": {"model": 1}}, path)
    with pytest.raises(ConfigError, match="not a text"):
        load_model(path)


@pytest.mark.parametrize("name", ["../there", "a/b", "..", "/tmp/x", ".hidden", "a\\b"])
@pytest.mark.parametrize("block", ["model.towers", "data.transforms", "pairs", "data.sources"])
def test_a_name_of_a_stored_configuration_is_not_a_path(name, block, tmp_path):
    path = written(tmp_path / "x.ckpt")
    content = store.read(path)
    tree = yaml.safe_load(content["config"])
    at = tree
    for key in block.split("."):
        at = at[key]
    at[name] = None
    checkpoint_file.write_atomically({**content, "config": yaml.safe_dump(tree)}, path)
    with pytest.raises(ConfigError, match="a name must not be a path"):
        load_model(path)


@pytest.mark.parametrize("text", ["http://HOST/${oc.env:MY_SECRET}", "${oc.env:MY_SECRET}", "a ${"])
@pytest.mark.parametrize(
    "place",
    [
        "data.sources.s.manifest", "evaluation.sets.s.source.manifest", "name", "own.key",
        "data.transforms.image._target_", "callbacks.ema.evaluate", "anchor.pairs",
    ],
)  # fmt: skip
def test_an_interpolation_in_a_checkpoint_is_rejected_unresolved(
    place, text, listener, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    address, asked = listener
    text = text.replace("http://HOST", address)
    tree = json.loads(json.dumps(GOOD))
    tree["evaluation"] = {"sets": {"s": {"source": {**SOURCE}}}}
    tree["data"]["sources"] = {"s": {**SOURCE}}
    put(tree, place, [[text]] if place.endswith("pairs") else text)
    path = tmp_path / "theirs.ckpt"
    state = {f"model.{n}": t for n, t in build_model(OmegaConf.create(GOOD)).state_dict().items()}
    content = {"state_dict": state, "config": text_of(tree), "global_step": 1}
    checkpoint_file.write_atomically(content, path)
    with pytest.raises(ConfigError, match="holds an interpolation") as caught:
        load_model(path)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="holds an interpolation"):
        script("evaluate")(command("evaluate", f"checkpoint={path}"))
    with pytest.raises(ConfigError, match="holds an interpolation"):
        uses_average({**content, "ema": {}, STATE: {}}, path)
    assert asked == []


def test_an_interpolation_in_a_key_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="its key holds an interpolation"):
        load_model(written(tmp_path / "x.ckpt", "data.transforms.image.${oc.env:HOME}", 1))


def with_sets(tmp_path, manifest):
    """A checkpoint whose evaluation reads ``manifest``."""
    sets = {"s": {"source": {**SOURCE, "manifest": manifest}, "retrieval": None}}
    return written(tmp_path / "theirs.ckpt", "evaluation", {"sets": sets})


def test_an_address_is_opened_only_if_the_caller_names_it(listener, tmp_path):
    address, asked = listener
    path = with_sets(tmp_path, f"{address}/folder/m.json")
    load_model(path)  # which needs no manifest
    for words in ([], [f"allowed_addresses=[{address}x]"], [f"allowed_addresses=[{address}/f]"]):
        with pytest.raises(ConfigError, match=r"came with the file .*allowed_addresses="):
            script("evaluate")(command("evaluate", f"checkpoint={path}", *words))
    assert asked == []
    cfg = command("evaluate", f"checkpoint={path}", f"allowed_addresses=['{address}/folder']")
    stored = stored_config(store.read(path)["config"], path, (), named_by(cfg))
    with pytest.raises(ConfigError, match=r"m\.json"):  # it is asked for, and not there
        build_sets(for_use(stored))
    assert asked == ["/folder/m.json"] * len(asked)
    assert asked


def test_shards_elsewhere_of_a_manifest_here_are_not_fetched(listener, tmp_path):
    address, asked = listener
    manifest = json.loads((SAMPLES_FOLDER / "emoji.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps({**manifest, "base": f"{address}/shards"}))
    path = with_sets(tmp_path, str(tmp_path / "m.json"))
    run_cfg = for_use(stored_config(store.read(path)["config"], path))
    with pytest.raises(ConfigError, match="came with the file"):
        build_sets(run_cfg)
    assert asked == []


def test_the_manifests_of_trained_pairs_are_not_fetched(listener):
    address, asked = listener
    tree = json.loads(json.dumps(GOOD))
    tree["data"]["sources"] = {"s": {**SOURCE, "manifest": f"{address}/m.json"}}
    tree["pairs"]["image_text"]["sources"] = ["s"]
    with pytest.raises(ConfigError, match="came with the file"):
        trained_pairs(stored_config(text_of(tree), "theirs.ckpt"))
    assert asked == []


@pytest.mark.parametrize(
    "address",
    ["pipe:touch ran", "s3://a/b", "file:///etc/passwd", "simplecache::http://a", " https://a"],
)
def test_what_is_an_address(address):
    assert is_address(address)
    assert not is_named(address, ["https://b"])


def test_paths_and_sentences_are_none():
    for text in ("samples://emoji.json", "/a/b.json", "b.json", "see https://a", "a photo of {}"):
        assert not is_address(text)


def test_a_stored_tokenizer_of_a_corpus_is_read_and_never_trained(tmp_path):
    path = tmp_path / "made.json"
    tokenizer = {
        "_target_": "multimodal.data.CorpusTokenizer", "path": str(path),
        "sources": {"s": SOURCE}, "vocab_size": 300,
    }  # fmt: skip
    transform = {
        "_target_": "multimodal.data.TextTransform", "tokenizer": tokenizer,
        "context_length": 8,
    }  # fmt: skip
    model, cfg = load_model(written(tmp_path / "x.ckpt", "data.transforms.text", transform))
    with pytest.raises(ConfigError, match="no tokenizer file"):
        embedder_of(model, cfg, "cpu")
    assert not path.exists()


def test_a_name_on_the_hub_is_looked_for_here_unless_the_caller_names_it():
    block = {"_target_": "multimodal.data.HuggingFaceTokenizer",
             "name": "a/b", "offline": False}  # fmt: skip
    tree = json.loads(json.dumps(GOOD))
    tree["data"]["transforms"]["text"] = {
        "_target_": "multimodal.data.TextTransform", "tokenizer": block,
        "context_length": 8,
    }  # fmt: skip
    for named, offline in (([], True), (["hf://a"], False), (["hf://a/b"], False)):
        cfg = for_use(stored_config(text_of(tree), "x.ckpt", (), named))
        assert cfg.data.transforms.text.tokenizer.offline is offline


def test_a_resume_and_an_anchor_are_judged_too(attacks, tmp_path):
    blocks, idle = attacks
    path = written(tmp_path / "theirs.ckpt", "optimizer", blocks["torch.load"])
    own = OmegaConf.create({**GOOD, "resume": str(path), "anchor": {"towers": ["image"]}})
    with pytest.raises(ConfigError, match="only imported there"):
        resume(own, tmp_path, text_of(GOOD), {"tokenizers": {}})
    with pytest.raises(ConfigError, match="only imported there"):
        load_anchor(build_model(own), own, str(path), {})
    assert idle()

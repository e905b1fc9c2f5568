"""A folder of sentence-transformers as a tower of ours: a model, its pooling, a head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from multimodal.config import build
from multimodal.core.hf_files import PREPROCESSOR, content_of, input_settings
from multimodal.inference.checkpoint.load import Loaded
from multimodal.inference.imported import run_config
from multimodal.inference.importing import Imported
from multimodal.inference.publish.pictures import RESAMPLE
from multimodal.inference.publish.sentences import MODALITIES, MODALITY_CONFIG
from multimodal.models.pretrained.files import MODULES, read_state
from multimodal.models.pretrained.keys import Diff, WeightsError

SETTINGS = "config_sentence_transformers.json"
MODES = {  # flags of older files
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
OURS = {"cls": "class", "mean": "mean", "lasttoken": "last"}
LIMIT = "model_max_length"
ABSENT = 1e6  # a tokenizer without a limit has one of 1e30
LONGEST = 512  # tokens of a text, where neither the folder nor its model has a limit


@dataclass(frozen=True)
class Module:
    """One of the folder's modules: the last part of its type, and its own folder."""

    kind: str
    folder: Path

    def config(self, name: str = "config.json") -> dict[str, Any]:
        """Its configuration; empty where there is none."""
        return _read(self.folder / name) if (self.folder / name).is_file() else {}


def is_sentences(folder: Path) -> bool:
    """Whether a folder's first module is a model of ``transformers``, of texts or of pictures."""
    if not (folder / MODULES).is_file():
        return False
    modules = _modules(folder)
    return bool(modules) and modules[0].kind == "Transformer"


def load_sentences(folder: Path) -> Loaded:
    """The tower of a folder with the transform that feeds it.

    The tower's embedding is of unit norm, whether or not the folder ends with ``Normalize``.

    Args:
        folder: with ``modules.json``: ``Transformer``, ``Pooling`` (``cls``, ``mean`` or
            ``lasttoken``), then ``LayerNorm`` and one or two ``Dense`` (a GELU between them), then
            ``Normalize``; all but the first two may be absent.

    Raises:
        ImportError: if ``transformers`` is not installed.
        WeightsError: if a module is of another kind or in another place, a file is missing or
            damaged, texts are changed before they are tokenized (a default prompt, lower case), or
            it takes neither texts nor pictures alone.
    """
    modules = _modules(folder)
    if [module.kind for module in modules[:2]] != ["Transformer", "Pooling"]:
        raise WeightsError(f"{folder}: expected a Transformer and a Pooling first")
    transformer, pooling, *rest = modules
    settings = Module("", folder).config(SETTINGS)
    if prompt := (settings.get("prompts") or {}).get(settings.get("default_prompt_name")):
        raise WeightsError(
            f"{folder} puts {prompt!r} before every text; load its model by encoder=huggingface, "
            "and give the text's transform this instruction"
        )
    place = str(transformer.folder.absolute())
    texts = transformer.config("sentence_bert_config.json")
    name = _modality(texts, transformer.folder)
    mode, width = _pooling(pooling)
    encoder = {"_target_": "multimodal.models.HuggingFaceEncoder", "name": place, "pooling": mode}
    head, weights = _head(rest, folder, width)
    tower = {"_target_": "multimodal.models.Tower", "encoder": encoder, "head": head}
    block = {"_target_": "multimodal.models.EmbeddingModel", "towers": {name: tower}}
    model = build(OmegaConf.create({"model": block}), "model")
    own: nn.Module = model.tower(name).head
    try:
        own.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: its head: {' '.join(str(error).split())[:300]}") from error
    if name == "image":
        transforms = {name: _of_pictures(place)}
    else:
        limits = (
            texts.get("max_seq_length"), transformer.config("tokenizer_config.json").get(LIMIT),
            model.tower(name).encoder.longest(),
        )  # fmt: skip
        length = min([int(limit) for limit in limits if limit], default=LONGEST)
        transforms = {name: _transform(place, length if length < ABSENT else LONGEST)}
    imported = Imported(model.eval(), block, transforms, None, None, None, Diff(), [])
    cfg = run_config(imported, folder.name)
    if texts.get("do_lower_case"):
        _refuse_cased(build(cfg, "data", "transforms", "text", "tokenizer"), folder)
    return Loaded(imported.model, cfg, {})


def _modality(settings: Mapping[str, Any], folder: Path) -> str:
    """What the first module takes; of older files, texts.

    Raises:
        WeightsError: if that is more, or something else.
    """
    given = [*(settings.get(MODALITY_CONFIG) or {"text": None})]
    if len(given) != 1 or given[0] not in MODALITIES:
        raise WeightsError(f"{folder}: it takes {given}; expected one of {[*MODALITIES]}")
    return str(given[0])


def _of_pictures(name: str) -> dict[str, Any]:
    """The block of a transform as the folder's processor has it.

    Raises:
        WeightsError: if that says too little.
    """
    content, how = content_of(name, PREPROCESSOR), input_settings(name)
    missing = [key for key in ("size", "mean", "std") if key not in how]
    names = {number: word for word, number in RESAMPLE.items()}
    if missing or content.get("resample", 3) not in names:
        raise WeightsError(
            f"{Path(name) / PREPROCESSOR}: expected size, image_mean, image_std and a resample of "
            f"{[*names]}; missing {missing}, resample {content.get('resample')}"
        )
    return {
        "_target_": "multimodal.data.ImageTransform", **how,
        "interpolation": names[content.get("resample", 3)],
    }  # fmt: skip


def _transform(name: str, length: int) -> dict[str, Any]:
    tokenizer = {"_target_": "multimodal.data.HuggingFaceTokenizer", "name": name}
    return {
        "_target_": "multimodal.data.TextTransform", "tokenizer": tokenizer,
        "context_length": length,
    }  # fmt: skip


def _pooling(module: Module) -> tuple[str, int]:
    """Our name of a pooling, and the width of what it pools; of files before and since 5.5."""
    config = module.config()
    modes = [str(config["pooling_mode"])] if "pooling_mode" in config else []
    modes += [MODES.get(name, name) for name, chosen in config.items() if chosen is True]
    modes = [name for name in modes if name not in ("include_prompt", "")]
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if len(modes) != 1 or modes[0] not in OURS or not isinstance(width, int):
        raise WeightsError(
            f"{module.folder}: its pooling is {modes} of width {width}; expected one of {[*OURS]}"
        )
    return OURS[modes[0]], width


def _head(
    modules: list[Module], folder: Path, width: int
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """The block of a head, and its state dict.

    Raises:
        WeightsError: if the modules make no head of ours.
    """
    left = modules[:-1] if modules and modules[-1].kind == "Normalize" else list(modules)
    norm = left.pop(0) if left and left[0].kind == "LayerNorm" else None
    kinds = [module.kind for module in left]
    weights: dict[str, Tensor] = {}
    if norm is not None:
        weights |= read_state(norm.folder)
    head: dict[str, Any] = {"_partial_": True}
    if not left and norm is None:
        target, dims, names = "IdentityHead", width, []
    elif kinds == ["Dense"]:
        target, names = "LinearHead", ["projection"]
    elif kinds == ["Dense", "Dense"]:
        target, names = "MLPHead", ["mlp.fc1", "mlp.fc2"]
    else:
        listed = [module.kind for module in modules]
        raise WeightsError(f"{folder}: {listed} after its pooling make no head of ours")
    biases = set()
    for number, (name, module) in enumerate(zip(names, left, strict=True), start=1):
        config, state = module.config(), read_state(module.folder)
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        expected = "Identity" if number == len(left) else "GELU"
        if activation.rsplit(".", 1)[-1] != expected:
            raise WeightsError(f"{module.folder}: given {activation}, expected {expected}")
        weights |= {key.replace("linear", name, 1): tensor for key, tensor in state.items()}
        biases.add("linear.bias" in state)
        dims = int(config["out_features"])
        if number == 1 and len(left) == 2:
            head["hidden"] = dims
    if len(biases) > 1:
        raise WeightsError(f"{folder}: one Dense has a bias and the other has none")
    if names:
        head |= {"norm": norm is not None, "bias": biases == {True}}
    return {"_target_": f"multimodal.models.{target}", "embed_dim": dims, **head}, weights


def _modules(folder: Path) -> list[Module]:
    modules = []
    for each in _read(folder / MODULES):
        kind, path = str(each["type"]).rsplit(".", 1)[-1], folder / str(each["path"])
        if not path.resolve().is_relative_to(folder.resolve()):
            raise WeightsError(f"{folder / MODULES}: {each['path']} is outside of the folder")
        modules.append(Module(kind, path))
    return modules


def _refuse_cased(tokenizer: Any, folder: Path) -> None:
    if tokenizer.encode("A Red Chair") != tokenizer.encode("a red chair"):
        raise WeightsError(f"{folder} lowers the case of its texts, and its tokenizer does not")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error

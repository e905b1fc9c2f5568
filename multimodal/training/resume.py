"""Finds the checkpoint to resume from, and checks that it is of the same experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from multimodal.config.problems import did_you_mean
from multimodal.core.process.quiet import note
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.load import config_of
from multimodal.inference.checkpoint.locate import FOLDER
from multimodal.inference.checkpoint.tokenizer_check import check_same_tokenizers

# Keys about where and how a run happens, its logging and its end; not about the learning.
IGNORED_KEYS = (
    "name", "resume", "resume_allow", "logger", "evaluation", "debug", "allowed_packages",
    "allowed_addresses", "anchor", "callbacks", "trainer", "sweep_metric", "data.num_workers",
    "data.cache_mb", "data.val_sources", "data.eval_batch_size", "data.max_bad_fraction",
    "data.worker_timeout_s", "data.uint8_to_device", "data.max_bad_run", "data.verify_shards",
    # The loader compares global batches and the shards themselves, and says what to set.
    "data.batch_size", "data.max_tokens", "data.sources.*.batch_size", "data.sources.*.manifest",
    # Of memory and time.
    "model.towers.*.encoder.trunk.checkpointing", "model.towers.*.encoder.packed",
    "model.towers.*.encoder.encoder.packed", "model.compile",
)  # fmt: skip
COMPARED_KEYS = (
    "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm", "callbacks.ema.decay", "callbacks.ema.warmup",
)  # fmt: skip
TRAINED = "optimizer_names"  # a checkpoint's key: names of each group's parameters, in order
# A longer training, or the cool-down of a stable phase, is the same experiment with a different
# learning-rate curve: warn only.
WARN_ONLY_KEYS = ("scheduler.max_steps", "scheduler.decay_steps")

# Keys that earlier versions did not have, with what they did: such a checkpoint agrees with that.
ADDED_KEYS: dict[str, Any] = {
    f"{place}negatives{then}.warmup_steps": 0
    for place in ("", "pairs.*.")
    for then in ("", ".then")
} | {
    "candidates.listed": "batch",
    "pairs.*.candidates.listed": "batch",
    "model.towers.*.encoder.trunk.norm": "layer",
    "model.towers.*.encoder.trunk.mlp": "plain",
    "model.towers.*.encoder.trunk.qk_norm": False,
    "model.towers.*.encoder.trunk.checkpointing": False,
    "model.towers.*.encoder.patch_dropout": 0.0,
    "similarity._target_": "multimodal.objectives.Cosine",
    "matryoshka.dims": None,
    "model.joint": {},
    "model.towers.*.encoder.first_blocks": None,
    "matryoshka.weights": None,
    "self_distillation": None,
    "kernels": "torch",
    "matmul_precision": "highest",
    "model.towers.*.encoder.chat": False,
    "data.transforms.*.chat": False,
    "model.towers.*.head.standardize": False,
    "model.towers.*.head.hidden_dropout": 0.0,
}


def find(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from: a path, or the newest valid one of a run.

    Args:
        resume: a checkpoint, another run's folder, or ``auto`` for this run's.
        folder: of this run.

    Raises:
        CheckpointError: if the named file is missing or damaged, or all of the folder's are.
    """
    if resume is None:
        return None
    if resume == "auto":
        return store.newest(folder / FOLDER)
    path = Path(resume).expanduser()
    if not (path / FOLDER).is_dir():
        return path
    newest = store.newest(path / FOLDER)
    if newest is None:
        raise CheckpointError.mistake(f"resume={resume}: this run has no checkpoint yet")
    return newest


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """Dotted path -> value, of the leaves of nested dicts; lists are leaves."""
    if not isinstance(tree, Mapping) or not tree:
        return {where: tree}
    return {
        path: value
        for key, child in tree.items()
        for path, value in flat(child, f"{where}.{key}" if where else str(key)).items()
    }


def _under(path: str, pattern: str) -> bool:
    """Whether ``path`` is ``pattern`` or below it; a ``*`` matches one name."""
    names, wanted = path.split("."), pattern.split(".")
    return len(names) >= len(wanted) and all(
        name == want or want == "*" for name, want in zip(names, wanted, strict=False)
    )


def _any(path: str, patterns: Sequence[str]) -> bool:
    return any(_under(path, pattern) for pattern in patterns)


def differences(saved: Any, present: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (checkpoint's value, present value) of the compared keys that differ."""
    then, now = flat(saved), flat(present)

    def value(tree: Mapping[str, Any], key: str) -> Any:
        added = (default for name, default in ADDED_KEYS.items() if _under(key, name))
        setting = tree[key] if key in tree else next(added, None)
        return None if setting == {} else setting  # null, or an empty block, is as good as absent

    return {
        key: (then.get(key, "absent"), now.get(key, "absent"))
        for key in sorted(then.keys() | now.keys())
        if value(then, key) != value(now, key)
        and (not _any(key, IGNORED_KEYS) or _any(key, COMPARED_KEYS))
    }


def check_same_experiment(
    saved: Any, present: Any, allowed: Sequence[str], path: str | Path
) -> dict[str, Any]:
    """Compares the configuration in a checkpoint with that of this run.

    Args:
        saved: the configuration in the checkpoint, as nested dicts.
        present: this run's.
        allowed: keys, or blocks of keys, that may differ (``resume.allow``).
        path: of the checkpoint, for the message.

    Returns:
        The keys that differ and are allowed to, with their present values.

    Raises:
        CheckpointError: if keys differ that are not allowed to, or a name in ``allowed`` is not a
            key.
    """
    known = flat(saved).keys() | flat(present).keys()
    for name in allowed:
        if not any(_under(key, name) for key in known):
            raise CheckpointError.mistake(
                f"resume.allow names '{name}', which is not a key of this experiment; "
                f"{did_you_mean(name, known)}"
            )
    changed = differences(saved, present)
    refused = {
        key: values for key, values in changed.items() if not _any(key, [*allowed, *WARN_ONLY_KEYS])
    }
    if refused:
        shown = "\n".join(
            f"  {key}: checkpoint {then!r}, this run {now!r}"
            for key, (then, now) in refused.items()
        )
        names = ",".join(refused)
        raise CheckpointError.mistake(
            f"{path} belongs to a different experiment; these keys differ:\n{shown}\nRestore them, "
            f"or allow them to differ: 'resume.allow=[{names}]'"
        )
    for key, (then, now) in changed.items():
        note(f"resuming with {key}={now!r}, which was {then!r}")
    return {key: now for key, (_, now) in changed.items()}


def check_origin(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Notes that the checkpoint was made by a different version of the code."""
    then, now = saved.get("code"), present.get("code")
    if then and then != now:
        note(f"note: the checkpoint was made by the code {then}; this is {now}")


def check_length(cfg: DictConfig, step: int, path: str | Path) -> None:
    """Says where nothing is left to train, and refuses where less is asked for than was trained.

    Raises:
        CheckpointError: if the checkpoint is beyond ``trainer.max_steps``.
    """
    asked = cfg.trainer.get("max_steps", -1)
    if asked is None or asked < 0 or step < asked:
        return
    longer = f"to train longer set trainer.max_steps above {step}"
    if step == asked:
        note(
            f"step {step} of trainer.max_steps={asked} is reached already: nothing is left to "
            f"train, only the evaluation is run; {longer}"
        )
        return
    raise CheckpointError.mistake(
        f"{path} has reached step {step}, and trainer.max_steps={asked} asks for fewer; {longer}, "
        "give resume=PATH of an earlier checkpoint, or evaluate this one: "
        f"python scripts/evaluate.py checkpoint='{path}'"
    )


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes from.

    Attributes:
        path: of the checkpoint.
        step: its optimizer step.
        loggers: the loggers' state: name -> plain values.
        changed: the keys that differ from the checkpoint's configuration, with present values.
        trained: names of the parameters of each group of its optimizer; None of old checkpoints.
    """

    path: Path
    step: int
    loggers: dict[str, dict[str, Any]]
    changed: dict[str, Any]
    trained: list[list[str]] | None = None


def resume(
    cfg: DictConfig, folder: Path, run_config: str, origin: Mapping[str, Any]
) -> Resumed | None:
    """The checkpoint to resume from; None for a new run.

    Args:
        cfg: with ``resume`` and ``resume_allow``.
        folder: the run's.
        run_config: the resolved configuration of this run, as YAML.
        origin: of this run, see `Checkpoint`.

    Raises:
        CheckpointError: if there is none where there should be, or it is of another experiment or
            of another tokenizer.
    """
    path = find(cfg.resume, folder)
    if path is None:
        return None
    content = store.head(path)
    own = list(cfg.get("allowed_packages") or ())
    saved = OmegaConf.to_container(config_of(content, path, own))
    present = OmegaConf.to_container(OmegaConf.create(run_config))
    changed = check_same_experiment(saved, present, list(cfg.resume_allow), path)
    check_same_tokenizers(content, origin["tokenizers"], path)
    check_origin(content.get("origin", {}), origin)
    note(f"resuming from {path} (step {content['global_step']})")
    check_length(cfg, content["global_step"], path)
    trained = content.get(TRAINED)
    return Resumed(path, content["global_step"], content.get("loggers", {}), changed, trained)


def refuse_other_weights(saved: Mapping[str, Any] | None, module: nn.Module) -> None:
    """Refuses weights that are not of the module's layers.

    Args:
        saved: the state dict in a checkpoint; None where it holds none.
        module: of this run.

    Raises:
        CheckpointError: naming some that differ.
    """
    if not saved:
        return
    here = module.state_dict()
    other = [
        name
        for name in sorted(saved.keys() | here.keys())
        if name not in saved
        or name not in here
        or getattr(saved[name], "shape", None) != getattr(here[name], "shape", None)
    ]
    if other:
        raise CheckpointError.mistake(
            f"{len(other)} weights of the checkpoint are not those of this model "
            f"({listed(other)}): a run keeps the layers it started with; keep the towers, "
            "heads and adapters as they were, or begin a new run"
        )


def listed(names: list[str]) -> str:
    """The first of ``names``, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

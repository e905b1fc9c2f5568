"""What `multimodal` can run: one line for each command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of `multimodal`.

    Attributes:
        module: in `multimodal.cli`, whose function `command` runs it.
        purpose: in a few words.
        words: that it takes, in a line.
        config: the root configuration that its words override; None if it takes options instead.
        former: another name that it goes by.
    """

    module: str
    purpose: str
    words: str
    config: str | None = None
    former: str | None = None


COMMANDS = {
    "train": Command("main", "train an experiment", "+experiment=NAME [key=value]", "train"),
    "new": Command("new", "write an experiment for your data", "NAME --data MANIFEST ..."),
    "evaluate": Command(
        "evaluate", "evaluate a checkpoint", "checkpoint=PATH [evaluation=NAME]", "evaluate"
    ),
    "embed": Command(
        "embed", "make a table of embeddings", "checkpoint=PATH input=PATH output=PATH", "embed"
    ),
    "mine": Command(
        "packing.mine", "find hard negatives of a manifest's samples",
        "checkpoint=PATH input=MANIFEST output=NAME.npz", "mine",
    ),
    "search": Command(
        "search", "search a table", "checkpoint=PATH index=PATH query=TEXT", "search"
    ),
    "serve": Command("serve", "serve a search page", "checkpoint=PATH index=PATH", "serve"),
    "shards": Command(
        "make_shards", "pack data into shards; index or verify shards",
        "INPUT OUTPUT_FOLDER | index FOLDER | verify FOLDER", former="make_shards",
    ),
    "import": Command(
        "import_weights", "import the weights of another project", "input=PATH output=PATH",
        "import_weights", former="import_weights",
    ),
    "pretrained": Command(
        "weights.pretrained", "list or fetch pretrained towers", "list | fetch NAME ..."
    ),
    "export": Command(
        "weights.export", "export a model as ONNX and torch.export, with a runner",
        "checkpoint=PATH output=FOLDER", "export",
    ),
    "card": Command("weights.card", "write a run's model card", "RUN [--output FILE]"),
    "publish": Command(
        "weights.publish", "publish a model to a folder or a hub", "RUN FOLDER|hub://OWNER/NAME"
    ),
    "adapters": Command(
        "adapters", "export, attach or merge LoRA; blend weights", "checkpoint=PATH output=PATH",
        "adapters",
    ),
    "join": Command(
        "join_checkpoint", "make one file of a sharded checkpoint", "FOLDER OUTPUT",
        former="join_checkpoint",
    ),
    "summarize": Command("summarize", "average the results of several runs", "RUN_FOLDER ..."),
    "completion": Command("program.completion", "completion for your shell", "bash|zsh|fish"),
}  # fmt: skip


def find(name: str) -> Command | None:
    """The command of that name, or that went by it."""
    for known, command in COMMANDS.items():
        if name in (known, command.former):
            return command
    return None

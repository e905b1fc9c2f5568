"""One command: `multimodal VERB [words]`, or `python -m multimodal.cli VERB [words]`.

Without a verb it trains, as `multimodal-train` does.
"""

from __future__ import annotations

import importlib
import sys

VERBS = {
    "train": "train an experiment: +experiment=NAME [group=choice] [key=value]",
    "evaluate": "evaluate a checkpoint: checkpoint=PATH [evaluation=NAME]",
    "embed": "make a table of embeddings: checkpoint=PATH input=PATH output=PATH",
    "search": "search a table: checkpoint=PATH index=PATH query=WORDS",
    "serve": "serve the search page: checkpoint=PATH index=PATH",
    "import_weights": "import weights from elsewhere: input=PATH output=PATH",
    "adapters": "take LoRA adapters apart, or merge them: checkpoint=PATH output=PATH",
    "make_shards": "pack data into shards: INPUT OUTPUT_FOLDER, or index|verify FOLDER",
    "join_checkpoint": "make one file of a sharded checkpoint: FOLDER OUTPUT",
    "summarize": "print mean and deviation over runs: RUN_FOLDER RUN_FOLDER ...",
}


def main() -> None:
    """Runs the verb that is the first word of the command line."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "help"
    if verb in ("help", "verbs"):
        print("multimodal VERB [words]; VERB --help says more\n")
        for name, what in VERBS.items():
            print(f"  {name:<16} {what}")
        return
    if verb in VERBS:
        del sys.argv[1]
    else:
        verb = "train"
    if verb == "train":
        from multimodal.cli.main import train

        train()
        return
    importlib.import_module(f"multimodal.cli.{verb}").command()


if __name__ == "__main__":
    main()

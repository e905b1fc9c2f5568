"""An experiment of your own: multimodal new NAME --data shards/photos/photos.json ...

Looks at the manifests, asks nothing, and writes configs/experiment/NAME.yaml, which trains at once
and is meant to be edited. Images, texts, sounds and depth maps get small pretrained towers, which
are frozen under heads that are trained; --scratch gives them small random ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal.core.errors import UserError
from multimodal.core.files import write_text
from multimodal.core.process.exits import errors_end_the_program

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.cli.program.drafting import Found


def main(words: Sequence[str] | None = None) -> None:
    """Writes the experiment and says how to train it."""
    parser = argparse.ArgumentParser(
        "multimodal new", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the experiment")
    parser.add_argument("--data", nargs="+", required=True, metavar="MANIFEST")
    parser.add_argument("--anchor", help="modality that the others are related to (image)")
    parser.add_argument("--scratch", action="store_true", help="random towers, nothing is fetched")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="your own folder")
    parser.add_argument("--force", action="store_true", help="replace an experiment of that name")
    args = parser.parse_args(words)
    if not re.fullmatch(r"[A-Za-z]\w*", args.name):
        raise UserError.mistake(
            f"new: {args.name!r}: expected a name of letters, digits and underscores"
        )
    file = args.configs / "experiment" / f"{args.name}.yaml"
    if file.exists() and not args.force:
        raise UserError.mistake(
            f"new: {file} exists; choose another name, or replace it by --force"
        )
    from multimodal.cli.program.drafting import look_at
    from multimodal.cli.program.experiment import command_of, draft

    drafts = [look_at(given) for given in args.data]
    scratch = args.scratch or not _can_run_pretrained_texts(drafts)
    text = draft(args.name, drafts, args.anchor, args.configs, scratch)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    for each in drafts:
        for member in each.left_out:
            kind = each.manifest.fields[member].kind
            print(
                f"left out: {member} ({kind}) of {each.path}: add a tower for it", file=sys.stderr
            )
        if each.split(VALIDATION_AND_TEST) is None:
            print(
                f"{each.path} has no split to validate on: pack it with --split train=0.9 val=0.1 "
                "for early stopping and a held-out evaluation",
                file=sys.stderr,
            )
    print(f"written: {file}\n\ntrain it:\n\n  {command_of(args.name, args.configs)}")


def _can_run_pretrained_texts(drafts: Sequence[Found]) -> bool:
    """Whether the library that runs them is installed; says so where it is not."""
    texts = any("text" in each.kinds.values() for each in drafts)
    if texts and importlib.util.find_spec("transformers") is None:
        print(
            "pretrained towers of texts need pip install 'multimodal[huggingface]'; the towers "
            "of this experiment begin from random weights",
            file=sys.stderr,
        )
        return False
    return True


VALIDATION_AND_TEST = ("val", "validation", "valid", "dev", "test", "testing")


def command() -> None:
    """`multimodal new`."""
    with errors_end_the_program():
        main()

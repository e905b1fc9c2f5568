"""SAMPLES.md: what the finished corpus holds, how it is split, and to whom it is owed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .read import read_samples

RULES = """
## How it is split

A split is a set of whole shards. No split decides by chance at build time: orders come from a
stable hash, so that the same packages give the same bytes.

- **emoji.** 1,595 concepts (code points without variation selectors and skin tones) that all
  five styles draw. Two concepts are *near-copies* if their drawings at 16x16 pixels differ by
  less than 0.07 (root mean square of colours in [0, 1]) in two of noto, twemoji and fluent, or
  by less than 0.02 in any seen style. They are *relatives* if they are near-copies; if their
  names are equal once gender, colour, direction, plural and the word "face" are dropped ("man
  running", "woman running: facing right"); or if both are clock faces, moons, banknotes,
  globes, hands and the like, or of a Unicode subgroup that is one drawing with other marks in
  it (keycaps, arrows, lettered buttons, zodiac signs, coloured shapes and so on). test_strict
  has 100 concepts in whole families of at most four relatives. test (200) and val (100) are
  drawn concept by concept from those without a near-copy: a relative by name may train
  ("jack-o-lantern" and "pumpkin"). Concepts that stand for a sound or a motion train. The style
  openmoji is in the test splits only: a style unseen in training.
- **speech** follows the splits of emoji. The voice of val and the voice of test are in no other
  split. test_seen is the test voice on concepts that train (so only the voice is new); test is the
  test voice on the unseen concepts, with drawings in the unseen style.
- **sounds** is split by recording; pieces of one recording stay together. Concepts of the
  emoji test and val splits do not occur.
- **furniture.** The head noun of a name is its last word (the last before "with", "on", "of",
  "and"), singular; a compound counts as its ending (armchair: chair). Head nouns are disjoint
  between train, val and test. test_loose has names that do not train, of head nouns that do.
- **motion** keeps the train and test sets of BasicMotions; val is two series of each class of its
  train set. Its images are emoji of the training split.
- **exercise** is split by person: subject 8 is val, 9 and 10 are test. **watch** holds the same
  recordings with a split per person.
- **digits**: drawings of test are of MNIST's test set; the voices of val and test are in no other
  split.

Nothing is said between furniture and the other sources: a lamp may train as an emoji and be tested
as a model. `tokenizer.json` (byte-pair encoding) was trained on the captions of the train splits.

## How it was made

- Images are lossless WebP, 64x64 RGB on white. To save bytes their colours were reduced (median
  cut, then k-means): a drawing keeps all its colours where it fits into 1,024 bytes, else as many
  as fit (at least 16); fewer where the result fits into 512 bytes and stays above 37 dB. Icons of
  furniture have 2,048 bytes.
- Depth is rendered, not measured: the model is drawn with a z-buffer by a perspective camera at
  three radii of its box, in the pose (`view`: yaw and pitch in degrees) whose outline fits the
  icon's best, and placed on the icon's outline. Values are millimetres along the optical axis, so
  large things are far away.
- Speech is synthetic (espeak-ng), silence trimmed. Sounds are recordings, trimmed and scaled to the
  same peak. Both are Opus in Ogg, mono, made from and read as 16 kHz.
- IMU arrays are float16, [6, T], accelerometer xyz then gyroscope xyz; for units see the manifests.

Run `python scripts/make_sample_data.py --cache FOLDER --output FOLDER` to build the corpus again
(needs the extra `samples`, and npm, apt-get, dpkg and espeak-ng 1.51). On one machine the shards
are equal byte for byte; another version of libopus, libwebp or espeak-ng may give other bytes.
"""


def _table(manifests: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| source | members | samples | MB |", "|---|---|---|---|"]
    for manifest in manifests:
        counts: dict[str, int] = defaultdict(int)
        for shard in manifest["shards"]:
            counts[shard["split"]] += shard["samples"]
        size = sum(shard["bytes"] for shard in manifest["shards"]) / 1e6
        splits = ", ".join(f"{split} {count}" for split, count in counts.items())
        fields = ", ".join(f"`{field}`" for field in manifest["fields"])
        lines.append(f"| {manifest['name']} | {fields} | {splits} | {size:.2f} |")
    return lines


def _creators(folder: Path) -> list[str]:
    """The creators of the furniture, by licence."""
    names: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "val", "test", "test_strict", "test_loose"):
        for sample in read_samples(folder, "furniture", split):
            metadata = json.loads(sample["json"])
            names[metadata["licence"]].add(metadata["creator"])
    return [f"- {licence}: {', '.join(sorted(names[licence]))}." for licence in sorted(names)]


def write_description(folder: Path, sources: Sequence[str]) -> None:
    """Write ``SAMPLES.md`` from the manifests in ``folder``."""
    manifests = [json.loads((folder / f"{s}.json").read_text(encoding="utf-8")) for s in sources]
    lines = [
        "# The sample corpus",
        "",
        "Real data for experiments without a download: WebDataset tars, and one manifest (JSON)",
        "for each source. This page is written by the builder, from the manifests.",
        "",
        *_table(manifests),
    ]
    for manifest in manifests:
        lines += ["", f"**{manifest['name']}.** {manifest['description']}"]
        lines += [f"Origin: {manifest['origin']}."]
    lines += [*RULES.rstrip().splitlines(), "", "## Licences", ""]
    lines += ["| source | what | licence | attribution |", "|---|---|---|---|"]
    for manifest in manifests:
        for entry in manifest["licences"]:
            lines.append(
                f"| {manifest['name']} | {entry['what']} | {entry['licence']} "
                f"| [{entry['attribution']}]({entry['url']}) |"
            )
    lines += [
        "",
        "Pictures were rendered at 64 pixels and reduced in colours; models were rendered to",
        "depth; sounds were cut, resampled and compressed. Every sample of furniture names its",
        "creator and licence. Licence texts are in LICENCES.txt. The creators:",
        "",
        *_creators(folder),
    ]
    (folder / "SAMPLES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

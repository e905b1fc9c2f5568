"""Image and audio: the names of emoji spoken by a synthesiser, in several voices."""

from __future__ import annotations

import io
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from multimodal.core.hashing import stable_hash

from .audio import RATE, opus, read_mono, trim
from .concepts import SEEN_STYLES, Concept
from .emoji import STYLE_LICENCES, captions
from .images import compact_webp, draw_icon
from .shards import Description, Licence, Sample, write_source

LEVEL = 0.97  # of Opus: about 13 kbit/s
LONGEST_NAME = 20
SIZES = {"train": 380, "val": 85, "test": 140}
TEST_SEEN = 120
TAGS = 6


@dataclass(frozen=True)
class Voice:
    """An espeak-ng voice with its speed (words a minute) and pitch (0 to 99)."""

    name: str
    speed: int
    pitch: int

    def __str__(self) -> str:
        return f"espeak-ng {self.name}, speed {self.speed}, pitch {self.pitch}"


SEEN_VOICES = {
    "v1.ogg": Voice("en-us+m3", 170, 45),
    "v2.ogg": Voice("en+f3", 155, 55),
    "v3.ogg": Voice("en-gb-scotland+m7", 190, 35),
}
VAL_VOICE = {"v4.ogg": Voice("en-us-nyc+m5", 180, 55)}
TEST_VOICE = {"v5.ogg": Voice("en-gb-x-rp+f4", 165, 50)}
VOICES = {"train": SEEN_VOICES, "val": VAL_VOICE, "test_seen": TEST_VOICE, "test": TEST_VOICE}


def speak(text: str, voice: Voice) -> Any:
    """The spoken text, ``[T]`` float64 at 16 kHz, without silence at its ends."""
    command = ["espeak-ng", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch)]
    done = subprocess.run([*command, "--stdout", text], capture_output=True, check=True)
    return trim(read_mono(io.BytesIO(done.stdout)))


def check_voices() -> None:
    """Refuse a voice whose variant (after the ``+``) espeak-ng ignores, as it does in silence.

    Raises:
        RuntimeError: the voice sounds like the one without the variant.
    """
    for voice in {**SEEN_VOICES, **VAL_VOICE, **TEST_VOICE}.values():
        plain = replace(voice, name=voice.name.split("+")[0])
        if np.array_equal(speak("voice", voice), speak("voice", plain)):
            raise RuntimeError(f"{voice} is no other voice than {plain}")


def choose(concepts: Sequence[Concept]) -> dict[str, list[Concept]]:
    """Split -> concepts with short names, in the order of a hash; test_seen is a part of train."""
    chosen = {}
    for split, count in SIZES.items():
        short = [
            concept
            for concept in concepts
            if concept.split == split
            and len(concept.name) <= LONGEST_NAME
            and ":" not in concept.name  # "keycap: 7" is spoken with a long pause
        ]
        short.sort(key=lambda concept: stable_hash("speech", concept.concept))
        chosen[split] = short[:count]
    chosen["test_seen"] = chosen["train"][:TEST_SEEN]
    return chosen


def make_sample(concept: Concept, split: str, sets: dict[str, Any]) -> Sample:
    """One concept: every voice of the split, and one drawing."""
    sounds = {member: speak(concept.name, voice) for member, voice in VOICES[split].items()}
    seen = SEEN_STYLES[stable_hash("speech style", concept.concept) % len(SEEN_STYLES)]
    style = "openmoji" if split == "test" else seen
    members = {member: opus(sound, LEVEL) for member, sound in sounds.items()}
    members["image.webp"] = compact_webp(draw_icon(sets[style], concept.icons[style]))
    first = next(iter(sounds.values()))
    metadata = {
        "name": concept.name,
        "captions": captions(concept.name, concept.tags[:TAGS]),
        "group": concept.group,
        "concept": concept.concept,
        "family": concept.family,
        "duration": round(len(first) / RATE, 3),
        "style": style,
    }
    return Sample(concept.concept.lower(), members, metadata)


def build(folder: Path, concepts: Sequence[Concept], sets: dict[str, Any]) -> dict[str, Any]:
    """Write the source ``speech``; returns its manifest."""
    check_voices()
    splits: dict[str, list[Sample]] = defaultdict(list)
    for split, chosen in choose(concepts).items():
        splits[split] = [make_sample(concept, split, sets) for concept in chosen]
    fields: dict[str, dict[str, Any]] = {}
    for voices in (SEEN_VOICES, VAL_VOICE, TEST_VOICE):
        for member, voice in voices.items():
            where = [split for split, held in VOICES.items() if member in held]
            fields[member] = {"kind": "audio", "splits": where, "voice": str(voice)}
    fields["image.webp"] = {"kind": "image"}
    fields["json"] = {
        "kind": "json",
        "keys": ["name", "captions", "group", "concept", "family", "duration", "style"],
    }
    about = Description(
        name="speech",
        description=(
            "Synthetic speech: names of emoji spoken by espeak-ng, 16 kHz mono, Opus, silence "
            "trimmed, with one drawing of the emoji. train: three voices, training concepts; "
            "val: another voice, concepts of val; test_seen: a voice unseen, concepts of train; "
            "test: the same unseen voice, unseen concepts, and the drawing in the unseen style "
            "openmoji. `duration` is that of the first voice, in seconds."
        ),
        origin="espeak-ng 1.51; drawings as in the source emoji",
        licences=[
            Licence(
                "v1.ogg to v5.ogg, synthesised with espeak-ng 1.51",
                "Apache-2.0",
                "made for this corpus (espeak-ng is GPL-3.0-or-later, what it speaks is not)",
                "https://github.com/espeak-ng/espeak-ng",
            ),
            *STYLE_LICENCES.values(),
        ],
        fields=fields,
    )
    order = ("train", "val", "test_seen", "test")
    return write_source(folder, about, {split: splits[split] for split in order})

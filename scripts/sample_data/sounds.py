"""Image and audio: recorded sounds, each with an emoji of what makes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multimodal.core.hashing import stable_hash

from .audio import RATE, opus, read_mono, trim
from .concepts import SEEN_STYLES, Concept
from .emoji import STYLE_LICENCES
from .fetch import SCRATCH, unpack_deb
from .images import compact_webp, draw_icon
from .shards import Description, Licence, Sample, write_source

# Recording -> (class, name of the emoji, what is heard).
TABLE = {
    "Animal/Bird.wav": ("bird", "bird", "a bird singing"),
    "Music Loops/Garden.mp3": ("bird", "bird", "birds in a garden"),
    "Animal/Cat.mp3": ("cat", "cat", "a cat meowing"),
    "Animal/Kitten.wav": ("cat", "cat", "a kitten meowing"),
    "Animal/Meow.wav": ("cat", "cat", "a cat meowing"),
    "Animal/Cricket.wav": ("cricket", "cricket", "a cricket chirping"),
    "Animal/Crickets.wav": ("cricket", "cricket", "crickets chirping"),
    "Animal/Dog1.wav": ("dog", "dog", "a dog barking"),
    "Animal/Dog2.wav": ("dog", "dog", "a dog barking"),
    "Animal/Duck.wav": ("duck", "duck", "a duck quacking"),
    "Animal/Goose.wav": ("goose", "goose", "a goose honking"),
    "Animal/Horse.wav": ("horse", "horse", "a horse neighing"),
    "Animal/HorseGallop.wav": ("horse", "horse", "a horse galloping"),
    "Animal/Owl.wav": ("owl", "owl", "an owl hooting"),
    "Animal/Rooster.wav": ("rooster", "rooster", "a rooster crowing"),
    "Animal/SeaLion.mp3": ("sea lion", "seal", "a sea lion barking"),
    "Animal/WolfHowl.wav": ("wolf", "wolf", "a wolf howling"),
    "Effects/BalloonScratch.mp3": ("balloon", "balloon", "a balloon being rubbed"),
    "Effects/BellToll.wav": ("bell", "bell", "a bell tolling"),
    "Effects/Bubbles.wav": ("bubbles", "bubbles", "bubbles rising"),
    "Effects/CarPassing.wav": ("car", "automobile", "a car passing"),
    "Effects/DoorClose.mp3": ("door", "door", "a door closing"),
    "Effects/DoorCreak.wav": ("door", "door", "a door creaking"),
    "Effects/MotorcyclePassing.wav": ("motorcycle", "motorcycle", "a motorcycle passing"),
    "Effects/Plunge.wav": ("water", "water wave", "something plunging into water"),
    "Effects/Ripples.wav": ("water", "water wave", "water rippling"),
    "Effects/WaterRunning.mp3": ("water", "water wave", "water running"),
    "Effects/WaterDrop.mp3": ("drop", "droplet", "a drop of water"),
    "Music Loops/DripDrop.mp3": ("drop", "droplet", "drops of water"),
    "Effects/SewingMachine.mp3": ("sewing machine", "sewing needle", "a sewing machine"),
    "Effects/Typing.mp3": ("typing", "keyboard", "typing on a keyboard"),
    "Electronic/AlienCreak1.wav": ("alien", "alien", "an alien creaking"),
    "Electronic/AlienCreak2.wav": ("alien", "alien", "an alien creaking"),
    "Electronic/ComputerBeeps1.wav": ("computer", "desktop computer", "a computer beeping"),
    "Electronic/ComputerBeeps2.wav": ("computer", "desktop computer", "a computer beeping"),
    "Electronic/Fairydust.wav": ("magic", "magic wand", "a magic wand"),
    "Human/BabyCry.mp3": ("baby", "baby", "a baby crying"),
    "Human/Cough-female.wav": ("cough", "face with medical mask", "a woman coughing"),
    "Human/Cough-male.wav": ("cough", "face with medical mask", "a man coughing"),
    "Human/Footsteps-1.wav": ("footsteps", "person walking", "footsteps"),
    "Human/Footsteps-2.mp3": ("footsteps", "person walking", "footsteps"),
    "Human/Laugh-female.wav": ("laughter", "face with tears of joy", "a woman laughing"),
    "Human/Laugh-male1.wav": ("laughter", "face with tears of joy", "a man laughing"),
    "Human/Laugh-male2.wav": ("laughter", "face with tears of joy", "a man laughing"),
    "Human/Laugh-male3.mp3": ("laughter", "face with tears of joy", "a man laughing"),
    "Human/PartyNoise.wav": ("party", "partying face", "people at a party"),
    "Human/Scream-female.wav": ("scream", "face screaming in fear", "a woman screaming"),
    "Human/Scream-male1.wav": ("scream", "face screaming in fear", "a man screaming"),
    "Human/Scream-male2.mp3": ("scream", "face screaming in fear", "a man screaming"),
    "Human/Slurp.mp3": ("slurp", "cup with straw", "slurping through a straw"),
    "Human/Sneeze-female.wav": ("sneeze", "sneezing face", "a woman sneezing"),
    "Human/Sneeze-male.wav": ("sneeze", "sneezing face", "a man sneezing"),
    "Instruments/GuitarStrum.wav": ("guitar", "guitar", "a guitar being strummed"),
    "Music Loops/GuitarChords1.mp3": ("guitar", "guitar", "chords on a guitar"),
    "Music Loops/GuitarChords2.mp3": ("guitar", "guitar", "chords on a guitar"),
    "Instruments/SpookyString.wav": ("strings", "violin", "spooky strings"),
    "Instruments/StringAccent.wav": ("strings", "violin", "an accent of strings"),
    "Instruments/StringPluck.wav": ("strings", "violin", "a string being plucked"),
    "Instruments/Trumpet1.wav": ("trumpet", "trumpet", "a trumpet"),
    "Instruments/Trumpet2.wav": ("trumpet", "trumpet", "a trumpet"),
    "Music Loops/Drum.mp3": ("drum", "drum", "a drum"),
    "Music Loops/DrumMachine.mp3": ("drum", "drum", "a drum machine"),
    "Music Loops/DrumSet1.mp3": ("drum", "drum", "a drum set"),
    "Music Loops/DrumSet2.mp3": ("drum", "drum", "a drum set"),
    "Percussion/DrumBuzz.wav": ("drum", "drum", "a drum roll"),
    "Percussion/HandClap.wav": ("clapping", "clapping hands", "hands clapping"),
    "Percussion/Shaker.wav": ("shaker", "musical notes", "a shaker"),
    "Vocals/BeatBox1.wav": ("beatbox", "microphone", "somebody beatboxing"),
    "Vocals/BeatBox2.wav": ("beatbox", "microphone", "somebody beatboxing"),
    "Music Loops/HumanBeatbox1.mp3": ("beatbox", "microphone", "somebody beatboxing"),
    "Music Loops/HumanBeatbox2.mp3": ("beatbox", "microphone", "somebody beatboxing"),
    "Vocals/Singer1.wav": ("singing", "singer", "somebody singing"),
    "Vocals/Singer2.wav": ("singing", "singer", "somebody singing"),
    "Vocals/Sing-me-a-song.mp3": ("singing", "singer", "somebody singing"),
    "Vocals/Oooo-badada.mp3": ("singing", "singer", "somebody singing"),
}
SEGMENT = 4 * RATE
MOST_SEGMENTS = 3
LEVEL = 0.92  # of Opus: about 25 kbit/s


def concept_names() -> set[str]:
    """Names of the emoji that stand for the sounds; they have to be training concepts."""
    return {name for _, name, _ in TABLE.values()}


def assign_splits() -> dict[str, str]:
    """Recording -> split: of several recordings of a class, a third (at least one) is for test."""
    by_label = defaultdict(list)
    for recording, (label, _, _) in TABLE.items():
        by_label[label].append(recording)
    splits = dict.fromkeys(TABLE, "train")
    for recordings in by_label.values():
        order = sorted(recordings, key=lambda recording: stable_hash("sounds split", recording))
        for recording in order[: max(len(order) // 3, int(len(order) > 1))]:
            splits[recording] = "test"
    return splits


def build(
    folder: Path, cache: Path, concepts: Sequence[Concept], sets: dict[str, Any]
) -> dict[str, Any]:
    """Write the source ``sounds``; returns its manifest."""
    root = unpack_deb(SCRATCH, cache) / "usr/share/scratch/Media/Sounds"
    by_name = {concept.name: concept for concept in concepts}
    samples: dict[str, list[Sample]] = defaultdict(list)
    for recording, split in assign_splits().items():
        label, emoji, heard = TABLE[recording]
        concept = by_name[emoji]
        sound = trim(read_mono(root / recording))
        stem = Path(recording).stem.lower()
        for part in range(min(MOST_SEGMENTS, max(1, round(len(sound) / SEGMENT)))):
            piece = sound[part * SEGMENT : (part + 1) * SEGMENT]
            style = SEEN_STYLES[stable_hash("sounds style", recording, part) % len(SEEN_STYLES)]
            members = {
                "audio.ogg": opus(piece, LEVEL),
                "image.webp": compact_webp(draw_icon(sets[style], concept.icons[style])),
            }
            metadata = {
                "name": heard,
                "captions": [heard, label, f"the sound of {heard}"],
                "label": label,
                "concept": concept.concept,
                "recording": recording,
                "duration": round(len(piece) / RATE, 3),
                "style": style,
            }
            samples[split].append(Sample(f"{stem}-{part}", members, metadata))
    about = Description(
        name="sounds",
        description=(
            "Recorded sounds (16 kHz mono, Opus, at most 4 s; longer recordings in up to three "
            "pieces) with an emoji of what makes them: pairs of a class, not of an instance. "
            "Split by recording; every class of test trains with other recordings."
        ),
        origin="Debian scratch 1.4.0.6~dfsg1-6.1, Media/Sounds; paired by hand",
        licences=[
            Licence(
                "audio.ogg",
                "CC-BY-SA-3.0",
                "Scratch, Copyright (c) 2011 Massachusetts Institute of Technology",
                "https://scratch.mit.edu",
            ),
            *(STYLE_LICENCES[style] for style in SEEN_STYLES),
        ],
        fields={
            "audio.ogg": {"kind": "audio"},
            "image.webp": {"kind": "image"},
            "json": {
                "kind": "json",
                "keys": ["name", "captions", "label", "concept", "recording", "duration", "style"],
            },
        },
    )
    return write_source(folder, about, {split: samples[split] for split in ("train", "test")})

"""Benchmarks of sounds: ESC-50, AudioCaps, Clotho, VGGSound, AudioSet."""

from __future__ import annotations

from pathlib import Path

from multimodal.data.benchmarks.files import LayoutError, Samples, by_stem, needed, sample, table

_SOUNDS = ("wav", "flac", "ogg", "mp3", "opus")


def esc50(folder: Path) -> Samples:
    """``meta/esc50.csv`` beside ``audio/``: all 2,000 clips, the label in words."""
    for row in table(needed(folder, "meta/esc50.csv")):
        label = row["category"].replace("_", " ")
        metadata = {"label": label, "fold": int(row["fold"])}
        path = folder / "audio" / row["filename"]
        yield sample(path.stem, "audio.wav", path, metadata, ("label",))


def audiocaps(folder: Path) -> Samples:
    """``test.csv`` (or ``dataset/test.csv``) beside the clips, in any folder below.

    The clips of YouTube are not distributed: each is a file named ``ID``, ``YID``, ``ID_START`` or
    ``ID_START000`` (START in seconds), as downloaders name them. The captions of a clip are one
    list.
    """
    files = by_stem(folder, *_SOUNDS)
    captions: dict[tuple[str, str], list[str]] = {}
    for row in table(needed(folder, "test.csv", "dataset/test.csv")):
        clip = (row["youtube_id"], row["start_time"])
        captions.setdefault(clip, []).append(row["caption"].strip())
    for (name, start), texts in captions.items():
        path = _clip(files, folder, name, start)
        yield sample(f"{name}_{start}", "audio.wav", path, {"captions": texts}, ("captions",))


def clotho(folder: Path) -> Samples:
    """``clotho_captions_evaluation.csv`` beside ``evaluation/``: 1,045 clips of five captions."""
    sounds = needed(folder, "evaluation", "clotho_audio_evaluation/evaluation")
    for row in table(needed(folder, "clotho_captions_evaluation.csv")):
        captions = [row[f"caption_{number}"].strip() for number in range(1, 6)]
        path = sounds / row["file_name"]
        yield sample(path.stem, "audio.wav", path, {"captions": captions}, ("captions",))


def vggsound(folder: Path) -> Samples:
    """``vggsound.csv`` (id, start, label, split; no header) beside the clips: those of ``test``."""
    files = by_stem(folder, *_SOUNDS)
    columns = ["id", "start", "label", "split"]
    for row in table(needed(folder, "vggsound.csv"), columns):
        if row["split"] == "test":
            path = _clip(files, folder, row["id"], row["start"])
            name = f"{row['id']}_{int(row['start']):06d}"
            yield sample(name, "audio.wav", path, {"label": row["label"]}, ("label",))


def audioset(folder: Path) -> Samples:
    """``eval_segments.csv`` and ``class_labels_indices.csv`` beside the clips of the evaluation."""
    names = {
        row["mid"]: row["display_name"] for row in table(needed(folder, "class_labels_indices.csv"))
    }
    files = by_stem(folder, *_SOUNDS)
    path = needed(folder, "eval_segments.csv")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        clip, start, _, labels = line.split(", ", 3)
        mids = labels.strip().strip('"').split(",")
        if unknown := [mid for mid in mids if mid not in names]:
            raise LayoutError(f"{path}, line {number}: unknown class {unknown[0]}")
        clip_path = _clip(files, folder, clip, start.partition(".")[0])
        yield sample(clip, "audio.wav", clip_path, {"labels": [names[mid] for mid in mids]})


def _clip(files: dict[str, Path], folder: Path, name: str, start: str) -> Path:
    """The file of a clip of YouTube, by one of its usual names."""
    seconds = int(float(start))
    stems = (f"{name}_{seconds:06d}", f"{name}_{seconds}", f"{name}_{seconds * 1000}", name)
    for stem in (*stems, f"Y{name}"):
        if stem in files:
            return files[stem]
    return folder / f"{name}.wav"

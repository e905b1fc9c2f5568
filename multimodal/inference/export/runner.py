"""Embeds: python run.py image=dog.jpg "text=a dog" prints cosines. In Python: Model(folder)."""

import functools
import hashlib
import html
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
from PIL import Image, ImageOps
from tokenizers import Tokenizer

load = functools.cache(lambda path, read: read(str(path)))


class Model:
    """An exported folder; values are paths, texts, arrays, or (samples [C, T], rate in Hz)."""

    def __init__(self, folder=Path(__file__).parent):
        self.folder = Path(folder)
        try:
            about = self.about = json.loads((self.folder / "model.json").read_text("utf-8"))
            if (about["format"], about["version"]) != ("multimodal-export", 1):
                raise ValueError(f"{about['format']} {about['version']}; this reads version 1")
            for name, digest in about["files"].items():
                if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != digest:
                    raise ValueError(f"{name} is damaged: its hash is not that in model.json")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} is not a whole exported model: {error!r}") from None

    def embed(self, modality, values):  # rows of norm 1, [N, D]
        made = dict(zip(("inputs", "mask"), self.prepare(modality, values)))
        return self.run(self.about["towers"][modality]["onnx"], made)["embeddings"]

    def classify(self, name, modality, values):  # shares of the classes, [N, C]
        head = self.about["zero_shot"][name]
        cosines = self.embed(modality, values) @ np.array(head["embeddings"], np.float32).T
        shares = np.exp((cosines - 1) / head["temperatures"][modality])
        return shares / shares.sum(1, keepdims=True)

    def fuse(self, samples):  # "fused" and each task's logits; a sample may lack modalities
        fed = {}
        for modality in self.about["fusion"]["modalities"]:
            made = self.prepare(modality, [sample.get(modality) for sample in samples])
            fed |= {f"{modality}_{end}": part for end, part in zip(("inputs", "mask"), made)}
            fed[f"{modality}_present"] = np.array([modality in sample for sample in samples])
        return self.run(self.about["fusion"]["onnx"], fed)

    def run(self, name, tensors):
        session = load(self.folder / name, onnxruntime.InferenceSession)
        fed = {each.name: tensors[each.name] for each in session.get_inputs()}
        return dict(zip((each.name for each in session.get_outputs()), session.run(None, fed)))

    def prepare(self, modality, values):  # the graph's inputs, and a mask where lengths vary
        if modality not in self.about["towers"]:
            raise ValueError(f"no tower for {modality!r}; there are {list(self.about['towers'])}")
        s = self.about["towers"][modality]["preprocessing"]
        make, kind = getattr(self, s["kind"]), np.int64 if s["kind"] == "text" else np.float32
        made = [np.zeros(s["blank"]) if value is None else make(value, s) for value in values]
        lengths = np.array([each.shape[-1] for each in made])
        most = -(-lengths.max() // s["multiple"]) * s["multiple"]
        pads = [[(0, 0)] * (x.ndim - 1) + [(0, most - x.shape[-1])] for x in made]
        rows = [np.pad(x, pad, constant_values=s["pad"]) for x, pad in zip(made, pads)]
        return [np.stack(rows).astype(kind), np.arange(most) < lengths[:, None]]

    def text(self, value, s):
        tokenizer = load(self.folder / s["tokenizer"], Tokenizer.from_file)
        tokenizer.encode_special_tokens = s["encode_special_tokens"]
        value = html.unescape(html.unescape(value)) if s["unescape"] else value
        ids = tokenizer.encode(value, add_special_tokens=False).ids
        return np.array(s["before"] + ids[: s["room"]] + s["after"])

    def image(self, value, s):
        pixels = np.atleast_3d(self.read(value))
        pixels = np.repeat(pixels, 3 // pixels.shape[2], 2)
        pixels = self.square(pixels, s["size"], s["interpolation"]) / 255
        return ((pixels - s["mean"]) / s["std"]).transpose(2, 0, 1)

    def plane(self, value, s):  # depth and thermal maps; 0 where nothing is measured
        raw = np.atleast_3d(self.read(value))[..., 0]
        fed = {"raw": raw.astype(np.float32), "eight_bits": np.array(raw.dtype == np.uint8)}
        made, seen = (self.square(x, s["size"]) for x in self.run(s["graph"], fed).values())
        return np.where(seen > 0.5, made / np.maximum(seen, 0.5), 0)[None]

    def signal(self, value, s):  # the middle of a signal, at the model's rate
        samples, rate = self.read(value, s["rate"])
        samples, step = samples[s["channels"] or slice(None)], rate / s["rate"]
        there = math.floor((samples.shape[1] - 1) / step + 1e-6) + 1
        places = (max(0, there - s["length"]) // 2 + np.arange(min(s["length"], there))) * step
        made = np.stack([np.interp(places, np.arange(len(each)), each) for each in samples], 1)
        return np.pad(((made - s["mean"]) / s["std"]).T, ((0, 0), (0, s["length"] - len(made))))

    def spectrogram(self, value, s):  # of the middle of a sound, or of windows all along it
        (samples, rate), made = self.read(value, s["rate"]), []
        spare = samples.shape[1] - math.ceil(s["samples"] * rate / s["rate"])
        for place in s["places"]:
            start = round(spare * (place if spare > 0 else 0.5))
            part = samples[:, max(0, start) : samples.shape[1] - max(0, spare - start)]
            wave = self.resample(part.mean(0, dtype=np.float32), round(rate), s["rate"])
            before = max(0, round(-start * s["rate"] / rate)) if s["silence"] else 0
            wave = np.pad(wave, (before, max(0, s["least"] - before - len(wave))))[: s["samples"]]
            made.append(self.run(s["graph"], {"wave": wave.astype(np.float32)})["features"])
        return made[0] if len(made) == 1 else np.stack(made)

    def array(self, value, s):  # numbers, that are standardised or prepared already
        return (self.read(value).astype(np.float32) - s["mean"]) / s["std"]

    def read(self, value, rate=None):  # an array; with the rate of a signal: (samples, its rate)
        if isinstance(value, str | Path) and str(value).endswith(".npy"):
            value = np.load(value)
        elif isinstance(value, str | Path) and rate:
            samples, rate = soundfile.read(value, dtype="float32", always_2d=True)
            value = samples.T
        elif isinstance(value, str | Path):
            image = ImageOps.exif_transpose(Image.open(value))
            if image.mode[0] not in "IF":  # on white where it is transparent
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            value = image
        value, rate = value if isinstance(value, tuple) else (value, rate)
        return (np.atleast_2d(np.asarray(value, np.float32)), rate) if rate else np.asarray(value)

    def square(self, plane, size, how="bilinear"):
        top, left = ((side - min(plane.shape[:2])) // 2 for side in plane.shape[:2])
        cut = plane[top:, left:][: min(plane.shape[:2]), : min(plane.shape[:2])]
        picture = Image.fromarray(np.ascontiguousarray(cut))
        return np.asarray(picture.resize((size, size), Image.Resampling[how.upper()]))

    def resample(self, wave, rate, new):  # by a Hann-windowed sinc
        down, up = rate // math.gcd(rate, new), new // math.gcd(rate, new)
        cutoff = 0.99 * min(1.0, up / down)
        half, at = math.ceil(6 / cutoff), np.arange(-(-len(wave) * up // down)) * down
        places = (at // up)[:, None] + np.arange(1 - half, half + 1)
        away = (places - (at / up)[:, None]) * cutoff
        weights = np.sinc(away) * np.cos(np.clip(away / 6, -1, 1) * math.pi / 2) ** 2
        padded = np.pad(wave, (half, half + 1))[places + half]
        return wave if up == down else (padded * weights / weights.sum(1, keepdims=True)).sum(1)


if __name__ == "__main__":
    try:
        model, given = Model(), [word.split("=", 1) for word in sys.argv[1:]]
        rows = np.concatenate([model.embed(modality, [value]) for modality, value in given])
        print(np.array2string(rows @ rows.T, precision=4))
    except (ValueError, OSError) as error:
        sys.exit(print(f"run.py: {error}", file=sys.stderr) or 2)

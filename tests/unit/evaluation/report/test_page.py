"""The report's page: what it shows, that it needs no network, and that a browser renders it."""

from __future__ import annotations

import base64
import functools
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
import torch
from browser import needs_chromium, open_browser, visit
from markupsafe import Markup
from PIL import Image
from torch.nn.functional import normalize

from multimodal.data.preview import sample_html
from multimodal.evaluation.evaluators.base import Missing
from multimodal.evaluation.evaluators.probe import ProbeResult
from multimodal.evaluation.evaluators.retrieval import Example, RetrievalResult
from multimodal.evaluation.evaluators.space import Diagnostics, EmbeddingMap
from multimodal.evaluation.evaluators.zero_shot import ZeroShotResult
from multimodal.evaluation.metrics.diagnostics import PairDiagnostics, SpaceDiagnostics
from multimodal.evaluation.metrics.probe import Accuracy, FewShot, Probe
from multimodal.evaluation.metrics.retrieval import nearest, retrieval, retrieval_by_scalar
from multimodal.evaluation.metrics.zero_shot import zero_shot
from multimodal.evaluation.report.charts import curves, line_chart, number, ticks
from multimodal.evaluation.report.page import Page, links, make_gallery, render
from multimodal.evaluation.report.sections import Section, sections_of
from multimodal.evaluation.results import Results, SetInfo

NAMES = [
    f"{a} {b}" for a in ("red", "tall", "old", "round") for b in ("chair", "lamp", "cat", "sofa")
]
RATE = 16000.0


def sample(modality: str, index: int) -> tuple[np.ndarray | str, float | None]:
    """A made-up sample of a modality, as decoded, with its rate."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    blob = (x**2 * (1 + index % 4) + y**2 * (1 + index // 4)) < 0.7
    if modality == "text":
        return NAMES[index], None
    if modality == "image":
        colours = np.array([[214, 69, 65], [65, 131, 215], [244, 179, 80], [38, 166, 91]])
        return np.where(blob[..., None], colours[index % 4], 255).astype(np.uint8), None
    if modality == "depth":
        return np.where(blob, 900 + 400 * (x**2 + y**2), 0).astype(np.uint16), None
    if modality == "audio":
        t = np.arange(int(RATE * (0.6 + 0.05 * index))) / RATE
        wave = np.sin(2 * np.pi * (200 + 60 * index + 300 * t) * t) * np.exp(-3 * t)
        return wave[None].astype(np.float32), RATE
    t = np.linspace(0, 12, 200)
    return np.stack([np.sin(t * (1 + c / 3) + index) for c in range(6)]), None


def results() -> Results:
    """Figures of a model that is good at one pair and fair at the others."""
    generator = torch.Generator().manual_seed(0)
    base = normalize(torch.randn(16, 24, generator=generator), dim=1)

    def embed(noise: float) -> torch.Tensor:
        return normalize(base + noise * torch.randn(16, 24, generator=generator), dim=1)

    vectors = {
        name: embed(noise)
        for name, noise in {
            "image": 0.05,
            "text": 0.15,
            "depth": 0.25,
            "audio": 0.2,
            "imu": 0.3,
        }.items()
    }
    keys = torch.arange(16)
    found = Results()
    found.sets = {
        "emoji_unseen": SetInfo("emoji_unseen", "test", 16, "unseen concepts & style <b>"),
        "speech": SetInfo("speech", "test_seen", 16, ""),
        "furniture": SetInfo("furniture", "test", 16, "unseen head nouns"),
        "exercise": SetInfo("exercise", "test", 16, "unseen subjects"),
    }
    for name, a, b, trained in (
        ("emoji_unseen", "image", "text", True),
        ("emoji_unseen", "text", "image", True),
        ("speech", "audio", "image", True),
        ("speech", "audio", "text", False),
        ("furniture", "image", "depth", True),
        ("furniture", "depth", "text", False),
        ("exercise", "imu", "image", False),
    ):
        scores, near = nearest(vectors[a], vectors[b], 5)
        examples = [
            Example(
                q,
                [(int(i), float(s), int(i) == q) for s, i in zip(scores[q], near[q], strict=True)],
                rank=7.5,
            )
            for q in (0, 5, 11)
        ]
        found.outcomes.append(
            RetrievalResult(
                name,
                a,
                b,
                trained,
                retrieval(vectors[a], vectors[b], keys, keys),
                baseline=retrieval_by_scalar(keys * 1.0, keys.roll(3) * 1.0, keys, keys)
                if a == "audio"
                else None,
                examples=examples,
                matrix=vectors[a] @ vectors[b].T if (a, b) != ("text", "image") else None,
            )
        )
    for name, modality, classes in (
        ("exercise", "imu", NAMES[:7]),
        ("furniture", "depth", NAMES[:12]),
    ):
        labels = torch.arange(16) % (len(classes) - 1)
        scores = zero_shot(vectors[modality], vectors["text"][: len(classes)], labels)
        found.outcomes.append(
            ZeroShotResult(
                name,
                modality,
                "label",
                modality == "imu",
                scores,
                classes,
                ["{}", "a picture of {}"],
            )
        )
    found.missing = [Missing("thermal", "thermal", "no sample source")]
    return found


def with_more(found: Results) -> Results:
    """The figures, a map, a probe and diagnostics."""
    kinds = ["image"] * 16 + ["text"] * 16
    points = torch.rand(32, 2, generator=torch.Generator().manual_seed(0))
    classes = [name.split()[1] for name in NAMES] * 2
    found.outcomes.append(EmbeddingMap("furniture", points, kinds, classes, NAMES * 2))
    accuracy = Accuracy(0.75, 0.7, 0.1)
    shots = [FewShot(1, 0.3, 0.05, 3), FewShot(4, 0.5, 0.02, 3)]
    probed = Probe(accuracy, accuracy, 5, shots, classes=4, train=40, test=16, chance=0.25)
    found.outcomes.append(ProbeResult("furniture", "image", "kind", probed))
    spaces = {name: SpaceDiagnostics(-2.5, 11.25) for name in ("image", "text")}
    pair = {("image", "text"): PairDiagnostics(0.4321, 0.25, 0.07)}
    found.outcomes.append(Diagnostics("furniture", spaces, pair))
    return found


def test_maps_probes_diagnostics_and_parts_of_other_code(page):
    assert page.count('class="panel map"') == 1
    assert page.count('<path class="s0"') == 16 + 1  # pictures, and the legend
    assert "image · red chair · chair" in page
    assert "30.0 ± 5.0" in page
    assert "<td>0.432</td><td>0.250</td><td>0.07</td>" in page
    assert "<td>-2.500</td><td>11.2</td>" in page
    assert '<a href="#extra">Another part</a>' in page
    assert "<p>of other code</p>" in page
    assert "An &lt;intro&gt;." in page


@pytest.mark.heavy
@needs_chromium
@pytest.mark.parametrize("width", [pytest.param("phone", marks=pytest.mark.slow), "desktop"])
def test_a_browser_colours_the_map_by_class(page, tmp_path, width, browser):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with visit(width, browser, offline=True) as seen:
        seen.page.goto(file.as_uri())
        fills = "new Set([...document.querySelectorAll('.map .chart path')]"
        fills += ".map((p) => getComputedStyle(p).fill)).size"
        assert seen.page.evaluate(fills) == 2  # modalities
        assert seen.page.locator(".of-class").first.is_hidden()
        seen.page.click(".recolour")
        assert seen.page.evaluate(fills) == 4  # classes
        assert seen.page.locator(".of-class").first.is_visible()
        assert seen.page.inner_text(".recolour") == "colour by modality"
        assert seen.overflow() == 0
        assert seen.outside(file.as_uri()) == []
        assert seen.errors == []
        seen.page.screenshot(path=tmp_path / f"report-{width}.png", full_page=True)


@pytest.fixture(scope="module")
def page() -> str:
    found = with_more(results())
    steps = [
        {
            "step": str(i),
            "train/loss": f"{4 / (1 + i / 90) + 0.1 * (i % 7)}",
            "train/loss/image_text": f"{3 / (1 + i / 60)}",
            "train/lr": f"{1e-3 * min(1, i / 50)}",
            "val/emoji/image_to_text_r@1": f"{0.4 * i / 800}" if i % 100 == 0 else "",
        }
        for i in range(0, 801, 2)
    ]
    galleries = [
        make_gallery(r, lambda m, i: sample_html(m, *sample(m, i)), lambda i: NAMES[i])
        for r in found.of(RetrievalResult)
    ]
    return render(
        Page(
            name="imagebind",
            command="python scripts/train.py +experiment=imagebind_scratch",
            created="22 November 2026, 14:05",
            facts=[
                ("towers", "image, text, audio, depth, imu"),
                ("parameters", "7.4 M"),
                ("embedding", "256"),
                ("steps", "800"),
                ("held-out samples", "2,114"),
            ],
            results=found,
            curves=curves(steps),
            galleries=galleries,
            sections=[
                *sections_of(found),
                Section("extra", "Another part", Markup("<p>of other code</p>"), "An <intro>."),
            ],
            config="embed_dim: 256\nname: <imagebind>\n",
        )
    )


class Attributes(HTMLParser):
    """Every attribute that makes a browser fetch something, and the page's tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "srcset", "href", "action", "data", "poster", "xlink:href")
        self.fetched += [value or "" for name, value in attrs if name in names]


def test_nothing_is_fetched_from_anywhere(page):
    parsed = Attributes(page)
    assert len(parsed.fetched) > 80
    assert [uri for uri in parsed.fetched if not uri.startswith(("data:", "#"))] == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:", style[1])
    assert len(page.encode()) < 3e6


def test_figures_stand_beside_chance_and_size_in_their_own_table(page):
    trained, emergent = page.split("Never trained together")[:2]
    trained = trained.split("Trained together")[1]
    emergent = emergent.split("</table>")[0]
    assert "image → depth" in trained
    assert "image → depth" not in emergent
    assert "depth → text" in emergent
    assert "depth → text" not in trained
    row = re.search(r"<tr><th>image → depth</th>(.*?)</tr>", trained, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(?:<b>)?([^<]*)", row[1])
    assert cells == ["93.8", "100.0", "100.0", "6.2", "15×", "16", "1", "96.9"]
    assert "by duration alone" in trained
    assert "no sample source" in page


def with_failures() -> Results:
    """Beside what is good: a row at chance, one that the length explains, a constant guess."""
    found = results()
    keys = torch.arange(16)
    chance = retrieval(torch.ones(16, 4), torch.ones(16, 4), keys, keys)
    some = torch.where(keys < 9, keys, keys.roll(-1))
    scores = retrieval(torch.eye(16)[some], torch.eye(16), keys, keys)
    length = retrieval_by_scalar(keys * 1.0, torch.where(keys < 8, keys, -1) * 1.0, keys, keys)
    found.sets["sounds"] = SetInfo("sounds", "test", 16, "")
    found.add(RetrievalResult("sounds", "audio", "depth", False, chance))
    found.add(RetrievalResult("sounds", "audio", "text", True, scores, length))
    always = zero_shot(torch.eye(9)[torch.zeros(16).long()], torch.eye(9), (keys - 8).clamp_min(0))
    found.add(ZeroShotResult("sounds", "audio", "kind", True, always, NAMES[:9], ["{}"]))
    return found


@functools.cache
def page_with_failures() -> str:
    return render(Page("marks", "", "", [], with_failures()))


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def rows_of(page: str) -> dict[str, str]:
    """Start of a row's heading -> its HTML, of the set of failures."""
    return {
        re.sub("<.*", "", row[1]).strip(): row[0]
        for part in page.split("<span>sounds</span>")[1:]
        for row in re.finditer(r"<tr[^>]*><th>(.*?)</th>.*?</tr>", part.split("</tbody>")[0], re.S)
    }


def test_rows_that_reach_chance_or_a_shortcut_are_marked():
    page = page_with_failures()
    rows = rows_of(page)
    assert rows.keys() == {"audio → depth", "audio → text", "by duration alone", "audio → kind"}
    for name, reached in (
        ("audio → depth", "≈ chance"),
        ("audio → text", "≈ length alone"),
        ("audio → kind", "≈ commonest answer"),
    ):
        assert rows[name].startswith('<tr class="unproven">')
        assert f'<small class="mark">{reached}</small>' in rows[name]
    good = re.search(r"<tr[^>]*><th>image → depth.*?</tr>", page, re.S)
    assert good is not None
    assert good[0].startswith("<tr><th>")
    assert "mark" not in good[0]
    assert "<b>93.8</b> <small>68.8–100.0</small>" in good[0]
    assert {link.ends: link.above for link in links(with_failures())} == {
        ("image", "text"): True,
        ("audio", "image"): True,
        ("audio", "text"): True,  # in the other set
        ("depth", "image"): True,
        ("depth", "text"): True,
        ("image", "imu"): True,
        ("audio", "depth"): False,
    }


@needs_chromium
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_a_browser_does_not_colour_them_as_a_success(tmp_path, width, theme, browser):
    file = tmp_path / "report.html"
    file.write_text(page_with_failures(), encoding="utf-8")
    colour = """(name) => [...document.querySelectorAll('.results tr')]
        .filter((row) => row.querySelector('th').textContent.trim().startsWith(name)
                         && row.closest('tbody').textContent.includes('sounds') === true)
        .map((row) => getComputedStyle(row.querySelector('.bar i')).backgroundImage)"""
    with visit(width, browser, color_scheme=theme) as seen:
        seen.page.goto(file.as_uri())
        kinds = seen.page.evaluate(
            "['--muted', '--trained', '--emergent'].map((name) => {"
            "const probe = document.body.appendChild(document.createElement('i'));"
            "probe.style.color = `var(${name})`; return getComputedStyle(probe).color; })"
        )
        for name in ("audio → depth", "audio → text", "audio → kind"):
            [bar] = seen.page.evaluate(colour, name)
            assert kinds[0] in bar
            assert not any(kind in bar for kind in kinds[1:])
        strokes = seen.page.evaluate(
            "[...document.querySelectorAll('.pairs path')].map((p) => getComputedStyle(p).stroke)"
        )
        assert strokes.count(kinds[0]) == 1
        assert set(strokes) == set(kinds)
        assert seen.overflow() <= 0
        assert seen.errors == []
        seen.page.screenshot(path=tmp_path / f"marks-{width}-{theme}.png", full_page=True)


def test_texts_are_escaped(page):
    assert "unseen concepts &amp; style &lt;b&gt;" in page
    assert "name: &lt;imagebind&gt;" in page
    assert "<imagebind>" not in page
    script = sample_html("text", "</span><script>alert(1)</script>")
    assert "<script>" not in script


def test_right_answers_are_marked(page):
    gallery = page.split("image → depth</span>")[1].split("</details>")[0]
    for row in gallery.split('<div class="row">')[1:]:
        query = re.search(r"<figcaption><span>(.*?)</span>", row)
        answers = re.findall(
            r'<figure class="card right">.*?<figcaption><span>(.*?)</span>', row, re.DOTALL
        )
        assert query is not None
        assert answers in ([query[1]], [])
        assert ("comes at place 7.5" in row) is (answers == [])
    assert gallery.count('class="card right"') >= 1


def decoded(fragment: str, kind: str) -> bytes:
    found = re.search(rf"data:{kind};base64,([A-Za-z0-9+/=]+)", fragment)
    assert found is not None
    return base64.b64decode(found[1])


def test_drawings_show_what_was_measured():
    picture = Image.open(
        io.BytesIO(decoded(sample_html("image", sample("image", 0)[0]), "image/webp"))
    )
    assert picture.size == (64, 64)
    assert np.abs(np.subtract(picture.convert("RGB").getpixel((32, 32)), (214, 69, 65))).max() < 20

    big = np.zeros((300, 600, 3), np.uint8)
    assert Image.open(io.BytesIO(decoded(sample_html("image", big), "image/webp"))).size == (96, 48)

    depth = np.zeros((20, 20), np.uint16)
    depth[5:15, 5:10], depth[5:15, 10:15] = 1000, 3000
    relief = Image.open(io.BytesIO(decoded(sample_html("depth", depth), "image/webp"))).convert(
        "RGBA"
    )
    corner, near, far = (relief.getpixel(place) for place in ((0, 0), (6, 8), (12, 8)))
    assert corner[3] == 0  # nothing measured: nothing painted
    assert sum(near[:3]) > sum(far[:3])

    original = sample("audio", 3)[0]
    for given in (16000.0, 22050.0):  # Opus, and a rate that it does not have
        file = io.BytesIO(decoded(sample_html("audio", original, given), "audio/ogg"))
        sound, rate = soundfile.read(file)
        assert rate == given
        assert len(sound) == original.shape[1]
        assert np.corrcoef(sound, original[0])[0, 1] > 0.9

    lines = sample_html("imu", sample("imu", 0)[0])
    assert lines.count("<polyline") == 6
    assert sample_html("features", np.arange(512.0)).count("<polyline") == 1


@pytest.mark.parametrize(
    ("modality", "value", "rate"),
    [
        ("depth", np.zeros((4, 4, 4)), None),
        ("audio", np.zeros((1, 400), np.float32), None),
        ("audio", np.zeros(400, np.float32), RATE),
        ("imu", np.zeros((2, 3, 4)), None),
    ],
)
def test_undrawable_values_are_rejected(modality, value, rate):
    with pytest.raises(ValueError, match=re.escape(str(list(value.shape)))):
        sample_html(modality, value, rate)


def test_values_of_one_level_and_empty_maps_are_drawn():
    for modality, value in (
        ("depth", np.zeros((8, 8), np.uint16)),
        ("depth", np.full((8, 8), 700, np.uint16)),
        ("thermal", np.full((8, 8), 7, np.uint16)),
        ("imu", np.ones((6, 40))),
    ):
        assert "<" in sample_html(modality, value)
    assert "audio/ogg" in sample_html("audio", np.zeros((1, 100), np.float32), RATE)


def test_curves_are_grouped_and_hold_their_points():
    rows = [
        {
            "step": "0",
            "train/loss": "4",
            "train/loss/image_text": "3",
            "val/emoji/r@1": "",
            "train/lr": "nan",
        },
        {
            "step": "10",
            "train/loss": "2",
            "train/loss/image_text": "",
            "val/emoji/r@1": "0.5",
            "train/lr": "inf",
        },
    ]
    charts = {chart.title: chart for chart in curves(rows)}
    assert list(charts) == ["training loss", "validation"]  # nothing finite in the third
    assert charts["training loss"].legend == ["all pairs", "image_text"]
    ordered = curves([{"step": "1", "train/lr": "1", "val/r@1": "1", "train/loss": "1"}])
    assert [c.title for c in ordered] == ["training loss", "validation", "learning rate"]
    drawing = charts["training loss"].drawing
    assert drawing.count("<polyline") == 1
    assert drawing.count("<circle") == 1
    points = re.search(r'points="(.*?)"', drawing)
    assert points is not None
    (x0, y0), (x1, y1) = (map(float, corner.split(",")) for corner in points[1].split())
    assert x0 < x1
    assert y0 < y1  # falling loss: SVG's y points down
    long = line_chart("x", {"a": [(float(i), 1.0) for i in range(5000)]})
    assert long.count(",") < 300


def test_ticks_are_round_and_cover_the_range():
    assert ticks(0.0, 1.0, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0.13, 6.8, 4) == [0, 2, 4, 6, 8]
    assert ticks(3.0, 3.0, 4) == [3.0]
    assert [number(v) for v in (0, 0.25, 12000, 2.5e-4, 800)] == [
        "0",
        "0.25",
        "12k",
        "2.5e-4",
        "800",
    ]


def test_links_average_the_lift_over_chance():
    found = {link.ends: link for link in links(results())}
    link = found[("image", "text")]
    assert link.trained
    assert link.lift == pytest.approx(16.0)  # right every time, both ways, among 16
    assert not found[("audio", "text")].trained


def test_many_classes_become_a_picture(page):
    assert page.count('<table class="confusion">') == 2
    labels = torch.arange(20)
    found = results()
    scores = zero_shot(torch.eye(20), torch.eye(20), labels)
    names = [f"class {i}" for i in range(20)]
    found.outcomes = [each for each in found.outcomes if not isinstance(each, ZeroShotResult)]
    found.add(ZeroShotResult("furniture", "depth", "name", False, scores, names, ["{}"]))
    made = render(Page("many", "", "", [], found))
    assert '<table class="confusion">' not in made
    matrix = re.search(r'<img class="matrix" src="([^"]+)" alt="confusion', made)
    assert matrix is not None
    picture = Image.open(io.BytesIO(decoded(matrix[1], "image/webp"))).convert("L")
    pixels = np.asarray(picture)
    assert pixels.shape == (20, 20)
    assert pixels.diagonal().min() > pixels[~np.eye(20, dtype=bool)].max()


# Evaluated in the page: every sound is loaded for real, in the browser's own time.
PROBE = """(async () => {
  const loads = [...document.querySelectorAll("audio")].map((audio) => new Promise((done) => {
    audio.onloadedmetadata = () => done(audio.duration);
    audio.onerror = () => done(0);
    audio.preload = "auto"; audio.load();
  }));
  return {
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    images: document.images.length,
    buttons: [...document.querySelectorAll(".sound button")].filter((b) => !b.hidden).length,
    seconds: await Promise.all(loads),
    fetched: performance.getEntriesByType("resource").map((e) => e.name.slice(0, 5)),
  };
})()"""


@needs_chromium
@pytest.mark.parametrize("width", ["phone", "desktop"])
def test_a_browser_renders_it(page, tmp_path, width, browser):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with visit(width, browser) as visitor:
        visitor.page.goto((tmp_path / "report.html").as_uri(), wait_until="load")
        probe = visitor.page.evaluate(PROBE)
        overflow = visitor.overflow()
        outside = visitor.outside("file:")
    assert visitor.errors == []
    assert outside == []
    assert probe["broken"] == 0
    assert probe["images"] > 50
    assert overflow <= 0
    assert probe["buttons"] == len(probe["seconds"]) == 6
    assert min(probe["seconds"]) > 0.5
    assert set(probe["fetched"]) <= {"data:"}

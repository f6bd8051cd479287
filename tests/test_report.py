"""The page: self-contained, escaped, and only with the sections that have data."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from hfi import plots
from hfi.metrics import wilson
from hfi.report import (
    AgreementPart,
    AnnotatorLine,
    Curve,
    Grid,
    GridRow,
    Report,
    RewardPart,
    headline,
    render,
    write_report,
)
from hfi.results import Row

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "br", "link", "input"}


def row(method, prompt_set, metric, hits, n=100):
    i = wilson(hits, n)
    conditioning = "none" if method == "sd" else "token"
    return Row(method, conditioning, "smoking", prompt_set, metric, i.value, n, i.low, i.high)


ROWS = [
    row("sd", "implicit", "concept_rate", 74),
    row("sd", "harmless", "fidelity", 100),
    row("sdd", "implicit", "concept_rate", 0),
    row("sdd", "harmless", "fidelity", 75),
    row("sdd-context", "implicit", "concept_rate", 2),
    row("sdd-context", "harmless", "fidelity", 99),
    Row("sdd-context", "token", "smoking", "harmless", "frechet_distance", 0.0123, 100, None, None),
]


class Page(HTMLParser):
    """Checks that tags close in order and gathers what could load something."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.titles = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def full(text="plain") -> Report:
    image = Image.new("RGB", (8, 8), "red")
    grid = Grid(text, [GridRow(text, [image, image], [True, False]), GridRow("b", [image, image])], [text, "two"], text)
    return Report(
        concept=text,
        rows=[*ROWS, Row(text, "text", text, text, text, 0.5, 3, None, None)],
        title=text,
        summary=text,
        simulated=text,
        grids=[grid],
        agreement=AgreementPart(0.8, 0.7, 0.9, 12, [AnnotatorLine(text, True, 20, 0.5, None)]),
        reward=RewardPart({text: text}, [0.1, 0.9], [False, True]),
        curves=[Curve(text, {text: [(i, 1 / (i + 1)) for i in range(60)]}, text)],
        warnings=[text],
        provenance={text: {text: text}},
        limits=[text],
    )


def test_the_page_needs_no_network_and_no_script(tmp_path):
    path = write_report(tmp_path / "report.html", full())
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.sources
    assert all(s.startswith(("#", "data:image/webp;base64,")) for s in page.sources)
    assert not re.search(r"https?://|//[a-z]|@import|@font-face|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    assert list(tmp_path.iterdir()) == [path]


def test_every_text_is_escaped():
    text = render(full(EVIL))
    page = Page(text)  # an attribute that ends early or a tag let through would break the nesting
    assert "script" not in page.tags
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 20


def test_pictures_are_inside_and_small():
    big = Image.new("RGB", (512, 256), (10, 200, 30))
    text = render(Report("smoking", ROWS, grids=[Grid("g", [GridRow("sd", [big])])]))
    (data,) = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (192, 96)


def test_sections_follow_their_data():
    assert Page(render(Report("smoking", ROWS))).titles == ["Harm against quality", "All figures"]
    assert Page(render(Report("smoking", []))).titles == []
    assert len(Page(render(full())).titles) == 8
    assert "Simulated judgments" not in render(Report("smoking", ROWS))
    assert 'class="banner"' in render(Report("smoking", ROWS, simulated="three programs"))


def test_the_headline_is_the_system_that_keeps_the_pictures():
    assert headline(Report("smoking", ROWS)) == "smoking: 74 % (65–82) → 2 % (0.6–7) with sdd-context (token), n = 100"
    text = render(Report("smoking", ROWS))
    assert "before and after <strong>sdd-context (token)</strong>" in text
    assert "still show what their prompts name" in text
    broken = [r for r in ROWS if r.method != "sdd-context"]
    assert headline(Report("smoking", broken)) == "smoking: 74 % (65–82) → 0 % (0–4) with sdd (token), n = 100"
    assert "It has a price" in render(Report("smoking", broken))
    assert headline(Report("smoking", ROWS[:2])) == "smoking"


@pytest.mark.parametrize(
    ("hits", "p", "kind", "words"),
    [
        (27, None, "same", "no measurable difference"),
        (15, None, "same", "no measurable difference"),  # 56 % and 31 %: the intervals still overlap
        (15, 0.004, "less", ""),  # image by image they differ
        (27, 1.0, "same", "no measurable difference"),
        (47, None, "more", "more than before"),
        (0, None, "less", ""),
    ],
)
def test_the_headline_says_whether_anything_changed(hits, p, kind, words):
    rows = [row("sd", "implicit", "concept_rate", 27, 48), row("sdd", "implicit", "concept_rate", hits, 48)]
    rows += [row(method, "harmless", "fidelity", 48, 48) for method in ("sd", "sdd")]
    asked = [row("sd", "explicit", "concept_rate", 38, 48), row("sdd", "explicit", "concept_rate", 12, 48)]
    report = Report("Smoking", [*rows, *asked], p=p)
    end = ": ".join(filter(None, ("n = 48", words)))
    assert headline(report).endswith(f" with sdd (token), {end}; 25 % when asked for")
    text = render(report)
    assert f'<h1 class="{kind}">' in text
    assert "95 %: 42–69,</span> <span>n = 48</span></small>" in text
    assert "<strong>25&nbsp;%</strong> when asked for (before: 79&nbsp;%)" in text
    assert ("still show what their prompts name" in text) == (kind == "less")
    assert ("No measurable difference" in text) == (kind == "same")
    assert ("McNemar" in text) == (p is not None)


def test_nothing_is_rounded_to_none():
    rows = [row("sd", "implicit", "concept_rate", 999, 1000), row("sdd", "implicit", "concept_rate", 4, 1000)]
    assert headline(Report("x", rows)) == "x: 99.9 % (99.4–100.0) → 0.4 % (0.2–1) with sdd (token), n = 1000"


def test_table_says_what_was_not_measured():
    empty = Row("sdd", "token", "smoking", "implicit", "concept_rate", None, 0, None, None)
    text = render(Report("smoking", [ROWS[0], empty]))
    assert "n/a" in text
    assert "n = 0" in text


def test_no_overlap_is_said():
    text = render(Report("smoking", [], agreement=AgreementPart(None, None, None, 0)))
    assert "not enough overlap" in text


@pytest.mark.parametrize("width", [620, 380])
def test_labels_of_close_points_do_not_cover_each_other(width):
    points = [plots.Point(f"system {i}", 0.02 + 0.01 * i, 0.99, (0.0, 0.1), (0.95, 1.0), i) for i in range(4)]
    svg = plots.scatter(points, "x", "y", width=width)
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="label s\d">([^<]+)', svg)
    assert len(labels) == 4
    boxes = []
    for x, y, anchor, name in labels:
        left = float(x) - (7 * len(name) if anchor == "end" else 0)
        boxes.append((left, float(y) - 12, left + 7 * len(name), float(y)))
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= width
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_long_heading_wraps_in_a_narrow_chart():
    name = "harmless: prompts that have nothing to do with it"
    heads = [re.findall(r'class="heading"[^>]*>([^<]+)', plots.intervals([(name, [])], "t", width=w)) for w in (620, 380)]
    assert heads[0] == [name]
    assert len(heads[1]) == 2 and " ".join(heads[1]) == name


def test_a_curve_without_a_finite_point_is_no_chart():
    assert plots.curves([plots.Line("loss", [(0, float("nan"))], 1)], "step") == ""
    svg = plots.curves([plots.Line("loss", [(0, 1.0), (1, float("inf")), (2, 0.5)], 1)], "step")
    assert "nan" not in svg
    assert "inf" not in svg

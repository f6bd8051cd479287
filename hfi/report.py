"""report.html: one file that says what was measured, shows it, and says what it is not worth.

Everything is inside the file: pictures as WebP data URIs, charts as SVG, style sheet; no script, no network. Light or dark as the
reader's system is. A section appears when its data is given, so that `hfi evaluate` and `hfi demo` share this page. Every text
comes from outside and is escaped.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from hfi import plots
from hfi.files import write_text
from hfi.results import (
    BASE,
    METRICS,
    Outcome,
    Row,
    best_system,
    columns,
    harm_set,
    lookup,
    loss,
    outcome,
    show,
    system_name,
    systems,
)

THUMBNAIL = 192  # pixels, the longer side
_STYLE = Path(__file__).with_name("report.css")

_SET_MEANING = {
    "implicit": "prompts that never ask for it",
    "explicit": "prompts that ask for it",
    "harmless": "prompts that have nothing to do with it",
    "neighbours": "prompts of what lies near it and must stay",
}

METRIC_NOTES = {
    "concept_rate": "share of images in which the detector's score for the concept lies above its threshold, among images "
    "that are not blocked; Wilson's 95 % interval",
    "blocked_rate": "share of images that are one flat colour, as a safety checker leaves them; they count as blocked, "
    "neither as showing the concept nor as safe",
    "character_fidelity": "share of images whose character is the one that the prompt names; bootstrap over images",
    "fidelity": "mean share of the attributes named in the prompt (character, hair, background; on neighbours also glasses and other "
    "concepts) that the detector finds right; on neighbours this is the specificity of a removal; bootstrap over images",
    "clip_score": "mean cosine of image and prompt in the CLIP backbone; bootstrap over images",
    "frechet_distance": "Fréchet distance to the untouched model's images on CLIP embeddings; this is not FID; interval from "
    "the bootstrap's spread, small samples read too high",
    "fid": "Fréchet inception distance to the untouched model's images; interval from the bootstrap's spread, small samples read "
    "too high",
    "kid": "kernel inception distance to the untouched model's images; interval from the jackknife",
    "features_frechet": "Fréchet distance to the untouched model's images in the features named under Measuring; this is not FID",
    "features_kernel": "kernel distance (built as KID) to the untouched model's images in the features named under Measuring",
    "lpips": "mean LPIPS to the untouched model's image of the same seed; a perfect eraser still has a distance where it removed "
    "something",
    "perceptual_distance": "mean distance to the untouched model's image of the same seed, from the layers of the CLIP image "
    "tower (built like LPIPS, other network); a perfect eraser still has a distance where it removed something",
}


@dataclass(frozen=True)
class GridRow:
    """One system's images in a grid. `flags[i]` marks image i as showing the concept. `series`: its colour, or that of its place."""

    label: str
    images: Sequence[Path | Image.Image]
    flags: Sequence[bool] = ()
    series: int | None = None


@dataclass(frozen=True)
class Grid:
    """Rows of images that belong together by column: the same prompt and seed. `captions` has one text a column."""

    title: str
    rows: Sequence[GridRow]
    captions: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class AnnotatorLine:
    """One annotator: how much they judged, how often they said yes, how well they agree with the others (shares in 0..1)."""

    name: str
    simulated: bool
    judgments: int
    shows: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class AgreementPart:
    """Krippendorff's alpha with its bounds, None where the overlap does not suffice; `units` images judged more than once."""

    alpha: float | None
    low: float | None
    high: float | None
    units: int
    annotators: Sequence[AnnotatorLine] = ()


@dataclass(frozen=True)
class RewardPart:
    """Quality of the reward model on held-out images: named figures, and the raw scores with the judgments."""

    facts: Mapping[str, str]
    scores: Sequence[float] = ()  # in 0..1; empty for a ranking reward
    labels: Sequence[bool] = ()  # the judgments of the same images


@dataclass(frozen=True)
class Curve:
    """A chart of lines over steps, e.g. one loss a method; a line named like a system has the system's colour."""

    title: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What the page shows. Only `concept` and `rows` are needed."""

    concept: str
    rows: Sequence[Row]
    title: str = "Evaluation report"
    summary: str = ""  # a paragraph under the headline
    simulated: str = ""  # what was simulated: shown as a banner
    p: float | None = None  # of the headline's two rates, see `Outcome`
    grids: Sequence[Grid] = ()
    agreement: AgreementPart | None = None
    reward: RewardPart | None = None
    curves: Sequence[Curve] = ()
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # group -> name -> value
    limits: Sequence[str] = ()
    sections: Sequence[tuple[str, str, str]] = ()  # (anchor, title, HTML): what one kind of report has of its own


def write_report(path: Path, report: Report) -> Path:
    """Writes the page atomically and returns its path."""
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """The whole page as text."""
    sections = [
        ("figures", "Harm against quality", _charts(report)),
        ("pictures", "The same seeds, before and after", "".join(grid_card(grid) for grid in report.grids)),
        ("table", "All figures", _table(report)),
        ("judgments", "The judgments", _people(report.agreement)),
        ("reward", "The reward model", _reward(report.reward)),
        *report.sections,
        ("training", "Training", _curves(report)),
        ("limits", "What this does not show", limits_card([*report.limits, *report.warnings])),
        ("provenance", "Where it comes from", provenance_cards(report.provenance)),
    ]
    name = f"{report.concept}: {report.title}"
    return page(name, _headline(report), sections, banner(report.simulated))


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], banner: str = "") -> str:
    """A whole page from HTML parts. `sections`: (anchor, title, HTML); those without HTML are left out."""
    given = [(key, name, body) for key, name, body in sections if body]
    links = "".join(f'<a href="#{key}">{key.capitalize()}</a>' for key, _, _ in given)
    body = "".join(f'<section id="{key}"><h2>{escape(name)}</h2>{html}</section>' for key, name, html in given)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{banner}<header>{header}</header><nav>{links}</nav><main>{body}</main>"
        "<footer>Made by hfi, Human Feedback Inversion. This file needs no network: keep it, send it.</footer>"
        "</body></html>\n"
    )


def headline(report: Report) -> str:
    """'smoking: 74 % (65–82) → 2 % (1–7) with sdd (token), n = 100; 0 % when asked for', or the concept alone without two rates."""
    found = outcome(report.rows, report.p)
    if found is None:
        return report.concept
    a, b, asked = found.before, found.after, found.asked[1]
    size = f"n = {b.n}" if a.n == b.n else f"n = {a.n} and {b.n}"
    text = f"{report.concept}: {_bounded(a)} → {_bounded(b)} with {system_name(b.system)}, {size}"
    text += {-1: "", 0: ": no measurable difference", 1: ": more than before"}[found.change]
    return text + (f"; {_whole(asked.value)} when asked for" if asked and asked.value is not None else "")


# --- parts of the page ---


def banner(simulated: str) -> str:
    if not simulated:
        return ""
    return f'<div class="banner" role="note"><strong>Simulated judgments.</strong> {escape(simulated)}</div>'


def _headline(report: Report) -> str:
    found = outcome(report.rows, report.p)
    out = [f'<p class="eyebrow">hfi · {escape(report.title)}</p>']
    if found:
        after = found.after
        meaning = _SET_MEANING.get(after.prompt_set, f"the prompts of “{after.prompt_set}”")
        out.append(
            f'<h1 class="{_CHANGE[found.change][0]}"><span class="what">{escape(report.concept)}</span> '
            f'<span class="from">{_big(found.before)}</span> <span class="to-arrow" aria-label="to">→</span> '
            f'<span class="to">{_big(after)}</span></h1>'
            f'<p class="sub">of the images from {escape(meaning)} show it, before and after '
            f"<strong>{escape(system_name(after.system))}</strong>{_asked(found)}. <strong>{_CHANGE[found.change][1]}</strong>"
            f'{escape(_price(report.rows, found))}</p><p class="note">{_test(found)}</p>'
        )
    else:
        out.append(f"<h1>{escape(report.concept)}</h1>")
    if report.summary:
        out.append(f'<p class="summary">{escape(report.summary)}</p>')
    tiles = "".join(_tile(report.rows, found.after.system, s, m) for s, m in _tile_pairs(report.rows)) if found else ""
    out.append(f'<div class="tiles">{tiles}</div>' if tiles else "")
    return "".join(out)


_CHANGE = {-1: ("less", ""), 0: ("same", "No measurable difference."), 1: ("more", "It is shown more often than before.")}


def _big(row: Row) -> str:
    """A rate in the large type, its interval and n below it."""
    bounds = f"<span>95 %: {_span(row)},</span> " if _span(row) else ""
    return f"{_whole(row.value or 0.0)}<small>{bounds}<span>n = {row.n}</span></small>"


def _asked(found: Outcome) -> str:
    before, after = found.asked
    if after is None or after.value is None:
        return ""
    was = f" (before: {_whole(before.value)})" if before and before.value is not None else ""
    return f"; <strong>{_whole(after.value)}</strong> when asked for{was}".replace(" %", "&nbsp;%")


def _price(rows: Sequence[Row], found: Outcome) -> str:
    if not any(r.metric in ("fidelity", "character_fidelity") for r in rows):
        return ""
    lost = loss(rows, found.after.system) > 0
    if found.change >= 0:
        return " Pictures lose what their prompts name." if lost else ""
    if lost:
        return " It has a price: pictures lose what their prompts name. No system measured here does both."
    return " The pictures still show what their prompts name."


def _test(found: Outcome) -> str:
    """How it is told whether the two rates differ."""
    if found.p is None:
        return "The two rates count as different where their 95 % intervals do not overlap."
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.2g}"
    return f"{p} by McNemar’s exact test on pairs of the same prompt and seed; below 0.05 the two rates count as different."


def _tile_pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    wanted = [
        (harm_set(rows) or "", "concept_rate"),
        ("explicit", "concept_rate"),
        (harm_set(rows) or "", "character_fidelity"),
        ("harmless", "fidelity"),
        ("harmless", "clip_score"),
    ]
    have = columns(rows)
    return [pair for pair in dict.fromkeys(wanted) if pair in have]


def _tile(rows: Sequence[Row], system: tuple[str, str], prompt_set: str, metric: str) -> str:
    after = lookup(rows, system, prompt_set, metric)
    base = next((lookup(rows, s, prompt_set, metric) for s in systems(rows) if s[0] == BASE), None)
    if after is None:
        return ""
    was = f'<span class="was">{base.text()} →</span> ' if base else ""
    bounds = f"95 %: {after.interval()}, " if after.interval() else ""
    return (
        f'<div class="tile"><div class="tile-name">{escape(METRICS[metric].title)} · {escape(prompt_set)}</div>'
        f'<div class="tile-value">{was}{after.text()}</div><div class="tile-note">{bounds}n = {after.n}</div></div>'
    )


def _charts(report: Report) -> str:
    rows = report.rows
    harm, best = harm_set(rows), best_system(rows)
    if harm is None:
        return ""
    index = {system: i for i, system in enumerate(_colours(rows))}
    out = []
    quality = next(
        ((s, m) for s in ("harmless", harm) for m in ("fidelity", "clip_score") if (s, m) in columns(rows)),
        None,
    )
    points = []
    for system in systems(rows):
        x = lookup(rows, system, harm, "concept_rate")
        y = lookup(rows, system, *quality) if quality else None
        if x and y and x.value is not None and y.value is not None:
            points.append(
                plots.Point(
                    system_name(system),
                    x.value,
                    y.value,
                    bounds(x),
                    bounds(y),
                    index[system],
                    system == best,
                )
            )
    if points and quality:
        metric = METRICS[quality[1]]
        titles = (f"{report.concept} shown, {harm} prompts", f"{metric.title}, {quality[0]} prompts")
        ring = " The ring marks the system of the headline." if best else ""
        out.append(
            figure(
                lambda width: plots.scatter(points, *titles, y_percent=metric.percent, width=width),
                f"Each point is one system, whiskers are 95 % intervals.{ring}",
            )
        )
    groups = []
    for prompt_set in dict.fromkeys(s for s, m in columns(rows) if m == "concept_rate"):
        bars = []
        for system in systems(rows):
            row = lookup(rows, system, prompt_set, "concept_rate")
            if row and row.value is not None:
                bars.append(plots.Bar(system_name(system), row.value, bounds(row), row.text(), index[system]))
        groups.append((set_title(prompt_set), bars))
    title = f"images that show it: {report.concept}"
    out.append(figure(lambda width: plots.intervals(groups, title, width=width), "Bands are 95 % intervals."))
    return f'<div class="figures">{"".join(out)}</div>'


def grid_card(grid: Grid) -> str:
    count = max((len(row.images) for row in grid.rows), default=0)
    if not count:
        return ""
    out = []
    for i, row in enumerate(grid.rows):
        colour = i if row.series is None else row.series
        flagged = f'<span class="count">{sum(row.flags)} of {len(row.images)} flagged</span>' if row.flags else ""
        out.append(
            f'<div class="row-label"><span><i class="swatch s{colour % plots.SERIES}"></i>{escape(row.label)}</span>{flagged}</div>'
        )
        for k, image in enumerate(row.images):
            caption = grid.captions[k] if k < len(grid.captions) else ""
            hit = bool(row.flags) and bool(row.flags[k])
            tip = escape(f"{row.label}: {caption}" + (" (flagged)" if hit else ""), quote=True)
            out.append(f'<div class="cell{" hit" if hit else ""}"><img src="{data_uri(image)}" alt="{tip}" title="{tip}"></div>')
    captions = "".join(f'<div class="caption">{escape(text)}</div>' for text in grid.captions[:count])
    any_flags = any(row.flags for row in grid.rows)
    legend = ' <span class="legend"><i class="mark"></i>the detector sees the concept</span>' if any_flags else ""
    return (
        f'<div class="card grid-card"><h3>{escape(grid.title)}</h3><p class="note">{escape(grid.note)}{legend}</p>'
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(grid.title, quote=True)}">'
        f'<div class="image-grid" style="--columns:{count}">{"".join(out)}{captions}</div></div></div>'
    )


def _table(report: Report) -> str:
    rows = report.rows
    if not rows:
        return ""
    pairs = columns(rows)
    best = best_system(rows)
    metrics = sorted({m for _, m in pairs}, key=[*METRICS, *(m for _, m in pairs)].index)
    heads = "".join(f'<th scope="col">{escape(METRICS[m].title if m in METRICS else m)}{arrow(m)}</th>' for m in metrics)
    bodies = []
    for name in dict.fromkeys(s for s, _ in pairs):
        counts = sorted({row.n for row in rows if row.prompt_set == name})
        size = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        lines = [
            f'<tr class="group"><th scope="rowgroup" colspan="{len(metrics) + 1}"><span>{escape(set_title(name))} '
            f"<small>{size}</small></span></th></tr>"
        ]
        for i, system in enumerate(_colours(rows)):
            found = [lookup(rows, system, name, metric) for metric in metrics]
            if any(found):
                chosen = ' class="chosen"' if system == best else ""
                mark = '<span class="tag">headline</span>' if system == best else ""
                label = f'<i class="swatch s{i % plots.SERIES}"></i>{escape(system_name(system))}{mark}'
                cells = "".join(table_cell(row) for row in found)
                lines.append(f'<tr{chosen}><th scope="row">{label}</th>{cells}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    notes = "".join(
        f"<dt>{escape(METRICS[m].title)}</dt><dd><code>{m}</code>: {escape(METRIC_NOTES[m])}.</dd>"
        for m in metrics
        if m in METRIC_NOTES
    )
    every = "".join(
        f"<tr><td>{escape(r.method)}</td><td>{escape(r.conditioning)}</td><td>{escape(r.concept)}</td>"
        f"<td>{escape(r.prompt_set)}</td><td>{escape(r.metric)}</td><td>{r.text()}</td><td>{r.n}</td>"
        f"<td>{show(r.metric, r.low) if r.low is not None else '–'}</td>"
        f"<td>{show(r.metric, r.high) if r.high is not None else '–'}</td></tr>"
        for r in rows
    )
    names = "".join(
        f"<th>{n}</th>" for n in ("method", "conditioning", "concept", "prompt set", "metric", "value", "n", "low", "high")
    )
    return (
        '<div class="card"><div class="scroll" tabindex="0" role="group" aria-label="table of all figures"><table class="main">'
        f'<thead><tr><th scope="col">system</th>{heads}</tr></thead>{"".join(bodies)}</table>'
        '</div><p class="note">Small figures are 95 % intervals. ▼ lower is better, ▲ higher is better.</p>'
        f"<details><summary>What the figures mean</summary><dl>{notes}</dl></details>"
        "<details><summary>Every row with its n, as in results.json</summary>"
        f'<div class="scroll"><table class="rows"><thead><tr>{names}</tr></thead><tbody>{every}</tbody></table></div>'
        "</details></div>"
    )


def _people(part: AgreementPart | None) -> str:
    if part is None:
        return ""
    alpha = "not enough overlap" if part.alpha is None else f"{part.alpha:.2f}"
    bounds = "" if part.low is None or part.high is None else f"95 %: {part.low:.2f}–{part.high:.2f}, "
    tiles = (
        '<div class="tiles"><div class="tile"><div class="tile-name">Krippendorff’s alpha</div>'
        f'<div class="tile-value">{alpha}</div>'
        f'<div class="tile-note">{bounds}{part.units} images judged more than once</div></div>'
        '<div class="tile"><div class="tile-name">judgments</div>'
        f'<div class="tile-value">{sum(a.judgments for a in part.annotators)}</div>'
        f'<div class="tile-note">by {len(part.annotators)} annotators</div></div></div>'
    )
    lines = "".join(
        f"<tr><th scope='row'>{escape(a.name)}{'<span class=tag-sim>simulated</span>' if a.simulated else ''}</th>"
        f"<td>{a.judgments}</td><td>{show('concept_rate', a.shows)}</td><td>{show('concept_rate', a.accuracy)}</td></tr>"
        for a in part.annotators
    )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col">annotator</th><th scope="col">judgments</th>'
        '<th scope="col">said it shows</th><th scope="col">agrees with the others</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    scale = (
        '<p class="note">Alpha is 1 for people who always agree and 0 for people who answer at random; '
        "0.8 and more is commonly called reliable, below 0.67 it is not.</p>"
    )
    return f'<div class="card">{tiles}{table if lines else ""}{scale}</div>'


def _reward(part: RewardPart | None) -> str:
    if part is None:
        return ""
    tiles = "".join(
        f'<div class="tile"><div class="tile-name">{escape(name)}</div><div class="tile-value">{escape(value)}</div></div>'
        for name, value in part.facts.items()
    )
    chart = ""
    if len(part.scores):
        names = ("judged: shows it", "judged: does not")
        chart = figure(
            lambda width: plots.histogram(part.scores, part.labels, names, width=width),
            "Scores of images that the reward model did not train on: the two sides should lie apart.",
        )
    return f'<div class="tiles">{tiles}</div><div class="figures one">{chart}</div>'


def _curves(report: Report) -> str:
    colours = {system_name(system): i for i, system in enumerate(_colours(report.rows))}
    figures = "".join(_curve(curve, colours) for curve in report.curves)
    return f'<div class="figures">{figures}</div>' if figures else ""


def _curve(curve: Curve, colours: Mapping[str, int]) -> str:
    lines = [plots.Line(name, list(points), colours.get(name, i + 1)) for i, (name, points) in enumerate(curve.series.items())]
    if not plots.curves(lines, "step"):
        return ""
    return figure(lambda width: plots.curves(lines, "step", width=width), curve.note, curve.title)


def limits_card(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="card"><ul class="limits">{items}</ul></div>' if items else ""


def provenance_cards(groups: Mapping[str, Mapping[str, str]]) -> str:
    cards = []
    for name, facts in groups.items():
        lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        cards.append(f'<div class="card"><h3>{escape(name)}</h3><dl class="facts">{lines}</dl></div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


# --- small helpers ---


def figure(chart: Callable[[int], str], note: str, title: str = "") -> str:
    """A chart drawn for a wide screen and for a phone, where a shrunken one could not be read; the style sheet shows one."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    both = f'<div class="wide">{chart(620)}</div><div class="narrow">{chart(380)}</div>'
    return f'<figure class="card">{head}{both}<figcaption>{escape(note)}</figcaption></figure>'


def _colours(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Systems in the order of their colours: the untouched model is s0, the grey one."""
    found = systems(rows)
    return found if found and found[0][0] == BASE else [(BASE, "none"), *found]


def bounds(row: Row) -> tuple[float, float] | None:
    return None if row.low is None or row.high is None else (row.low, row.high)


def set_title(name: str) -> str:
    return f"{name}: {_SET_MEANING[name]}" if name in _SET_MEANING else name


def arrow(metric: str) -> str:
    if metric not in METRICS:
        return ""
    return ' <span class="arrow">▼</span>' if METRICS[metric].better < 0 else ' <span class="arrow">▲</span>'


def table_cell(row: Row | None) -> str:
    if row is None:
        return '<td><span class="none">–</span></td>'
    bounds = f"<small>{row.interval()}</small>" if row.interval() else ""
    return f'<td title="n = {row.n}">{row.text()}{bounds}</td>'


def _whole(share: float) -> str:
    """0.742 -> '74 %'; a share below 1 % that is not 0 keeps a digit, so that nothing is rounded to none."""
    percent = 100 * share
    return f"{percent:.1f} %" if 0 < percent < 1 or 99 < percent < 100 else f"{math.floor(percent + 0.5)} %"


def _span(row: Row) -> str:
    """'65–82', the bounds in whole percent, or the empty string."""
    return "" if row.low is None or row.high is None else f"{_whole(row.low)[:-2]}–{_whole(row.high)[:-2]}"


def _bounded(row: Row) -> str:
    return f"{_whole(row.value or 0.0)}" + (f" ({_span(row)})" if _span(row) else "")


def data_uri(image: Path | Image.Image) -> str:
    if isinstance(image, Path):
        with Image.open(image) as opened:
            picture = opened.convert("RGB")
    else:
        picture = image.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, format="WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")

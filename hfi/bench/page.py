"""report.html of a benchmark: its tables with the papers' columns and ours, charts, pictures of the same seeds, attacks, costs.

It stands on what the run's folder holds and on hfi/report.py, which has the style and the parts that it shares with `hfi evaluate`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from hfi import plots
from hfi.evaluate import compared, grids, measuring
from hfi.guide import GUIDES
from hfi.judgments import each_once, judged_by_text
from hfi.report import (
    METRIC_NOTES,
    Grid,
    arrow,
    banner,
    bounds,
    figure,
    grid_card,
    limits_card,
    page,
    provenance_cards,
    table_cell,
)
from hfi.results import BASE, METRICS, Row, best_system, harm_set, lookup, loss, read_results, system_name, systems
from hfi.runs import software

# colours by what kind of method it is
_FAMILIES = (
    ("guidance while sampling", 1, tuple(GUIDES)),
    ("ESD", 2, ("esd-x", "esd-u")),
    ("closed form", 3, ("uce", "rece")),
    ("SDD", 4, ("sdd",)),
    ("SDD in context", 5, ("sdd-context",)),
)
SHOWN = 8  # pictures of each prompt set and system


@dataclass(frozen=True)
class Column:
    """A figure of the main table: where it comes from, and its name there."""

    group: str
    title: str
    prompt_set: str
    metric: str


_COLUMNS = (
    Column("as in the papers", "implicit", "implicit", "concept_rate"),
    Column("as in the papers", "explicit", "explicit", "concept_rate"),
    Column("as in the papers", "Fréchet distance", "harmless", "frechet_distance"),
    Column("as in the papers", "perceptual distance", "harmless", "perceptual_distance"),
    Column("as in the papers", "FID", "harmless", "fid"),
    Column("as in the papers", "LPIPS", "harmless", "lpips"),
    Column("as in the papers", "CLIP score", "harmless", "clip_score"),
    Column("what is kept", "right character", "implicit", "character_fidelity"),
    Column("what is kept", "fidelity", "harmless", "fidelity"),
    Column("what is kept", "specificity", "neighbours", "fidelity"),
    Column("under attack", "Ring-A-Bell 0.9", "ring-a-bell-0.9", "concept_rate"),
    Column("under attack", "Ring-A-Bell 3", "ring-a-bell-3", "concept_rate"),
)


def series(method: str) -> int:
    return next((colour for _, colour, methods in _FAMILIES if method in methods), 0)


def table_columns(rows: Sequence[Row]) -> list[Column]:
    """Those that were measured, and the last look of the relapse; sets that are none of ours at the end."""
    have = {(row.prompt_set, row.metric) for row in rows}
    last = max((s for s, _ in have if s.startswith("relapse-")), key=_updates, default=None)
    known = [*_COLUMNS]
    if last:
        known.append(Column("under attack", f"relapse, {_updates(last)} updates", last, "concept_rate"))
    others = sorted({s for s, m in have if m == "concept_rate" and not s.startswith("relapse-")} - {c.prompt_set for c in known})
    known += [Column("other prompts", name, name, "concept_rate") for name in others if name not in ("harmless", "neighbours")]
    return [c for c in known if (c.prompt_set, c.metric) in have]


def markdown(rows: Sequence[Row], costs: Sequence[Mapping[str, Any]]) -> str:
    """The tables for docs/results.md: values with their 95 % bounds."""
    out: list[str] = []
    for table in dict.fromkeys(row.concept for row in rows):
        ours = [row for row in rows if row.concept == table]
        columns = table_columns(ours)
        counts = sorted({row.n for row in ours if row.metric == "concept_rate" and not _attack(row.prompt_set)})
        size = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        heads = [f"{c.title}{' %' if METRICS[c.metric].percent else ''}" for c in columns]
        out += [f"### {table}, {size} images a cell", "", f"| | {' | '.join(heads)} | erasing | an image |"]
        out += ["|" + "---|" * (len(columns) + 3)]
        for system in systems(ours):
            cells = [_cell(lookup(ours, system, c.prompt_set, c.metric)) for c in columns]
            cost = next((c for c in costs if (c["table"], c["method"], c["conditioning"]) == (table, *system)), {})
            image = f"{cost['image_evaluations']} ev." if cost else ""
            out.append(f"| {system_name(system)} | {' | '.join([*cells, _erase_cost(cost), image])} |")
        out.append("")
    return "\n".join(out)


def headlines(rows: Sequence[Row]) -> list[str]:
    """A sentence for each table: what the best system leaves."""
    found = []
    for table in dict.fromkeys(row.concept for row in rows):
        ours = [row for row in rows if row.concept == table]
        best, harm = best_system(ours), harm_set(ours) or ""
        before, after = (lookup(ours, s, harm, "concept_rate") if s else None for s in ((BASE, "none"), best))
        if best and before and after:
            shares = f"{before.text()} -> {after.text()} on {harm} prompts"
            found.append(f"{table}: {shares} with {system_name(best)}, {_chosen(ours)}")
    return found


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    text = row.text().removesuffix(" %")
    return f"{text} ({row.interval()})" if row.interval() else text


def _attack(prompt_set: str) -> bool:
    return prompt_set.startswith(("ring-a-bell-", "relapse-"))


def _updates(prompt_set: str) -> int:
    """Of a look at the relapse."""
    return int(prompt_set.removeprefix("relapse-"))


def _erase_cost(cost: Mapping[str, Any]) -> str:
    if "erase_seconds" not in cost:
        return ""
    evaluations = f", {cost['erase_evaluations']:,} ev." if cost["erase_evaluations"] else ""
    seconds = cost["erase_seconds"]
    return f"{seconds:.1f} s{evaluations}" if seconds < 10 else f"{seconds:,.0f} s{evaluations}"


def render(folder: Path, title: str, notes: Sequence[str]) -> str:
    """The page of a benchmark's run. `notes`: what the plan says that it does not show."""
    rows = read_results(folder / "results.json")
    held = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
    costs: list[Mapping[str, Any]] = held["systems"]
    tables = list(dict.fromkeys(row.concept for row in rows))
    about = {t: json.loads((folder / t / "evaluation.json").read_text(encoding="utf-8")) for t in tables}
    sections: list[tuple[str, str, str]] = []
    for table in tables:
        ours = [row for row in rows if row.concept == table]
        body = _main_table(ours) + _charts(ours, table) + _text_against_token(folder / table, ours)
        sections.append((_anchor(table), _title(table, about[table]), body))
    attacks = "".join(_relapse([row for row in rows if row.concept == t], t) for t in tables)
    sections.append(("attacks", "Can it be brought back?", attacks))
    pictures = "".join(grid_card(g) for t in tables for g in _grids(folder / t, t))
    sections += [
        ("pictures", "The same seeds under every method", pictures),
        ("costs", "What it costs", _costs(costs)),
        ("limits", "What this does not show", limits_card([*notes, *_limits(about)])),
        ("provenance", "Where it comes from", provenance_cards(_provenance(folder, about))),
    ]
    return page(title, _header(title, rows, about), sections, banner(_simulated(about)))


def _simulated(about: Mapping[str, Mapping[str, Any]]) -> str:
    """Whose judgments steered the systems, where some of them were simulated."""
    sets = each_once(*(system.get("judged_by", ()) for a in about.values() for system in a["systems"]))
    return f"{judged_by_text(sets)} steered what is measured here." if any(s["simulated"] for s in sets) else ""


def _anchor(table: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in table.lower())


def _title(table: str, about: Mapping[str, Any]) -> str:
    concepts = str(about["concept"]).split("+")
    return f"{table}: {', '.join(concepts)} removed together" if len(concepts) > 1 else f"{table.capitalize()} removed"


def _header(title: str, rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    names = dict.fromkeys(row.system for row in rows)
    images = sum(sum(a["images"].values()) * len(a["systems"]) for a in about.values())
    tiles = "".join(_tile([row for row in rows if row.concept == table], table) for table in about)
    return (
        f'<p class="eyebrow">hfi · Benchmark</p><h1 class="plain">{escape(title)}</h1>'
        f'<p class="sub">{len(names)} systems, {images:,} images; each system makes the same prompts with the same seeds.</p>'
        f'<div class="tiles">{tiles}</div>'
    )


def _tile(rows: Sequence[Row], table: str) -> str:
    best, harm = best_system(rows), harm_set(rows) or ""
    after = lookup(rows, best, harm, "concept_rate") if best else None
    before = lookup(rows, (BASE, "none"), harm, "concept_rate")
    if best is None or after is None or before is None:
        return ""
    return (
        f'<div class="tile"><div class="tile-name">{escape(table)} · {escape(harm)} prompts</div>'
        f'<div class="tile-value"><span class="was">{before.text()} →</span> {after.text()}</div>'
        f'<div class="tile-note">95 %: {after.interval()}; {_chosen(rows)}: {escape(system_name(best))}</div></div>'
    )


def _chosen(rows: Sequence[Row]) -> str:
    """How the best system was found, see `best_system`."""
    best = best_system(rows)
    if not any(row.metric in ("fidelity", "character_fidelity") for row in rows):
        return "the lowest share (nobody looked at what pictures keep)"
    return "the lowest share where pictures keep what prompts name" if best and loss(rows, best) == 0 else "what loses least"


def _main_table(rows: Sequence[Row]) -> str:
    columns = table_columns(rows)
    groups: dict[str, int] = {}
    for column in columns:
        groups[column.group] = groups.get(column.group, 0) + 1
    over = "".join(f'<th scope="colgroup" colspan="{n}">{escape(name)}</th>' for name, n in groups.items())
    heads = "".join(f'<th scope="col">{escape(c.title)}{arrow(c.metric)}</th>' for c in columns)
    best = best_system(rows)
    lines = []
    for system in systems(rows):
        cells = ""
        for c in columns:
            row = lookup(rows, system, c.prompt_set, c.metric)
            cells += table_cell(row).replace("<td", '<td class="leads"', 1) if row and _leads(row, rows) else table_cell(row)
        label = f'<i class="swatch s{series(system[0])}"></i>{escape(system_name(system))}'
        chosen = ' class="chosen"' if system == best else ""
        lines.append(f'<tr{chosen}><th scope="row">{label}</th>{cells}</tr>')
    counts = sorted({row.n for row in rows if row.metric == "concept_rate" and not _attack(row.prompt_set)})
    attacked = sorted({row.n for row in rows if _attack(row.prompt_set)})
    size = f"n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} images a cell"
    size += f", {' to '.join(map(str, dict.fromkeys((attacked[0], attacked[-1]))))} under attack" if attacked else ""
    notes = "".join(
        f"<dt>{escape(c.title)}</dt><dd>{escape(_where(c))}: {escape(METRIC_NOTES.get(c.metric, ''))}.</dd>" for c in columns
    )
    return (
        f'<div class="card"><div class="scroll" tabindex="0" role="group" aria-label="main table"><table class="main wide-table">'
        f'<thead><tr><th></th>{over}</tr><tr><th scope="col">system</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note">{size}. Small figures are 95 % intervals; ▼ lower is better, ▲ higher is better. Coloured: the lowest '
        f"share of its column. Shaded, by {escape(harm_set(rows) or '')} prompts: {_chosen(rows)}.</p>"
        f"<details><summary>What the figures mean</summary><dl>{notes}</dl></details></div>"
    )


def _where(column: Column) -> str:
    names = {
        "implicit": "prompts that never ask for it",
        "explicit": "prompts that ask for it",
        "harmless": "prompts that have nothing to do with it",
        "neighbours": "prompts of what lies near it and must stay",
    }
    if column.prompt_set.startswith("ring-a-bell-"):
        eta = column.prompt_set.removeprefix("ring-a-bell-")
        return f"harmless prompts with {eta} times what the concept's words add to an encoding added to theirs"
    return names.get(column.prompt_set, column.title if _attack(column.prompt_set) else f"the prompts of {column.prompt_set}")


def _leads(row: Row, rows: Sequence[Row]) -> bool:
    """Whether it is the lowest share of the concept. Of a distance that would be praise for doing nothing, and where many are equal
    it says nothing."""
    if row.method == BASE or row.value is None or row.metric != "concept_rate":
        return False
    values = [r.value for r in rows if (r.prompt_set, r.metric) == (row.prompt_set, row.metric) and r.value is not None]
    return row.value == min(values) and values.count(row.value) <= 3


def _charts(rows: Sequence[Row], table: str) -> str:
    quality = next(((s, m) for s, m in (("harmless", "fidelity"), ("harmless", "clip_score")) if _has(rows, s, m)), None)
    if quality is None:
        return ""
    points, best, harm = [], best_system(rows), harm_set(rows) or ""
    for system in systems(rows):
        x, y = lookup(rows, system, harm, "concept_rate"), lookup(rows, system, *quality)
        if x and y and x.value is not None and y.value is not None:
            name, colour, hollow = system_name(system), series(system[0]), system[1] == "text"
            points.append(plots.Point(name, x.value, y.value, bounds(x), bounds(y), colour, system == best, hollow))
    if not points:
        return ""
    metric = METRICS[quality[1]]
    titles = (f"{table} shown, {harm} prompts", f"{metric.title}, harmless prompts")
    chart = figure(
        lambda width: plots.scatter(points, *titles, y_percent=metric.percent, width=width),
        "Each point is one system: a disc where a token stands for the concept, a circle where words do. Whiskers are 95 % intervals.",
        "Harm against quality",
    )
    keys = "".join(f'<span><i class="swatch s{colour}"></i>{escape(name)}</span>' for name, colour, _ in _FAMILIES)
    return f'<div class="figures">{chart}{_pairs(rows)}</div><p class="note keys">{keys}</p>'


def _has(rows: Sequence[Row], prompt_set: str, metric: str) -> bool:
    return any((row.prompt_set, row.metric) == (prompt_set, metric) for row in rows)


def _pairs(rows: Sequence[Row]) -> str:
    """Shares of every system on the prompts of the headline, words above token."""
    groups, harm = [], harm_set(rows) or ""
    for method in dict.fromkeys(row.method for row in rows):
        found = [lookup(rows, (method, kind), harm, "concept_rate") for kind in ("none", "text", "token")]
        bars = [
            plots.Bar(r.conditioning if r.conditioning != "none" else "", r.value, bounds(r), r.text(), series(method))
            for r in found
            if r and r.value is not None
        ]
        if bars:
            groups.append(("untouched" if method == BASE else method, bars))
    if not groups:
        return ""
    return figure(
        lambda width: plots.intervals(groups, f"images of {harm} prompts that show it", width=width),
        "Bands are 95 % intervals.",
        "Words against token",
    )


def _text_against_token(folder: Path, rows: Sequence[Row]) -> str:
    """Whether the token does better than the words, method by method, on pairs of the same prompt and seed."""
    methods = [m for m in dict.fromkeys(r.method for r in rows) if {(m, "text"), (m, "token")} <= {r.system for r in rows}]
    harm = harm_set(rows)
    if not methods or harm is None:
        return ""
    ps = compared(folder, [((m, "text"), (m, "token")) for m in methods], harm)
    lines = []
    for method, p in zip(methods, ps, strict=True):
        text, token = (lookup(rows, (method, kind), harm, "concept_rate") for kind in ("text", "token"))
        if text is None or token is None or text.value is None or token.value is None:
            continue
        said = verdict(text.value, token.value, p)
        lines.append(
            f'<tr><th scope="row">{escape(method)}</th><td>{text.text()}</td><td>{token.text()}</td>'
            f"<td>{'&lt; 0.001' if p < 0.001 else f'{p:.2g}'}</td><td>{said}</td></tr>"
        )
    return (
        '<div class="card"><h3>Does the learned token remove more than the words?</h3><div class="scroll"><table><thead><tr>'
        '<th scope="col">method</th><th scope="col">words</th><th scope="col">token</th><th scope="col">p</th>'
        f'<th scope="col">on {escape(harm)} prompts</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="note">p by McNemar’s exact test on the same prompts and seeds; one training each.</p></div>'
    )


def verdict(text: float, token: float, p: float) -> str:
    if p >= 0.05:
        return "no measurable difference"
    return "the token" if token < text else "the words"


def _relapse(rows: Sequence[Row], table: str) -> str:
    """A small chart for each method, the untouched model's curve in each."""
    looks = sorted({r.prompt_set for r in rows if r.prompt_set.startswith("relapse-")}, key=_updates)
    if not looks:
        return ""

    def line(system: tuple[str, str], colour: int) -> plots.Line:
        found = [(_updates(s), lookup(rows, system, s, "concept_rate")) for s in looks]
        return plots.Line("", [(step, r.value) for step, r in found if r and r.value is not None], colour)

    kinds = {"token": 5, "text": 1}
    panels = []
    for method in dict.fromkeys(r.method for r in rows if r.method != BASE):
        lines = [line((BASE, "none"), 0), *(line((method, kind), colour) for kind, colour in kinds.items())]
        drawn = plots.curves([x for x in lines if x.points], "updates", share=True, width=300)
        panels.append(f'<figure class="panel"><h3>{escape(method)}</h3>{drawn}</figure>')
    keys = '<span><i class="swatch s0"></i>untouched</span>' + "".join(
        f'<span><i class="swatch s{c}"></i>{"a token" if k == "token" else "words"} stood for the concept</span>'
        for k, c in kinds.items()
    )
    n = max((r.n for r in rows if r.prompt_set in looks), default=0)
    return (
        f'<div class="card"><h3>{escape(table)}: concept inversion</h3><p class="note">Share of harmless prompts, with a token behind '
        "them that was learned on the system's own weights from flagged images, that show the concept, after more and more updates "
        f"(n = {n} each). It starts from the mean of the words' vectors. Of systems that guide, the attacker "
        "learns on the untouched model.</p>"
        f'<p class="note keys">{keys}</p><div class="panels">{"".join(panels)}</div></div>'
    )


def _grids(folder: Path, table: str) -> list[Grid]:
    made = []
    for grid in grids(folder, count=SHOWN):
        rows = [replace(row, series=series(row.label.split(" (")[0])) for row in grid.rows]
        made.append(replace(grid, title=f"{table}: {grid.title}", rows=rows))
    return made


def _costs(costs: Sequence[Mapping[str, Any]]) -> str:
    bodies = []
    for table in dict.fromkeys(c["table"] for c in costs):
        lines = [f'<tr class="group"><th scope="rowgroup" colspan="8"><span>{escape(table)}</span></th></tr>']
        ours = [c for c in costs if c["table"] == table]
        base = next(c for c in ours if c["method"] == BASE)
        for c in ours:
            changed = "erase_seconds" in c
            cells = [
                f"{c['erase_seconds']:,.1f} s" if changed else "–",
                f"{c['erase_evaluations']:,}" if changed else "–",
                _gib(c["erase_peak_memory"]) if changed else "–",
                f"{c['image_evaluations']:,}",
                f"{c['image_seconds']:.3g} s",
                f"{c['image_seconds'] / base['image_seconds']:.2f}x",
                _gib(c["image_peak_memory"]),
            ]
            label = f'<i class="swatch s{series(c["method"])}"></i>{escape(system_name((c["method"], c["conditioning"])))}'
            lines.append(f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
        bodies.append(f"<tbody>{''.join(lines)}</tbody>")
    heads = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("time", "U-Net evaluations", "peak memory", "U-Net evaluations", "time", "against untouched", "peak memory")
    )
    return (
        '<div class="card"><div class="scroll" tabindex="0" role="group" aria-label="costs"><table class="main"><thead>'
        '<tr><th></th><th scope="colgroup" colspan="3">changing the weights, once</th>'
        f'<th scope="colgroup" colspan="4">every image</th></tr><tr><th scope="col">system</th>{heads}</tr></thead>'
        f'{"".join(bodies)}</table></div><p class="note">Measured on the machine of this run, each in a process of its own; other '
        "programs lengthen times. Evaluations are of one latent each, backward passes not counted. An erased model samples as the "
        "untouched one does. Memory is the most that the whole process had, on a GPU the most that its tensors took; images in batches "
        f"of {costs[0]['batch_size']}.</p></div>"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _limits(about: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = ["Intervals tell how the figures vary with the sampled images, not with another training of the same method."]
    for table, a in about.items():
        detector = a["detector"]
        if detector is None:
            found.append(f"{table}: no detector looked at the images.")
        elif detector["name"] == "reward":
            found.append(
                f"{table}: the detector is the reward model, which learned from the judgments that steered the tokens; it is no "
                "independent witness."
            )
        hidden = sum(cell["blocked"] for cell in a["cells"])
        if hidden:
            found.append(f"{table}: {hidden} images are blacked out or blank: they count as blocked, never as safe.")
        found += [f"{table}: {warning}" for warning in a["warnings"]]
    return found


def _steered_by(settings: Mapping[str, Any]) -> str:
    """An erasure's content, or what a guide leads away from."""
    against = settings.get("against", "")
    return str(settings.get("erasure content") or (against if isinstance(against, str) else ", ".join(against)))


def _provenance(folder: Path, about: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for table, a in about.items():
        untouched = next(s for s in a["systems"] if s["method"] == BASE)
        found[table] = {**measuring(a), **{key: str(value) for key, value in untouched["settings"].items()}}
        steering = {
            system_name((s["method"], s["conditioning"])): _steered_by(s["settings"]) for s in a["systems"] if s["method"] != BASE
        }
        found[f"{table}: erasures and guides"] = steering
    return {**found, "Software": software(folder)}

"""A benchmark as a TOML file: which systems are measured, on which concepts, prompts and seeds.

    title = "Stable Diffusion 1.4, nudity"
    model = "CompVis/stable-diffusion-v1-4"     # a folder, a checkpoint file, a hub id; or "portraits", the embedded model
    simulated = "exclude"                       # judgments of simulated annotators: as for `hfi erase`
    notes = ["..."]                             # for the report: what it does not show

    [measure]                                   # settings of `hfi evaluate`, for every picture
    images = 500
    steps = 25

    [concepts.nudity]                           # by the workspace's names
    text = "nudity"
    token = "nudity"                            # a learned token of the workspace, or a file; without one, text alone steers
    alone = "nudity-plain"                      # one learned in plain sentences, for methods that put the concept alone (all but
                                                # sdd-context); left out: token

    [methods.sld-max]                           # in the order of the table's rows
    [methods.esd-x]                             # settings as options of `hfi erase`, with underscores
    learning_rate = 1e-5

    [tables.nudity]
    concepts = ["nudity"]
    prompts = ["prompts/nudity"]                # folders of prompt sets, or prompt files; or files by name, as in
                                                # { implicit = "body.csv", harmless = "coco_30k.csv:limit=1000" }
    retain = "prompts/nudity/retain.csv"        # what methods may hold on to that can
    methods = ["sld-max", "esd-x"]              # left out: all of them
    attacks = ["relapse"]                       # left out: all of them

    [attacks.relapse]                           # optional, see attacks.py
    [attacks.ring-a-bell]

Paths are looked for beside the file first. Everything is checked when it is read: nothing is sampled for a file with a mistake.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hfi.bench.attacks import ATTACKS
from hfi.config import coerce
from hfi.diffusion.tokens import placeholders
from hfi.erase import METHODS
from hfi.errors import UsageError
from hfi.evaluate import EvaluateConfig
from hfi.guide import GUIDES, guidance
from hfi.judgments import Include
from hfi.prompts import Prompt, load_each, load_prompts
from hfi.resources import data_dir
from hfi.results import BASE

_PLACES = ("detector", "features", "lpips")  # settings that may name files, behind a colon


@dataclass(frozen=True)
class Named:
    """A concept of the workspace, and what stands for it: words, and a learned token by name or file, or two: one behind prompts,
    one for methods that put the concept alone."""

    slug: str
    text: str
    token: str | None
    alone: str | None = None

    def learned(self, *, behind_prompts: bool) -> str | None:
        """The token of a method that puts it behind the prompts of flagged images, or of one that puts it alone."""
        return self.token if behind_prompts else self.alone or self.token


@dataclass(frozen=True)
class Table:
    """Systems that are measured on the same prompts and seeds. Several concepts are removed, and counted, together."""

    name: str
    concepts: tuple[Named, ...]
    prompts: Mapping[str, tuple[Prompt, ...]]
    retain: Path | None
    methods: tuple[str, ...]
    attacks: tuple[str, ...] = ()

    @property
    def slugs(self) -> list[str]:
        return [concept.slug for concept in self.concepts]

    @property
    def conditionings(self) -> list[str]:
        return ["text", "token"] if all(concept.token for concept in self.concepts) else ["text"]


@dataclass(frozen=True)
class Plan:
    """`methods`: settings by name; of a method that changes weights those of `hfi erase`. `attacks`: their configurations."""

    title: str
    model: str
    measure: EvaluateConfig
    tables: tuple[Table, ...]
    methods: Mapping[str, Mapping[str, Any]]
    attacks: Mapping[str, Any] = field(default_factory=dict)
    simulated: str = "exclude"
    notes: tuple[str, ...] = ()

    @property
    def concepts(self) -> list[Named]:
        return list({c.slug: c for table in self.tables for c in table.concepts}.values())


def read_plan(path: Path) -> Plan:
    """UsageError for the first mistake, with its place in the file; HfiError for a prompts file that is missing or unreadable."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"cannot read the benchmark {path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not TOML: {e}") from None
    read = _Reader(path)
    read.known("", given, ("title", "model", "simulated", "notes", "measure", "concepts", "methods", "tables", "attacks"))
    if not (given.get("tables") and given.get("concepts") and given.get("methods")):
        raise UsageError(f"{path} is no benchmark: it needs [concepts], [methods] and [tables]")
    for part in ("concepts", "methods", "tables", "attacks"):
        read.known(part, given.get(part, {}), ())
    if not isinstance(given.get("model"), str) or not given["model"]:
        raise UsageError(f"{path} names no model: give model = a folder, a checkpoint file, a hub id, or 'portraits'")
    notes = given.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise UsageError(f"{path}: notes is {notes!r}: give a list of sentences")
    concepts = {slug: read.concept(slug, about) for slug, about in given["concepts"].items()}
    methods = {name: read.method(name, settings) for name, settings in given["methods"].items()}
    attacks = {name: read.attack(name, settings) for name, settings in given.get("attacks", {}).items()}
    tables = tuple(read.table(name, about, concepts, methods, attacks) for name, about in given["tables"].items())
    measure = read.settings("measure", EvaluateConfig, given.get("measure", {}))
    for key in _PLACES:
        if key in measure:
            name, *files = measure[key].split(":")
            measure[key] = ":".join([name, *(str(read.place(file)) for file in files)])
    for name in methods:
        if name in GUIDES:
            guidance(name, ["a concept"]).check(EvaluateConfig(**measure).guidance_scale)
    if (simulated := given.get("simulated", "exclude")) not in get_args(Include):
        raise UsageError(f"{path}: simulated is {simulated!r}: choose {', '.join(get_args(Include))}")
    if bare := [table.name for table in tables if table.attacks and "harmless" not in table.prompts]:
        raise UsageError(f"{path}: [tables.{bare[0]}] has no harmless prompts, which attacks start from: name some")
    model = data_dir() / "portraits" if given["model"] == "portraits" else read.place(given["model"])
    return Plan(
        title=str(given.get("title", path.stem)),
        model=str(model),
        measure=EvaluateConfig(**measure),
        tables=tables,
        methods=methods,
        attacks=attacks,
        simulated=simulated,
        notes=tuple(notes),
    )


class _Reader:
    """The parts of a file; every mistake names the file and the part."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self, where: str, given: Any, names: tuple[str, ...]) -> None:
        """A table of these names; any names where none are given."""
        if not isinstance(given, Mapping):
            raise UsageError(f"{self.path}: {where} is {given!r}: write it as a table, [{where}]")
        if names and (unknown := sorted(set(given) - set(names))):
            raise UsageError(
                f"{self.path}: unknown {unknown[0]!r}{f' in [{where}]' if where else ''}: known are {', '.join(names)}"
            )

    def place(self, name: Any) -> Path | str:
        """Beside the file, if it is there; else as it was given. A prompts file may be asked for in part, behind a colon."""
        if not isinstance(name, str):
            raise UsageError(f"{self.path}: {name!r} is no path: write it between quotation marks")
        beside = self.path.parent / name.partition(":")[0]
        return self.path.parent / name if name and beside.exists() else name

    def concept(self, slug: str, about: Any) -> Named:
        where = f"concepts.{slug}"
        self.known(where, about, ("text", "token", "alone"))
        text = about.get("text")
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{self.path}: [{where}] has no text: give the words that name the concept")
        if named := placeholders(text):
            raise UsageError(
                f"{self.path}: [{where}] has {named[0]} in its text: texts are words, a learned token is named by token"
            )
        if "alone" in about and "token" not in about:
            raise UsageError(f"{self.path}: [{where}] has alone and no token: a single one is called token")
        return Named(slug, text.strip(), self.learned(about.get("token")), self.learned(about.get("alone")))

    def learned(self, token: Any) -> str | None:
        """A token's name, or its file beside this one; not a folder that happens to be called so."""
        if token is not None and (self.path.parent / str(token)).is_file():
            return str(self.path.parent / str(token))
        return None if token is None else str(token)

    def method(self, name: str, given: Any) -> dict[str, Any]:
        where = f"methods.{name}"
        if name == BASE:
            raise UsageError(f"{self.path}: [{where}] is the untouched model, which is always measured: leave it out")
        if name in METHODS:
            self.known(where, given, tuple(f.name for f in fields(METHODS[name].config)))
            return self.settings(where, METHODS[name].config, given)
        if name not in GUIDES:
            raise UsageError(f"{self.path}: unknown method {name!r}: choose {', '.join([*GUIDES, *METHODS])}")
        if given:
            raise UsageError(f"{self.path}: [{where}] has settings, and {name} has none: leave them out")
        return {}

    def attack(self, name: str, given: Any) -> Any:
        if name not in ATTACKS:
            raise UsageError(f"{self.path}: unknown attack {name!r}: choose {' or '.join(ATTACKS)}")
        return ATTACKS[name](**self.settings(f"attacks.{name}", ATTACKS[name], given))

    def prompts(self, where: str, given: Any) -> dict[str, tuple[Prompt, ...]]:
        """By the names that they are given, or of a list by those of the files."""
        sets: dict[str, tuple[Prompt, ...]] = {}
        if isinstance(given, Mapping):
            sets = {name: load_prompts(Path(self.place(path))) for name, path in given.items()}
        elif isinstance(given, list):
            sets = load_each([Path(self.place(path)) for path in given])
        if not sets:
            raise UsageError(f"{self.path}: [{where}] has no prompts: give a list of folders and files, or files by name")
        return sets

    def settings(self, where: str, config_class: type[Any], given: Any) -> dict[str, Any]:
        """Of the right types, and within their bounds."""
        self.known(where, given, tuple(f.name for f in fields(config_class)))
        hints = get_type_hints(config_class)
        values = {name: coerce(name, value, hints[name], self.path) for name, value in given.items()}
        try:
            config_class(**values)
        except UsageError as e:
            raise UsageError(f"{self.path}: [{where}] {e}") from None
        return values

    def table(
        self, name: str, about: Any, concepts: Mapping[str, Named], methods: Mapping[str, Any], attacks: Mapping[str, Any]
    ) -> Table:
        where = f"tables.{name}"
        self.known(where, about, ("concepts", "prompts", "retain", "methods", "attacks"))
        slugs, chosen, attacked = (
            about.get("concepts", []),
            about.get("methods", list(methods)),
            about.get("attacks", list(attacks)),
        )
        for kind, names, all_names in (("concept", slugs, concepts), ("method", chosen, methods), ("attack", attacked, attacks)):
            if not names and kind != "attack":
                raise UsageError(f"{self.path}: [{where}] has no {kind}s: choose of {', '.join(all_names)}")
            if strange := [n for n in names if n not in all_names]:
                raise UsageError(f"{self.path}: [{where}] names the {kind} {strange[0]!r}: there are {', '.join(all_names)}")
        sets = self.prompts(where, about.get("prompts", []))
        retain = Path(self.place(about["retain"])) if "retain" in about else None
        if retain:
            load_prompts(retain)  # says what is wrong with it
        for folder in (name, *sets):
            if not re.fullmatch(r"[\w][\w .+-]*", folder):
                raise UsageError(f"{self.path}: {folder!r} cannot name a folder: use letters, digits, '.', '-' and '_'")
        return Table(name, tuple(concepts[s] for s in slugs), sets, retain, tuple(chosen), tuple(attacked))

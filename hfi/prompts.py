"""Prompt files: text (one prompt a line), CSV with a `prompt` column, or JSON.

Columns are known by their names, so that the published files can be read as they are (COCO-30k, I2P, lists of artists, of
adversarial prompts):

    prompt                                             the text
    seed, evaluation_seed, sd_seed                     its seed; the first of these that holds one
    character, hair, background                        what a picture of it is expected to show: a label,
    glasses, smoking, badge, brava                     or yes or no
    all others (image_id, categories, hard, sd_guidance_scale, ...)       its tags

An empty cell says nothing. JSON is a list of texts or of objects with these names, or one object {"prompts": [...], "seeds": [...]}.

A part of a file is asked for behind its name, wherever a prompts file is: `i2p.csv:categories=sexual,nudity_percentage=50..,limit=95`
(`select` says what the conditions mean).
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hfi.errors import HfiError, UsageError
from hfi.files import from_spreadsheet_cell

PROMPT_SETS = ("implicit", "explicit", "harmless", "neighbours")  # never asked for, asked for, neither, near to it but not it
SUFFIXES = (".txt", ".csv", ".json")
YES_NO = ("glasses", "smoking", "badge", "brava")
ATTRIBUTES = ("character", "hair", "background", *YES_NO)
_SEEDS = ("seed", "evaluation_seed", "sd_seed")


_NOTHING: dict[str, str] = {}  # one for all prompts of which nothing is said


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; `seed` None lets the caller choose. `expected` maps attribute -> value and holds named attributes only.

    `tags` holds what else the file says of it, by column.
    """

    text: str
    seed: int | None = None
    expected: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    tags: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a .txt, .csv or .json file, or the part of them that is asked for behind its name, in order.

    HfiError for a missing, unreadable or empty file. UsageError for conditions that cannot be read or that no prompt meets.
    """
    file, conditions = _asked(path)
    if conditions:
        where = dict(_condition(path, part) for part in conditions)
        limit = where.pop("limit", None)
        if limit is not None and not (limit.isascii() and limit.isdigit() and int(limit)):
            raise UsageError(f"{path}: limit={limit} is no number of prompts: give 1 or more")
        found = select(load_prompts(file), where, int(limit) if limit else None)
        if not found:
            raise UsageError(f"no prompt of {file} meets {', '.join(f'{k}={v}' for k, v in where.items())}")
        return found
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise HfiError(f"{path} is no prompts file: give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise HfiError(f"no prompts file {path}: check the path") from None
    except UnicodeDecodeError as e:
        raise HfiError(f"prompts file {path} is not UTF-8 text (byte {e.start}): save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read prompts file {path}: {e.strerror}") from None
    read = {".txt": _from_text, ".csv": _from_csv, ".json": _from_json}[suffix]
    prompts = read(path, text)
    if not prompts:
        raise HfiError(f"prompts file {path} holds no prompt: write one a line, or rows under a 'prompt' column")
    return prompts


def load_prompt_sets(path: Path) -> dict[str, tuple[Prompt, ...]]:
    """Prompt sets by name: a folder's implicit, explicit, harmless and neighbours files (if they exist), or one file under its own
    name (see `set_name`)."""
    if not path.is_dir():
        return {set_name(path): load_prompts(path)}
    files = {name: path / f"{name}{suffix}" for name in PROMPT_SETS for suffix in SUFFIXES if (path / f"{name}{suffix}").exists()}
    if not files:
        raise HfiError(f"folder {path} holds no prompt set: it needs {', '.join(f'{n}.csv' for n in PROMPT_SETS)} or one of them")
    return {name: load_prompts(file) for name, file in files.items()}


def load_each(paths: Sequence[Path]) -> dict[str, tuple[Prompt, ...]]:
    """The prompt sets of several folders and files together. UsageError for two of one name."""
    sets: dict[str, tuple[Prompt, ...]] = {}
    for path in paths:
        for name, prompts in load_prompt_sets(path).items():
            if name in sets:
                raise UsageError(f"two prompt sets are named {name!r}: rename {path}")
            sets[name] = prompts
    return sets


def set_name(path: Path) -> str:
    """What the prompts of a path are called: a file's name without its ending, then what is asked for behind it: 'i2p-sexual-50..'."""
    file, conditions = _asked(path)
    return "-".join([file.stem, *(_condition(path, part)[1] for part in conditions)])


def select(prompts: Sequence[Prompt], where: Mapping[str, str] | None = None, limit: int | None = None) -> tuple[Prompt, ...]:
    """The first `limit` prompts that meet every condition, by tag. UsageError for a tag that no prompt has.

    `value` is met by a tag that holds it, alone or in a list with commas (categories=sexual); `50..`, `..5` and `50..100` by a
    number in that range, both ends included.
    """
    where = where or {}
    known = {tag for prompt in prompts for tag in prompt.tags}
    if unknown := sorted(set(where) - known):
        raise UsageError(f"no prompt has a {unknown[0]!r}: known are {', '.join([*sorted(known), 'limit'])}")
    bounds = {tag: _range(tag, value) for tag, value in where.items() if ".." in value}

    def meets(prompt: Prompt, tag: str) -> bool:
        held = prompt.tags.get(tag, "")
        if tag not in bounds:
            return where[tag] in (held, *(part.strip() for part in held.split(",")))
        low, high = bounds[tag]
        number = _number(held)
        return number is not None and low <= number <= high

    return tuple(prompt for prompt in prompts if all(meets(prompt, tag) for tag in where))[:limit]


def _asked(path: Path) -> tuple[Path, list[str]]:
    """The file, and the conditions behind its name; a file that has such a name is itself."""
    name, colon, rest = path.name.partition(":")
    return (path, []) if not colon or path.exists() else (path.with_name(name), rest.split(","))


def _condition(path: Path, part: str) -> tuple[str, str]:
    tag, equals, value = (word.strip() for word in part.partition("="))
    if not (tag and equals and value):
        raise UsageError(f"{path} asks for {part!r}: write tag=value or limit=number behind the colon, with commas between them")
    return tag, value


def _range(tag: str, value: str) -> tuple[float, float]:
    low, _, high = value.partition("..")
    ends = _number(low) if low else -math.inf, _number(high) if high else math.inf
    if ends[0] is None or ends[1] is None or not (low or high):
        raise UsageError(f"{tag}={value} is no range: write low..high, low.. or ..high with numbers")
    return ends[0], ends[1]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _from_text(path: Path, text: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(line.strip()) for line in text.splitlines() if line.strip())


def _from_csv(path: Path, text: str) -> tuple[Prompt, ...]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    prompts = []
    try:
        columns = list(reader.fieldnames or [])
        if "prompt" not in columns:
            found = ", ".join(repr(c) for c in columns) or "nothing"
            raise HfiError(f"prompts file {path} has no 'prompt' column (found {found}): name the column of the prompts 'prompt'")
        for row in reader:
            prompt = from_spreadsheet_cell(row["prompt"] or "")
            if prompt.strip():
                prompts.append(_prompt(f"{path}, line {reader.line_num}", {**row, "prompt": prompt}))
    except csv.Error as e:
        raise HfiError(f"prompts file {path} is not readable as CSV (line {reader.line_num}: {e})") from None
    return tuple(prompts)


def _from_json(path: Path, text: str) -> tuple[Prompt, ...]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as e:
        raise HfiError(f"prompts file {path} is not JSON (line {e.lineno}: {e.msg})") from None
    if isinstance(items, dict) and isinstance(items.get("prompts"), list):
        items = _columns(path, items)
    if not isinstance(items, list):
        raise HfiError(
            f"prompts file {path} is not a JSON list: give a list of strings, or of objects with a 'prompt', or one object with lists "
            "'prompts' and 'seeds'"
        )
    prompts = []
    for i, item in enumerate(items):
        row = {"prompt": item} if isinstance(item, str) else item
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise HfiError(f"item {i} of prompts file {path} has no 'prompt': give a string, or an object with a 'prompt'")
        prompts.append(_prompt(f"{path}, item {i}", row))
    return tuple(prompts)


def _columns(path: Path, lists: Mapping[str, object]) -> list[dict[str, object]]:
    """{"prompts": [...], "seeds": [...]} as rows."""
    prompts, seeds = lists["prompts"], lists.get("seeds", lists.get("evaluation_seeds"))
    assert isinstance(prompts, list)
    if seeds is None:
        seeds = [None] * len(prompts)
    if not isinstance(seeds, list) or len(seeds) != len(prompts):
        count = len(seeds) if isinstance(seeds, list) else "no list of"
        raise HfiError(f"prompts file {path} has {len(prompts)} prompts and {count} seeds: give each prompt one seed, in order")
    return [{"prompt": prompt, "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)]


def _prompt(where: str, row: Mapping[str, object]) -> Prompt:
    cells = {
        k.strip(): text
        for k, v in row.items()
        if isinstance(k, str) and v is not None and (text := _cell(v)) and k.strip()  # pandas' index has no name
    }
    seeds = [cells.pop(name) for name in _SEEDS if name in cells]
    if seeds and not (seeds[0].isascii() and seeds[0].isdigit() and int(seeds[0]) < 2**63):
        raise HfiError(f"seed {seeds[0]!r} in {where} is not a whole number from 0 to 2^63 - 1")
    text = cells.pop("prompt")
    expected = {name: cells.pop(name) for name in ATTRIBUTES if name in cells}
    for name in YES_NO:
        if expected.get(name, "yes") not in ("yes", "no"):
            raise HfiError(f"{name} {expected[name]!r} in {where}: write yes, no, or nothing where the prompt leaves it open")
    return Prompt(text, int(seeds[0]) if seeds else None, expected or _NOTHING, cells or _NOTHING)


def _cell(value: object) -> str:
    """A cell of a CSV file, or a value of a JSON object: a list is its elements with commas between."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()

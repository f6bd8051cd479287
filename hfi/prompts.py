"""Prompt files: text (one prompt a line), CSV with a `prompt` column, or a JSON list.

A CSV row or JSON object may carry a `seed`. Its other columns say what a picture of the prompt is expected to show, by attribute
(`character`, `hair`, ...); an empty cell expects nothing.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hfi.errors import HfiError
from hfi.files import from_spreadsheet_cell

PROMPT_SETS = ("implicit", "explicit", "harmless")  # what is evaluated: never asked for, asked for, neither
SUFFIXES = (".txt", ".csv", ".json")


@dataclass(frozen=True)
class Prompt:
    """One prompt; `seed` None lets the caller choose. `expected` maps attribute -> value and holds named attributes only."""

    text: str
    seed: int | None = None
    expected: Mapping[str, str] = field(default_factory=dict)


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a .txt, .csv or .json file, in order. HfiError for a missing, unreadable or empty file."""
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
    """Prompt sets by name: a folder's implicit, explicit and harmless files (if they exist), or one file under its own name."""
    if not path.is_dir():
        return {path.stem: load_prompts(path)}
    files = {name: path / f"{name}{suffix}" for name in PROMPT_SETS for suffix in SUFFIXES if (path / f"{name}{suffix}").exists()}
    if not files:
        raise HfiError(f"folder {path} holds no prompt set: it needs {', '.join(f'{n}.csv' for n in PROMPT_SETS)} or one of them")
    return {name: load_prompts(file) for name, file in files.items()}


def _from_text(path: Path, text: str) -> tuple[Prompt, ...]:
    return tuple(Prompt(line.strip()) for line in text.splitlines() if line.strip())


def _from_csv(path: Path, text: str) -> tuple[Prompt, ...]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = list(reader.fieldnames or [])
        if "prompt" not in columns:
            found = ", ".join(repr(c) for c in columns) or "nothing"
            raise HfiError(f"prompts file {path} has no 'prompt' column (found {found}): name the column of the prompts 'prompt'")
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as e:
        raise HfiError(f"prompts file {path} is not readable as CSV (line {reader.line_num}: {e})") from None
    texts = [from_spreadsheet_cell(row["prompt"] or "") for _, row in rows]
    return tuple(
        _prompt(f"{path}, line {line}", {**row, "prompt": text})
        for (line, row), text in zip(rows, texts, strict=True)
        if text.strip()
    )


def _from_json(path: Path, text: str) -> tuple[Prompt, ...]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as e:
        raise HfiError(f"prompts file {path} is not JSON (line {e.lineno}: {e.msg})") from None
    if not isinstance(items, list):
        raise HfiError(f"prompts file {path} is not a JSON list: give a list of strings, or of objects with a 'prompt'")
    prompts = []
    for i, item in enumerate(items):
        row = {"prompt": item} if isinstance(item, str) else item
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise HfiError(f"item {i} of prompts file {path} has no 'prompt': give a string, or an object with a 'prompt'")
        prompts.append(_prompt(f"{path}, item {i}", row))
    return tuple(prompts)


def _prompt(where: str, row: Mapping[str, object]) -> Prompt:
    cells = {k: str(v).strip() for k, v in row.items() if isinstance(k, str) and v is not None and not isinstance(v, list)}
    seed = cells.pop("seed", "")
    if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise HfiError(f"seed {seed!r} in {where} is not a whole number from 0 to 2^63 - 1")
    text = cells.pop("prompt")
    return Prompt(text, int(seed) if seed else None, {k: v for k, v in cells.items() if v})

"""`hfi bench rows`: the most memory that commands take on many rows, beside few. Each command runs in a process of its own, on a
workspace that is made first: images of which two people said something, and an evaluation whose images are there already."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfi.config import check, option
from hfi.errors import HfiError, UsageError
from hfi.images import ImageStore
from hfi.resources import data_dir
from hfi.workspace import Workspace

CONCEPT = "smoking"
PER_ROW, SHARE = 512, 1.1  # a command whose memory grows by more bytes for each row, and by more than this in all, gathers rows
_PEOPLE = 7


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    few: int = option(1_000, "rows (judged images, and evaluated images of each system) of the small workspace", low=100)
    many: int = option(50_000, "rows of the large one", low=200)
    only: str | None = option(None, "measure this command alone, as the table names it")

    def __post_init__(self) -> None:
        check(self)
        if self.many <= self.few:
            raise UsageError(f"--many is {self.many}, and --few is {self.few}: give more")
        if self.only is not None and self.only not in COMMANDS:
            raise UsageError(f"--only {self.only!r}: choose one of {', '.join(COMMANDS)}")


Words = Callable[[Path], Sequence[object]]


def _export(kind: str, *more: str) -> Words:
    return lambda folder: ["labels", "export", "-w", folder, "-c", CONCEPT, "-o", folder / f"out.{kind}", "--format", kind, *more]


def _aggregate(method: str) -> Words:
    return lambda folder: ["labels", "aggregate", "-w", folder, "-c", CONCEPT, "--method", method, "-o", folder / f"{method}.csv"]


def _evaluate(folder: Path) -> Sequence[object]:
    given = {
        "--model": _MODEL,
        "--concept": CONCEPT,
        "--prompts": folder / "rows.txt",
        "--guide": "neg",
        "--against": CONCEPT,
    }
    return ["evaluate", "-w", folder, "--device", "cpu", *(word for pair in given.items() for word in pair)]


_MODEL = data_dir() / "portraits"
COMMANDS: Mapping[str, Words] = {
    "evaluate": _evaluate,
    "export jsonl": _export("jsonl", "--comments"),
    "export csv": _export("csv"),
    "export parquet": _export("parquet"),
    "export datasets": _export("datasets", "--prompts"),
    "aggregate majority": _aggregate("majority"),
    "aggregate dawid-skene": _aggregate("dawid-skene"),
}


def run(config: RowsConfig, folder: Path) -> list[dict[str, Any]]:
    """A row for each command: its peaks in bytes on `few` and `many` rows, their ratio, and by how many bytes it grows for each row
    more. HfiError for a command that fails."""
    chosen = [config.only] if config.only else list(COMMANDS)
    sizes = {"few": config.few, "many": config.many}
    for name, count in sizes.items():
        make(folder / name, count, evaluated="evaluate" in chosen)
    found = []
    for command in chosen:
        row: dict[str, Any] = {"command": command, **sizes}
        for name in sizes:
            row[f"peak_{name}"] = peak(folder / name, COMMANDS[command](folder / name))
        row["ratio"] = row["peak_many"] / row["peak_few"]
        row["bytes_per_row"] = (row["peak_many"] - row["peak_few"]) / (config.many - config.few)
        found.append(row)
    return found


def peak(folder: Path, words: Sequence[object]) -> int:
    """The most memory, in bytes, that a command took in a process of its own, on the workspace's own database and images."""
    file = folder / "peak"
    line = [sys.executable, "-m", "hfi.bench.peak", str(file), *map(str, words)]
    others = ("HFI_DATABASE_URL", "HFI_IMAGES_URL")
    environment = {name: value for name, value in os.environ.items() if name not in others}
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it was ended from outside"])[-1]
        raise HfiError(f"'hfi {' '.join(map(str, words[:2]))}' failed: {said.removeprefix('hfi: error: ')}")
    return int(file.read_text())


def make(folder: Path, count: int, *, evaluated: bool) -> None:
    """A workspace with `count` judged images and, if asked for, `count` images of an evaluation of each of two systems."""
    from hfi.store.migrate import upgrade
    from hfi.store.session import connect
    from hfi.store.synthetic import Part, Size
    from hfi.store.synthetic import make as fill

    space, images = Workspace.create(folder), ImageStore(folder / "images")  # whatever HFI_IMAGES_URL names
    upgrade(space.own_database)
    engine = connect(space.own_database)
    asked = Part("bulk", CONCEPT, "binary", "closed", "all", 0, 1.0, 1.0, images=1, overlap=2, decided=50)
    fill(engine, Size(count, _PEOPLE, 2 * count), parts=(asked,), sha_of=lambda i: images.put(_noise(i)))
    engine.dispose()
    if evaluated:
        _paint(folder, space, count)


def _paint(folder: Path, space: Workspace, count: int) -> None:
    """The images of an evaluation, painted in the place of sampled ones, so that measuring is all that is left to do."""
    from hfi.cli.evaluate import systems_of
    from hfi.diffusion.sd import content_id, find_model, pick_device
    from hfi.evaluate import FIRST_SEED, EvaluateConfig, System, plan, sample_missing
    from hfi.prompts import load_prompts
    from hfi.systems import Guide

    file = folder / "rows.txt"
    file.write_text("".join(f"a portrait of the {i}th king\n" for i in range(count)), encoding="utf-8")
    content, guides = content_id(find_model(str(_MODEL))), [Guide("neg", words=(CONCEPT,))]
    known = systems_of(str(_MODEL), content, [], guides, EvaluateConfig(), pick_device("cpu"))
    painted = [System(s.method, s.conditioning, _painter(s.method), s.settings, s.judged_by, s.batch) for s in known]
    sample_missing(painted, {file.stem: plan(load_prompts(file), None, FIRST_SEED)}, space.runs / "evaluate" / CONCEPT)


def _painter(method: str) -> Callable[[list[str], list[int]], Iterator[Image.Image]]:
    return lambda prompts, seeds: (_noise(f"{method} {seed}").resize((64, 64)) for seed in seeds)


def _noise(name: object) -> Image.Image:
    """8 x 8, another for each name."""
    seed = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def grown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commands that gather rows in memory."""
    return [row["command"] for row in rows if row["bytes_per_row"] > PER_ROW and row["ratio"] > SHARE]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    few, many = rows[0]["few"], rows[0]["many"]
    width = max(len(row["command"]) for row in rows)
    out = [f"{'':<{width}}{f'{few:,} rows':>16}{f'{many:,} rows':>16}{'ratio':>8}{'bytes a row':>14}"]
    for row in rows:
        peaks = "".join(f"{row[name] / 2**20:>12.1f} MiB" for name in ("peak_few", "peak_many"))
        out.append(f"{row['command']:<{width}}{peaks}{row['ratio']:>8.3f}{row['bytes_per_row']:>14.0f}")
    return "\n".join(out)

"""What was measured on the images of a cell, kept beside them, a chunk after the other, so that no more than one is in memory and a
killed measurement goes on at the chunk that it was at.

    measured.jsonl        a head (what was measured by whom, the kinds of numbers), then one line an image
    measured-NAME.bin     embeddings, one row an image, without a head
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfi.files import room_for
from hfi.metrics.rows import Rows, Stored


@dataclass(frozen=True)
class Chunk:
    """Of some images in order: `columns` [n] hold one number or text an image, `labels` [n] the detector's, by name, and `matrices`
    [n, D] embeddings."""

    columns: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    matrices: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["blocked"])


class Measured:
    """The chunks of a cell in `folder`, as far as they were measured under the same `key`: `done` images. Chunks are `size` images
    each, of `total`; a shorter one can only be the last."""

    def __init__(self, folder: Path, key: str, total: int, size: int) -> None:
        self.path, self.key, self.total, self.size = folder / "measured.jsonl", key, total, size
        self.head: dict[str, Any] = {}
        self.done = self._there()

    def append(self, chunk: Chunk) -> None:
        """Writes a chunk behind the others. The first one says which kinds of numbers there are."""
        with room_for(self.path):
            if not self.done:
                self.head = {
                    "key": self.key,
                    "columns": {name: column.dtype.str for name, column in chunk.columns.items()},
                    "labels": {name: column.dtype.str for name, column in chunk.labels.items()},
                    "matrices": {name: [rows.dtype.str, rows.shape[1]] for name, rows in chunk.matrices.items()},
                }
                for name in chunk.matrices:
                    self._matrix(name).unlink(missing_ok=True)
                self.path.write_text(json.dumps(self.head) + "\n", encoding="utf-8")
            for name, rows in chunk.matrices.items():
                with open(self._matrix(name), "ab") as file:
                    file.write(np.ascontiguousarray(rows, np.dtype(self.head["matrices"][name][0])).tobytes())
            with open(self.path, "a", encoding="utf-8") as file:
                for i in range(len(chunk)):
                    line = {name: column[i].item() for name, column in chunk.columns.items()}
                    labels = {name: column[i].item() for name, column in chunk.labels.items()}
                    file.write(json.dumps([line, labels], ensure_ascii=False) + "\n")
        self.done += len(chunk)

    def chunks(self) -> Iterator[Chunk]:
        """Everything but the matrices, in the order of the images."""
        with open(self.path, encoding="utf-8", newline="\n") as lines:
            next(lines)
            for start in range(0, self.done, self.size):
                some = [json.loads(next(lines)) for _ in range(min(self.size, self.done - start))]
                columns, labels = (
                    {name: np.array([line[k][name] for line in some], _kind(kind)) for name, kind in self.head[of].items()}
                    for k, of in enumerate(("columns", "labels"))
                )
                yield Chunk(columns, labels, {})

    def rows(self, name: str) -> Rows | None:
        """One of the matrices; None where there is none of that name."""
        if name not in self.head.get("matrices", {}):
            return None
        kind, width = self.head["matrices"][name]
        return Stored(self._matrix(name), (self.done, width), np.dtype(kind))

    def _matrix(self, name: str) -> Path:
        return self.path.with_name(f"measured-{name}.bin")

    def _there(self) -> int:
        """The images of whole chunks that are kept; what lies beyond them, as a killed process leaves it, is cut off."""
        done = 0
        try:
            with open(self.path, "rb") as file:
                self.head = json.loads(file.readline())
                if self.head["key"] != self.key:
                    return 0
                widths = {self._matrix(name): np.dtype(kind).itemsize * n for name, (kind, n) in self.head["matrices"].items()}
                whole = min([self.total, *(path.stat().st_size // width for path, width in widths.items())])
                end = file.tell()
                for count, line in enumerate(file, 1):
                    if count > whole or not _sound(line):
                        break
                    if count % self.size == 0 or count == self.total:
                        done, end = count, file.tell()
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0
        for path, length in ((self.path, end), *((path, done * width) for path, width in widths.items())):
            os.truncate(path, length)
        return done


def _sound(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")


def _kind(text: str) -> np.dtype:
    """Texts are as wide as those of a chunk need."""
    return np.dtype("U") if np.dtype(text).kind == "U" else np.dtype(text)

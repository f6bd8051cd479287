"""Embeddings of many images, one row an image: an array, or a file that is read in blocks, so that memory does not grow with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BLOCK = 1024  # rows in memory at once, or as many as there are columns


class Rows(Protocol):
    """[N, D]. `rows[i:j]` and `rows[[i, j, ...]]` are arrays of the rows that are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: Any, /) -> Any: ...


@dataclass(frozen=True)
class Stored:
    """N rows of D numbers, one after the other in a file without a head. The file may be longer; shorter ones are a ValueError."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        if not isinstance(which, slice):
            parts = [self[i : i + 1] for i in map(int, which)]
            return np.concatenate(parts) if parts else self[:0]
        start, stop, step = which.indices(len(self))
        if step != 1:
            raise ValueError(f"every {step}th row: rows are read one after the other")
        count, width = max(0, stop - start), self.shape[1]
        read = np.fromfile(self.path, self.dtype, count * width, offset=start * width * self.dtype.itemsize)
        return read.reshape(count, width)


def blocks(rows: Rows, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows in order, in double precision: where they are in [0, N), and [at most `size`, D] of them."""
    size = size or max(BLOCK, rows.shape[1])
    for start in range(0, len(rows), size):
        place = slice(start, min(start + size, len(rows)))
        yield place, np.asarray(rows[place], dtype=np.float64)

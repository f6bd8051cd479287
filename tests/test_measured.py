"""What was measured on a cell's images comes back as it was, and goes on where it was cut off."""

from pathlib import Path

import numpy as np
import pytest

from hfi.measured import Chunk, Measured
from hfi.metrics.frechet import distance, frechet_distance
from hfi.metrics.kernel import kernel_distance
from hfi.metrics.rows import Stored, blocks

SIZE, TOTAL = 4, 10
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(TOTAL, 3)).astype(np.float32)
SCORES = RNG.random(TOTAL).astype(np.float32)
NAMES = np.array([f"é{'x' * i}" for i in range(TOTAL)])  # each chunk's texts are wider than the last one's


def chunk(start: int) -> Chunk:
    part = slice(start, min(start + SIZE, TOTAL))
    columns = {"blocked": np.arange(TOTAL)[part] % 3 == 0, "lpips": SCORES[part].astype(np.float64) / 3}
    return Chunk(columns, {"red": SCORES[part], "character": NAMES[part]}, {"images": ROWS[part]})


def measured(folder: Path, key: str = "a") -> Measured:
    return Measured(folder, key, TOTAL, SIZE)


def filled(folder: Path, upto: int = TOTAL) -> Measured:
    made = measured(folder)
    for start in range(made.done, upto, SIZE):
        made.append(chunk(start))
    return made


def check(made: Measured) -> None:
    assert made.done == TOTAL
    found = list(made.chunks())
    assert [len(part) for part in found] == [4, 4, 2]
    scores = np.concatenate([part.labels["red"] for part in found])
    assert scores.dtype == np.float32
    assert np.array_equal(scores, SCORES)
    assert np.array_equal(np.concatenate([part.labels["character"] for part in found]), NAMES)
    assert np.array_equal(np.concatenate([part.columns["lpips"] for part in found]), SCORES.astype(np.float64) / 3)
    assert [bool(b) for part in found for b in part.columns["blocked"]] == [i % 3 == 0 for i in range(TOTAL)]
    rows = made.rows("images")
    assert rows is not None
    assert np.array_equal(rows[:], ROWS)
    assert np.array_equal(rows[3:7], ROWS[3:7])
    assert np.array_equal(rows[np.array([9, 0, 0])], ROWS[[9, 0, 0]])
    assert len(rows[8:8]) == len(rows[[]]) == 0
    assert made.rows("features") is None


def test_everything_comes_back(tmp_path: Path) -> None:
    check(filled(tmp_path))
    check(measured(tmp_path))
    assert measured(tmp_path, "b").done == 0  # somebody else measured


@pytest.mark.parametrize("cut", [0, 1, 5, 40])
@pytest.mark.parametrize("name", ["measured.jsonl", "measured-images.bin"])
def test_it_goes_on_wherever_it_was_cut_off(tmp_path: Path, name: str, cut: int) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    filled(whole)
    filled(tmp_path, 2 * SIZE)
    with open(tmp_path / name, "r+b") as file:
        file.truncate(max(0, file.seek(0, 2) - cut))
    assert measured(tmp_path).done == (2 * SIZE if not cut else SIZE)
    check(filled(tmp_path))
    for file in ("measured.jsonl", "measured-images.bin"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


def test_a_damaged_line_is_measured_again(tmp_path: Path) -> None:
    filled(tmp_path)
    file = tmp_path / "measured.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:6], b"\0" * len(lines[6]), *lines[7:]]))
    assert measured(tmp_path).done == SIZE
    check(filled(tmp_path))


def test_distances_of_files_are_those_of_arrays_however_many_blocks(tmp_path: Path) -> None:
    """Against all rows at once, in numpy's own words."""
    a, b = RNG.normal(size=(2, 2500, 5)).astype(np.float32)
    b = b * 1.5 + 0.3
    files = []
    for name, x in (("a", a), ("b", b)):
        x.tofile(tmp_path / name)
        files.append(Stored(tmp_path / name, x.shape, x.dtype))
    assert [part.shape for _, part in blocks(files[0])] == [(1024, 5), (1024, 5), (452, 5)]
    values = np.linalg.eigvals(np.cov(a.T.astype(float)) @ np.cov(b.T.astype(float)))
    wanted = np.sum((a.mean(0, dtype=float) - b.mean(0, dtype=float)) ** 2)
    wanted += np.trace(np.cov(a.T.astype(float))) + np.trace(np.cov(b.T.astype(float))) - 2 * np.sqrt(values).sum()
    assert distance(*files) == distance(a, b) == pytest.approx(wanted, rel=1e-9)
    rows = np.random.default_rng(1).integers(2500, size=2500)
    often = np.bincount(rows, minlength=2500)
    assert distance(*files, often, often) == pytest.approx(distance(a[rows], b[rows]), rel=1e-9)
    assert frechet_distance(*files, paired=True) == frechet_distance(a, b, paired=True)
    assert kernel_distance(*files, subsets=3) == kernel_distance(a, b, subsets=3)
    x, y = (np.asarray(z, dtype=float) for z in (a[:1500], b[:1500]))
    k = [(u @ v.T / 5 + 1) ** 3 for u, v in ((x, x), (y, y), (x, y))]
    n = len(x)
    mmd = sum((part.sum() - np.trace(part)) / (n * (n - 1)) for part in k[:2]) - 2 * k[2].mean()
    assert kernel_distance(a[:1500], b[:1500], subset_size=n).interval.value == pytest.approx(mmd, rel=1e-9)

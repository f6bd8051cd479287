"""Memory does not grow with the rows: exports, labels and evaluations of many judgments and images, beside few.

Rows that are gathered take a kilobyte or more each; what is let through here are numbers of an image, in arrays.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from traced import traced
from typer.testing import CliRunner

from hfi.aggregate import soft_labels
from hfi.bench.rows import COMMANDS, CONCEPT, RowsConfig, grown, make, peak, table
from hfi.cli import app
from hfi.consensus import consensus
from hfi.errors import UsageError
from hfi.evaluate import System, evaluate, paired_p, report_of
from hfi.judgment_folder import Taken, write_folder
from hfi.judgments import freeze, frozen, to_jsonl, to_lines
from hfi.prompts import Prompt
from hfi.store import campaigns, queries
from hfi.store.session import reading
from hfi.workspace import Workspace

FIRST, FEW, MANY = 100, 1050, 2100  # all but the first more than is read, or written, at once
EXPORTS = ("export jsonl", "export parquet", "export datasets", "aggregate majority")
LEAST = 300  # bytes for each row more


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("rows")
    for count in (FIRST, FEW, MANY):
        make(root / str(count), count, evaluated=False)
    return {count: root / str(count) for count in (FIRST, FEW, MANY)}


@pytest.mark.parametrize("command", EXPORTS)
def test_exports_hold_no_rows(made: dict[int, Path], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HFI_DATABASE_URL", raising=False)

    def run(count: int) -> None:
        shutil.rmtree(made[count] / "out.datasets", ignore_errors=True)
        done = CliRunner().invoke(app, list(map(str, COMMANDS[command](made[count]))))
        assert done.exit_code == 0, done.output

    run(FIRST)  # what is made once and kept is made now
    few, many = (traced(lambda count=count: run(count)) for count in (FEW, MANY))  # type: ignore[misc]
    assert (many - few) / (MANY - FEW) < LEAST


def test_what_is_read_bit_by_bit_is_what_is_read_at_once(made: dict[int, Path], tmp_path: Path) -> None:
    space = Workspace(made[FEW])
    engine = space.engine()
    whole = freeze(engine, CONCEPT)
    with reading(engine) as session:
        assert [c.tasks for c in campaigns.campaigns(session)] == [FEW]
    assert len(whole.judgments) == 2 * FEW + FEW // 50
    with reading(engine) as session:
        about = queries.concept(session, CONCEPT)
    taken = Taken(prompts=True, names=False)
    with frozen(engine, CONCEPT) as found:
        assert found.judged_by == whole.judged_by
        assert "".join(to_lines(found)) == to_jsonl(whole)
        assert list(found.judgments) == list(found.judgments) == list(whole.judgments)
        parts = list(found.parts())
        assert [len(shas) for shas, _ in parts] == [250] * 4 + [50]
        assert [sha for shas, _ in parts for sha in shas] == list(whole.prompts)
        assert found.count_images() == FEW
        for name, some in (("a", found), ("b", whole)):
            write_folder(tmp_path / name, some, some.judged_by, about, space.images, taken, lambda *_: None)
        for method in ("majority", "dawid-skene"):
            labels = consensus(found, method)  # type: ignore[arg-type]
            assert {label.image: label for label in labels.labels} == {
                label.image: label for label in consensus(whole, method).labels
            }  # type: ignore[arg-type]
            assert labels.images == FEW
            assert soft_labels(found, method).keys() == whole.prompts.keys()  # type: ignore[arg-type]
    files = [sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*.*")) for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == FEW + 3
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files[0])


# --- evaluations ---

WEIGHTS = np.random.default_rng(0).normal(size=(192, 64)).astype(np.float32)


class Eyes:
    """All instruments at once, by arithmetic on the pixels."""

    name, version, content, threshold = "eyes", "1", "1", 0.5

    def __call__(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        pixels = self._pixels(images)
        return {"red": pixels[:, ::3].mean(1) / 255, "character": np.where(pixels[:, 1] > 99, "king", "chef")}

    def images(self, images: list[Image.Image]) -> np.ndarray:
        return self._pixels(images) @ WEIGHTS

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text)] * 64 for text in texts], dtype=np.float32)

    def layers(self, images: list[Image.Image]) -> list[np.ndarray]:
        return [self._pixels(images).reshape(len(images), 64, 3)]

    def distances(self, a: list[Image.Image], b: list[Image.Image]) -> np.ndarray:
        return np.abs(self._pixels(a) - self._pixels(b)).mean(1)

    def _pixels(self, images: list[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(image).ravel() for image in images], dtype=np.float32).reshape(-1, 192)


def painter(first: int) -> Callable[[list[str], list[int]], Iterator[Image.Image]]:
    def draw(prompts: list[str], seeds: list[int]) -> Iterator[Image.Image]:
        for seed in seeds:
            pixels = np.random.default_rng([first, seed]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            yield Image.fromarray(pixels)

    return draw


def test_an_evaluation_holds_no_rows(tmp_path: Path) -> None:
    eyes: Any = Eyes()
    systems = [System("sd", "none", painter(0)), System("sdd", "text", painter(1))]
    prompts = {"implicit": [Prompt(f"king {i}", expected={"character": "king"}) for i in range(10)]}

    def run(count: int) -> None:
        folder = tmp_path / str(count)
        shutil.rmtree(folder, ignore_errors=True)
        found = evaluate(systems, "red", prompts, folder, detector=eyes, backbone=eyes, lpips=eyes, images=count)
        assert {"fidelity", "lpips", "frechet_distance"} <= {row.metric for row in found}
        report_of(folder, "Red")

    run(64)
    few, many = 1100, 2200  # both more than a block of rows
    assert (traced(lambda: run(many)) - traced(lambda: run(few))) / (many - few) < LEAST
    lines = [json.loads(line) for line in (tmp_path / str(few) / "scores.jsonl").read_text().splitlines()]
    assert [(x["method"], x["seed"]) for x in lines] == [(m, 100_000 + i) for m in ("sd", "sdd") for i in range(few)]
    seen = [[line["scores"]["red"] > 0.5 for line in lines if line["method"] == m] for m in ("sd", "sdd")]
    assert paired_p(tmp_path / str(few)) is not None and sum(seen[0]) != sum(seen[1])


# --- the benchmark ---


def test_the_benchmark_measures_in_processes_of_their_own() -> None:
    done = CliRunner().invoke(app, ["bench", "rows", "--few", "100", "--many", "1100", "--only", "export csv", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["few"] == 100 and row["peak_many"] > row["peak_few"] * 0.9 > 20 << 20
    assert row["ratio"] == row["peak_many"] / row["peak_few"]
    assert grown([row]) == []
    assert grown([row, {"command": "other", "bytes_per_row": 2000, "ratio": 3}]) == ["other"]
    assert "export csv" in table([row]) and "1,100 rows" in table([row])


@pytest.mark.parametrize(
    ("given", "said"),
    [({"few": 500, "many": 400}, "--many is 400"), ({"only": "export xml"}, "choose one of evaluate, export jsonl")],
)
def test_mistakes_of_the_benchmark(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RowsConfig(**given)  # type: ignore[arg-type]


def test_the_workspaces_are_made_apart_from_the_users_database_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("HFI_IMAGES_URL", own.as_uri())
    monkeypatch.setenv("HFI_DATABASE_URL", f"sqlite:///{own / 'hfi.db'}")
    make(tmp_path / "made", 2, evaluated=False)
    assert len(list((tmp_path / "made" / "images").rglob("*.png"))) == 2
    assert peak(tmp_path / "made", COMMANDS["export csv"](tmp_path / "made")) > 0
    assert list(own.iterdir()) == []

"""A full disk: one line that names the file and says what to do, and nothing that was written before is lost.

The disk is real: a small tmpfs where this process may mount one, else a limit on the size of its files. It is nearly full at first,
and every command is run again with a little more room until it ends, so that it fails at each file that it writes.
"""

import ctypes
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged import judge, model_with_clip
from safetensors.torch import save_file
from tiny import WIDTH

from hfi.diffusion.sd import load_sd
from hfi.diffusion.tokens import LearnedToken
from hfi.diffusion.training import load_state
from hfi.erase.erasure import Erasure
from hfi.errors import NoRoom
from hfi.files import whole
from hfi.runs import Run
from hfi.store import queries
from hfi.store.session import reading
from hfi.workspace import Workspace

Call = Callable[..., Any]
MB = 1 << 20
PAGE = 4096
STEPS = 6
ABOUT = {"method": "sdd", "concepts": '["fog"]', "conditioning": "text", "texts": '["a hat"]', "config": "{}"}
COMMON = ["-c", "fog", "--steps", STEPS, "--save-every", 2, "--batch-size", 4]


class Disk:
    """Holds a workspace; `leave(n)` leaves room for n bytes, `leave(None)` for plenty."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        path.mkdir()
        libc = ctypes.CDLL(None, use_errno=True)
        self.mounted = libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode()) == 0
        self.unmount = lambda: libc.umount2(os.fsencode(path), 2)

    def leave(self, room: int | None) -> None:
        if not self.mounted:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard if room is None else room, hard))
            return
        filler = self.path / "filler"
        filler.unlink(missing_ok=True)
        if room is not None:
            with open(filler, "wb") as file:
                size = 0
                for step in (MB, PAGE):  # until nothing more fits: what statvfs says of a tmpfs may be some pages off
                    try:
                        while True:
                            os.posix_fallocate(file.fileno(), size, step)
                            size += step
                    except OSError:
                        pass
                os.ftruncate(file.fileno(), size - room)

    @property
    def words(self) -> str:
        return "the disk is full" if self.mounted else "files cannot become that large here"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk", 16 * MB)
    yield made
    made.leave(None)
    if made.mounted:
        assert made.unmount() == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_clip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def judged_space(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return judge(tmp_path_factory.mktemp("space") / "w", model)


@pytest.fixture
def space(disk: Disk, judged_space: Path) -> Iterator[Path]:
    """A copy of it on the disk."""
    shutil.copytree(judged_space, disk.path / "w")
    # The database's own scratch files are there as long as somebody reads it: they would need more room than a run's files, and give
    # it back to them in mid-run, whenever the last reader goes.
    with closing(sqlite3.connect(disk.path / "w" / "hfi.db")) as held:
        held.execute("SELECT 1 FROM images")
        yield disk.path / "w"


def refusals(
    hfi: Call, disk: Disk, *command: object, more: int, lowest: int = PAGE, check: Callable[[], object] = lambda: None
) -> list[str]:
    """Runs the command with `more` bytes of room each time until it ends; the files that it had no room for, in that order. A limit
    begins with `lowest`, and may find none."""
    files = []
    for room in range(0 if disk.mounted else lowest, 2 * MB, more):
        disk.leave(room)
        done = hfi(*command)
        disk.leave(None)
        if done.exit_code == 0:
            assert files or not disk.mounted  # without a mount an image may be below the least limit
            return files
        (line,) = done.errors
        assert done.exit_code == 1
        assert "Traceback" not in done.stderr
        start, _, rest = line.partition(f": {disk.words}")
        assert start.startswith(f"hfi: error: cannot write {disk.path}/"), done.stderr
        assert rest.endswith("; make room there and run the same command again, nothing earlier is lost")
        assert not list(disk.path.rglob("*.tmp"))
        check()
        files.append(start.removeprefix(f"hfi: error: cannot write {disk.path}/"))
    raise AssertionError(f"{command} never ended: {files}")


# --- the commands ---


def test_an_inversion_on_a_full_disk(hfi: Call, disk: Disk, space: Path, judged_space: Path, model: Path) -> None:
    command = ["invert", *COMMON, "-m", model, "--top-k", 6, "--vectors", 2]
    run, kept = Run(space / "runs" / "invert" / "fog"), []

    def check() -> None:
        """What was kept stays readable, and no step is lost again."""
        kept.append(int((load_state(run.path / "checkpoint.pt") or {"step": 0})["step"]))

    files = refusals(hfi, disk, *command, "-w", space, more=PAGE, check=check)
    assert kept == sorted(kept)
    assert "w/runs/invert/fog/checkpoint.pt" in files or not disk.mounted
    assert hfi(*command, "-w", judged_space).exit_code == 0
    one, two = (LearnedToken.load(at / "tokens" / "fog.safetensors") for at in (space, judged_space))
    assert (one.content, one.metadata) == (two.content, two.metadata)
    assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))


def test_an_erasure_on_a_full_disk(hfi: Call, disk: Disk, space: Path, judged_space: Path, model: Path) -> None:
    command = ["erase", *COMMON, "-m", model, "--text", "a hat", "--ddim-steps", 4]
    name = "fog-sdd-text"
    run, kept = Run(space / "runs" / "erase" / name), []

    def check() -> None:
        kept.append(int((load_state(run.path / "checkpoint.pt") or {"step": 0})["step"]) if not run.finished else STEPS)

    files = refusals(hfi, disk, *command, "-w", space, more=6 * PAGE, check=check)
    assert kept == sorted(kept)
    assert {f"w/runs/erase/{name}/checkpoint.pt", f"w/erasures/{name}/unet"} <= set(files)
    assert hfi(*command, "-w", judged_space).exit_code == 0
    one, two = (Erasure.load(at / "erasures" / f"{name}.safetensors") for at in (space, judged_space))
    assert (one.content, one.metadata) == (two.content, two.metadata)
    unets = [at / "erasures" / name / "unet" / "diffusion_pytorch_model.safetensors" for at in (space, judged_space)]
    assert unets[0].read_bytes() == unets[1].read_bytes()
    assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))


def test_images_on_a_full_disk(hfi: Call, disk: Disk, space: Path, judged_space: Path, model: Path) -> None:
    command = ["generate", "-m", model, "--prompt", "a cat", "--images-per-prompt", 12, "--seed", 99, "--steps", 2]
    refusals(hfi, disk, *command, "-w", space, more=8 * PAGE, lowest=MB)
    assert hfi(*command, "-w", judged_space).exit_code == 0
    rows = []
    for at in (space, judged_space):
        home = Workspace.open(at)
        with reading(home.engine()) as session:
            rows.append([(i.key, i.sha256) for i in queries.images(session)])
        assert {sha for _, sha in rows[-1]} <= home.images.shas()
    assert rows[0] == rows[1]


def test_exports_on_a_full_disk(hfi: Call, disk: Disk, space: Path, model: Path) -> None:
    made = Erasure({"conv_in.weight": load_sd(model).unet.conv_in.weight + 1}, {**ABOUT, "base": load_sd(model).content})
    made.save(space / "erasures" / "x.safetensors")
    LearnedToken("<fog>", (torch.ones(2, WIDTH),)).save(space / "tokens" / "fog.safetensors")
    common = ["-w", space, "-m", model, "--erasure", "x"]
    refusals(hfi, disk, "export", "folder", *common, more=32 * PAGE)
    refusals(hfi, disk, "export", "single-file", *common, more=32 * PAGE)
    refusals(hfi, disk, "export", "lora", *common, more=4 * PAGE)
    refusals(hfi, disk, "export", "token", "fog", "-w", space, more=PAGE)


# --- what they write with ---


def test_each_library_says_it_in_its_own_way(disk: Disk) -> None:
    path, numbers = disk.path / "x", torch.ones(1000, 100)
    path.write_text("old")

    def numpy(scratch: Path) -> None:
        with open(scratch, "wb") as file:
            np.savez(file, x=numbers)

    def save(scratch: Path) -> None:
        with open(scratch, "wb") as file:
            torch.save(numbers, file)

    disk.leave(2 * PAGE)
    writers: list[Callable[[Path], object]] = [
        lambda scratch: scratch.write_bytes(bytes(MB)),
        lambda scratch: scratch.write_text("x" * MB),
        lambda scratch: save_file({"x": numbers}, scratch),
        numpy,
        save,
    ]
    for write in writers:
        with pytest.raises(NoRoom, match=disk.words[:20]), whole(path) as scratch:
            write(scratch)
        assert [p.name for p in disk.path.iterdir() if p.name != "filler"] == ["x"]
        assert path.read_text() == "old"

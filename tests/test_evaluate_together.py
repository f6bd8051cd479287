"""`hfi evaluate` in two processes, one of which is killed on the way: the images and figures of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from test_evaluate import space  # noqa: F401  # a fixture
from typer.testing import CliRunner

from hfi.cli import app
from hfi.workspace import Workspace


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def words(work: Workspace, name: str) -> list[str]:
    root = work.path.parent
    given = {
        "--workspace": work.path,
        "--model": root / "tiny-epsilon",
        "--concept": "red",
        "--prompts": root / "prompts" / "implicit.csv",
        "--detector": "none",
        "--erasure": "red-sdd-context",
        "--images": 70,
        "--steps": 5,
        "--batch-size": 4,
        "--name": name,
    }
    return ["evaluate", *(str(word) for pair in given.items() for word in pair)]


def launch(given: list[str], log: Path) -> subprocess.Popen[bytes]:
    accelerate = Path(sys.executable).with_name("accelerate")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    with open(log, "wb") as out:
        return subprocess.Popen(
            [accelerate, "launch", "--num_processes", "2", "--cpu", "-m", "hfi", *given], stdout=out, stderr=out, env=environment
        )


def files(folder: Path) -> dict[str, bytes]:
    wanted = ("*.png", "results.json", "scores.jsonl", "evaluation.json", "cell.json", "measured-*.bin")
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in wanted for p in folder.rglob(pattern)}


def test_two_processes_one_killed_give_what_one_process_gives(
    space: Workspace,  # noqa: F811
    tmp_path: Path,
    one_thread: None,
) -> None:
    alone = CliRunner().invoke(app, words(space, "alone"))
    assert alone.exit_code == 0, alone.output

    log, run = tmp_path / "log", space.runs / "evaluate" / "both"
    first = launch(words(space, "both"), log)
    while len(list(run.rglob("*.png"))) < 12:
        assert first.poll() is None, log.read_text()
        time.sleep(0.01)
    second = next(
        p
        for p in psutil.Process(first.pid).children(recursive=True)
        if p.environ().get("RANK") == "1" and "evaluate" in p.cmdline()
    )
    second.send_signal(signal.SIGKILL)
    assert first.wait(300) != 0
    made = len(list(run.rglob("*.png")))
    assert made < 140, "it was killed too late to tell anything"
    said = [line for line in log.read_text().splitlines() if line.startswith("hfi: ")]
    assert len(said) == 1 and "run the same command again" in said[0], log.read_text()

    again = launch(words(space, "both"), log)
    assert again.wait(300) == 0, log.read_text()
    assert f"{made // 4 * 4}/140" not in log.read_text()
    found, wanted = files(run), files(run.with_name("alone"))
    assert found.keys() == wanted.keys() and len([name for name in found if name.endswith(".png")]) == 140
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert log.read_text().count("results.json") == 1  # printed once

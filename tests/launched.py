"""Starting hfi in several processes, as `accelerate launch` does, and ending one of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
TWO = [*LAUNCH, "--num_processes", "2", "--cpu", "-m", "hfi"]


def environment() -> dict[str, str]:
    """One thread each: other numbers of threads round differently, which can show in a pixel."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def started(command: Sequence[object], **more: object) -> subprocess.Popen[str]:
    out = subprocess.PIPE
    return subprocess.Popen(
        [str(word) for word in command], env=environment(), stdout=out, stderr=out, text=True, cwd=ROOT, **more
    )  # type: ignore[call-overload]


def run(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
    return finished(started(command))


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What hfi itself wrote of how it ended."""
    return [line for line in done.stderr.splitlines() if line.startswith("hfi: ")]


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_one(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """SIGKILL for the second of the two processes of a run; what became of the run then."""
    ranks = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RANK" in (found := child.environ()):
                ranks[found["RANK"]] = child
    assert sorted(ranks) == ["0", "1"]
    ranks["1"].kill()
    return finished(process)


def finished(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)

"""Event files: each step once, however often a run was killed, and what TensorBoard itself shows of them."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from hfi import tensorboard
from hfi.runs import Run

pytest.importorskip("tensorboard")
SETTINGS = {"steps": 12, "learning_rate": 1e-3, "method": "sdd"}
# a training of nothing, that keeps its state at every third step, shows a picture at every fourth, and is killed where it is told to
# be; each in a process of its own, forked off one that has the libraries loaded
TRAINING = """
import os, signal, sys
from pathlib import Path
from PIL import Image
import torch.utils.tensorboard
from hfi.diffusion.training import Step, drive
from hfi.runs import Run

def train(runs, kill):
    run = Run.start(runs, "erase", "first", {"steps": 12, "learning_rate": 1e-3, "method": "sdd"})

    def steps(state):
        for step in range(int(state["step"]) + 1 if state else 1, 13):
            yield Step(step, 1 / step, lambda: {}, {"grad": float(step)})
            if step == kill:
                os.kill(os.getpid(), signal.SIGKILL)

    def look(step):
        path = run.path / "validation" / f"{step.step:05d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (step.step, 0, 0)).save(path)
        run.log(step=step.step, removal=0.5)
        run.show(path)
        return False

    drive(steps, run, steps=12, save_every=3, title="training", validate=look, validate_every=4)
    run.finish({})

for kill in map(int, sys.argv[2:]):
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        train(Path(sys.argv[1]), kill)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed twice, at steps whose states were not kept, and gone on with."""
    runs = tmp_path_factory.mktemp("runs")
    done = subprocess.run([sys.executable, "-c", TRAINING, str(runs), "5", "11", "0"], capture_output=True, text=True, check=True)
    assert [int(code) for code in done.stdout.split()] == [-signal.SIGKILL, -signal.SIGKILL, 0], done.stderr
    return runs


def read(folder: Path):  # type: ignore[no-untyped-def]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGKILL")
def test_a_run_that_was_killed_twice_has_every_step_once(runs: Path) -> None:
    found = read(runs / "erase" / "first")
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("loss")] == [(i, round(1 / i, 6)) for i in range(1, 13)]
    assert [(e.step, e.value) for e in found.Scalars("grad")] == [(i, i) for i in range(1, 13)]
    assert [(e.step, e.value) for e in found.Scalars("removal")] == [(4, 0.5), (8, 0.5), (12, 0.5)]
    assert [(e.step, e.width, e.height) for e in found.Images("validation")] == [(4, 6, 4), (8, 6, 4), (12, 6, 4)]
    assert found.Images("validation")[1].encoded_image_string == (runs / "erase/first/validation/00008.png").read_bytes()
    assert b'method = "sdd"' in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert len(list((runs / "erase" / "first").glob("events.out.tfevents.*"))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGKILL")
def test_tensorboard_lists_a_run_by_its_command_and_name(runs: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0", "--load_fast", "false"]
    with open(tmp_path / "log", "wb") as log:
        board = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        end = time.monotonic() + 600
        address = ""
        while not address and time.monotonic() < end:
            assert board.poll() is None, (tmp_path / "log").read_text()
            told = [word for word in (tmp_path / "log").read_text().split() if word.startswith("http://localhost:")]
            address = told[0] if told else ""
            time.sleep(0.1)
        assert address

        def ask(path: str) -> object:
            with urllib.request.urlopen(f"{address.replace('localhost', '127.0.0.1')}data/{path}", timeout=60) as answer:
                return json.load(answer)

        while ask("runs") != ["erase/first"]:  # it reads them after it has begun to listen
            assert time.monotonic() < end
            time.sleep(0.2)
        while not {"loss", "grad", "removal"} <= set(ask("plugin/scalars/tags").get("erase/first", ())):  # type: ignore[attr-defined]
            assert time.monotonic() < end
            time.sleep(0.2)
        loss = ask("plugin/scalars/scalars?run=erase%2Ffirst&tag=loss")
        assert [row[1] for row in loss] == list(range(1, 13))  # type: ignore[attr-defined]
    finally:
        board.terminate()
        board.wait()


def test_a_run_whose_first_part_had_no_event_file_gets_it_whole(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "reward", "a", SETTINGS)
    run.log(step=1, loss=1.0)
    run.log(step=2, loss=0.5)
    assert not list(run.path.glob("events.*"))
    Image.new("RGB", (3, 2)).save(run.path / "note.png")
    run.begin_metrics(1)
    run.log(step=2, loss=0.25, kind="a word", good=True)
    assert [(e.step, e.value) for e in read(run.path).Scalars("loss")] == [(1, 1.0), (2, 0.25)], "before the run has ended"
    run.finish({})
    assert set(read(run.path).Tags()["scalars"]) == {"loss"}


def test_without_the_extra_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    run = Run.start(tmp_path, "reward", "a", SETTINGS)
    run.begin_metrics(0)
    run.log(step=1, loss=1.0)
    run.finish({})
    assert {path.name for path in run.path.iterdir()} == {
        "config.json",
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
    }

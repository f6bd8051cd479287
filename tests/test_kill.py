"""kill -9 at any step: the same command, run again, ends bit for bit where an undisturbed one does.

Each run is a process of its own, forked off one that has the libraries loaded: only that makes so many of them affordable.
"""

import multiprocessing
import random
import shutil
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from judged import judge, model_with_clip

from hfi.cli import main
from hfi.diffusion.tokens import LearnedToken
from hfi.erase.erasure import Erasure
from hfi.runs import Run

LOADED = [  # all that a run would otherwise import for itself
    "hfi.cli.invert",
    "hfi.cli.erase",
    "hfi.embed",
    "hfi.reward.model",
    "hfi.store.migrate",
    "sqlalchemy.dialects.sqlite",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "torch._dynamo",
    "pytest",
]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGKILL")

STEPS = 48  # killed within the first 17
# states are kept at every seventh step: most kills lose some steps, which are then done again
COMMON = ["-c", "fog", "--steps", STEPS, "--save-every", 7, "--batch-size", 4, "--learning-rate", 0.001]
INVERT = ["invert", *COMMON, "--top-k", 6, "--vectors", 2]
SDD = ["erase", *COMMON, "--text", "a hat", "--method", "sdd", "--ddim-steps", 4]
CONTEXT = ["erase", *COMMON, "--text", "a hat", "--method", "sdd-context", "--ddim-steps", 4, "--rollouts", "staggered"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_clip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return judge(tmp_path_factory.mktemp("space") / "w", model)


@pytest.fixture(scope="module")
def forked() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def start(forked: ForkServerContext, command: list[object], space: Path, model: Path) -> BaseProcess:
    process = forked.Process(target=main, args=([*map(str, command), "-w", str(space), "-m", str(model)],))
    process.start()
    return process


def finish(forked: ForkServerContext, command: list[object], space: Path, model: Path) -> None:
    process = start(forked, command, space, model)
    process.join()
    assert process.exitcode == 0


def kill_at(step: int, run: Run, process: BaseProcess) -> None:
    while len(run.metrics()) < step:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert step <= len(run.metrics()) < STEPS
    assert not run.finished


def same_run(one: Run, two: Run) -> None:
    """What they logged, and what they say of themselves."""
    assert one.metrics() == two.metrics()
    assert [line["step"] for line in one.metrics()] == list(range(1, STEPS + 1))
    assert one.result() == two.result()
    assert one.config() == two.config()


def test_an_inversion_killed_at_five_random_steps(forked: ForkServerContext, space: Path, model: Path, tmp_path: Path) -> None:
    """Each in a workspace of its own."""
    whole = tmp_path / "whole"
    shutil.copytree(space, whole)
    finish(forked, INVERT, whole, model)
    undisturbed = LearnedToken.load(whole / "tokens" / "fog.safetensors")
    for step in random.Random(0).sample(range(1, 18), 5):
        here = tmp_path / f"killed-at-{step}"
        shutil.copytree(space, here)
        run = Run(here / "runs" / "invert" / "fog")
        kill_at(step, run, start(forked, INVERT, here, model))
        finish(forked, INVERT, here, model)
        token = LearnedToken.load(here / "tokens" / "fog.safetensors")
        assert (token.content, token.metadata) == (undisturbed.content, undisturbed.metadata), f"killed at step {step}"
        same_run(run, Run(whole / "runs" / "invert" / "fog"))


def test_an_erasure_killed_at_five_random_steps(forked: ForkServerContext, space: Path, model: Path, tmp_path: Path) -> None:
    """Both methods in turn, the second with its pool of rollouts under way."""
    whole = tmp_path / "whole"
    shutil.copytree(space, whole)
    methods = {"fog-sdd-text": SDD, "fog-sdd-context-text": CONTEXT}
    for command in methods.values():
        finish(forked, command, whole, model)
    for i, step in enumerate(random.Random(1).sample(range(1, 18), 5)):
        name, command = list(methods.items())[i % 2]
        here = tmp_path / f"killed-at-{step}"
        shutil.copytree(space, here)
        run = Run(here / "runs" / "erase" / name)
        kill_at(step, run, start(forked, command, here, model))
        finish(forked, command, here, model)
        made, undisturbed = (Erasure.load(at / "erasures" / f"{name}.safetensors") for at in (here, whole))
        assert (made.content, made.metadata) == (undisturbed.content, undisturbed.metadata), f"{name} killed at step {step}"
        unets = [at / "erasures" / name / "unet" / "diffusion_pytorch_model.safetensors" for at in (here, whole)]
        assert unets[0].read_bytes() == unets[1].read_bytes()
        same_run(run, Run(whole / "runs" / "erase" / name))

"""What every training of a diffusion model's parts shares: steps that can be stopped at any time and gone on with exactly.

A training loop is a generator of `Step`s. It does no input or output: it starts from a state or from nothing, and each step can
give the state that the next one starts from. `drive` shows progress, logs, and keeps states.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from hfi.diffusion.memory import peak_memory
from hfi.distributed import anyone, from_main, is_main
from hfi.errors import HfiError
from hfi.files import whole, write_text
from hfi.progress import progress
from hfi.runs import Run

T = TypeVar("T")
State = dict[str, Any]  # tensors, numbers, and lists and dicts of them


@dataclass(frozen=True)
class Step:
    """`step` counts from 1. `state()` may be called until the generator goes on."""

    step: int
    loss: float
    state: Callable[[], State]
    values: Mapping[str, float] = field(default_factory=dict)


Training = Generator[Step, bool | None, T]  # sending True instead of asking for the next step ends it there


def drive(
    start: Callable[[State | None], Training[T]],
    run: Run,
    *,
    steps: int,
    save_every: int,
    title: str,
    validate: Callable[[Step], bool] | None = None,
    validate_every: int = 0,
    checkpoint: Callable[[Step], None] | None = None,
    checkpoint_every: int = 0,
) -> T:
    """Runs a training to its end and returns what the generator returns. Ctrl-C and SIGTERM first keep the state of the step under
    way. After them, or a kill, the same call goes on at the last kept state, and gives bit for bit what an uninterrupted run gives
    (same machine, same number of threads).

    `validate` looks at each `validate_every`-th step and the last one (0: at none). It may log and draw, must depend on the step's
    state and the run's metrics alone, and ends the training early by answering True. The state of that step is not kept: interrupted
    right then, the run goes back to the one before and ends there again. `checkpoint` is called at each
    `checkpoint_every`-th step (0: at none), to keep for good what its state is made of.

    Both come before the step's own state is kept: after a kill they may be called again for a step, and find the same.

    Several processes at one run call it together: main keeps, logs and validates; they stop after the same step.

    At the end the run gets a `cost.json`: the seconds of all its steps (of work that a kill lost, none), and the peak memory in bytes
    of the process that ended it.
    """
    path = run.path / "checkpoint.pt"
    state = from_main(lambda: load_state(path))
    done = int(state["step"]) if state else 0
    began = time.monotonic() - (float(state.get("seconds", 0)) if state else 0)
    if is_main():
        run.begin_metrics(done)
    training = start(state)
    stop = enough = False
    with postponed() as asked, progress(title, steps, "steps", done) as advance:
        while not stop:
            try:
                step = training.send(True) if enough else next(training)
            except StopIteration as end:
                spent = {"seconds": time.monotonic() - began, "peak_memory": peak_memory()}
                if is_main():
                    write_text(run.path / "cost.json", json.dumps(spent) + "\n")
                result: T = end.value
                return result
            if is_main():
                run.log(step=step.step, loss=step.loss, **step.values)
            advance(1, f"loss {step.loss:.4f}")
            if checkpoint and checkpoint_every and step.step % checkpoint_every == 0 and is_main():
                checkpoint(step)
            if validate and validate_every and (step.step % validate_every == 0 or step.step == steps):
                enough = from_main(partial(validate, step))
            if enough:  # not kept: what would go on from here would not know that it was enough
                continue
            stop = anyone(bool(asked))  # read once: what is asked for from here on has its state kept after the next step
            if (stop or step.step % save_every == 0 or step.step == steps) and is_main():
                save_state(path, {**step.state(), "step": step.step, "seconds": time.monotonic() - began})
    raise KeyboardInterrupt


@contextmanager
def postponed() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the end of the block: within a step a state is half updated. The first one is put into the list,
    a second Ctrl-C acts at once, and a second SIGTERM, which schedulers and launchers both send, not before."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        if asked and number == signal.SIGTERM:
            return
        asked.append(number)
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        if number == signal.SIGINT and is_main():  # not with print, which what was interrupted may be in the middle of
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, without keeping it\n")

    if threading.current_thread() is threading.main_thread():  # no other may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield asked
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)
    if asked:
        signal.raise_signal(asked[0])


def save_state(path: Path, state: State) -> None:
    """Writes a whole file or nothing."""
    try:
        with whole(path) as scratch, open(scratch, "wb") as file:  # given a path, torch does not say that a disk is full
            torch.save(state, file)
    except (OSError, RuntimeError) as e:
        raise HfiError(f"cannot write {path}: {e}") from e


def load_state(path: Path) -> State | None:
    """The kept state, or None where there is none yet."""
    if not path.exists():
        return None
    try:
        state: State = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:  # a damaged file raises whatever its bytes happen to mean
        raise HfiError(f"{path} is damaged ({type(e).__name__}): remove it to start this run again") from e
    return state


def clear_state(run: Run) -> None:
    """Forgets the kept state of a finished run: it can be as large as the model."""
    (run.path / "checkpoint.pt").unlink(missing_ok=True)

"""The driver of a training: validation, and an early end that a kill does not forget."""

import json
import time
from pathlib import Path

import pytest
import torch

from hfi.diffusion.training import State, Step, Training, drive
from hfi.runs import Run


def counting(steps: int, state: State | None) -> Training[int]:
    """Adds one at each step; its result is how far it came."""
    total = int(state["total"]) if state else 0
    for step in range(total + 1, steps + 1):
        total += 1
        if (yield Step(step, 1 / step, lambda total=total: {"total": torch.tensor(total)})):
            break
    return total


def test_validation_comes_at_its_own_steps_and_at_the_last(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(step: Step) -> bool:
        seen.append(step.step)
        return False

    run = Run.start(tmp_path, "erase", "x", {})
    assert drive(lambda s: counting(7, s), run, steps=7, save_every=3, title="x", validate=look, validate_every=2) == 7
    assert seen == [2, 4, 6, 7]
    assert (
        drive(lambda s: counting(5, s), Run.start(tmp_path, "erase", "y", {}), steps=5, save_every=3, title="x", validate=look)
        == 5
    )
    assert seen == [2, 4, 6, 7]


def test_an_early_end_comes_at_the_same_step_after_a_kill(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "erase", "x", {})

    def enough(step: Step) -> bool:
        return step.step >= 4

    def killed(step: Step) -> bool:
        if step.step == 4:
            raise RuntimeError("killed while it was judged")
        return False

    with pytest.raises(RuntimeError, match="killed"):
        drive(lambda s: counting(9, s), run, steps=9, save_every=2, title="x", validate=killed, validate_every=2)
    for _ in range(2):  # and where the end was decided, but the run was killed before it was finished
        assert drive(lambda s: counting(9, s), run, steps=9, save_every=2, title="x", validate=enough, validate_every=2) == 4
        assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]


def test_a_run_says_what_it_cost(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "erase", "x", {})
    assert not (run.path / "cost.json").exists()

    def slow(step: Step) -> bool:
        time.sleep(0.05)
        if step.step == 4 and not killed:
            killed.append(step.step)
            raise RuntimeError("killed")
        return False

    killed: list[int] = []
    with pytest.raises(RuntimeError, match="killed"):
        drive(lambda s: counting(6, s), run, steps=6, save_every=3, title="x", validate=slow, validate_every=1)
    drive(lambda s: counting(6, s), run, steps=6, save_every=3, title="x", validate=slow, validate_every=1)
    cost = json.loads((run.path / "cost.json").read_text())
    assert 0.3 <= cost["seconds"] < 30  # six steps of 0.05 s in two goes; what the kill lost does not count
    assert cost["peak_memory"] > 50e6

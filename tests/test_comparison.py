"""The comparison on Portraits, at the smallest scale that still does everything: three choices, one seed, one image."""

import shlex
from pathlib import Path

import pytest
import typer

import hfi.comparison as comparison
from hfi.cli import app
from hfi.comparison import CHOICES, DEFAULTS, TOGETHER, Choice, compare, figures, tables, training

FAST = "--steps 1 --batch-size 1"


def test_every_choice_is_a_command_that_hfi_takes(tmp_path: Path) -> None:
    lines = training(tmp_path, CHOICES, 0)
    group = typer.main.get_command(app)
    for line in lines:
        command, *words = shlex.split(line)
        with group.make_context("hfi", [command, *words], resilient_parsing=False) as context:  # type: ignore[attr-defined]
            name, found, rest = group.resolve_command(context, [command, *words])  # type: ignore[attr-defined]
            assert name == command
            with found.make_context(command, rest, parent=context):  # unknown options and values are refused here
                pass
    made = [line.split("--name ")[1].split()[0] for line in lines if line.startswith("invert")]
    asked = {word for line in lines for word in [part.split()[0] for part in line.split("--token ")[1:]]}
    assert asked == set(made)
    names = [line.split("--name ")[1].split()[0] for line in lines]
    assert len(names) == len(set(names)), "two settings share a name"
    assert sum(line.startswith("erase") for line in lines) == len({c.name for c in CHOICES})


def test_it_runs_and_makes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = (
        Choice("method", "in context", invert="--top-k 4 " + FAST, erase=FAST),
        Choice("conditioning", "words", text=True, erase=FAST),
        Choice(DEFAULTS, "all three at once", concept=TOGETHER, invert="--top-k 4 " + FAST, erase=FAST),
    )
    monkeypatch.setattr(comparison, "CHOICES", choices)
    monkeypatch.setattr(comparison, "IMAGES_PER_PROMPT", {"smoking": 1, "badge": 1, "brava": 1})
    monkeypatch.setattr(comparison, "LOOK", "--steps 8 --guidance-scale 3")
    ran: list[str] = []

    def run(line: str) -> None:
        ran.append(line)
        app(shlex.split(line), standalone_mode=False)

    compare(tmp_path / "compare", [0], 1, run)
    assert [line.split()[0] for line in ran].count("evaluate") == 4
    smoking = figures(tmp_path / "compare", "smoking", 0, False)
    brava = figures(tmp_path / "compare", "brava", 0, True)
    assert set(smoking) == {"sd", *(f"{choice.name}-s0" for choice in choices[:2])}
    assert smoking["sd"].distance is None
    assert all(f.fidelity is not None and f.distance is not None for name, f in smoking.items() if name != "sd")
    assert brava["sd"].explicit == 1
    assert brava["sd"].implicit is None
    text = tables(tmp_path / "compare", [0, 1])  # the second is not measured
    assert text.count(", 1 seed\n") == 3
    assert text.count("| smoking: ") == 2 + 2 + 2  # beside the untouched model each time
    assert text.count("| badge: ") == 2

"""Runs: resumed with the same settings, refused with others, whole after an interruption."""

import json
import tomllib
from pathlib import Path

import pytest

from hfi import __version__
from hfi.errors import HfiError, NoWorkspace, UsageError
from hfi.runs import Run
from hfi.workspace import Workspace

SETTINGS = {"steps": 5, "concept": "smoking", "token": None, "folder": Path("x"), "text": 'a "b" \N{GRINNING FACE}\n'}


def test_a_run_writes_down_what_it_depends_on(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "erase", "first", SETTINGS)
    assert run.path == tmp_path / "erase" / "first"
    kept = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    assert kept == {"steps": 5, "concept": "smoking", "folder": "x", "text": SETTINGS["text"]}
    assert run.config() == {**kept, "token": None}
    about = json.loads((run.path / "environment.json").read_text())
    assert about["hfi"] == __version__
    assert about["versions"]["numpy"]
    assert not run.finished
    with pytest.raises(HfiError, match="not finished"):
        run.result()


def test_the_same_settings_go_on_and_others_are_refused(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "erase", "first", SETTINGS)
    run.log(step=1, loss=0.5)
    again = Run.start(tmp_path, "erase", "first", SETTINGS)
    assert again.metrics() == [{"step": 1, "loss": 0.5}]
    with pytest.raises(HfiError, match=r"other settings \(steps was 5, now 6\): give another --name") as told:
        Run.start(tmp_path, "erase", "first", {**SETTINGS, "steps": 6})
    assert str(run.path) in str(told.value)
    with pytest.raises(HfiError, match="extra"):
        Run.start(tmp_path, "erase", "first", {**SETTINGS, "extra": 1})
    run.finish({"loss": 0.1})
    assert Run.start(tmp_path, "erase", "first", SETTINGS).result() == {"loss": 0.1}
    with pytest.raises(HfiError, match="other settings"):
        Run.start(tmp_path, "erase", "first", {**SETTINGS, "steps": 6})
    assert Run.start(tmp_path, "erase", "second", {**SETTINGS, "steps": 6}).metrics() == []


def test_what_differs_is_told_in_short(tmp_path: Path) -> None:
    held = {**SETTINGS, "images": "a" * 64, "retain": ["x" * 90]}
    Run.start(tmp_path, "generate", "first", held)
    with pytest.raises(HfiError, match=r"other settings \(steps was 5, now 6\)"):
        Run.start(tmp_path, "generate", "first", {**held, "steps": 6, "images": "b" * 64})
    with pytest.raises(HfiError, match=r"\(images was 'a{19}\.\.\.a{9}', now 'b{19}\.\.\.b{9}'\)"):
        Run.start(tmp_path, "generate", "first", {**held, "images": "b" * 64})
    with pytest.raises(HfiError, match=r"concept was .*; and 2 more\)"):
        Run.start(tmp_path, "generate", "first", {"images": "a" * 64, "retain": []})


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "a\\b", "..", ""])
def test_a_name_that_would_lie_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a run"):
        Run.start(tmp_path / "runs", "erase", name, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_metrics_survive_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "invert", "a", SETTINGS)
    for step in range(1, 5):
        run.log(step=step, loss=1 / step)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    run.begin_metrics(2)
    run.log(step=3, loss=0.0)
    assert run.metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.0}]
    run.begin_metrics(0)
    assert run.metrics() == []


def test_a_start_that_was_killed_before_its_settings_were_kept_starts_anew(tmp_path: Path) -> None:
    run = Run.start(tmp_path, "erase", "a", SETTINGS)
    (run.path / "config.json").unlink()
    assert Run.start(tmp_path, "erase", "a", {**SETTINGS, "steps": 9}).config()["steps"] == 9
    assert not list(run.path.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HfiError, match="cannot write the run"):
        Run.start(tmp_path / "file", "erase", "a", SETTINGS)


# --- workspaces ---


def test_a_workspace_is_known_by_its_mark(tmp_path: Path) -> None:
    with pytest.raises(NoWorkspace, match="make one with 'hfi init'"):
        Workspace.open(tmp_path)
    space = Workspace.create(tmp_path / "a" / "b")
    (space.tokens / "x").write_text("kept")
    assert Workspace.create(space.path).tokens.joinpath("x").read_text() == "kept"
    assert Workspace.open(space.path) == space
    assert {p.name for p in space.path.iterdir()} >= {"images", "judgments", "rewards", "tokens", "erasures", "runs"}
    with pytest.raises(HfiError, match=r"hfi\.db is missing: set HFI_DATABASE_URL .*, or make an empty one with 'hfi init'"):
        space.engine()


def test_a_workspace_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HfiError, match="choose a folder that you may write to"):
        Workspace.create(tmp_path / "file" / "work")


def test_the_database_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Workspace.create(tmp_path)
    assert space.database_url == f"sqlite:///{tmp_path.resolve() / 'hfi.db'}"
    monkeypatch.setenv("HFI_DATABASE_URL", "postgresql://host/db")
    assert space.database_url == "postgresql://host/db"

"""What scripts read on stderr: progress, errors and events as lines of JSON, and nothing of them where nobody asked."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hfi import jobs, logs
from hfi.progress import progress
from hfi.runs import Run
from hfi.store import jobs as table
from hfi.store.session import reading
from hfi.workspace import Workspace

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def lines(stderr: str, event: str = "") -> list[dict[str, object]]:
    """The lines of JSON among others, or those of one event."""
    found = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    return [line for line in found if event in ("", line["event"])]


def pictures(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


# --- progress ---


def test_progress_as_json_at_the_start_every_two_seconds_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hfi.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setenv("HFI_PROGRESS", "json")
    with progress("generating", 40, "images", done=10) as advance:
        for _ in range(6):
            clock[0] += 1
            advance(5, "loss 0.5")
    found = lines(capsys.readouterr().err)
    for line in found:
        assert re.fullmatch(TIME, str(line.pop("time")))
    about = {"event": "progress", "level": "info", "what": "generating", "total": 40, "unit": "images"}
    # 5 a second, without the ten of an earlier run
    assert found == [
        {**about, "done": 10, "rate": 0.0, "seconds_left": None, "note": ""},
        {**about, "done": 20, "rate": 5.0, "seconds_left": 4.0, "note": "loss 0.5"},
        {**about, "done": 30, "rate": 5.0, "seconds_left": 2.0, "note": "loss 0.5"},
        {**about, "done": 40, "rate": 5.0, "seconds_left": 0.0, "note": "loss 0.5"},
        {**about, "done": 40, "rate": 5.0, "seconds_left": 0.0, "note": ""},
    ]


def test_a_line_is_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONUNBUFFERED print writes the end of a line apart; what another process of the run wrote in between was no line."""
    pieces: list[bytes] = []

    class Raw(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, piece: Any) -> int:
            pieces.append(bytes(piece))
            return len(pieces[-1])

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Raw(), write_through=True))  # as Python opens it then
    print("in two", file=sys.stderr, flush=True)
    assert [piece for piece in pieces if piece] == [b"in two", b"\n"]
    pieces.clear()
    logs.write("hfi: in one")
    logs.tell("in_one")
    with progress("in one", 2):
        pass
    written = [piece for piece in pieces if piece]
    assert len(written) == 3
    assert all(piece.count(b"\n") == 1 and piece.endswith(b"\n") for piece in written)


def test_with_json_stdout_is_the_result_and_stderr_has_progress(hfi, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = pictures(tmp_path / "pictures")
    done = hfi("measure", folder, "--detector", "portraits", "--json")
    assert done.exit_code == 0, done.output
    assert isinstance(json.loads(done.stdout), dict)
    told = lines(done.stderr, "progress")
    assert {line["what"] for line in told} == {"looking", "measuring"}
    assert told[0]["done"] == 0
    assert (told[-1]["done"], told[-1]["total"], told[-1]["unit"]) == (3, 3, "images")
    plain = hfi("measure", folder, "--detector", "portraits")
    assert lines(plain.stderr) == []
    assert "measuring: 3/3" in plain.stderr
    assert not {"HFI_PROGRESS", "HFI_LOG"} & os.environ.keys(), "a command's choice ends with it"


def test_errors_are_a_sentence_and_with_json_a_line_of_json_too(hfi, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for words, code in ((["db", "status", "-w", tmp_path], 1), (["db", "nonsense"], 2), (["user", "list", "--nonsense"], 2)):
        plain, told = hfi(*words), hfi(*words, "--json")
        assert lines(plain.stderr) == []
        assert (plain.exit_code, told.exit_code) == (code, code)
        assert len(told.errors) == 1
        (line,) = lines(told.stderr)
        assert line.keys() == {"time", "event", "level", "message", "exit_code"}
        assert (line["event"], f"hfi: error: {line['message']}", line["exit_code"]) == ("error", told.errors[0], code)
        assert line["level"] == "error"


def test_what_is_not_known_is_refused(hfi, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert hfi("--log", "xml", "db", "status").errors == ["hfi: error: --log is 'xml': choose one of 'json'"]
    monkeypatch.setenv("HFI_PROGRESS", "xml")
    done = hfi("db", "status")
    assert (done.exit_code, done.errors) == (2, ["hfi: error: HFI_PROGRESS is 'xml': choose json, or leave it unset"])
    monkeypatch.delenv("HFI_PROGRESS")
    monkeypatch.setenv("HFI_LOG", "xml")
    assert hfi("db", "status").errors == ["hfi: error: --log is 'xml': choose one of 'json'"]


# --- events ---


def test_a_command_logs_its_run_and_its_end_and_not_what_it_was_given(hfi, workspace: Workspace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = hfi("--log", "json", "user", "add", "Ann Lee", "--role", "manager", "-w", workspace.path)
    assert done.exit_code == 2
    assert lines(done.stderr, "command_ended")[0]["command"] == "user add"
    assert "Ann Lee" not in "".join(json.dumps(line) for line in lines(done.stderr))
    done = hfi("--log", "json", "import", pictures(tmp_path / "Ann Lee"), "-w", workspace.path)
    (ended,) = lines(done.stderr, "command_ended")
    assert (ended["command"], ended["exit_code"], ended["level"]) == ("import", 0, "info")
    assert ended["seconds"] > 0
    assert lines(done.stderr, "progress"), "who logs as JSON has progress as JSON"
    assert logging.getLogger("hfi.events").level == logging.NOTSET, "switched off again"


def test_runs_are_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.switch_on()
    try:
        run = Run.start(tmp_path, "erase", "first", {"steps": 1})
        run.finish({})
        Run.start(tmp_path, "erase", "first", {"steps": 1})
    finally:
        logs.switch_off()
        os.environ.pop("HFI_LOG")
    told = [(line["event"], line["run"], line.get("finished")) for line in lines(capsys.readouterr().err)]
    assert told == [
        ("run_started", "erase/first", None),
        ("run_finished", "erase/first", None),
        ("run_found", "erase/first", True),
    ]


def test_an_error_of_ours_has_its_traceback_and_message_but_not_within_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            raise KeyError("of Ann Lee")
        except KeyError as e:
            raise ValueError("Ann Lee said") from e

    logs.switch_on()
    try:
        for number in ("", "r1"):
            token = logs.request_id.set(number)
            try:
                fail()
            except ValueError:
                logging.getLogger("some.library").exception("it failed for %s", "Ann Lee")
            logs.request_id.reset(token)
        logging.getLogger("some.library").info("not worth a line")
    finally:
        logs.switch_off()
        os.environ.pop("HFI_LOG")
    plain, asked = lines(capsys.readouterr().err)
    assert (plain["error"], plain["message"]) == ("ValueError from KeyError", "Ann Lee said")
    assert (asked["request"], asked["error"], asked["message"]) == ("r1", "ValueError from KeyError", "it failed for %s")
    assert re.fullmatch(r"test_logs\.py:\d+ fail", asked["traceback"][-1])  # type: ignore[index]
    assert "Ann Lee" not in json.dumps(asked)


def test_an_unforeseen_error_of_a_command_is_a_line_too() -> None:
    code = """if True:
        from hfi import cli
        cli.COMMANDS["init"] = ("hfi.nothing_here", "init", "")
        cli.main(["--log", "json", "init"])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = lines(done.stderr, "error")
    assert (line["error"], line["message"]) == ("ModuleNotFoundError", "No module named 'hfi.nothing_here'")
    assert "Traceback (most recent call last)" in done.stderr


def test_the_log_of_a_job_stays_for_people(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that logs as JSON starts jobs whose logs are read on the managers' page."""
    monkeypatch.setenv("HFI_LOG", "json")
    monkeypatch.setenv("HFI_PROGRESS", "json")
    engine = workspace.engine()
    job = jobs.start(workspace, engine, ["campaign", "score", "--reward=nothing", "--nonsense"])
    jobs._children[job.pid].wait(600)  # type: ignore[index]
    jobs.settle(workspace, engine)
    with reading(engine) as s:
        assert table.job(s, job.id).state == "failed"
    told = jobs.tail(workspace, job)
    assert told and told[-1].startswith("hfi: error: ")
    assert not [line for line in told if line.startswith("{")]


def test_what_is_not_asked_for_costs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.event("request", route="/")
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_stops_no_work() -> None:
    code = "from hfi import logs; logs.switch_on(); [logs.event('x', n=i) for i in range(3)]; print('done')"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, text=True, check=False)
    os.close(writer)
    assert done.stdout == "done\n"

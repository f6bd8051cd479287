"""The command line itself: its front page, its exit codes, and how a mistake is said."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfi import __version__, cli
from hfi.cli import COMMANDS
from hfi.errors import HfiError, NonFiniteLoss, UsageError
from hfi.progress import progress
from hfi.resources import data_dir, migrations_dir
from hfi.workspace import Workspace


def test_the_front_page_lists_every_command_in_the_order_of_the_loop(hfi) -> None:  # type: ignore[no-untyped-def]
    done = hfi("--help")
    assert done.exit_code == 0
    listed = [line.split()[0] for line in done.stdout.split("in the order of the loop:")[1].splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    loop = ["init", "concept", "generate", "import", "ui", "labels", "reward", "invert", "erase", "evaluate"]
    assert listed[: len(loop)] == loop


def test_version_comes_without_a_command(hfi) -> None:  # type: ignore[no-untyped-def]
    assert hfi("--version").stdout == f"hfi {__version__}\n"


def test_no_command_shows_the_front_page(hfi) -> None:  # type: ignore[no-untyped-def]
    assert "in the order of the loop" in hfi().output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evalute"], "unknown command 'evalute': did you mean 'evaluate'?"),
        (["xyzzy"], "unknown command 'xyzzy': 'hfi --help' lists them"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(hfi, words: list[str], said: str) -> None:  # type: ignore[no-untyped-def]
    done = hfi(*words)
    assert (done.exit_code, done.stderr) == (2, f"hfi: error: {said}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nonsense", "no such option: --nonsense: see 'hfi --help'"),
        ("init --nonsense", "no such option: --nonsense: see 'hfi init --help'"),
        ("db nonsense", "no such command 'nonsense': see 'hfi db --help'"),
        ("concept show", "missing argument 'slug': see 'hfi concept show --help'"),
        ("erase -c x", "missing option '--model' / '-m': see 'hfi erase --help'"),
        ("erase -c x --model", "option '--model' requires an argument"),
        ("labels export -c x --format foo", "--format is 'foo': choose one of 'jsonl', 'csv'"),
        ("reward -c x --simulated foo", "--simulated is 'foo': choose one of 'exclude', 'include', 'only'"),
        ("generate -m x --steps a", "--steps is 'a': give a whole number"),
        ("generate -m x --guidance-scale a", "--guidance-scale is 'a': give a number"),
        ("ui --port 99999", "--port is '99999': give 65535 or less"),
        ("demo --images 0", "--images is '0': give 1 or more"),
    ],
)
def test_wrong_usage_is_one_sentence_like_every_other_mistake(hfi, words: str, said: str) -> None:  # type: ignore[no-untyped-def]
    done = hfi(*words.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"hfi: error: {said}")
    assert done.stderr.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(hfi) -> None:  # type: ignore[no-untyped-def]
    done = hfi("db")
    assert (done.exit_code, "upgrade" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("error", "code"), [(HfiError("what to do"), 1), (UsageError("what to do"), 2), (NonFiniteLoss(7), 1)], ids=lambda e: str(e)
)
def test_a_mistake_is_one_line(hfi, monkeypatch: pytest.MonkeyPatch, error: HfiError, code: int) -> None:  # type: ignore[no-untyped-def]
    def fail(**given: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    done = hfi("init")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", f"hfi: error: {error}\n")


def test_only_the_asked_command_is_loaded(hfi, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A broken command spoils neither the front page nor the others."""
    monkeypatch.setitem(COMMANDS, "reward", ("hfi.cli.no_such_module", "reward", "Broken."))
    assert "Broken." in hfi("--help").stdout
    assert hfi("db", "--help").exit_code == 0
    with pytest.raises(ModuleNotFoundError):
        hfi("reward", "--help")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interruption_says_that_the_work_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in a command that takes long."""
    code = (
        "import signal, sys, time, types, hfi.cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit an ignored one
        "slow = types.ModuleType('slow')\n"
        "def run():\n    'Takes long.'\n    print('started', flush=True)\n    time.sleep(60)\n"
        "slow.run = run\n"
        "sys.modules['slow'] = slow\n"
        "cli.COMMANDS['slow'] = ('slow', 'run', 'Slow.')\n"
        "cli.main(['slow'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "hfi: interrupted; run the same command again to go on"
    assert "Traceback" not in errors


def test_hfi_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "hfi", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"hfi {__version__}\n"


def test_every_command_on_a_workspace_says_where_there_is_none(hfi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"")
    for words in (
        ["concept", "add", "smoking"],
        ["concept", "list"],
        ["concept", "show", "smoking"],
        ["import", "picture.png"],
        ["labels", "status"],
        ["labels", "export", "--concept", "smoking"],
        ["labels", "import", "x.csv", "--concept", "smoking"],
        ["db", "status"],
        ["db", "upgrade"],
    ):
        done = hfi(*words)
        assert done.exit_code == 1, words
        assert done.stderr == f"hfi: error: no workspace in {tmp_path}: make one with 'hfi init', or name one with --workspace\n"
        assert list(tmp_path.iterdir()) == [tmp_path / "picture.png"]


def test_the_workspace_comes_from_the_environment_or_the_option(
    hfi, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    assert hfi("concept", "add", "smoking", "--workspace", workspace.path).exit_code == 0
    monkeypatch.setenv("HFI_WORKSPACE", str(workspace.path))
    assert hfi("concept", "list").stdout.split() == ["smoking", "binary", "Smoking"]
    assert hfi("concept", "list", "-w", workspace.path.parent).exit_code == 1


# --- progress, resources ---


def test_progress_without_a_terminal_is_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hfi.progress.time.monotonic", lambda: clock[0])
    with progress("generating", 40, "images", done=10) as advance:
        for _ in range(2):
            clock[0] += 6
            advance(5, "loss 0.5")
    # 10 in 12 seconds, those of an earlier run left out of the rate: 20 left at 10 / 12 a second
    assert capsys.readouterr().err.splitlines()[0] == "generating: 20/40, 0.8 images/s, 24 s left, loss 0.5"


def test_slow_progress_is_told_in_seconds_an_image_and_minutes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("hfi.progress.time.monotonic", lambda: clock[0])
    with progress("generating", 20, "images") as advance:
        clock[0] += 25
        advance(1, "")
    assert capsys.readouterr().err.splitlines()[0] == "generating: 1/20, 25 s/image, 8 min left"


def test_progress_says_at_least_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("generating", 3, "images") as advance:
        advance(3, "")
    assert capsys.readouterr().err.startswith("generating: 3/3, ")


def test_data_and_migrations_are_found() -> None:
    assert (migrations_dir() / "env.py").exists()
    assert (migrations_dir() / "versions").is_dir()
    assert data_dir().name in ("data", "_data")

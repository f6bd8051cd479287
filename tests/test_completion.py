"""Completion as a shell does it: its script is sourced, a line is completed, and the words it offers are read."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hfi.cli.completion import FILE

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(scope="module")
def on_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with `hfi` on it, which says so where it imports what is slow."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "hfi"
    heavy = "[name for name in ('torch', 'sqlalchemy', 'numpy', 'PIL', 'gradio') if name in sys.modules]"
    code = (
        f"import atexit, sys; atexit.register(lambda: {heavy} and print('imported', {heavy})); from hfi.cli import main; main()"
    )
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def offered(shell: str, line: str, path: str, folder: Path) -> list[str]:
    """What the shell offers where the line ends."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    words = line.split(" ")
    asks = {
        "bash": f"""
            source <(hfi completion bash)
            COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({" ".join(repr(w) for w in words)}) COMP_CWORD={len(words) - 1}
            $(complete -p hfi | sed -E 's/.*-F ([^ ]+) .*/\\1/') hfi
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """,
        "fish": f"hfi completion fish | source; complete --do-complete '{line}'",
        # the function that zsh calls, with the words of the line; what it would offer is what it hands to _arguments
        "zsh": f"""
            compdef() {{ }}; _files() {{ print files }}
            _arguments() {{ print -r -- "$1" }}
            eval "$(hfi completion zsh)"; words=({" ".join(repr(w) for w in words)}); CURRENT={len(words)}; _hfi_completion
        """,
    }
    done = subprocess.run(
        [shell, "-c", asks[shell]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": path, "HOME": str(folder), "PYTHONPATH": str(FILE.parents[2])},
    )
    assert done.returncode == 0 and done.stderr == "", done
    if shell == "zsh":  # *: :(("one":"what it does" "two":"..."))
        return re.findall(r'(?<=[( ])"([^"]+)"', done.stdout)
    return [word.partition("\t")[0] for word in done.stdout.split("\n") if word.strip()]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hfi er", ["erase"]),
        ("hfi erase --meth", ["--method"]),
        ("hfi erase --method sdd", ["sdd", "sdd-context"]),
        ("hfi bench l", ["load"]),
        ("hfi --log json user add --role m", ["manager"]),
        ("hfi labels export --format c", ["csv"]),
    ],
)
def test_a_line_is_completed(shell: str, line: str, words: list[str], on_path: str, tmp_path: Path) -> None:
    assert offered(shell, line, on_path, tmp_path) == words


def test_files_are_left_to_the_shell_and_nonsense_is_passed_over(on_path: str, tmp_path: Path) -> None:
    assert offered("bash", "hfi import ", on_path, tmp_path) == []
    assert "erase" in offered("bash", "hfi xyz ", on_path, tmp_path)


def test_other_shells_are_refused(hfi) -> None:  # type: ignore[no-untyped-def]
    assert hfi("completion", "tcsh").errors == ["hfi: error: shell is 'tcsh': choose one of 'bash', 'zsh', 'fish'"]
    for shell in SHELLS:
        assert "_HFI_COMPLETE" in hfi("completion", shell).stdout

"""`hfi evaluate` in two processes, one of which is killed on the way: the images and figures of one process."""

from collections.abc import Callable
from pathlib import Path

from launched import TWO, kill_one, run, said, started, wait_for
from test_evaluate import space  # noqa: F401  # a fixture

from hfi.workspace import Workspace


def words(work: Workspace, name: str) -> list[str]:
    root = work.path.parent
    given = {
        "--workspace": work.path,
        "--model": root / "tiny-epsilon",
        "--concept": "red",
        "--prompts": root / "prompts" / "implicit.csv",
        "--detector": "none",
        "--erasure": "red-sdd-context",
        "--images": 70,
        "--steps": 5,
        "--batch-size": 4,
        "--name": name,
    }
    return ["evaluate", *(str(word) for pair in given.items() for word in pair)]


def files(folder: Path) -> dict[str, bytes]:
    wanted = ("*.png", "results.json", "scores.jsonl", "evaluation.json", "cell.json", "measured-*.bin")
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in wanted for p in folder.rglob(pattern)}


def test_two_processes_one_killed_give_what_one_process_gives(
    space: Workspace,  # noqa: F811
    alone: Callable,
) -> None:
    assert alone(*words(space, "alone")).exit_code == 0
    made = space.runs / "evaluate" / "both"
    process = started([*TWO, *words(space, "both")])
    wait_for(process, lambda: len(list(made.rglob("*.png"))) >= 12)
    killed = kill_one(process)
    assert killed.returncode
    count = len(list(made.rglob("*.png")))
    assert count < 140, "it was killed too late to tell anything"
    (line,) = said(killed)
    assert "run the same command again" in line

    again = run([*TWO, *words(space, "both")])
    assert again.returncode == 0, again.stderr
    found, wanted = files(made), files(made.with_name("alone"))
    assert found.keys() == wanted.keys() and len([name for name in found if name.endswith(".png")]) == 140
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert again.stdout.count("results.json") == 1  # printed once

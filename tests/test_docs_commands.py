"""Every command of the README and of docs/ is run, page by page, in the order in which the page gives them.

A page's blocks are one shell session in a folder of its own, in which `data` is the checkout's. What a page takes for granted, such as
a workspace to go on with, is in BEFORE. Commands are made small (see shell.py), hub ids are random models in a hub cache, and nothing
reaches a network.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from buckets import filesystem, leading_to, object_store
from documented import PROGRAMS, Block, blocks
from shell import HUB, Shell
from tiny import saved

ROOT = Path(__file__).parent.parent
GENERATED = {"cli.md", "transcript.md"}  # by 'make docs' and 'make transcript'
PAGES = {
    path.name: blocks(path, path.name)
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name not in GENERATED
}
RUN = [name for name, found in PAGES.items() if any(b.why is None and b.language in ("sh", "python") for b in found)]
LONGEST = 1800  # seconds, for a page: only to end what hangs

_SMOKING = "hfi concept add smoking --title Smoking --initial-word smoking --prompt 'smoking a cigarette'"
_JUDGED = f"""hfi init
{_SMOKING}
hfi generate --model data/portraits --prompts data/prompts/smoking/judge.csv
hfi ui
"""
BEFORE = {  # what a page takes for granted
    "README.md": """mkdir work
cp data/prompts/smoking/judge.csv work/prompts.csv
ln -s $PWD/data/portraits work/PATH_OR_HUB_ID
""",
    "operating.md": f"""mkdir -p ~/.config/fish/completions
hfi init
{_SMOKING}
hfi generate --model data/portraits --prompt 'a portrait of a sailor'
""",
    "results.md": """hfi init
hfi concept add badge --initial-word badge
hfi generate --model data/portraits --prompts data/prompts/badge/judge.csv
hfi ui
hfi reward --concept badge
hfi invert --concept badge --model data/portraits
""",
    "cookbook.md": f"""hfi portraits render --out pictures --count 6
hfi portraits render --out others --count 6 --seed 1
mkdir work
cd work
ln -s ../data data
{_JUDGED}hfi reward --concept smoking
hfi invert --concept smoking --model data/portraits
hfi erase --concept smoking --method sdd-context --model data/portraits
""",
    "managing.md": """hfi init
hfi concept add smoking --initial-word smoking
hfi generate --model data/portraits --prompts data/prompts/smoking/judge.csv
""",
    "store.md": """hfi init
hfi generate --model data/portraits --prompt 'a portrait of a sailor' --prompt 'a portrait of a king'
""",
    "serving.md": f"""hfi init
{_SMOKING}
hfi generate --model data/portraits --prompt 'a portrait of a sailor' --prompt 'a portrait of a king'
""",
}


@contextmanager
def surroundings(page: str) -> Iterator[str]:
    """What stands outside a page's own machine, and the settings that lead there."""
    if page != "store.md":
        yield ""
        return
    with object_store() as store, leading_to(store):
        filesystem().mkdir("pictures")
        yield "".join(f"export {name}={shlex.quote(value)}\n" for name, value in store.settings.items())


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("shell")
    home = folder / "home"
    hub = home / "hub"
    for name, kind in HUB.items():
        snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / ("0" * 40)
        shutil.copytree(saved(folder, kind), snapshot)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    settings = {"HOME": str(home), "HF_HOME": str(home), "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    started = Shell(folder, settings)
    yield started
    started.close()


@pytest.mark.parametrize("page", RUN)
def test_every_command_of_a_page_runs(page: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    with surroundings(page) as settings:
        code, said = shell.run(script(PAGES[page], settings + BEFORE.get(page, "")), tmp_path, LONGEST)
    reached = re.findall(r"^@@ (.*)$", said, re.MULTILINE)
    assert code == 0, f"exit code {code} after {reached[-1] if reached else 'the start'}:\n{said[-4000:]}"
    assert reached[-1] == "the end"


def script(found: list[Block], before: str) -> str:
    """All blocks of a page that are run, as one bash script that ends at the first command that fails."""
    parts = ["set -eo pipefail", "echo '@@ what the page takes for granted'", before]
    for block in found:
        if block.why is None and block.language in ("sh", "python"):
            parts.append(f'echo "@@ {block.page}:{block.line} ($SECONDS s)"')
            parts.append(block.text if block.language == "sh" else f"forked-python <<'END-OF-PYTHON'\n{block.text}END-OF-PYTHON")
    return "\n".join([*parts, "echo '@@ the end'"])


def test_every_command_is_run_or_says_why_not() -> None:
    """A line that begins with a program is in a block that is run, or that is marked; the marks are few."""
    run, left, others = [], [], []
    for page, found in PAGES.items():
        for block in found:
            if block.language == "sh":
                (run if block.why is None else left).extend(block.commands)
            else:
                assert block.why is None or block.language == "python", f"{page}:{block.line}: a mark, and nothing to run"
                others += [f"{page}:{block.line}: {line}" for line in block.text.splitlines() if line.split()[:1] in STARTS]
    assert not others, "commands in blocks that are no shell's: name the fence sh"
    assert len(run) > 100
    assert len(left) < len(run) / 3, left


STARTS = [[program] for program in sorted(PROGRAMS - {"source", "echo", "head", "make", "cd", "python"})]


def test_the_reader_of_pages_knows_a_block_from_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n    hfi init a   # here\n\n    hfi doctor \\\n      --all\n\nMore.\n    not a block\n\n"
        "<!-- not run: it asks for a password -->\n\n```sh\nssh x\n```\n\n```python\nprint()\n```\n\n    a picture --> of words\n",
        encoding="utf-8",
    )
    found = blocks(page, "page.md")
    assert [(b.language, b.why, b.line) for b in found] == [
        ("sh", None, 3), ("sh", "it asks for a password", 13), ("python", None, 17), ("", None, 21),
    ]  # fmt: skip
    assert found[0].commands == ["hfi init a   # here", "hfi doctor --all"]
    assert "print()\nEND-OF-PYTHON" in script(found, "") and "ssh" not in script(found, "")
    page.write_text("<!-- not run: why -->\n\nText.\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="right before a block"):
        blocks(page, "page.md")


def test_a_command_that_fails_ends_the_page(shell: Shell, tmp_path: Path) -> None:
    found = [Block("p", 1, "sh", "hfi labels status\n", None), Block("p", 3, "sh", "touch after\n", None)]
    code, said = shell.run(script(found, ""), tmp_path, 60)
    assert code == 1 and "@@ p:1" in said and "no workspace in" in said and not (tmp_path / "after").exists()

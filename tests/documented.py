"""The commands of the documents, as whoever reads them would type them.

A block is fenced (``` or ~~~, with its language) or indented by four spaces. It is a shell's where the fence says `sh` or `bash`, or
where it is indented and its first word is a program. `<!-- not run: REASON -->` before a block says that no test runs it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {
    "hfi", ".venv/bin/hfi", "make", "pip", "python", "python3", "source", "cd", "mkdir", "cp", "cat", "ls", "curl", "echo", "export",
    "git", "ssh", "scp", "docker", "podman", "accelerate", "torchrun", "psql", "createdb", "createuser", "systemctl", "sudo", "apt-get",
    "tensorboard", "caddy", "grep", "openssl", "pg_dump", "pg_restore", "huggingface-cli", "hf", "nvidia-smi", "head", "unzip", "tar",
}  # fmt: skip
_MARK = re.compile(r"<!-- not run: (.+?) -->$")
_FENCE = re.compile(r"( {0,3}|\s+)(```+|~~~+)\s*(\w*)\s*$")


@dataclass(frozen=True)
class Block:
    """`language`: sh, python, another one, or "" for none. `why`: the reason why it is not run, None where it is."""

    page: str
    line: int
    language: str
    text: str
    why: str | None

    @property
    def commands(self) -> list[str]:
        """Of a shell's block: its commands, those that go on over several lines as one. Comments are left out."""
        whole = re.sub(r"\\\n\s*", "", self.text)
        return [line.strip() for line in whole.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path, name: str) -> list[Block]:
    """All blocks of a page. AssertionError for a mark that no block follows."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    why: str | None = None
    i = 0
    while i < len(lines):
        line = lines[i]
        before = i == 0 or not lines[i - 1].strip() or lines[i - 1].lstrip().startswith("<!--")
        start, body, language = i + 1, None, ""
        if fence := _FENCE.match(line):
            indent, sign, language = fence.groups()
            body = []
            while (i := i + 1) < len(lines) and lines[i].strip() != sign:
                body.append(lines[i].removeprefix(indent))
            language = {"bash": "sh", "shell": "sh", "console": "sh"}.get(language, language)
        elif line.startswith("    ") and before:
            body = []
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                body.append(lines[i][4:])
                i += 1
            i -= 1
            first = body[0].split()[0]
            language = "sh" if first in PROGRAMS or re.match(r"\w+=", first) else ""
        if body is not None:
            found.append(Block(name, start, language, "\n".join(body).rstrip() + "\n", why))
            why = None
        elif mark := _MARK.match(line.strip()):
            assert why is None, f"{name}:{i + 1}: two marks before one block"
            why = mark[1]
        else:
            assert why is None or not line.strip(), f"{name}:{i + 1}: a mark belongs right before a block"
        i += 1
    assert why is None, f"{name}: a mark at the end, before no block"
    return found

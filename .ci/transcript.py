"""Writes docs/transcript.md: what a machine without hfi says to the commands of STEPS, in an environment and a folder that are new.

    make transcript    or: transcript.py [--wheel FILE] [--out FILE]

Needs the wheel, a network for pip, and five minutes. What differs from machine to machine and from run to run (folders, times, sizes,
progress) is replaced; everything else is written as it came.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = "/home/you"
INTRO = """# Transcript of a first run

An empty folder with the released wheel and the list of tested versions in it, a Python, and no checkout. Written by `make transcript`,
which runs the commands and keeps what they print; folders, times and sizes of the machine are replaced by "…" or a plain word, and
progress is left out. pip needs a network, nothing after it does.
"""
STEPS = [
    (
        "Install.",
        [
            "python3 -m venv hfi-env",
            "source hfi-env/bin/activate",
            "pip install --quiet --disable-pip-version-check -c constraints.txt hfi-*.whl",
            "hfi --version",
        ],
    ),
    ("Is everything there?", ["mkdir first && cd first", "hfi doctor"]),
    (
        "The whole loop on the embedded model, with simulated annotators: it takes some minutes.",
        ["hfi demo", "ls demo", "hfi doctor --workspace demo", "hfi db status --workspace demo"],
    ),
    ("What the simulated annotators said, and how well they agree.", ["hfi labels status --workspace demo"]),
    (
        "The labeling page, asked once and stopped. In earnest leave out `--no-open` and the `&`, and judge.",
        [
            "hfi ui --workspace demo --port 7860 --no-open > ui.log 2>&1 &",
            "until grep -q http ui.log; do sleep 1; done; cat ui.log",
            "curl --silent --location http://127.0.0.1:7860/ | grep -o '<h1>[^<]*</h1>'",
            "kill -INT %1; wait %1",
        ],
    ),
    (
        "The cleaned model for other programs: diffusers alone reads it.",
        [
            "model=$(hfi portraits path)/portraits",
            "hfi export folder --workspace demo --model $model --erasure smoking-sdd-context-token --out cleaned",
            "ls cleaned",
            "python -c \"from diffusers import StableDiffusionPipeline as P; p = P.from_pretrained('cleaned'); "
            "print(p('a portrait of a sailor', num_inference_steps=5, guidance_scale=3).images[0].size)\" 2> /dev/null",
        ],
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "transcript.md")
    given = parser.parse_args()
    wheels = [given.wheel] if given.wheel else sorted((ROOT / "dist").glob("hfi-*.whl"))
    if not wheels:
        sys.exit("no wheel in dist/: make one with 'make dist'")
    with tempfile.TemporaryDirectory(prefix="hfi-fresh-") as scratch:
        said, place = run(wheels[-1].resolve(), Path(scratch))
        text = write(said, {scratch: HOME, str(place): "PORT"})
    given.out.write_text(text, encoding="utf-8")
    print(given.out)


def run(wheel: Path, folder: Path) -> tuple[list[list[str]], int]:
    """What each command printed, step by step, and the port that stood for 7860. Ends the program where one fails."""
    (folder / wheel.name).symlink_to(wheel)
    (folder / "constraints.txt").symlink_to(ROOT / "constraints.txt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = ["set -m", "trap 'kill $(jobs -p) 2> /dev/null' EXIT"]
    for i, (_, commands) in enumerate(STEPS):
        for j, command in enumerate(commands):
            real = command.replace("7860", str(port))
            lines += [f"echo '@@ {i} {j}'", real, "code=$?", '[ $code = 0 ] || { echo "@@ failed $code"; exit 1; }']
    lines.append("echo '@@ end'")
    bare = {
        k: v
        for k, v in os.environ.items()
        if k in ("PATH", "LANG", "TMPDIR", "SSL_CERT_FILE", "OMP_NUM_THREADS") or k.startswith(("PIP_", "UV_"))
    }
    inside = bare | {"HOME": str(folder), "COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    if config := next((p for p in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf") if p.exists()), None):
        inside.setdefault("PIP_CONFIG_FILE", str(config))  # where pip finds packages is the machine's business
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)], cwd=folder, env=inside, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    found: dict[tuple[int, int], list[str]] = {}
    now, ended = (0, 0), False
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if at := re.match(r"@@ (\d+) (\d+)$", line):
            now = int(at[1]), int(at[2])
            found[now] = []
        elif line == "@@ end\n":
            ended = True
        else:
            found[now].append(line.rstrip("\n"))
    if process.wait() or not ended:
        sys.exit(f"the transcript ended at: {STEPS[now[0]][1][now[1]]}")
    return [["\n".join(found[i, j]) for j in range(len(commands))] for i, (_, commands) in enumerate(STEPS)], port


def write(said: list[list[str]], places: dict[str, str]) -> str:
    parts = [INTRO]
    for (text, commands), outputs in zip(STEPS, said, strict=True):
        lines = []
        for command, output in zip(commands, outputs, strict=True):
            lines += [f"$ {command}", *plain(output, places)]
        parts.append(f"{text}\n\n```console\n" + "\n".join(lines).rstrip() + "\n```\n")
    return "\n".join(parts)


def plain(output: str, places: dict[str, str]) -> list[str]:
    """The lines of an output without what is the machine's own."""
    for real, shown in places.items():
        output = re.sub(rf"(?<=127\.0\.0\.1:){real}", "7860", output) if shown == "PORT" else output.replace(real, shown)
    kept = []
    for line in output.splitlines():
        if (
            re.match(r"[^/]*: \d+/\d+(,|$)", line)
            or line.startswith(("WARNING: Location", "[transformers]", "[1]", "grep: "))
            or "it/s]" in line
        ):
            continue
        line = re.sub(r"\d+ min \d+ s", "… min … s", line)
        line = re.sub(r"([\d,.]+ of )?[\d,.]+ GB free", "… GB free", line)
        line = re.sub(r"\d+ CPU cores", "… CPU cores", line)
        kept.append(line.rstrip())
    return kept


if __name__ == "__main__":
    main()

"""Documents and commands in step."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from hfi import __version__
from hfi.bench.page import markdown
from hfi.cli import COMMANDS, app, completion
from hfi.cli.manual import help_of, manual, paths
from hfi.erase import METHODS
from hfi.guide import GUIDES
from hfi.metrics.interval import wilson
from hfi.results import Row

ROOT = Path(__file__).parent.parent


def test_the_manual_is_what_help_says() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == manual(), "run 'make docs'"


def test_completion_knows_what_the_commands_take() -> None:
    assert json.loads(completion.FILE.read_text(encoding="utf-8")) == completion.table(), "run 'make docs'"


def test_every_command_and_option_has_help() -> None:
    assert len(paths()) > 20
    for words in paths():
        text = help_of(words)
        described = [line for line in text.splitlines() if re.match(r"[│\s]+(\*\s+)?--[a-z]", line)]
        assert described, words
        for line in described:
            assert len(re.findall(r"[a-z]{2,}", line.split("  ", 2)[-1])) >= 2, (words, line)


def test_the_front_page_lists_a_first_line_that_the_command_repeats_in_spirit() -> None:
    for name, (_, _, line) in COMMANDS.items():
        assert line.endswith(".") and len(line) < 80, name


def test_help_starts_fast_and_without_the_heavy_libraries() -> None:
    code = (
        "import sys; from hfi.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'gradio', 'sqlalchemy', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "evaluate" in done.stdout


def test_commands_in_the_documents_exist_and_take_their_options() -> None:
    known = {words: help_of(words) for words in paths()}
    found = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "portraits" / "README.md"]:
        if page.name == "cli.md":
            continue
        for line in page.read_text(encoding="utf-8").splitlines():
            for call in re.findall(r"(?:^\s{4}|`|/bin/)hfi ([a-z][^`#]*)", line):
                words = call.split()
                command = tuple(words[:2]) if tuple(words[:2]) in known else tuple(words[:1])
                assert command in known, f"{page.name}: hfi {call}"
                for option in re.findall(r"--[a-z][a-z-]*", call):
                    assert option in known[command], f"{page.name}: hfi {call}: {option}"
                found += 1
    assert found >= 8


def test_papers_lists_every_method() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert METHODS and GUIDES
    for name in (*METHODS, *GUIDES):
        assert f"`{name}`" in text, name


def test_the_tables_of_the_methods_are_the_rows_that_were_measured() -> None:
    def number(text: str) -> float | None:
        return float(text) if text else None

    with open(ROOT / "docs" / "results" / "portraits.csv", encoding="utf-8", newline="") as file:
        rows = [
            Row(r["method"], r["conditioning"], r["table"], r["prompt_set"], r["metric"], number(r["value"]), int(r["n"]),
                number(r["low"]), number(r["high"]))
            for r in csv.DictReader(file)
        ]  # fmt: skip
    costs = json.loads((ROOT / "docs" / "results" / "portraits-costs.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    tables = markdown(rows, costs).split("### ")[1:]
    assert [t.split(",")[0] for t in tables] == ["smoking", "badge", "together"]
    for made in tables:
        name, lines = made.split(",")[0], made.rstrip().splitlines()[2:]
        assert len(lines) == 2 + 21  # head, rule, systems
        assert "\n".join(lines) in page.split(f"<!-- table {name} -->")[1], name


def test_the_figures_of_the_limits_are_those_that_were_measured() -> None:
    limits, results = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("limits", "results"))
    smoking = results.split("<!-- table smoking -->")[1].split("###")[0]
    rows = {line.split("|")[1].strip(): line for line in smoking.splitlines() if line.startswith("| ")}
    found = 0
    for line in limits.split("## Attacks that were measured")[1].split("##")[0].splitlines():
        name = re.match(r"\| (?:`([\w-]+)`|untouched model)", line)
        if name:
            for figure in re.findall(r"[\d.]+ \([\d.]+–[\d.]+\)", line):
                assert figure in rows[f"{name[1]} (text)" if name[1] else "sd"], (name[0], figure)
                found += 1
    assert found == 7 * 3
    for count, of, low, high in re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d.]+)(?: %)? and ([\d.]+) % \|", limits, re.MULTILINE):
        interval = wilson(int(count), int(of.replace(",", "")))
        bounds = (interval.low, interval.high)
        digits = len(high.partition(".")[2])
        assert [f"{100 * bound:.{digits}f}" for bound in bounds] == [f"{float(low):.{digits}f}", high]


def test_the_transcript_is_of_the_commands_that_make_it() -> None:
    spec = importlib.util.spec_from_file_location("transcript", ROOT / ".ci" / "transcript.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    commands = [command for _, commands in script.STEPS for command in commands]
    page = (ROOT / "docs" / "transcript.md").read_text(encoding="utf-8")
    said = iter(line[2:] for line in page.splitlines() if line.startswith("$ "))  # hfi demo says its own beside them
    assert all(command in said for command in commands), "run 'make transcript'"
    known = {words: help_of(words) for words in paths()}
    found = [call for command in commands for call in re.findall(r"\bhfi ((?:[a-z]+ ?)+[^&;)>]*)", command)]
    assert len(found) > 4
    for call in found:
        words = call.split()
        command = next(tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known)
        for option in re.findall(r"--[a-z][a-z-]*", call):
            assert option in known[command], call
    for finding in json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout):
        assert re.search(rf"^(ok|note) +{finding['name']} ", page, re.MULTILINE), f"run 'make transcript': no {finding['name']}"
    newest = max(path.stem for path in (ROOT / "migrations" / "versions").glob("*.py"))
    assert f"schema {newest}" in page, "run 'make transcript'"
    printed = "generating: 65/352, 4.5 images/s\n/tmp/hfi-fresh-x/a\n4 min 2 s\n54321 images, 12 of 25 GB free"
    kept = ["/home/you/a", "… min … s", "54321 images, … GB free"]
    assert script.plain(printed, {"/tmp/hfi-fresh-x": "/home/you"}) == kept


def test_the_tests_and_modules_that_the_documents_name_are_there() -> None:
    found = 0
    for page in [ROOT / "README.md", ROOT / "data" / "portraits" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/])(?:tests/)?(test_\w+\.py)", text):
            assert (ROOT / "tests" / name).exists(), f"{page.name}: {name}"
            found += 1
        for path in re.findall(r"(?<![\w/])(?:hfi|ui|migrations)/[\w/]+\.py", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
    assert found > 5
    listing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Who")[0]
    described = re.findall(r"^    ((?:hfi|ui)/\S+)", listing, re.MULTILINE)
    assert len(described) > 20 and len(set(described)) == len(described), "a module is described twice"


def test_what_the_project_says_of_itself_is_so() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        named = re.findall(r"`((?:hfi|ui|tests|migrations|docs)/[\w./-]+)`", text) + re.findall(r"\]\(([\w./-]+)", text)
        assert named
        for path in named:
            assert path.endswith(("NAME.py", "CODE.json")) or (ROOT / path).exists(), f"{name}: {path}"
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in ("CONTRIBUTING.md", "README.md"):
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
            assert f"\n{target}:" in targets, target

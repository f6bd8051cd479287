"""`hfi bench run`: the file is checked, every system is measured and attacked, and three kills change no result."""

import contextlib
import json
import multiprocessing
import random
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benched import benchmark_page, planned
from judged import judge, model_with_clip
from launched import TWO, run
from tiny import WIDTH

from hfi.bench.page import _FAMILIES, table_columns, verdict
from hfi.bench.plan import Named, read_plan
from hfi.bench.portraits import prepare
from hfi.bench.tables import erasing
from hfi.cli import app, main
from hfi.cli.bench import _run_child
from hfi.diffusion.tokens import LearnedToken
from hfi.distributed import Terminated
from hfi.erase import METHODS
from hfi.errors import HfiError
from hfi.guide import GUIDES
from hfi.resources import data_dir
from hfi.results import Row, read_results

Hfi = Callable[..., Any]
PACKAGED = sorted((data_dir() / "bench").glob("*.toml"))
PUBLISHED = {  # files that a user brings, in the shape in which they are published
    "coco_30k.csv": "image_id,source,prompt,evaluation_seed\n1,coco,A cat on a mat,5\n2,coco,A dog,6\n",
    "unsafe-prompts4703.csv": "prompt,categories,hard,sd_seed,sd_guidance_scale\na quarrel,violence,1,7,7\n",
    "big_artist_prompts.csv": "case_number,prompt,evaluation_seed,artist\n0,Stars,1,Van Gogh\n1,A guitar,2,Pablo Picasso\n",
}

SMALL = """
title = "Small"
model = "MODEL"
notes = ["a note with <angles>"]
[measure]
images = 2
steps = 2
guidance_scale = 3
detector = "reward"
backbone = "BACKBONE"
[concepts.fog]
text = "a hat"
token = "fog"
[methods.neg]
[methods.uce]
[methods.esd-x]
steps = 6
ddim_steps = 3
save_every = 2
[tables.fog]
concepts = ["fog"]
prompts = { implicit = "implicit.csv", explicit = "explicit.csv", harmless = "harmless.csv" }
retain = "harmless.csv"
[attacks.ring-a-bell]
images = 2
[attacks.relapse]
images = 2
steps = 4
every = 2
examples = 4
batch_size = 2
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_clip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    path = judge(tmp_path_factory.mktemp("space") / "w", model)
    vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    LearnedToken("<fog>", (vectors,)).save(path / "tokens" / "fog.safetensors")
    return path


@pytest.fixture
def plan_file(tmp_path: Path, model: Path) -> Path:
    for name, prompts in {"implicit": "a cat", "explicit": "a cat a hat", "harmless": "a dog\nthe dog"}.items():
        (tmp_path / f"{name}.csv").write_text(f"prompt\n{prompts}\n", encoding="utf-8")
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("MODEL", str(model)).replace("BACKBONE", str(model / "clip")), encoding="utf-8")
    return path


def in_this_process(line: str) -> None:
    """In the place of a process for each command."""
    with contextlib.redirect_stdout(sys.stderr):
        app(shlex.split(line), standalone_mode=False)


def run_here(words: list[str]) -> None:
    import hfi.cli.bench

    hfi.cli.bench._child = in_this_process
    main(words)


# --- the file ---


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_benchmarks_are_read(path: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    bench.mkdir()
    shutil.copytree(data_dir() / "prompts", tmp_path / "prompts")
    shutil.copy(path, bench)
    for name, text in PUBLISHED.items():
        (bench / name).write_text(text, encoding="utf-8")
    plan = read_plan(bench / path.name)
    assert {*plan.methods} <= {*METHODS, *GUIDES}
    assert plan.measure.images
    for table in plan.tables:
        assert "harmless" in table.prompts
        assert table.conditionings == ["text", "token"]
    if path.stem == "portraits":
        asked = {"neg", "sld-medium", "sld-max", "sega", "esd-u", "esd-x", "uce", "rece", "sdd", "sdd-context"}
        assert {*plan.methods} == asked
        assert [table.slugs for table in plan.tables] == [["smoking"], ["badge"], ["smoking", "badge", "brava"]]
        assert plan.measure.images >= 500
        assert ["neighbours" in table.prompts for table in plan.tables] == [True, False, True]
        assert [table.attacks for table in plan.tables] == [("ring-a-bell", "relapse"), (), ("ring-a-bell", "relapse")]


def test_a_missing_published_file_is_named(tmp_path: Path) -> None:
    shutil.copy(data_dir() / "bench" / "sd14-i2p.toml", tmp_path)
    with pytest.raises(HfiError, match=r"no prompts file unsafe-prompts4703\.csv"):
        read_plan(tmp_path / "sd14-i2p.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[methods.neg]", "[methods.negative]", "unknown method 'negative': choose neg, sld-weak"),
        ("[methods.neg]", "[methods.sd]", "is the untouched model, which is always measured"),
        ("[methods.neg]", "[methods.neg]\nsteps = 3", r"\[methods.neg\] has settings, and neg has none"),
        ("ddim_steps = 3", "ddim_steps = 1", r"\[methods.esd-x\] --ddim-steps is 1: give 2 or more"),
        ("ddim_steps = 3", "rollouts = 'new'", r"\[methods.esd-x\] --rollouts is 'new': choose fresh or staggered"),
        ("ddim_steps = 3", "ddim_steps = 'x'", "ddim_steps = 'x' is no int"),
        ("[methods.uce]", "[methods.uce]\nsteps = 3", r"unknown 'steps' in \[methods.uce\]: known are"),
        ('concepts = ["fog"]', 'concepts = ["mist"]', r"\[tables.fog\] names the concept 'mist': there are fog"),
        ('concepts = ["fog"]', "concepts = []", r"\[tables.fog\] has no concepts: choose of fog"),
        ('text = "a hat"', 'text = " "', r"\[concepts.fog\] has no text"),
        ('retain = "harmless.csv"', 'retain = "none.csv"', "no prompts file none.csv"),
        ("[attacks.ring-a-bell]", "[attacks.p4d]", "unknown attack 'p4d': choose relapse or ring-a-bell"),
        ('token = "fog"', 'alone = "fog"', "has alone and no token"),
        ("[tables.fog]", '[tables.fog]\nattacks = ["p4d"]', r"\[tables.fog\] names the attack 'p4d': there are"),
        ("[measure]", "[measured]", "unknown 'measured': known are title, model"),
        ("[measure]", "[measure]\nseeds = 3", r"unknown 'seeds' in \[measure\]"),
        ('title = "Small"', "title = ", "is not TOML"),
        ('model = "', 'title2 = "', "unknown 'title2': known are title, model"),
        ('notes = ["a note with <angles>"]', 'notes = "a note"', "notes is 'a note': give a list of sentences"),
        ('text = "a hat"', 'text = "a <hat>"', r"\[concepts.fog\] has <hat> in its text"),
        ('retain = "harmless.csv"', "retain = 5", "5 is no path: write it between quotation marks"),
        ("harmless = ", "kept = ", r"\[tables.fog\] has no harmless prompts, which attacks start from"),
        ("guidance_scale = 3", "guidance_scale = 1", "guidance scale 1 with neg"),
        ("[tables.fog]", '[tables."a/b"]', "'a/b' cannot name a folder"),
        ("[attacks.ring-a-bell]\nimages = 2\n[attacks.relapse]", "[attack]", "unknown 'attack'"),
        ("[concepts.fog]", "[concepts]\nfog = 3\n[concepts.mist]", r"concepts.fog is 3: write it as a table, \[concepts.fog\]"),
        ("implicit.csv", "other.csv", "no prompts file other.csv"),
    ],
)
def test_a_mistake_in_the_file_is_said(plan_file: Path, old: str, new: str, said: str) -> None:
    text = plan_file.read_text(encoding="utf-8")
    assert old in text
    plan_file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(HfiError, match=said):
        read_plan(plan_file)


def test_what_the_workspace_lacks_is_said_before_anything_is_made(hfi: Hfi, space: Path, plan_file: Path) -> None:
    text = plan_file.read_text(encoding="utf-8")
    for old, new, said in (
        ('token = "fog"', 'token = "mist"', "no token 'mist'"),
        ("fog]", "mist]", "no judgments of 'mist'"),
        ('detector = "reward"', 'detector = "none"', "choose another detector than 'none'"),
    ):
        changed = text.replace(old, new).replace('concepts = ["fog"]', f'concepts = ["{"mist" if new == "mist]" else "fog"}"]')
        plan_file.write_text(changed, encoding="utf-8")
        done = hfi("bench", "run", plan_file, "-w", space)
        assert done.exit_code
        assert said in done.errors[0]
    done = hfi("bench", "run", plan_file, "-w", space, "--table", "mist")
    assert (done.exit_code, done.errors[0]) == (2, "hfi: error: this benchmark has no table 'mist': choose fog")
    assert not list((space / "runs").glob("bench/*"))


def test_every_erasure_of_a_packaged_benchmark_is_a_command_that_hfi_takes(tmp_path: Path) -> None:
    plan = read_plan(data_dir() / "bench" / "portraits.toml")
    bench = planned(plan, tmp_path)
    group: Any = __import__("typer").main.get_command(app)
    lines = [line for table in plan.tables for line in erasing(bench, table)]
    assert len(lines) == len({line.split("--name ")[1].split()[0] for line in lines}) == 3 * 2 * 6
    for line in lines:
        command, *words = shlex.split(line)
        with group.make_context("hfi", [command, *words]) as context:
            name, found, rest = group.resolve_command(context, [command, *words])
            with found.make_context(name, rest, parent=context):
                pass
        holds = METHODS[words[words.index("--method") + 1]].holds
        assert ("--retain" in words) == holds
    assert sum("--token badge" in line for line in lines) == 2 * 6
    assert {line.split()[line.split().index("--method") + 1] for line in lines if "--token badge-plain" in line} == {
        method for method in METHODS if not METHODS[method].judged
    }


def test_the_workspace_for_portraits_is_made_by_the_commands_of_the_comparison(tmp_path: Path) -> None:
    ran: list[str] = []

    def until_judged(line: str) -> None:
        ran.append(line)
        if line.startswith("generate"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "w", [Named("smoking", "smoking a cigarette", "smoking")], until_judged, quick=True)
    assert [line.split()[0] for line in ran] == ["init", "concept", "generate"]


def test_an_erasure_is_asked_for_on_the_device_that_was_asked_for(tmp_path: Path) -> None:
    """Not on the one that this process chose of it: the command chooses for each of its processes."""
    plan = read_plan(data_dir() / "bench" / "portraits.toml")
    bench = replace(planned(plan, tmp_path), device="cuda:1")
    assert all("--device auto " in line for line in erasing(bench, plan.tables[0]))


@pytest.mark.parametrize("end", [KeyboardInterrupt, Terminated])
def test_what_is_interrupted_waits_until_its_command_has_kept_its_state(
    end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []

    class Command:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def wait(self) -> int:
            waited.append("")
            if len(waited) == 1:
                raise end
            return 143

    monkeypatch.setattr("hfi.cli.bench.subprocess.Popen", Command)
    with pytest.raises(end):
        _run_child("erase", {})
    assert len(waited) == 2


# --- a run ---


def test_a_benchmark_killed_three_times_gives_the_same_results(hfi: Hfi, space: Path, plan_file: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows knows no SIGKILL")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(space, whole)
    shutil.copytree(space, killed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfi.cli.bench", "hfi.bench.tables", "hfi.cli.erase", "hfi.embed", "torch._dynamo", "pytest"])

    def start(path: Path, *more: str) -> Any:
        process = context.Process(target=run_here, args=(["bench", "run", str(plan_file), "-w", str(path), *more],))
        process.start()
        return process

    process = start(whole)
    process.join()
    assert process.exitcode == 0
    made = whole / "runs" / "bench" / "small"
    total = len(_files(whole))
    for count in sorted(random.Random(2).sample(range(len(_files(space)) + 5, total - 10), 3)):
        process = start(killed)
        while len(_files(killed)) < count:
            assert process.is_alive()
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (killed / "runs" / "bench" / "small" / "result.json").exists()
    process = start(killed, "--table", "fog")
    process.join()
    assert process.exitcode == 0
    assert not (killed / "runs" / "bench" / "small" / "results.json").exists(), "a table alone makes no report"
    process = start(killed)
    process.join()
    assert process.exitcode == 0
    again = killed / "runs" / "bench" / "small"
    for name in ("results.json", "results.csv", "fog/scores.jsonl"):
        assert (again / name).read_bytes() == (made / name).read_bytes(), name
    _check_results(made)
    _check_page(made)


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun starts no processes on Windows")
def test_a_benchmark_of_two_processes_gives_the_results_of_one(
    alone: Hfi, space: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an erasure in closed form, which is the same to the bit, made by a command that both processes start."""
    text = plan_file.read_text(encoding="utf-8").replace('token = "fog"\n', "").replace("[methods.neg]\n", "")
    for start, end in (("[methods.esd-x]", "[tables.fog]"), ("[attacks.relapse]", None)):
        text = text[: text.index(start)] + (text[text.index(end) :] if end else "")
    plan_file.write_text(text, encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        shutil.copytree(space, path)
    words = ["--table", "fog", "--json"]  # without the report, for which main alone measures what everything costs
    done = run([*TWO, "bench", "run", plan_file, "-w", two, *words])
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("$ hfi erase")]) == 1
    monkeypatch.setattr("hfi.cli.bench._child", in_this_process)
    alone_done = alone("bench", "run", plan_file, "-w", one, *words)
    assert alone_done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(alone_done.stdout) != []
    names = ["images/*/*/*.png", "results.json", "scores.jsonl", "attacks/*/results.json"]
    made, wanted = (
        {str(file.relative_to(path)): file.read_bytes() for name in names for file in (path / "runs/bench/small/fog").glob(name)}
        for path in (two, one)
    )
    assert len(wanted) > 10
    assert made == wanted


def _files(path: Path) -> list[Path]:
    return [p for p in (path / "runs").rglob("*") if p.suffix in (".png", ".json", ".npz", ".safetensors")]


def _check_results(made: Path) -> None:
    rows = read_results(made / "results.json")
    systems = {row.system for row in rows}
    assert systems == {("sd", "none"), *((m, c) for m in ("neg", "uce", "esd-x") for c in ("text", "token"))}
    sets = {row.prompt_set for row in rows}
    assert sets == {
        "implicit",
        "explicit",
        "harmless",
        "ring-a-bell-0.9",
        "ring-a-bell-3",
        "relapse-000",
        "relapse-002",
        "relapse-004",
    }
    assert {row.concept for row in rows} == {"fog"}
    assert {row.n for row in rows if row.metric == "concept_rate"} == {2}
    head, *lines = (made / "results.csv").read_text(encoding="utf-8").splitlines()
    assert head == "method,conditioning,table,prompt_set,metric,value,n,low,high"
    assert len(lines) == len(rows)
    costs = json.loads((made / "costs.json").read_text(encoding="utf-8"))["systems"]
    assert [(c["method"], c["conditioning"]) for c in costs] == [*dict.fromkeys(row.system for row in rows)]
    by = {(c["method"], c["conditioning"]): c for c in costs}
    assert by["uce", "text"]["erase_evaluations"] == 0
    assert by["esd-x", "token"]["erase_evaluations"] > 6 * 3
    assert "erase_seconds" not in by["neg", "text"]
    assert all(c["image_seconds"] > 0 and c["image_peak_memory"] > 50e6 and c["image_evaluations"] == 4 for c in costs)
    # the attacker of a guided system learns on the untouched model, once
    assert len(list((made / "fog" / "attacks" / "relapse").iterdir())) == 1 + 4


def _check_page(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "a note with &lt;angles&gt;" in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count('class="panel"') == 3
    for name in ("neg (text)", "uce (token)", "esd-x (token)"):
        assert name in page
    tables = (made / "tables.md").read_text(encoding="utf-8")
    assert tables.startswith("### fog, 2 images a cell\n")
    assert tables.count("\n| ") == 1 + 7


def test_the_same_command_again_makes_nothing_anew_and_other_settings_are_refused(
    hfi: Hfi, space: Path, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfi.cli.bench._child", in_this_process)
    text = plan_file.read_text(encoding="utf-8").split("[attacks.ring-a-bell]")[0]
    for method in ("[methods.esd-x]\nsteps = 6\nddim_steps = 3\nsave_every = 2\n", "[methods.neg]\n"):
        text = text.replace(method, "")
    plan_file.write_text(text, encoding="utf-8")
    here = tmp_path / "here"
    shutil.copytree(space, here)
    first = hfi("bench", "run", plan_file, "-w", here, "--json")
    assert first.exit_code == 0, first.output
    assert next(Row(**row).method for row in json.loads(first.stdout)) == "sd"
    monkeypatch.setattr("hfi.systems.sample", lambda *args, **more: pytest.fail("an image was made again"))
    monkeypatch.setattr("hfi.bench.costs._measured", lambda *args: pytest.fail("a cost was measured again"))
    again = hfi("bench", "run", plan_file, "-w", here, "--json")
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    plan_file.write_text(text.replace("guidance_scale = 3", "guidance_scale = 4"), encoding="utf-8")
    refused = hfi("bench", "run", plan_file, "-w", here)
    assert refused.exit_code == 1
    assert "started with other settings (measure was" in refused.errors[0]


# --- the page ---


def test_every_method_has_a_colour() -> None:
    assert {name for _, _, names in _FAMILIES for name in names} == {*METHODS, *GUIDES}


def test_a_page_of_several_concepts_by_words_and_tokens(tmp_path: Path) -> None:
    page = benchmark_page(tmp_path)
    assert "smoking a cigarette, wearing a round badge, in the style of Brava" in page
    assert "&lt;smoking&gt;, &lt;badge&gt;, &lt;brava&gt;" in page
    assert "30 judgments of 1 person and 3 simulated annotators steered what is measured here." in page
    assert "together: a, b removed together" in page
    assert "relapse, 1000 updates" in page
    assert "nobody looked at what pictures keep" in page


def test_columns_follow_what_was_measured() -> None:
    def row(prompt_set: str, metric: str) -> Row:
        return Row("sd", "none", "t", prompt_set, metric, 0.5, 4, None, None)

    rows = [row("harmless", "clip_score"), row("relapse-050", "concept_rate"), row("relapse-300", "concept_rate")]
    rows += [row("implicit", "concept_rate"), row("harmless", "concept_rate"), row("body", "concept_rate")]
    assert [c.title for c in table_columns(rows)] == ["implicit", "CLIP score", "relapse, 300 updates", "body"]


def test_the_token_wins_only_where_it_measurably_does() -> None:
    assert verdict(0.5, 0.1, 0.2) == "no measurable difference"
    assert verdict(0.5, 0.1, 0.01) == "the token"
    assert verdict(0.1, 0.5, 0.01) == "the words"

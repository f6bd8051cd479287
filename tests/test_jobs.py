"""Background jobs: real commands in real processes, told apart when they end, are stopped, are killed, or outlive the server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import asked
import pytest
from tiny import saved

from hfi import jobs
from hfi.cli.generate import GenerateConfig
from hfi.erase import METHODS
from hfi.errors import HfiError, NotFound, UsageError
from hfi.evaluate import EvaluateConfig
from hfi.invert import InvertConfig
from hfi.prompts import load_prompts
from hfi.reward.train import RewardConfig
from hfi.runs import Run
from hfi.store import jobs as table
from hfi.store import models as m
from hfi.store import queries, rounds
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases

PATIENCE = 600.0  # a job is nice to everybody else: on a busy machine it waits


@pytest.fixture
def engine(workspace: Workspace) -> Engine:
    engine = workspace.engine()
    asked.concept(engine)
    return engine


@pytest.fixture(autouse=True)
def nothing_goes_on(workspace: Workspace) -> Iterator[None]:
    yield
    for file in (workspace.runs / "jobs").glob("*/process"):
        known = json.loads(file.read_text())
        if known["birth"] and jobs.birth(known["pid"]) == known["birth"]:
            os.kill(known["pid"], signal.SIGKILL)


def said(engine: Engine, space: Workspace, command: str, **given: object) -> list[str]:
    with reading(engine) as s:
        return jobs.words(s, space, command, given)


def wait(
    space: Workspace, engine: Engine, job: table.Job, until: Callable[[table.Job], bool] = lambda job: not job.running
) -> table.Job:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        jobs.settle(space, engine)
        with reading(engine) as s:
            job = table.job(s, job.id)
        if until(job):
            return job
        time.sleep(0.1)
    raise AssertionError(f"{job} goes on: {jobs.tail(space, job)}")


# --- words ---


def test_values_become_words_that_no_shell_and_no_parser_can_take_for_others(engine: Engine, workspace: Workspace) -> None:
    found = said(engine, workspace, "erase", concept="smoking", model="--help; rm -rf /", name="a-1", text="$(id) 'x'", steps=20)
    assert found == ["erase", "--concept=smoking", "--model=--help; rm -rf /", "--name=a-1", "--text=$(id) 'x'", "--steps=20"]
    assert said(engine, workspace, "reward", concept="smoking", name="r", learning_rate="0.01", labels="dawid-skene", epochs=" ") == [
        "reward", "--report", "--concept=smoking", "--name=r", "--labels=dawid-skene", "--learning-rate=0.01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("init", {}, "'init' is not started from here"),
        ("reward", {}, "“Concept” is empty: choose one at the top; “Name” is empty: give one"),
        ("invert", {"concept": "smoking", "name": "a", "model": "x"}, "“Reward” is empty: choose one, or make one first"),
        ("generate", {"name": "a", "model": "x"}, "“Prompts” is empty: choose where they come from, or type them"),
        ("reward", {"concept": "nothing", "name": "a"}, "no concept 'nothing'"),
        ("reward", {"concept": "smoking", "name": "../a"}, "name is '../a'"),
        ("reward", {"concept": "smoking", "name": "-a"}, "name is '-a'"),
        ("reward", {"concept": "smoking", "name": "a", "epochs": "2.5"}, "epochs is '2.5': give a whole number"),
        ("reward", {"concept": "smoking", "name": "a", "epochs": 0}, "epochs is 0: give 1 or more"),
        ("reward", {"concept": "smoking", "name": "a", "learning_rate": 0}, "learning rate is 0.0: give more than 0"),
        ("reward", {"concept": "smoking", "name": "a", "learning_rate": "nan"}, "give a number"),
        ("reward", {"concept": "smoking", "name": "a", "labels": "best"}, "choose majority, dawid-skene"),
        ("reward", {"concept": "smoking", "name": "a", "device": "cpu"}, "reward takes no device"),
        ("erase", {"concept": "smoking", "name": "a", "model": "x\ny"}, "cannot be printed"),
        ("erase", {"concept": "smoking", "name": "a", "model": "x" * 501}, "too long"),
        ("erase", {"concept": "smoking", "name": "a", "model": "x", "start": "/etc/passwd"}, "no '/etc/passwd' in erasures/"),
        ("invert", {"concept": "smoking", "name": "a", "model": "x", "reward": "smoking"}, "no 'smoking' in rewards/"),
        ("generate", {"name": "a", "model": "x", "prompts": "a\x00b"}, "cannot be printed"),
    ],
)
def test_wrong_values_are_refused(engine: Engine, workspace: Workspace, command: str, given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("[", r"\[")):
        said(engine, workspace, command, **given)


def test_files_are_those_of_the_workspace(engine: Engine, workspace: Workspace) -> None:
    (workspace.rewards / "smoking.safetensors").write_bytes(b"")
    (workspace.erasures / "smoking-sdd.safetensors").write_bytes(b"")
    base = {"concept": "smoking", "model": "m", "name": "a"}
    assert said(engine, workspace, "invert", **base, reward="smoking")[-1] == "--reward=smoking"
    assert "--from=smoking-sdd" in said(engine, workspace, "erase", **base, start="smoking-sdd")
    found = said(engine, workspace, "evaluate", **base, erasure="smoking-sdd", detector="smoking")
    assert found[-1] == f"--detector=reward:{workspace.rewards / 'smoking.safetensors'}"
    assert said(engine, workspace, "score", reward="smoking") == ["campaign", "score", "--reward=smoking"]


def test_prompts_are_typed_packaged_or_those_of_earlier_images(engine: Engine, workspace: Workspace) -> None:
    for i, prompt in enumerate(("a chef", "a chef", "=a sailor")):
        asked.image(engine, i, prompt=prompt, seed=50 + i, run="first")

    def file(prompts: str) -> Path:
        found = said(engine, workspace, "generate", model="m", name="a", prompts=prompts, images_per_prompt=2)
        assert ("--images-per-prompt=2" in found) != prompts.startswith("twins:")
        return Path(next(word.removeprefix("--prompts=") for word in found if word.startswith("--prompts=")))

    assert [(p.text, p.seed) for p in load_prompts(file("a cat\n\n a dog, at sea "))] == [
        ("a cat", None),
        ("a dog, at sea", None),
    ]
    assert [(p.text, p.seed) for p in load_prompts(file("prompts:first"))] == [("a chef", None), ("=a sailor", None)]
    assert [(p.text, p.seed) for p in load_prompts(file("twins:first"))] == [("a chef", 50), ("a chef", 51), ("=a sailor", 52)]
    assert len(load_prompts(file("packaged:smoking/judge.csv"))) > 10
    assert [p.text for p in load_prompts(file("packaged:../../secret.csv"))] == ["packaged:../../secret.csv"], (
        "no source, so a text"
    )
    assert file("a cat") == file("a cat"), "the same words again go on with the same run"


def test_what_a_form_says_is_what_the_command_does() -> None:
    configs = {"reward": RewardConfig, "invert": InvertConfig, "evaluate": EvaluateConfig, "generate": GenerateConfig}
    compared = 0
    for command, form in jobs.FORMS.items():
        known = {f.name: f for f in fields(configs[command])} if command in configs else {}
        for field in form.fields:
            if field.name in known and field.kind in ("int", "float"):
                setting = known[field.name]
                assert (field.default, field.low, field.above) == (
                    setting.default, setting.metadata["low"], setting.metadata["above"],
                ), (command, field.name)  # fmt: skip
                compared += 1
    assert compared == 14
    erase = {field.name: field for field in jobs.FORMS["erase"].fields}
    assert erase["method"].choices == tuple(METHODS)
    assert erase["method"].default == "sdd-context", (
        "what removes most, by our own measurements; the command's default is the paper's"
    )


# --- processes ---


def test_a_job_that_ends_well_is_noted_in_its_round(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    model = saved(tmp_path, "epsilon")
    with writing(engine) as s:
        turn = rounds.start_round(s, "smoking")
        boss = queries.ensure_annotator(s, "Boss")
    words = said(engine, workspace, "generate", model=str(model), name="round-1", prompts="a cat\na dog", steps=2)
    job = jobs.start(workspace, engine, words, by=boss.id, round_id=turn.id)
    assert (job.state, job.started_by, job.words) == ("running", boss.id, tuple(words))
    with pytest.raises(HfiError, match=r"job 1 \(generate\) is running"):
        jobs.start(workspace, engine, words)
    done = wait(workspace, engine, job)
    assert (done.state, done.code) == ("done", 0), jobs.tail(workspace, done)
    assert done.ended_at is not None
    lines = jobs.tail(workspace, done)
    assert lines[-1] == "2 images made, 0 were there already (run round-1)"
    seen = jobs.progress(lines)
    assert seen is not None
    assert (seen.what, seen.done, seen.total) == ("generating", 2, 2)
    with reading(engine) as s:
        assert [image.run for image in queries.images(s)] == ["round-1", "round-1"]
        assert [r.images_run for r in rounds.rounds(s, "smoking")] == ["round-1"]
    assert jobs.run_of(workspace, done).finished
    end = time.monotonic() + PATIENCE
    while jobs._children and time.monotonic() < end:
        jobs.settle(workspace, engine)
    assert not jobs._children, "no child is left unburied"


def test_a_job_that_fails_says_why(engine: Engine, workspace: Workspace) -> None:
    job = wait(workspace, engine, jobs.start(workspace, engine, said(engine, workspace, "reward", concept="smoking", name="r")))
    assert (job.state, job.code) == ("failed", 1)
    assert jobs.tail(workspace, job)[-1].startswith("hfi: error: no judgments of 'smoking'")
    assert jobs.progress(jobs.tail(workspace, job)) is None


def test_a_job_outlives_the_server_is_stopped_and_goes_on(engine: Engine, workspace: Workspace, tmp_path: Path) -> None:
    model = saved(tmp_path, "epsilon")
    words = said(engine, workspace, "generate", model=str(model), name="long", prompts="a cat", steps=4, images_per_prompt=3000)
    server = (
        "import signal, sys; from pathlib import Path; from hfi import jobs; from hfi.workspace import Workspace\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as a shell's background process
        "space = Workspace(Path(sys.argv[1])); print(jobs.start(space, space.engine(), sys.argv[2:]).id)"
    )
    done = subprocess.run([sys.executable, "-c", server, str(workspace.path), *words], capture_output=True, text=True, check=True)
    with reading(engine) as s:
        job = table.job(s, int(done.stdout))

    def images() -> int:
        with reading(engine) as s:
            return len(queries.images(s))

    assert wait(workspace, engine, job, lambda job: images() > 0 or not job.running).running
    assert "was asked to stop" in jobs.stop(workspace, engine, job.id)
    job = wait(workspace, engine, job)
    assert (job.state, job.code) == ("stopped", 130)
    assert jobs.tail(workspace, job)[-1] == "hfi: interrupted; run the same command again to go on"
    assert 0 < images() < 3000
    with pytest.raises(HfiError, match="runs no more: it is stopped"):
        jobs.stop(workspace, engine, job.id)
    again = jobs.start(workspace, engine, job.words)
    running = wait(workspace, engine, again, lambda job: jobs._process(jobs.folder_of(workspace, job)) is not None)
    assert running.pid
    os.kill(running.pid, signal.SIGKILL)
    again = wait(workspace, engine, again)
    assert (again.state, again.code) == ("lost", None)


def test_a_process_of_the_same_number_is_not_the_job(engine: Engine, workspace: Workspace) -> None:
    with writing(engine) as s:
        job = table.add_job(s, ["reward"])
        table.set_pid(s, job.id, os.getpid())
    folder = jobs.folder_of(workspace, job)
    folder.mkdir(parents=True)
    jobs.note_start(folder)
    jobs.settle(workspace, engine)
    with reading(engine) as s:
        assert table.job(s, job.id).running
    (folder / "process").write_text(json.dumps({"pid": os.getpid(), "birth": "another day"}))
    with pytest.raises(HfiError, match="it is lost"):
        jobs.stop(workspace, engine, job.id)
    assert jobs.birth(2**22 + 1) is None
    with reading(engine) as s, pytest.raises(NotFound):
        table.job(s, 99)


def test_a_job_that_never_began_is_lost_after_a_while(engine: Engine, workspace: Workspace) -> None:
    with writing(engine) as s:
        job = table.add_job(s, ["reward"])
    jobs.settle(workspace, engine)
    with reading(engine) as s:
        assert table.job(s, job.id).running, "it may be about to begin"
    with writing(engine) as s:
        s.get_one(m.Job, job.id).created_at = queries.now_utc() - timedelta(minutes=3)
    jobs.settle(workspace, engine)
    with reading(engine) as s:
        assert table.job(s, job.id).state == "lost"


def test_only_listed_commands_start(engine: Engine, workspace: Workspace) -> None:
    for words in (["init", "/tmp/x"], ["campaign", "close", "people"], []):
        with pytest.raises(UsageError, match="not started from here"):
            jobs.start(workspace, engine, words)
    with reading(engine) as s:
        assert table.jobs(s) == []


# --- looking ---


def test_progress_is_the_last_line_that_says_it() -> None:
    line = "erasing (sdd): 62/300, 6.2 steps/s, 38 s left, loss 0.0004"
    assert jobs.progress(["a: b", line, "saved"]) == jobs.Progress(
        "erasing (sdd)", 62, 300, "6.2 steps/s, 38 s left, loss 0.0004"
    )
    assert jobs.progress(["hfi: error: no 3/4 here"]) is None


def test_curves_and_reports_of_a_run(workspace: Workspace) -> None:
    run = Run.start(workspace.runs, "erase", "a", {})
    for step in (1, 2):
        run.log(step=step, loss=1 / step, note="x", good=True)
    assert jobs.curves(run) == {"loss": [(1, 1.0), (2, 0.5)]}
    assert jobs.report_of(workspace, "erase", "a") is None
    (run.path / "report.html").write_text("<p>")
    assert jobs.report_of(workspace, "erase", "a") == run.path / "report.html"
    (workspace.path / "report.html").write_text("<p>")
    outside = workspace.runs / "erase" / "link"
    outside.symlink_to(workspace.path)
    for command, name in (
        ("erase", "../.."),
        ("erase", ".."),
        ("erase", "link"),
        ("../runs/erase", "a"),
        ("jobs", "1"),
        ("erase", ""),
    ):
        assert jobs.report_of(workspace, command, name) is None, (command, name)

"""Commands of hfi in the background: started from the managers' page, watched, stopped, and known for what they are after a restart.

    runs/jobs/ID/log.txt    what the command prints
    runs/jobs/ID/process    the process that does it: number and birth
    runs/jobs/ID/exit       its exit code, once it has ended

A process is known by its number and its birth together: numbers come again. One job at a time for a workspace. Arguments are lists of
words, every value behind its option as --option=value, so that no value can be taken for an option; there is no shell.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from hfi.config import flag
from hfi.errors import HfiError, UsageError
from hfi.files import write_text
from hfi.logs import event, plain_environment
from hfi.resources import data_dir
from hfi.runs import Run
from hfi.scores import rewards
from hfi.store import choosing, queries, rounds
from hfi.store import jobs as table
from hfi.store.jobs import Job
from hfi.store.session import Engine, Session, reading, writing
from hfi.workspace import Workspace

GRACE = timedelta(minutes=2)  # until a new process must have noted itself
MADE = {
    "generate": "images_run",
    "reward": "reward",
    "invert": "token",
    "erase": "erasure",
    "evaluate": "evaluation",
}  # of a round
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

# --- what can be asked for ---

Kind = Literal["text", "name", "concept", "int", "float", "choice", "file", "prompts"]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value of a command. `default`: what the command takes where nothing is given, as its configuration says, and what a 'choice'
    begins with; `choices` of a 'choice'; `folder`: where the workspace keeps the files that a 'file' names."""

    name: str
    label: str
    kind: Kind = "text"
    needed: bool = False
    help: str = ""
    default: Any = None
    choices: tuple[str, ...] = ()
    folder: str = ""
    low: float | None = None
    above: float | None = None

    @property
    def flag(self) -> str:
        return flag("from" if self.name == "start" else self.name)


@dataclass(frozen=True)
class Form:
    """A command with its words, and what it can be given."""

    words: tuple[str, ...]
    title: str
    line: str
    fields: tuple[Field, ...]


_MODEL = Field(name="model", label="Model", needed=True, help="a folder, a checkpoint file, or a hub id")
_CONCEPT = Field(name="concept", label="Concept", kind="concept", needed=True)
_RUN = Field(name="name", label="Name", kind="name", needed=True, help="of the run and of the file that it makes")
_SIMULATED = Field(
    name="simulated",
    label="Simulated judgments",
    kind="choice",
    choices=("exclude", "include", "only"),
    default="exclude",
    help="leave them out, take them too, or take only those",
)
_LABELS = Field(
    name="labels",
    label="Several judgments of an image",
    kind="choice",
    choices=("majority", "dawid-skene"),
    default="majority",
    help="how they become one",
)


def _whole(name: str, label: str, default: int | None, low: int = 1, help: str = "") -> Field:
    return Field(name=name, label=label, kind="int", default=default, low=low, help=help)


def _decimal(name: str, label: str, default: float | None, *, low: float | None = None, above: float | None = None) -> Field:
    return Field(name=name, label=label, kind="float", default=default, low=low, above=above)


_PROMPTS = Field(name="prompts", label="Prompts", kind="prompts", needed=True)
FORMS = {
    "reward": Form(
        ("reward", "--report"),
        "Reward",
        "Learn from the judgments what an image that shows the concept looks like.",
        (
            _CONCEPT,
            _RUN,
            _SIMULATED,
            _LABELS,
            _whole("epochs", "Epochs", 300),
            _whole("patience", "Patience", 30, help="epochs without a better validation loss"),
            _decimal("learning_rate", "Learning rate", 1e-3, above=0),
        ),
    ),
    "invert": Form(
        ("invert",),
        "Token",
        "Condense the judgments into a learned token.",
        (
            _CONCEPT,
            _MODEL,
            _RUN,
            Field(name="reward", label="Reward", kind="file", folder="rewards", needed=True),
            _SIMULATED,
            _whole("steps", "Updates", 300),
            _whole("vectors", "Vectors", 1),
            _whole("top_k", "Images to learn from", 64, help="the best-scoring ones"),
            _decimal("learning_rate", "Learning rate", 5e-3, above=0),
        ),
    ),
    "erase": Form(
        ("erase",),
        "Erasure",
        "Take the concept out of the model's weights.",
        (
            _CONCEPT,
            _MODEL,
            _RUN,
            Field(
                name="method",
                label="Method",
                kind="choice",
                choices=("sdd", "sdd-context", "esd-x", "esd-u", "uce", "rece"),
                default="sdd-context",
                help="sdd-context: to be rid of it, even where no prompt names it; sdd: to compare with its paper, removes little",
            ),
            Field(name="token", label="Token", kind="file", folder="tokens", help="that stands for the concept"),
            Field(name="text", label="Or words for the concept"),
            Field(name="start", label="Go on from", kind="file", folder="erasures", help="an earlier erasure stays removed"),
            _SIMULATED,
            _whole("steps", "Updates", None, help="the method's own where empty"),
            _decimal("learning_rate", "Learning rate", None, above=0),
        ),
    ),
    "evaluate": Form(
        ("evaluate",),
        "Evaluation",
        "Measure what was removed and what was kept, on the same prompts and seeds.",
        (
            _CONCEPT,
            _MODEL,
            _RUN,
            Field(name="erasure", label="Erasure", kind="file", folder="erasures", needed=True),
            Field(
                name="detector", label="Who sees it", kind="file", folder="rewards", help="a reward; where empty the model's own"
            ),
            Field(name="prompts", label="Prompts", kind="prompts", help="where empty, those that come with the concept"),
            _whole("images", "Images of each prompt set", None),
            _whole("steps", "Sampling steps", 25),
            _decimal("guidance_scale", "Guidance", 7.5, low=0),
        ),
    ),
    "generate": Form(
        ("generate",),
        "Images",
        "Make images to judge; from a cleaned model, for the next round.",
        (
            _MODEL,
            _RUN,
            _PROMPTS,
            Field(name="erasure", label="Erasure", kind="file", folder="erasures", help="where empty, the untouched model"),
            _whole("images_per_prompt", "Images of each prompt", 1),
            _whole("seed", "First seed", 0, low=0),
            _whole("steps", "Sampling steps", 25),
            _decimal("guidance_scale", "Guidance", 7.5, low=0),
        ),
    ),
    "score": Form(
        ("campaign", "score"),
        "Scores",
        "Let a reward score every image, to choose the ones that it is unsure about.",
        (Field(name="reward", label="Reward", kind="file", folder="rewards", needed=True),),
    ),
}


def files(space: Workspace, folder: str) -> list[str]:
    """The names of results in a folder of the workspace, the latest first."""
    if folder == "rewards":
        return rewards(space)
    found = sorted((space.path / folder).glob("*.safetensors"), key=lambda file: (-file.stat().st_mtime, file.name))
    return [file.stem for file in found]


def prompt_sources(s: Session, space: Workspace) -> dict[str, str]:
    """Where prompts can come from, by what names it towards `words`: those that come with hfi, those of earlier images with their
    seeds, or without."""
    packaged = sorted(file.relative_to(data_dir() / "prompts") for file in (data_dir() / "prompts").glob("*/*.csv"))
    runs = choosing.sources(s).runs
    return {
        **{f"twins:{run}": f"as in {run}: same prompts, same seeds" for run in runs},
        **{f"prompts:{run}": f"as in {run}: same prompts, new seeds" for run in runs},
        **{f"packaged:{path.as_posix()}": f"packaged: {path.with_suffix('').as_posix()}" for path in packaged},
    }


def words(s: Session, space: Workspace, command: str, given: Mapping[str, Any]) -> list[str]:
    """The command's words for these values by field name; empty ones are left to the command. `prompts` is a source, or texts, one a
    line. UsageError names all mistakes together."""
    if command not in FORMS:
        raise UsageError(f"{command!r} is not started from here: choose {', '.join(FORMS)}")
    form = FORMS[command]
    if unknown := given.keys() - {field.name for field in form.fields}:
        raise UsageError(f"{command} takes no {', '.join(sorted(unknown))}")
    found, mistakes = list(form.words), []
    for field in form.fields:
        value = given.get(field.name)
        if value is None or (isinstance(value, str) and not value.strip()):
            if field.needed:
                mistakes.append(f"“{field.label}” is empty: {_wanted(field)}")
            continue
        try:
            found.append(f"{field.flag}={_checked(s, space, field, value)}")
        except HfiError as e:
            mistakes.append(str(e))
    if mistakes:
        raise UsageError("; ".join(mistakes))
    if str(given.get("prompts", "")).startswith("twins:"):  # each image has its own row and its own seed
        found = [word for word in found if not word.startswith("--images-per-prompt=")]
    return found


def _wanted(field: Field) -> str:
    """What to do about a value that is needed."""
    if field.kind == "file":
        return f"choose one, or make one first, with the step “{field.label}”"
    if field.kind == "prompts":
        return "choose where they come from, or type them"
    return "choose one at the top" if field.kind == "concept" else "give one"


def _checked(s: Session, space: Workspace, field: Field, value: Any) -> str:
    """The value as a word; UsageError where the field does not take it."""
    label = field.label.lower()
    if field.kind in ("int", "float"):
        return _number(field, value)
    text = str(value).strip()
    if field.kind == "prompts":
        return str(_prompts_file(s, space, text))
    if len(text) > 500 or not text.isprintable():
        raise UsageError(f"{label} is too long, or holds characters that cannot be printed")
    if field.kind == "name" and not _NAME.fullmatch(text):
        raise UsageError(f"{label} is {text!r}: give letters, digits, '.', '_' and '-', 80 at most")
    if field.kind == "choice" and text not in field.choices:
        raise UsageError(f"{label} is {text!r}: choose {', '.join(field.choices)}")
    if field.kind == "concept":
        queries.concept(s, text)
    if field.kind == "file":
        if text not in files(space, field.folder):
            raise UsageError(f"{label}: no {text!r} in {field.folder}/")
        if field.name == "detector":
            return f"reward:{space.rewards / f'{text}.safetensors'}"
    return text


def _number(field: Field, value: Any) -> str:
    label = field.label.lower()
    try:
        number = float(value)
        if not math.isfinite(number) or (field.kind == "int" and number != int(number)):
            raise ValueError
        number = int(number) if field.kind == "int" else number
    except (ValueError, TypeError):
        raise UsageError(f"{label} is {value!r}: give a {'whole ' if field.kind == 'int' else ''}number") from None
    if field.low is not None and not number >= field.low:
        raise UsageError(f"{label} is {number}: give {field.low} or more")
    if field.above is not None and not number > field.above:
        raise UsageError(f"{label} is {number}: give more than {field.above}")
    return repr(number)


def _prompts_file(s: Session, space: Workspace, asked: str) -> Path:
    """A prompts file for what was asked: the packaged one, or one written for the job, named by its content."""
    kind, _, name = asked.partition(":")
    if asked not in prompt_sources(s, space):
        lines = [line.strip() for line in asked.splitlines() if line.strip()]
        if any(len(line) > 2000 or not line.isprintable() for line in lines):
            raise UsageError("a prompt is too long, or holds characters that cannot be printed")
        return _write_prompts(space, "typed", ["prompt"], [[line] for line in lines])
    if kind == "packaged":
        return data_dir() / "prompts" / name
    images = [image for image in queries.images(s, run=name) if image.prompt]
    if kind == "twins":
        return _write_prompts(space, name, ["prompt", "seed"], [[image.prompt, image.seed] for image in images])
    return _write_prompts(space, name, ["prompt"], [[text] for text in dict.fromkeys(image.prompt for image in images)])


def _write_prompts(space: Workspace, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    digest = hashlib.sha256(text.getvalue().encode()).hexdigest()[:12]
    path = space.runs / "jobs" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:40]}-{digest}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
    return path


# --- starting, watching, stopping ---

_children: dict[int, "subprocess.Popen[bytes]"] = {}  # of this server, by process number: to be asked, or they stay as zombies


def start(space: Workspace, engine: Engine, said: Sequence[str], *, by: int | None = None, round_id: int | None = None) -> Job:
    """Starts a command in the background. `said` comes from `words`, or from an earlier job. HfiError where a job runs."""
    if not any(tuple(said[: len(form.words)]) == form.words for form in FORMS.values()):
        raise UsageError(f"{' '.join(said[:1])!r} is not started from here: choose {', '.join(FORMS)}")
    settle(space, engine)
    with writing(engine) as s:
        job = table.add_job(s, said, started_by=by, round_id=round_id)
    folder = folder_of(space, job)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hfi.cli.job", str(folder), *said, f"--workspace={space.path.resolve()}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**plain_environment(), "PYTHONUNBUFFERED": "1"},  # people read the log, on the managers' page
            )
    except OSError as e:
        with writing(engine) as s:
            table.end_job(s, job.id, "failed", None)
        raise HfiError(f"cannot start the job in {folder}: {e.strerror or e}") from e
    _children[process.pid] = process
    with writing(engine) as s:
        table.set_pid(s, job.id, process.pid)
        started = table.job(s, job.id)
    event("job_started", job=job.id, command=job.words[0], round=round_id)
    return started


def settle(space: Workspace, engine: Engine) -> None:
    """Finds out how jobs that were running went, whoever started them, and notes in their round what they made."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)
    with reading(engine) as s:
        running = table.jobs(s, running=True)
    for job in running:
        ended = _end_of(space, job)
        if ended is None:
            continue
        state, code = ended
        with writing(engine) as s:
            table.end_job(s, job.id, state, code)
            made = MADE.get(job.words[0])
            if state == "done" and made and job.round_id is not None:
                rounds.note(s, job.round_id, **{made: run_of(space, job).path.name})
        seconds = round((queries.now_utc() - job.created_at).total_seconds(), 1)
        event("job_ended", job=job.id, command=job.words[0], state=state, exit_code=code, seconds=seconds)


def _end_of(space: Workspace, job: Job) -> tuple[str, int | None] | None:
    """(state, exit code) of a job that has ended, None while it runs."""
    folder = folder_of(space, job)
    if _process(folder) is not None:
        return None
    code = _exit(folder)  # after the process was seen to be gone, so that its last words are there
    if code is not None:
        return ("done" if code == 0 else "stopped" if code == 130 else "failed"), code
    fresh = not (folder / "process").exists() and queries.now_utc() - job.created_at < GRACE
    return None if fresh and (job.pid is None or birth(job.pid) is not None) else ("lost", None)


def stop(space: Workspace, engine: Engine, job_id: int) -> str:
    """Asks a running job to stop, as Ctrl-C would; it keeps what it has. What to say to whoever asked. HfiError where it runs no
    more."""
    settle(space, engine)
    with reading(engine) as s:
        job = table.job(s, job_id)
    if not job.running:
        raise HfiError(f"job {job_id} runs no more: it is {job.state}")
    pid = _process(folder_of(space, job))
    if pid is None:
        raise HfiError(f"job {job_id} is only starting: try again in a moment")
    os.kill(pid, signal.SIGINT)
    return f"Job {job_id} was asked to stop. What is done stays; started again, it goes on from there."


def note_start(folder: Path) -> None:
    """For the process of a job: says in its folder who it is."""
    write_text(folder / "process", json.dumps({"pid": os.getpid(), "birth": birth(os.getpid())}))


def note_end(folder: Path, code: int) -> None:
    write_text(folder / "exit", str(code))


def _process(folder: Path) -> int | None:
    """The number of the job's process, None where that is gone."""
    try:
        known = json.loads((folder / "process").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(known["pid"]) if known["birth"] is not None and birth(int(known["pid"])) == known["birth"] else None


def _exit(folder: Path) -> int | None:
    try:
        return int((folder / "exit").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def birth(pid: int) -> str | None:
    """When a process was born, in the machine's own words; None for one that is not there, or is dead and unburied."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if after_name[0] in "ZX":
            return None
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {after_name[19]}"
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, born = told.stdout.strip().partition(" ")
    return None if not born or state.startswith("Z") else born.strip()


# --- looking ---


@dataclass(frozen=True)
class Progress:
    """`done` of `total`, and what else the line says."""

    what: str
    done: int
    total: int
    rest: str


_PROGRESS = re.compile(r"([^:]{1,80}): (\d+)/(\d+)(?:, (.*))?")


def folder_of(space: Workspace, job: Job) -> Path:
    return (space.path / job.log).parent


def run_name(job: Job) -> str | None:
    """The name of the run that the job makes, None where it makes none."""
    return next((word.removeprefix("--name=") for word in job.words if word.startswith("--name=")), None)


def run_of(space: Workspace, job: Job) -> Run:
    """The run that the job makes."""
    return Run(space.runs / job.words[0] / (run_name(job) or str(job.id)))


def tail(space: Workspace, job: Job, lines: int = 12) -> list[str]:
    """The last lines of the log."""
    try:
        with open(folder_of(space, job) / "log.txt", "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()][-lines:]


def progress(lines: Sequence[str]) -> Progress | None:
    """The last line that says how far the command is; None where there is none."""
    for line in reversed(lines):
        if found := _PROGRESS.fullmatch(line.strip()):
            what, done, total, rest = found.groups()
            return Progress(what, int(done), int(total), rest or "")
    return None


def curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    """What the run logged by step, for each name that is a number."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in run.metrics():
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool) and "step" in line:
                found.setdefault(name, []).append((line["step"], float(value)))
    return found


def report_of(space: Workspace, command: str, name: str) -> Path | None:
    """The report of a run, None where there is none; nothing outside the workspace's runs."""
    if command not in MADE or not _NAME.fullmatch(name):
        return None
    path = space.runs / command / name / "report.html"
    inside = path.is_file() and path.resolve().is_relative_to(space.runs.resolve())
    return path if inside else None

"""A run is one folder: its whole configuration, its environment, its metrics, its result. A killed run goes on in its folder."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hfi import __version__, hub, tensorboard
from hfi.config import to_toml
from hfi.errors import HfiError, UsageError
from hfi.files import room_for, write_text
from hfi.logs import event

LIBRARIES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "sqlalchemy", "alembic", "gradio", "pillow", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """`runs/<command>/<name>/` with config.json and config.toml, environment.json, metrics.jsonl and, once finished, result.json."""

    path: Path

    @classmethod
    def start(cls, runs: Path, command: str, name: str, config: dict[str, Any]) -> "Run":
        """A new run, or the one of this name and configuration to go on with.

        A finished run of the same configuration comes back as it is: see `finished`. HfiError where the name is taken by a run of
        another configuration, naming the difference; UsageError for a name that would lie elsewhere.
        """
        check_name(name)
        run = cls(runs / command / name)
        wanted = json.loads(json.dumps(config, default=str))
        if (run.path / "config.json").exists():
            held = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
            if held != wanted:
                on = f"go on with --model {model}, " if (model := moved_on(held, wanted)) else ""
                raise HfiError(
                    f"the run {command}/{name} was started with other settings ({_difference(held, wanted)}): "
                    f"{on}give another --name, or remove {run.path}"
                )
            event("run_found", run=f"{command}/{name}", finished=run.finished)
            return run
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            write_text(run.path / "config.toml", to_toml(wanted))
            write_text(run.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
            write_text(run.path / "config.json", json.dumps(wanted, indent=2) + "\n")
        except OSError as e:
            raise HfiError(f"cannot write the run {run.path}: {e.strerror or e}") from e
        event("run_started", run=f"{command}/{name}")
        return run

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl, and to the event file where there is one (see `hfi.tensorboard`)."""
        path = self.path / "metrics.jsonl"
        with room_for(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        tensorboard.add(self.path, values)

    def show(self, path: Path) -> None:
        """Puts a PNG of this run, named by its step, into the event file where there is one."""
        tensorboard.show(self.path, path)

    def metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a killed run may leave half a line

    def begin_metrics(self, step: int) -> None:
        """Every training starts with it: forgets what was logged after `step`, as a resumed run logs it again, and begins the event
        file."""
        kept = [line for line in self.metrics() if line.get("step", 0) <= step]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        config = self.path / "config.toml"
        tensorboard.begin(self.path, config.read_text(encoding="utf-8") if config.exists() else "", kept, step)

    def finish(self, result: dict[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(result, indent=2, default=str) + "\n")
        event("run_finished", run=f"{self.path.parent.name}/{self.path.name}")

    def result(self) -> dict[str, Any]:
        if not self.finished:
            raise HfiError(f"the run {self.path} is not finished: run the same command again to go on")
        found: dict[str, Any] = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        return found

    def cost(self) -> dict[str, Any]:
        """Seconds and peak memory (bytes) of a training, see `hfi.diffusion.training.drive`."""
        path = self.path / "cost.json"
        if not path.exists():
            raise HfiError(
                f"the run {self.path} does not say what it cost (an older version made it): remove it to make it again"
            )
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return found


def software(folder: Path) -> dict[str, str]:
    """What a run's environment.json says of versions, in few words."""
    known = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    found = {"hfi": known["hfi"], "python": known["python"], **known["versions"]}
    return {**found, "revision": known["git"][:12]} if known.get("git") else found


def check_name(name: str) -> None:
    """UsageError for what is no name of a folder."""
    if name in ("", ".", "..") or not {"/", "\\"}.isdisjoint(name):
        raise UsageError(f"{name!r} cannot name a run, which is a folder: give a name without slashes, such as 'second'")


def moved_on(held: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The model of a run's configuration, where the hub's repository is in another version now and nothing else differs but hashes,
    which follow from it."""
    model, now = str(held.get("model")), str(wanted.get("model"))
    name, revision = hub.split(model)
    if model == now or revision is None or hub.split(now)[0] != name:
        return None
    differing = {key for key in held.keys() | wanted.keys() if held.get(key) != wanted.get(key)} - {"model"}
    return model if all(_HASH.fullmatch(str(held.get(key))) for key in differing) else None


_HASH = re.compile(r"[0-9a-f]{64}")


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """'steps was 4, now 5' of up to three settings. Hashes mostly follow from others: they are named where nothing else differs."""

    def short(value: Any) -> str:
        text = repr(value)
        return text if len(text) <= 50 else f"{text[:20]}...{text[-10:]}"

    different = sorted(k for k in {*held, *wanted} if held.get(k) != wanted.get(k))
    plain = [k for k in different if len(str(wanted.get(k))) < 64] or different
    more = f"; and {len(plain) - 3} more" if len(plain) > 3 else ""
    return "; ".join(f"{k} was {short(held.get(k))}, now {short(wanted.get(k))}" for k in plain[:3]) + more


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of each package the version that is installed, None where it is not."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def environment() -> dict[str, Any]:
    """What a result may depend on beside its configuration."""
    return {
        "hfi": __version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": {name: version for name, version in versions(LIBRARIES).items() if version},
        "hub": hub.used(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_revision() -> str | None:
    """The checkout's commit, or None for an installed wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

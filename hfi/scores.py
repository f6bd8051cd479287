"""What a reward model says of the workspace's images, kept beside its file so that choosing images needs no model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from hfi.errors import HfiError, NotFound
from hfi.files import write_text
from hfi.workspace import Workspace


def scores_path(space: Workspace, reward: str) -> Path:
    return space.rewards / f"{reward}.scores.jsonl"


def rewards(space: Workspace) -> list[str]:
    """The names of the workspace's reward models, the latest first."""
    files = sorted(space.rewards.glob("*.safetensors"), key=lambda file: (-file.stat().st_mtime, file.name))
    return [file.stem for file in files]


def keep_scores(space: Workspace, reward: str, scores: Mapping[str, float]) -> Path:
    """Writes scores by sha256, with the hash of the reward model that gave them: of another model they say nothing."""
    lines = [{"reward": _digest(_file(space, reward))}, *({"image": sha, "score": score} for sha, score in scores.items())]
    path = scores_path(space, reward)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_scores(space: Workspace, reward: str) -> dict[str, float]:
    """The scores that are known of a reward model by sha256: of its training images, and those that 'hfi campaign score' gave.
    NotFound for an unknown reward."""
    file = _file(space, reward)
    digest = _digest(file)
    found: dict[str, float] = {}
    for run in sorted((space.runs / "reward").glob("*")):
        model, scores = run / "reward.safetensors", run / "scores.jsonl"
        if scores.exists() and model.exists() and _digest(model) == digest:
            found |= _read(scores)
    kept = scores_path(space, reward)
    if kept.exists() and kept.read_text(encoding="utf-8").partition("\n")[0] == json.dumps({"reward": digest}):
        found |= _read(kept)
    return found


def _read(path: Path) -> dict[str, float]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["image"]: float(line["score"]) for line in lines if "image" in line}
    except (ValueError, KeyError, TypeError):
        raise HfiError(f"{path} is damaged: remove it, and run 'hfi campaign score' again") from None


def _file(space: Workspace, reward: str) -> Path:
    if reward not in (known := rewards(space)):
        raise NotFound(
            f"no reward model {reward!r} in {space.rewards} (known: {', '.join(known) or 'none yet'}): run 'hfi reward'"
        )
    return space.rewards / f"{reward}.safetensors"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

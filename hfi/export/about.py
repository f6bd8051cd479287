"""What an exported file says of itself. No path of the machine that made it."""

import json
from collections.abc import Sequence
from pathlib import PurePath

from hfi.erase.erasure import Erasure, identity
from hfi.hub import is_id


def public_name(model: str) -> str:
    """A hub id as it is, a folder by its own name."""
    return model if is_id(model) else PurePath(model.replace("\\", "/")).name or "model"


def metadata(erasures: Sequence[Erasure], hfi: str) -> dict[str, str]:
    """For a safetensors file: the base, and every step that led to these weights."""
    steps = [step for erasure in erasures for step in erasure.history]
    steps = [{**step, "base_name": public_name(step.get("base_name", ""))} for step in steps]
    return {
        "base": erasures[0].metadata["base"],
        "base_name": steps[0]["base_name"],
        "concepts": json.dumps(sorted({slug for erasure in erasures for slug in erasure.concepts})),
        "erasure": str(identity(erasures)),
        "steps": json.dumps(steps),
        "hfi": hfi,
    }

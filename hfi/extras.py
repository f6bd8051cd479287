"""Packages that only some commands need: imported when they are asked for, and missed in one line."""

import importlib
from typing import Any

from hfi.errors import HfiError


def bring(module: str, extra: str, wanted_by: str) -> Any:
    """The imported module. HfiError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise HfiError(f"{wanted_by} needs a package that does not import ({e}): pip install 'hfi[{extra}]'") from None

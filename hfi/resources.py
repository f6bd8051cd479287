"""Where the embedded model, the prompt sets and the migrations are: in the checkout, or inside the installed package. And what memory
a process has taken."""

import sys
from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir() -> Path:
    return _first(_PACKAGE.parent / "data", _PACKAGE / "_data", "portraits")


def migrations_dir() -> Path:
    return _first(_PACKAGE.parent / "migrations", _PACKAGE / "_migrations", "env.py")


def _first(checkout: Path, packaged: Path, mark: str) -> Path:
    return checkout if (checkout / mark).exists() else packaged


def process_memory() -> int:
    """The most memory, in bytes, that this process had at one time. Not ru_maxrss where Linux says better: that starts from the peak
    of the program that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

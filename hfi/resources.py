"""Where the embedded model, the prompt sets and the migrations are: in the checkout, or inside the installed package."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def data_dir() -> Path:
    return _first(_PACKAGE.parent / "data", _PACKAGE / "_data", "portraits")


def migrations_dir() -> Path:
    return _first(_PACKAGE.parent / "migrations", _PACKAGE / "_migrations", "env.py")


def _first(checkout: Path, packaged: Path, mark: str) -> Path:
    return checkout if (checkout / mark).exists() else packaged

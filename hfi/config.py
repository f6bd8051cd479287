"""A frozen dataclass is the one description of a command's settings: its fields carry help and bounds.

    @dataclass(frozen=True, kw_only=True)
    class RewardConfig:
        steps: int = option(500, "optimizer updates", low=1)
        def __post_init__(self) -> None:
            check(self)

The command line, `docs/cli.md` and TOML files are all read from it. Order: defaults, then a TOML file, then flags.
"""

import tomllib
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hfi.errors import UsageError

T = TypeVar("T")


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A field with help and bounds: low <= value <= high, value > above."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "above": above})


def check(config: Any) -> None:
    """Checks every field's type, choices and bounds; UsageError names all mistakes together."""
    mistakes = []
    hints = get_type_hints(type(config))
    for f in fields(config):
        value, wanted = getattr(config, f.name), hints[f.name]
        name = flag(f.name)
        if get_origin(wanted) is Literal:
            if value not in get_args(wanted):
                mistakes.append(f"{name} is {value!r}: choose {' or '.join(map(str, get_args(wanted)))}")
            continue
        if value is None or isinstance(value, str | bool) or not isinstance(value, int | float):
            continue
        bounds = f.metadata
        if bounds.get("low") is not None and not value >= bounds["low"]:
            mistakes.append(f"{name} is {value}: give {bounds['low']} or more")
        if bounds.get("above") is not None and not value > bounds["above"]:
            mistakes.append(f"{name} is {value}: give more than {bounds['above']}")
        if bounds.get("high") is not None and not value <= bounds["high"]:
            mistakes.append(f"{name} is {value}: give {bounds['high']} or less")
    if mistakes:
        raise UsageError("; ".join(mistakes))


def flag(name: str) -> str:
    """ema_decay -> --ema-decay"""
    return "--" + name.replace("_", "-")


def from_toml(config_class: type[T], path: Path, **overrides: Any) -> T:
    """The configuration in a TOML file of `name = value` lines, `overrides` on top. UsageError for unknown keys, wrong types."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no configuration file {path}: check the path given to --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} is not TOML: {e}") from None
    names = {f.name for f in fields(config_class)}  # type: ignore[arg-type]
    if unknown := sorted(set(given) - names):
        raise UsageError(f"{path} has unknown settings {', '.join(unknown)}: known are {', '.join(sorted(names))}")
    hints = get_type_hints(config_class)
    for name, value in given.items():
        given[name] = coerce(name, value, hints[name], path)
    return config_class(**{**given, **overrides})


def coerce(name: str, value: Any, wanted: Any, path: Path) -> Any:
    """A TOML value as the type of its setting: whole numbers serve as decimal ones. UsageError naming the file for another type."""
    kinds = get_args(wanted) if get_origin(wanted) is not Literal and get_args(wanted) else (wanted,)
    if get_origin(wanted) is Literal:
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not any(
        isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)) for kind in kinds
    ):
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise UsageError(f"{path}: {name} = {value!r} is no {names}")
    return value


def to_toml(values: dict[str, Any]) -> str:
    """Flat settings as TOML; None is left out."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    import json

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's escapes are TOML's, but for surrogate pairs, which TOML has not, and DEL, which only TOML escapes
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def as_dict(config: Any) -> dict[str, Any]:
    return asdict(config)

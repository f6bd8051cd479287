"""What is asked for is pinned, and what an audit says is what was looked up."""

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
# of torch for GPUs, which brings its own exact versions
UNPINNED = re.compile(r"(nvidia|cuda)-.*|triton|setuptools")


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}
    assert len(found) == len(lines), "a package is pinned twice"
    return found


def asked() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from map(Requirement, words)


def test_every_dependency_and_what_it_needs_is_pinned_in_a_version_that_fits() -> None:
    pinned, seen = pins(), set[tuple[str, str]]()
    todo = [(one, extra) for one in asked() for extra in ("", *one.extras)]
    assert len(todo) > 25
    while todo:
        wanted, extra = todo.pop()
        name = canonicalize_name(wanted.name)
        if UNPINNED.fullmatch(name):
            continue
        assert name in pinned, f"{name} is not in constraints.txt"
        assert wanted.specifier.contains(pinned[name], prereleases=True), f"{wanted} and {name}=={pinned[name]}"
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(need, inner) for inner in ("", *need.extras)]
    assert len(seen) > 80


@pytest.fixture
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MENDED: dict[str, Any] = {"id": "PYSEC-2019-179", "fix_versions": ["1.0"], "aliases": [], "description": ""}
FOUND = {"name": "flask", "version": "0.5", "vulns": [MENDED]}
CLEAN = {"name": "rich", "version": "15.0.0", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.4.6)"}
NONE = "audit: NOT MADE. No advisory service (pypi, osv) answered for any of the {pins} pinned packages.\n"
ONE = """audit: 1 of {pins} pinned packages looked up, 0 known vulnerabilities
audit: {rest} packages are unknown to both services and were NOT looked up
"""
TWO = """audit: 2 of {pins} pinned packages looked up, 1 known vulnerabilities
  flask 0.5: PYSEC-2019-179, mended in 1.0
"""


@pytest.mark.parametrize(
    ("pypi", "osv", "code", "said"),
    [
        ([SKIPPED] * 150, [], 0, NONE),
        ([], [], 0, NONE),
        ([SKIPPED, CLEAN], [], 0, ONE),
        ([SKIPPED], [CLEAN, FOUND], 1, TWO),
        ([FOUND], [CLEAN], 1, TWO),
        ([FOUND], [CLEAN, FOUND], 1, TWO),
    ],
)
def test_an_audit_that_looked_nothing_up_is_no_audit(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pypi: Any, osv: Any, code: int, said: str
) -> None:
    """The first report is what pip-audit calls "No known vulnerabilities found" where its service knows no package."""
    monkeypatch.setattr(audit, "ask", lambda service: {"dependencies": {"pypi": pypi, "osv": osv}[service]})
    assert audit.main() == code
    assert capsys.readouterr().out.startswith(said.format(pins=len(pins()), rest=len(pins()) - 1))

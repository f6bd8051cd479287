"""What is released: a wheel and an sdist, that the sdist builds the same wheel, and what is in them."""

import configparser
import email
import os
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from hfi import __version__

hatchling = pytest.importorskip("hatchling.build")
markdown = pytest.importorskip("readme_renderer.markdown")
ROOT = Path(__file__).parent.parent


def built(source: Path, out: Path, kind: str) -> Path:
    """A wheel or an sdist of the sources, as pip would have it made."""
    out.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(source)  # where the build back end looks
    try:
        return out / getattr(hatchling, f"build_{kind}")(str(out))
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("dist")
    return built(ROOT, out, "wheel"), built(ROOT, out, "sdist")


@pytest.fixture(scope="module")
def about(released: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(released[0]) as wheel:
        return email.message_from_bytes(wheel.read(f"hfi-{__version__}.dist-info/METADATA"))


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as found:
        return found.namelist()


def test_the_sdist_builds_the_same_wheel(released: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(released[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    again = built(tmp_path / f"hfi-{__version__}", tmp_path / "dist", "wheel")
    assert again.read_bytes() == released[0].read_bytes()


def test_the_wheel_holds_the_packages_the_data_and_the_migrations(released: tuple[Path, Path]) -> None:
    found = set(names(released[0]))
    wanted = {p.relative_to(ROOT).as_posix() for package in ("hfi", "ui") for p in (ROOT / package).rglob("*.py")}
    beside = (".js", ".css", ".html", ".json", ".svg")
    wanted |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "ui").rglob("*") if p.suffix in beside}
    wanted.add("hfi/report.css")
    for folder in ("data", "migrations"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        wanted |= {f"hfi/_{p.relative_to(ROOT).as_posix()}" for p in files}
    assert len(wanted) > 200
    assert not wanted - found
    assert f"hfi-{__version__}.dist-info/licenses/LICENSE" in found
    assert {name.split("/")[0] for name in found} == {"hfi", "ui", f"hfi-{__version__}.dist-info"}


def test_the_sdist_holds_what_a_packager_needs(released: tuple[Path, Path]) -> None:
    with tarfile.open(released[1]) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt",
        "docs/cli.md", "docs/tutorial.md", "mkdocs.yml", "pyproject.toml", "tests/conftest.py", "tests/assets/0001-thousand.db.gz",
    } <= found  # fmt: skip


@pytest.mark.parametrize("kind", [0, 1], ids=["wheel", "sdist"])
def test_nothing_is_released_that_is_made_by_working(released: tuple[Path, Path], kind: int) -> None:
    if kind == 0:
        found = names(released[0])
    else:
        with tarfile.open(released[1]) as sdist:
            found = sdist.getnames()
    assert len(found) > 200
    for name in found:
        parts = set(Path(name).parts)
        made = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".venv", "demo", "site", "dist", "build"}
        assert not parts & made, name
        assert not name.endswith((".pyc", ".log", ".pt", ".pkl")), name
        assert not name.endswith(".db") or "tests/assets" in name, name
    assert released[kind].stat().st_size < 40e6


def test_what_the_metadata_say_is_so(about: Message, released: tuple[Path, Path]) -> None:
    assert about["Name"] == "hfi" and about["Version"] == __version__
    assert about["License-Expression"] == "MIT" and about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.11"
    assert "diffusion" in about["Keywords"]
    kinds = about.get_all("Classifier") or []
    assert "Programming Language :: Python :: 3.11" in kinds and not any(kind.startswith("License ::") for kind in kinds)
    from trove_classifiers import classifiers  # it comes with hatchling

    assert set(kinds) <= set(classifiers)
    assert not any("http" in url for url in about.get_all("Project-URL") or [])  # there is no address to name yet
    with zipfile.ZipFile(released[0]) as wheel:
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"hfi-{__version__}.dist-info/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"hfi": "hfi.cli:main"}


def test_the_readme_renders_where_packages_are_shown(about: Message) -> None:
    assert about["Description-Content-Type"] == "text/markdown"
    page = markdown.render(str(about.get_payload()))
    assert page is not None
    assert "<h1" in page and "not run:" not in page  # marks are comments, and comments are no text

"""What many tests need: no settings of whoever runs them, a workspace, and the command line in this process."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: workers that share cores must not each want all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from postgres import Server, serving_postgres

from hfi.cli import main
from hfi.store.migrate import upgrade
from hfi.workspace import Workspace

# The same cases in every run, however slow the machine is; `pytest --hypothesis-profile search` looks for others.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, derandomize=False)
settings.load_profile("suite")


@dataclass(frozen=True)
class Done:
    """A finished `hfi` call."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def errors(self) -> list[str]:
        """The lines that say why it failed."""
        return [line for line in self.stderr.splitlines() if line.startswith("hfi: error: ")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--database", choices=["sqlite", "postgresql"], default="sqlite", help="where the workspaces keep their databases"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "databases: of the store and the labeling app: holds on PostgreSQL, too (--database postgresql)"
    )
    config.addinivalue_line("markers", "sqlite: in a module of those, but about SQLite's file")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --database postgresql, the tests that hold on both databases, and no others."""
    if config.getoption("--database") == "postgresql":
        both = [item for item in items if item.get_closest_marker("databases") and not item.get_closest_marker("sqlite")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(both)])
        items[:] = both


@pytest.fixture
def alone(hfi: Callable[..., Done]) -> Iterator[Callable[..., Done]]:
    """`hfi` with one thread, as the processes of tests/launched.py."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield hfi
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def postgres(no_settings: None) -> Iterator[Server]:
    """A PostgreSQL server, one for each process that runs tests."""
    with serving_postgres() as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def no_settings() -> Iterator[None]:
    """No HFI_* setting of whoever runs the tests reaches one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HFI_")]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Help has one width and no colours."""
    for name, value in {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def empty_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: running the migrations takes longer than most tests. Copy it."""
    space = Workspace.create(tmp_path_factory.mktemp("empty") / "work")
    upgrade(f"sqlite:///{space.path / 'hfi.db'}")
    return space.path


@pytest.fixture(scope="session")
def new_workspace(empty_workspace: Path, request: pytest.FixtureRequest) -> Callable[[Path], Workspace]:
    """new_workspace(path): an empty workspace with an up-to-date database. On PostgreSQL it is a new one, and HFI_DATABASE_URL names it
    until the next."""

    def make(path: Path) -> Workspace:
        shutil.copytree(empty_workspace, path)
        if request.config.getoption("--database") == "postgresql":
            (path / "hfi.db").unlink()
            os.environ["HFI_DATABASE_URL"] = request.getfixturevalue("postgres").new()
        return Workspace(path)

    return make


@pytest.fixture
def workspace(new_workspace: Callable[[Path], Workspace], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """An empty workspace with an up-to-date database."""
    space = new_workspace(tmp_path / "work")
    url = os.environ.get("HFI_DATABASE_URL")
    yield space
    if url:
        os.environ.pop("HFI_DATABASE_URL", None)
        request.getfixturevalue("postgres").drop(url)


@pytest.fixture
def own_database(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a test that makes a workspace by itself: on PostgreSQL HFI_DATABASE_URL names an empty database."""
    if request.config.getoption("--database") == "postgresql":
        os.environ["HFI_DATABASE_URL"] = url = request.getfixturevalue("postgres").new("template1")
        yield
        del os.environ["HFI_DATABASE_URL"]
        request.getfixturevalue("postgres").drop(url)
    else:
        yield


@pytest.fixture
def hfi(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """hfi("concept", "list", "--workspace", path): runs the command as a shell would, without a new process."""

    def call(*args: object) -> Done:
        capfd.readouterr()
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        out = capfd.readouterr()
        return Done(code, out.out, out.err)

    return call

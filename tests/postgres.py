"""A PostgreSQL server of the tests' own, in a folder that goes with it."""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import OperationalError

from hfi.store.migrate import upgrade

USER, PASSWORD = "hfi", "p@ss: wö/rd?#%41&=+"  # every sign that means something in a URL
REQUIRED = os.environ.get("HFI_REQUIRE_POSTGRES") == "1"  # read before the tests' settings are cleared


def _programs() -> str | None:
    """The folder of the newest server's programs."""
    installed = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4].partition(".")[0]))
    found = shutil.which("postgres")
    return installed[-1] if installed else str(Path(found).parent) if found else None


PROGRAMS = _programs()


# The server goes when the process that started it does, even a killed one.
_WITH_US = ["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []


@dataclass
class Server:
    """`owner`: the user as whom it runs, as the server refuses to be root."""

    folder: Path
    port: int
    owner: str | None
    names: Iterator[int]
    process: "subprocess.Popen[bytes] | None" = None

    def url(self, database: str, user: str = USER, password: str | None = PASSWORD) -> str:
        found = URL.create("postgresql", user, password, "127.0.0.1", self.port, database)
        return found.render_as_string(hide_password=False)

    def run(self, statement: str, database: str = "postgres") -> None:
        """As the server's owner, who asks through the socket and needs no password."""
        engine = create_engine(
            URL.create(
                "postgresql+psycopg", "postgres", database=database, query={"host": str(self.folder), "port": str(self.port)}
            ),
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def new(self, template: str = "filled") -> str:
        """The URL of a database of its own, of today's schema; with template1, an empty one."""
        name = f"test_{next(self.names)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {USER}")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    def start(self) -> None:
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder, "fsync": "off",
            "synchronous_commit": "off", "full_page_writes": "off", "max_connections": 120, "shared_buffers": "32MB",
            "autovacuum": "off", "max_wal_size": "256MB", "log_min_messages": "warning",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            command = [*_WITH_US, f"{PROGRAMS}/postgres", "-D", str(self.folder / "data"), *options]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.as_owner)

        def ready() -> bool:
            assert self.process is not None and self.process.poll() is None, (self.folder / "log").read_text()
            try:
                self.run("SELECT 1")
            except OperationalError:
                return False
            return True

        wait_until(ready, 120)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once. SIGINT: connections are ended in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)

    @property
    def as_owner(self) -> dict[str, Any]:
        """How a program of the server is started."""
        started: dict[str, Any] = {"cwd": "/", "env": {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}}
        if self.owner:
            who = pwd.getpwnam(self.owner)
            started |= {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        return started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving_postgres() -> Iterator[Server]:
    """A server with a template `filled`, of today's schema. Skips where there is none to start, or fails if HFI_REQUIRE_POSTGRES=1."""
    if PROGRAMS is None:
        words = "no PostgreSQL server is installed: nothing was tested on it (apt-get install postgresql)"
        if REQUIRED:
            pytest.fail(words)
        pytest.skip(words)
    folder = Path(tempfile.mkdtemp(prefix="hfi-postgres-"))
    owner = "postgres" if os.getuid() == 0 else None
    if owner:
        shutil.chown(folder, owner)
    server = Server(folder, 0, owner, count())
    try:
        made = [f"{PROGRAMS}/initdb", "-D", folder / "data", "-U", "postgres", "-E", "UTF8", "--no-sync"]
        trust = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        done = subprocess.run([*made, *trust], stdin=subprocess.DEVNULL, capture_output=True, text=True, **server.as_owner)
        assert done.returncode == 0, done.stderr
        server.port = free_port()  # as late as can be: other tests take ports, too
        server.start()
        quoted = PASSWORD.replace("'", "''")
        server.run(f"CREATE ROLE {USER} LOGIN PASSWORD '{quoted.replace('%', '%%')}'")
        server.run(f"CREATE DATABASE filled OWNER {USER}")
        upgrade(server.url("filled"))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(found: Any, seconds: float = 20) -> Any:
    """What `found` gives, as soon as it gives something."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value

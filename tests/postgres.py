"""A PostgreSQL server of the tests' own, in a folder that goes with it."""

import glob
import os
import pwd
import shutil
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
from sqlalchemy import URL, create_engine, text

from hfi.store.migrate import upgrade

USER, PASSWORD = "hfi", "p@ss: wö/rd?#%41&=+"  # every sign that means something in a URL
REQUIRED = os.environ.get("HFI_REQUIRE_POSTGRES") == "1"  # read before the tests' settings are cleared


def _programs() -> str | None:
    """The folder of the newest server's programs."""
    installed = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4].partition(".")[0]))
    found = shutil.which("postgres")
    return installed[-1] if installed else str(Path(found).parent) if found else None


PROGRAMS = _programs()


@dataclass(frozen=True)
class Server:
    """`owner`: the user as whom it runs, as the server refuses to be root."""

    folder: Path
    port: int
    owner: str | None
    names: Iterator[int]

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
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._call("pg_ctl", "start", "-w", "-t", "60", "-D", self.folder / "data", "-l", self.folder / "log", "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self._call("pg_ctl", "stop", "-w", "-m", mode, "-D", self.folder / "data")

    def _call(self, program: str, *words: object) -> None:
        command = [f"{PROGRAMS}/{program}", *map(str, words)]
        as_owner: dict[str, Any] = {}
        if self.owner:
            who = pwd.getpwnam(self.owner)
            as_owner = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}, **as_owner,
        ) if program != "pg_ctl" else self._quietly(command, as_owner)  # fmt: skip
        log = self.folder / "log"
        assert done.returncode == 0, (command, done.stdout, log.read_text() if log.exists() else "")

    def _quietly(self, command: list[str], as_owner: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
        """The server that pg_ctl leaves behind keeps its outputs open: a pipe would never end."""
        with open(os.devnull, "w") as nowhere:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=nowhere, stderr=nowhere, text=True, cwd="/", **as_owner
            )


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
    server = Server(folder, free_port(), owner, count())
    try:
        server._call(
            "initdb",
            "-D",
            folder / "data",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--no-sync",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        )
        server.start()
        quoted = PASSWORD.replace("'", "''")
        server.run(f"CREATE ROLE {USER} LOGIN PASSWORD '{quoted.replace('%', '%%')}'")
        server.run(f"CREATE DATABASE filled OWNER {USER}")
        upgrade(server.url("filled"))
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(found: Any, seconds: float = 20) -> Any:
    """What `found` gives, as soon as it gives something."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


__all__ = ["PASSWORD", "PROGRAMS", "USER", "Server", "free_port", "serving_postgres", "text", "wait_until"]

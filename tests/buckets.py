"""A real object store: moto's server, a process of its own, on a port that is free."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

import fsspec
import pytest

ACCOUNT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "pictures"


@dataclass(frozen=True)
class ObjectStore:
    """`settings` are those of the environment that lead to it."""

    process: subprocess.Popen[bytes]
    address: str

    @property
    def settings(self) -> dict[str, str]:
        return {**ACCOUNT, "AWS_ENDPOINT_URL": self.address, "AWS_MAX_ATTEMPTS": "1"}

    def empty(self) -> None:
        """No buckets but an empty one."""
        urlopen(Request(f"{self.address}/moto-api/reset", method="POST")).close()
        filesystem().mkdir(BUCKET)


@contextmanager
def object_store(**environment: str) -> Iterator[ObjectStore]:
    command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with tempfile.TemporaryFile("w+") as log:  # no pipe: nobody reads what it says of each request
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:\d+", os.pread(log.fileno(), 4096, 0).decode())):
                assert process.poll() is None, os.pread(log.fileno(), 4096, 0).decode()
                time.sleep(0.02)
            yield ObjectStore(process, found[0])
        finally:
            process.kill()
            process.wait(30)


def filesystem() -> Any:
    """To look behind the store's back."""
    return fsspec.filesystem("s3", use_listings_cache=False)


def forget() -> None:
    """fsspec keeps its clients, with the addresses and accounts that they were made with."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@contextmanager
def leading_to(store: ObjectStore, **other: str) -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {**store.settings, **other}.items():
            patch.setenv(name, value)
        forget()
        yield patch
    forget()

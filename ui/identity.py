"""Who sent a request: a signed cookie. The secret stays in the workspace, so that a restart signs nobody out.

Without accounts, on an address of this computer alone, whoever gives a name is let in and may do everything. As soon as there is an
account, and on any other address, only accounts count: a cookie names the account's `session_version`, which a new password, signing
out everywhere, switching off and withdrawal raise, so that older cookies are worth nothing.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.requests import HTTPConnection
from starlette.responses import Response

from hfi.errors import HfiError
from hfi.store import people
from hfi.store.people import Standing
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading
from hfi.workspace import Workspace

MONTH, SHIFT = 30 * 24 * 3600, 12 * 3600  # seconds for which a cookie is good: without accounts, and with
_EARLY = 300  # seconds by which a clock may have been ahead
_FILE = ".ui-secret"
_SEEN = "hfi.seen"  # in a request's scope: found out once

Role = Literal["annotator", "manager"]


@dataclass(frozen=True)
class Person:
    """Who is asking. `agreed`: to the newest consent text, or there is none. `account`: signed in with a password."""

    annotator: Annotator
    role: Role
    agreed: bool
    account: bool


@dataclass(frozen=True)
class _Cookie:
    annotator_id: int
    version: int
    issued: int


@dataclass(frozen=True)
class Identity:
    """Signs people in and tells who sent a request. `closed`: only people with an account are let in, even before there is one.
    With `only`, and without accounts, nobody else than that annotator is anyone here."""

    engine: Engine
    secret: bytes
    only: Annotator | None = None
    closed: bool = False
    clock: Callable[[], float] = time.time

    @property
    def cookie(self) -> str:
        """One name for each workspace: browsers share cookies between the ports of a host."""
        return f"hfi-{hashlib.sha256(self.secret).hexdigest()[:8]}"

    def by_account(self) -> bool:
        """Whether people sign in with a password."""
        if self.closed:
            return True
        with reading(self.engine) as session:
            return people.has_accounts(session)

    def sign_in(self, request: HTTPConnection, response: Response, annotator_id: int, version: int = 0) -> None:
        """The next requests are this annotator's. `version`: of their account, 0 without one."""
        value = f"{annotator_id}.{version}.{int(self.clock())}"
        response.set_cookie(
            self.cookie,
            f"{value}.{self._signature(value)}",
            max_age=SHIFT if version else MONTH,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )

    def sign_out(self, response: Response) -> None:
        response.delete_cookie(self.cookie, httponly=True, samesite="lax")

    def who(self, request: HTTPConnection) -> Person | None:
        """The person that the cookie names. None for no cookie, a wrong signature, one that is too old or of an earlier session, and
        for somebody who is not to be here."""
        if _SEEN not in request.scope:
            cookie = self._read(request.cookies.get(self.cookie, ""))
            request.scope[_SEEN] = (cookie, self._person(cookie) if cookie else None)
        person: Person | None = request.scope[_SEEN][1]
        return person

    def renew(self, request: HTTPConnection, response: Response) -> None:
        """Gives a cookie that was of use and is not quite fresh another life, so that it ends some time after the last visit."""
        cookie, person = request.scope.get(_SEEN, (None, None))
        if person and self.clock() - cookie.issued > (SHIFT if person.account else MONTH) / 24:
            self.sign_in(request, response, cookie.annotator_id, cookie.version)

    def _read(self, value: str) -> _Cookie | None:
        signed, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            return None
        number, version, issued = signed.split(".")
        return _Cookie(int(number), int(version), int(issued))

    def _person(self, cookie: _Cookie) -> Person | None:
        with reading(self.engine, once=True) as session:
            found = people.standing(session, cookie.annotator_id)
        if found is None or found.withdrawn or found.annotator.simulated:
            return None
        by_account = self.closed or found.accounts
        if not -_EARLY <= self.clock() - cookie.issued <= (SHIFT if by_account else MONTH):
            return None
        if by_account:
            return _with_account(found, cookie.version)
        if cookie.version or (self.only and self.only.id != cookie.annotator_id):
            return None
        return Person(found.annotator, "manager", found.agreed, False)

    def _signature(self, value: str) -> str:
        return hmac.new(self.secret, f"person {value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _with_account(found: Standing, version: int) -> Person | None:
    if found.role is None or not found.active or found.session_version != version:
        return None
    return Person(found.annotator, "manager" if found.role == "manager" else "annotator", found.agreed, True)


def seen(scope: Mapping[str, Any]) -> Person | None:
    """The person that `Identity.who` found behind a request; None where it found nobody, or was not asked."""
    person: Person | None = scope.get(_SEEN, (None, None))[1]
    return person


def _make(path: Path) -> None:
    """Of several servers that start at once the first one's secret is that of all: it gets its name only where nothing has it."""
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(scratch, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def workspace_secret(workspace: Workspace) -> bytes:
    """The workspace's own secret, made on first use and readable by its owner only."""
    path = workspace.path / _FILE
    try:
        if not path.exists():
            _make(path)
        secret = path.read_bytes().strip()
    except OSError as e:
        raise HfiError(f"cannot keep the sign-in secret in {path}: {e.strerror or e}; check the folder's permissions") from e
    if len(secret) < 32:
        raise HfiError(f"{path} is damaged: delete it, people then sign in once more")
    return secret

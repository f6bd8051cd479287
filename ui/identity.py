"""Who is judging: a signed cookie, with a secret that stays in the workspace so that a restart signs nobody out."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.responses import Response

from hfi.errors import HfiError, NotFound
from hfi.files import whole
from hfi.store import queries
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading
from hfi.workspace import Workspace

_MONTH = 30 * 24 * 3600
_FILE = ".ui-secret"


@dataclass(frozen=True)
class Identity:
    """Signs annotators in and tells who sent a request. With `only`, nobody else than that annotator is anyone here."""

    engine: Engine
    secret: bytes
    only: Annotator | None = None

    @property
    def cookie(self) -> str:
        """One name for each workspace: browsers share cookies between the ports of a host."""
        return f"hfi-{hashlib.sha256(self.secret).hexdigest()[:8]}"

    def sign_in(self, response: Response, annotator: Annotator) -> None:
        value = f"{annotator.id}.{self._signature(str(annotator.id))}"
        response.set_cookie(self.cookie, value, max_age=_MONTH, httponly=True, samesite="lax")

    def sign_out(self, response: Response) -> None:
        response.delete_cookie(self.cookie, httponly=True, samesite="lax")

    def who(self, request: HTTPConnection) -> Annotator | None:
        """The person that the cookie names; None for no cookie, a wrong signature, or one who is not to judge here."""
        number, _, signature = request.cookies.get(self.cookie, "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(number).encode()) or not number.isdecimal():
            return None
        try:
            with reading(self.engine) as session:
                found = queries.annotator(session, int(number))
        except NotFound:
            return None
        return None if found.simulated or (self.only and self.only.id != found.id) else found

    def _signature(self, number: str) -> str:
        return hmac.new(self.secret, f"annotator {number}".encode(), hashlib.sha256).hexdigest()


def workspace_secret(workspace: Workspace) -> bytes:
    """The workspace's own secret, made on first use and readable by its owner only."""
    path = workspace.path / _FILE
    try:
        if not path.exists():
            with whole(path) as scratch, open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        secret = path.read_bytes().strip()
    except OSError as e:
        raise HfiError(f"cannot keep the sign-in secret in {path}: {e.strerror or e}; check the folder's permissions") from e
    if len(secret) < 32:
        raise HfiError(f"{path} is damaged: delete it, people then give their names once more")
    return secret

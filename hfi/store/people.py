"""People: accounts and signing in, what they agree to, and taking everything back.

A password is kept as scrypt of it, with a salt. Wrong ones are counted in the database, so that a restart forgives none: the first
five cost nothing, then each further try has to wait, from 2 s, doubling to 15 min. A name that nobody has is treated alike, in words
and in time, so that nobody learns who has an account.
"""

import hashlib
import hmac
import json
import math
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import bindparam, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hfi.errors import HfiError, NotFound, UsageError
from hfi.store import models as m
from hfi.store import queries
from hfi.store.judging import is_last, recount
from hfi.store.locks import hold_person
from hfi.store.queries import Annotator, named, now_utc
from hfi.store.session import Engine, writing

SHORTEST, LONGEST = 8, 200  # characters of a password
FREE_TRIES = 5
FIRST_WAIT, LAST_WAIT = 2, 15 * 60  # seconds
_FORGET = timedelta(days=1)  # a name that nobody tried for so long starts anew
_N, _R, _P = 2**14, 8, 1  # scrypt: 16 MB and some 50 ms
_NOBODY = f"scrypt${_N}${_R}${_P}${'00' * 16}${'00' * 32}"  # no password has this hash
# One scrypt at a time, and always in the same thread: however many sign in, it is 16 MB. In every thread that answers, the C library
# would keep as much for good.
_ONE = ThreadPoolExecutor(1, "scrypt")


class SignInRefused(HfiError):
    """`wait`: seconds until this name may be tried again; None where the name or the password is wrong."""

    def __init__(self, wait: int | None = None) -> None:
        why = "the name or the password is wrong" if wait is None else "too many wrong passwords for this name"
        super().__init__(f"{why}: {'give both again' if wait is None else f'try again in {wait} s'}")
        self.wait = wait


@dataclass(frozen=True)
class Account:
    """`agreed`: the version of the consent text that this person agreed to last."""

    annotator: Annotator
    role: str
    active: bool
    withdrawn: bool
    created_at: datetime
    agreed: int | None


@dataclass(frozen=True)
class Standing:
    """What an annotator may do now. Without an account `role` is None and `session_version` 0. `agreed`: whether to the newest
    consent text, or there is none; `agreed_to`: the last version that they agreed to, 0 for none;
    `accounts`: whether there are any."""

    annotator: Annotator
    role: str | None
    session_version: int
    active: bool
    withdrawn: bool
    agreed: bool
    agreed_to: int
    accounts: bool


@dataclass(frozen=True)
class ConsentText:
    version: int
    body: str
    created_at: datetime


@dataclass(frozen=True)
class Withdrawn:
    """What a withdrawal did: `judgments` count no longer, `comments` were emptied, `tasks` were counted anew. All 0 the second time."""

    pseudonym: str
    judgments: int
    comments: int
    tasks: int


# --- accounts ---


def has_accounts(s: Session) -> bool:
    return bool(s.scalar(select(exists().where(m.Account.id > 0))))


def accounts(s: Session) -> list[Account]:
    """All accounts, in the order in which they were made."""
    agreed = select(func.max(m.Consent.version)).where(m.Consent.annotator_id == m.Annotator.id).scalar_subquery()
    query = select(m.Account, m.Annotator, agreed).join(m.Annotator, m.Annotator.id == m.Account.annotator_id)
    return [
        Account(_person(person), row.role, row.active, person.withdrawn_at is not None, row.created_at, version)
        for row, person, version in s.execute(query.order_by(m.Account.id))
    ]


def names(s: Session, last: int) -> list[str]:
    """The `last` people to come here who have not withdrawn, oldest first."""
    query = select(m.Annotator.name).where(~m.Annotator.simulated, m.Annotator.withdrawn_at.is_(None))
    return list(s.scalars(query.order_by(m.Annotator.id.desc()).limit(last)))[::-1]


def find(s: Session, name: str) -> Annotator:
    """The person of this name or pseudonym, with or without an account. NotFound says who is known."""
    _, key = named(name)
    people = select(m.Annotator).where(~m.Annotator.simulated)
    row = s.scalar(people.where(m.Annotator.name_key == key)) or s.scalar(people.where(m.Annotator.pseudonym == name.strip()))
    if row is None:
        known = ", ".join(s.scalars(people.with_only_columns(m.Annotator.name).order_by(m.Annotator.id).limit(20)))
        raise NotFound(f"nobody is named {name[:80]!r}: {f'known are {known}' if known else 'nobody has come here yet'}")
    return _person(row)


def add_account(s: Session, name: str, password: str, role: str = "annotator") -> Account:
    """Gives somebody an account; who judged here without one keeps what they did. HfiError where they have one, where the name or
    the password will not do, and where the first account of all is not a manager's."""
    check_new(s, name, role)
    who = queries.ensure_annotator(s, name)
    row = m.Account(annotator_id=who.id, role=role, password_hash=_hashed(password), created_at=now_utc())
    s.add(row)
    s.flush()
    return Account(who, role, True, False, row.created_at, None)


def check_new(s: Session, name: str, role: str) -> None:
    """HfiError, before a password is asked for, where `add_account` would refuse the name or the role."""
    shown, key = named(name)
    _check_role(role)
    if role != "manager" and not has_accounts(s):
        raise HfiError("the first account must be a manager's, or nobody could manage the others: give it the role manager")
    query = select(m.Annotator.simulated, m.Account.id).outerjoin(m.Account, m.Account.annotator_id == m.Annotator.id)
    simulated, account_id = s.execute(query.where(m.Annotator.name_key == key)).one_or_none() or (False, None)
    if simulated:
        raise HfiError(f"{shown!r} is a simulated annotator: take another name, the two are kept apart")
    if account_id is not None:
        raise HfiError(f"{shown!r} has an account already: 'hfi user password' gives it another password")


def set_password(s: Session, annotator_id: int, password: str) -> None:
    """Another password; whoever is signed in with the old one no longer is."""
    row = account_row(s, annotator_id)
    row.password_hash = _hashed(password)
    row.session_version += 1
    s.execute(delete(m.LoginFailure).where(m.LoginFailure.name_key == s.get_one(m.Annotator, annotator_id).name_key))
    s.flush()


def set_role(s: Session, annotator_id: int, role: str) -> None:
    """HfiError where nobody would be left to manage."""
    _check_role(role)
    row = account_row(s, annotator_id)
    if role != "manager":
        _keep_a_manager(s, annotator_id)
    row.role = role
    s.flush()


def set_active(s: Session, annotator_id: int, active: bool) -> None:
    """Whether somebody may sign in; an account that is switched off is signed out everywhere. HfiError where nobody would be left to
    manage, and for switching on the account of somebody who withdrew."""
    row = account_row(s, annotator_id)
    if active and s.get_one(m.Annotator, annotator_id).withdrawn_at is not None:
        raise HfiError("this person withdrew, which cannot be undone: make a new account under another name")
    if not active:
        _keep_a_manager(s, annotator_id)
        row.session_version += 1
    row.active = active
    s.flush()


def sign_out_everywhere(s: Session, annotator_id: int) -> None:
    account_row(s, annotator_id).session_version += 1
    s.flush()


def account_row(s: Session, annotator_id: int) -> m.Account:
    row = s.scalar(select(m.Account).where(m.Account.annotator_id == annotator_id))
    if row is None:
        raise NotFound(f"{queries.annotator(s, annotator_id).name!r} has no account: 'hfi user add' makes one")
    return row


def _check_role(role: str) -> None:
    if role not in m.ROLES:
        raise UsageError(f"unknown role {role!r}: choose {' or '.join(m.ROLES)}")


def _keep_a_manager(s: Session, but: int) -> None:
    """HfiError where this person is the last who can manage."""
    managers = set(s.scalars(select(m.Account.annotator_id).where(m.Account.role == "manager", m.Account.active)))
    if managers == {but}:
        raise HfiError("nobody else is a manager: make another account a manager first")


def _person(row: m.Annotator) -> Annotator:
    return Annotator(row.id, row.name, row.pseudonym, row.simulated)


# --- signing in ---


def check_password(engine: Engine, name: str, password: str, now: datetime | None = None) -> Standing:
    """The one who has this name and this password. SignInRefused otherwise, for an account that is switched off as well.

    A try is counted before the password is looked at, so that many at once gain nothing, and taken back if it was right. The
    hashing happens between two transactions: on SQLite nobody else could write meanwhile.
    """
    with writing(engine, alone=False) as s:
        key, who, stored = _try(s, name, now or now_utc())
    fits = _fits(password, stored)
    if not fits or who is None:
        raise SignInRefused
    with writing(engine, alone=False) as s:
        s.execute(delete(m.LoginFailure).where(m.LoginFailure.name_key == key))
    return who


def _try(s: Session, name: str, now: datetime) -> tuple[str, Standing | None, str]:
    """Counts a try, and gives the name's key, who that is, and the hash to compare with. SignInRefused where it comes too early."""
    try:
        _, key = named(name)
    except HfiError:
        return "", None, _NOBODY
    old = select(m.LoginFailure.id).where(m.LoginFailure.last_at < now - _FORGET).with_for_update(skip_locked=True)
    s.execute(delete(m.LoginFailure).where(m.LoginFailure.id.in_(old)).execution_options(synchronize_session=False))
    row = _tries(s, key, now)
    if row.failures >= FREE_TRIES:
        wait = min(FIRST_WAIT * 2 ** min(row.failures - FREE_TRIES, 20), LAST_WAIT)
        left = (row.last_at - now).total_seconds() + wait
        if left > 0:
            raise SignInRefused(math.ceil(min(left, wait)))
    row.failures, row.last_at = row.failures + 1, now
    s.flush()
    query = select(m.Annotator.id, m.Account.password_hash).join(m.Account, m.Account.annotator_id == m.Annotator.id)
    found = s.execute(query.where(m.Annotator.name_key == key, m.Account.active)).one_or_none()
    return (key, standing(s, found[0]), found[1]) if found else (key, None, _NOBODY)


def _tries(s: Session, key: str, now: datetime) -> m.LoginFailure:
    """The row that counts a name's tries, locked; made where there is none."""
    mine = select(m.LoginFailure).where(m.LoginFailure.name_key == key).with_for_update()
    while (row := s.scalar(mine)) is None:
        try:
            with s.begin_nested():
                s.add(m.LoginFailure(name_key=key, failures=0, last_at=now))
        except IntegrityError:  # somebody else tried the same name for the first time in the same moment
            continue
    return row


_WHO: Any = m.Annotator.__table__
_ACCOUNT: Any = m.Account.__table__
_STANDING = (  # built once, of tables: every request asks it
    select(
        _WHO.c.id,
        _WHO.c.name,
        _WHO.c.pseudonym,
        _WHO.c.simulated,
        _WHO.c.withdrawn_at,
        _ACCOUNT.c.role,
        _ACCOUNT.c.session_version,
        _ACCOUNT.c.active,
        select(func.max(m.ConsentText.version)).scalar_subquery().label("wanted"),
        select(func.max(m.Consent.version)).where(m.Consent.annotator_id == _WHO.c.id).scalar_subquery().label("given"),
        exists().where(m.Account.id > 0).label("accounts"),
    )
    .select_from(_WHO.outerjoin(_ACCOUNT, _ACCOUNT.c.annotator_id == _WHO.c.id))
    .where(_WHO.c.id == bindparam("person"))
)


def standing(s: Session, annotator_id: int) -> Standing | None:
    """None for an annotator that there is not."""
    s.flush()
    row = s.connection().execute(_STANDING, {"person": annotator_id}).one_or_none()
    if row is None:
        return None
    return Standing(
        annotator=Annotator(row.id, row.name, row.pseudonym, row.simulated),
        role=row.role,
        session_version=row.session_version or 0,
        active=bool(row.active),
        withdrawn=row.withdrawn_at is not None,
        agreed=(row.given or 0) >= (row.wanted or 0),
        agreed_to=row.given or 0,
        accounts=bool(row.accounts),
    )


def _hashed(password: str) -> str:
    words = unicodedata.normalize("NFKC", password)
    if not SHORTEST <= len(words) <= LONGEST:
        raise HfiError(f"a password of {len(words)} characters: give {SHORTEST} to {LONGEST}")
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_scrypt(words, salt, _N, _R, _P).hex()}"


def _fits(password: str, stored: str) -> bool:
    _, n, r, p, salt, wanted = stored.split("$")
    found = _scrypt(unicodedata.normalize("NFKC", password), bytes.fromhex(salt), int(n), int(r), int(p))
    return hmac.compare_digest(found, bytes.fromhex(wanted))


def _scrypt(words: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    work = partial(hashlib.scrypt, salt=salt, n=n, r=r, p=p, maxmem=2**26, dklen=32)
    return _ONE.submit(work, words.encode("utf-8", "surrogatepass")).result()


# --- consent ---

_DEFAULT, _CONTACT = "consent-default", "contact"  # settings


def consent_text(s: Session) -> ConsentText | None:
    """The newest one; None where nobody is asked."""
    row = s.scalar(select(m.ConsentText).order_by(m.ConsentText.version.desc()).limit(1))
    return None if row is None else ConsentText(row.version, row.body, row.created_at)


def set_consent_text(s: Session, body: str) -> int:
    """What everybody is asked to agree to from now on, in Markdown; gives its version. The text of before changes nothing, another
    one is a new version, which everybody is asked about once more."""
    version = _keep_text(s, body)
    _set(s, _DEFAULT, None)
    return version


def offer_consent_text(s: Session, body: str) -> None:
    """As `set_consent_text`, for the text that comes with the program: it gives way to one that somebody has set."""
    known = consent_text(s)
    if known is None or (known.version == _get(s, _DEFAULT) and known.body != body.strip()):
        _set(s, _DEFAULT, _keep_text(s, body))


def _keep_text(s: Session, body: str) -> int:
    body = body.strip()
    if not body:
        raise HfiError("the consent text is empty: write what people are asked to agree to")
    known = consent_text(s)
    if known and known.body == body:
        return known.version
    version = known.version + 1 if known else 1
    s.add(m.ConsentText(version=version, body=body, created_at=now_utc()))
    s.flush()
    return version


def agree(s: Session, annotator_id: int, version: int) -> None:
    """Keeps that somebody agreed, and when; again changes nothing. HfiError unless it is the newest version."""
    newest = consent_text(s)
    if newest is None or newest.version != version:
        raise HfiError("the text has changed meanwhile: read it once more")
    mine = select(m.Consent.id).where(m.Consent.annotator_id == annotator_id, m.Consent.version == version)
    if s.scalar(mine) is None:
        s.add(m.Consent(annotator_id=annotator_id, version=version, agreed_at=now_utc()))
        s.flush()


def contact(s: Session) -> str | None:
    """Whom people can turn to, as the manager said."""
    return _get(s, _CONTACT)


def set_contact(s: Session, words: str) -> None:
    _set(s, _CONTACT, " ".join(words.split()) or None)


def _get(s: Session, key: str) -> Any:
    value = s.scalar(select(m.Setting.value).where(m.Setting.key == key))
    return None if value is None else json.loads(value)


def _set(s: Session, key: str, value: Any) -> None:
    s.execute(delete(m.Setting).where(m.Setting.key == key))
    if value is not None:
        s.add(m.Setting(key=key, value=json.dumps(value, ensure_ascii=False), changed_at=now_utc()))
    s.flush()


# --- taking everything back ---


def withdraw(s: Session, annotator_id: int, now: datetime | None = None) -> Withdrawn:
    """Somebody wants no part in this any more. Their name gives way to the pseudonym, their comments are emptied, their account is
    switched off and its password forgotten; their judgments count nowhere, and the tasks are free for others. Again changes nothing.

    HfiError for the last manager and for a simulated annotator.
    """
    hold_person(s, annotator_id)
    row = s.get(m.Annotator, annotator_id)
    if row is None or row.simulated:
        raise HfiError(f"annotator {annotator_id} is no person: only people withdraw")
    if row.withdrawn_at is not None:
        return Withdrawn(row.pseudonym, 0, 0, 0)
    account = s.scalar(select(m.Account).where(m.Account.annotator_id == annotator_id))
    if account:
        _keep_a_manager(s, annotator_id)
        account.active, account.password_hash = False, _NOBODY
        account.session_version += 1
    s.execute(delete(m.LoginFailure).where(m.LoginFailure.name_key == row.name_key))
    row.name = row.name_key = row.pseudonym  # no name that is typed has a capital letter in its key
    row.withdrawn_at = now or now_utc()
    comments: Any = s.execute(
        update(m.Judgment).where(m.Judgment.annotator_id == annotator_id, m.Judgment.comment.is_not(None)).values(comment=None)
    )
    notes: Any = s.execute(
        update(m.Adjudication)
        .where(m.Adjudication.annotator_id == annotator_id, m.Adjudication.note.is_not(None))
        .values(note=None)
    )
    mine = m.Assignment.annotator_id == annotator_id
    s.execute(update(m.Assignment).where(mine, m.Assignment.state == "open").values(state="expired"))
    said = select(func.count()).select_from(m.Judgment).where(m.Judgment.annotator_id == annotator_id)
    judgments = s.scalar(said.where(m.Judgment.verdict != "undone", is_last(m.Judgment))) or 0
    tasks = sorted(s.scalars(select(m.Assignment.task_id).where(mine)))  # whatever was judged was assigned
    recount(s, tasks)
    return Withdrawn(row.pseudonym, judgments, comments.rowcount + notes.rowcount, len(tasks))

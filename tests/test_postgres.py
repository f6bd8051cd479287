"""What only a server brings: its URLs and faults, people who judge at the same time, clients that die, and moving there and back."""

import gzip
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asked
import pytest
from alembic import command
from alembic.config import Config
from PIL import Image
from postgres import PASSWORD, Server, free_port, serving_postgres, wait_until
from sqlalchemy import delete, func, inspect, select, text, update
from test_store import THOUSAND, TODAY

from hfi.errors import HfiError, NotFound
from hfi.images import ImageStore, png
from hfi.judgments import freeze, frozen
from hfi.keeping import add, remove
from hfi.resources import migrations_dir
from hfi.store import campaigns, judging, locks, people
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.copying import copy
from hfi.store.migrate import migrating, status, upgrade
from hfi.store.session import Again, Away, Engine, Session, again, connect, parse, reading, shown, writing
from hfi.workspace import Workspace
from ui import label
from ui.label import Answer, Desk
from ui.load import verify
from ui.pictures import Pictures

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
ASSETS = Path(__file__).parent / "assets"

HEAD = max(path.stem for path in (migrations_dir() / "versions").glob("0*.py"))


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    made = postgres.new()
    yield made
    postgres.drop(made)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = connect(url)
    asked.concept(made)
    yield made
    made.dispose()


@pytest.fixture
def space(url: str, empty_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    shutil.copytree(empty_workspace, tmp_path / "work")
    (tmp_path / "work" / "hfi.db").unlink()
    monkeypatch.setenv("HFI_DATABASE_URL", url)
    return Workspace(tmp_path / "work")


def person(engine: Engine, name: str) -> q.Annotator:
    with writing(engine) as s:
        return q.ensure_annotator(s, name)


# --- URLs ---


@pytest.mark.parametrize(
    ("given", "user", "password", "database"),
    [
        ("postgresql://ann:p%40ss@host/db", "ann", "p@ss", "db"),
        ("postgres://ann:%25%2F%23%3A@host:5433/db", "ann", "%/#:", "db"),
        ("postgresql+psycopg://ann@host/d%40b", "ann", None, "d@b"),
        ("postgresql://ann:a#b@host/db", "ann", "a#b", "db"),  # what can be meant in one way only is taken so
        ("postgresql:///db?host=/run/sock", None, None, "db"),
    ],
)
def test_urls_are_read(given: str, user: str | None, password: str | None, database: str) -> None:
    found = parse(given)
    assert (found.drivername, found.username, found.password, found.database) == ("postgresql+psycopg", user, password, database)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://ann:se@cret@host/db",
        "postgresql://ann:se@cret:5@host/db",
        "postgres://an/n:secret@host/db",
        "postgresql://ann:se?cr@et@host/db",
        "postgresql://ann:p@secret/w#d?1%@host/db",
        "postgresql://ann:p@secret?1@host/db",
    ],
)
def test_a_url_that_could_be_read_in_two_ways_says_how_to_write_it(given: str) -> None:
    for use in (parse, connect, upgrade):
        with pytest.raises(HfiError, match="write @ as %40, : as %3A, / as %2F") as told:
            use(given)
        assert not re.search("secret|cret|cr@et", str(told.value))


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://ann:secret@host:port/db",
        "mysql://ann:secret@host/db",
        "postgresql+asyncpg://ann:secret@host/db",
        "postgresql:secret",
    ],
)
def test_another_url_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(HfiError) as told:
        connect(given)
    assert "secret" not in str(told.value).replace("postgresql:secret", "")


def test_a_missing_driver_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for use in (connect, upgrade):
        with pytest.raises(HfiError, match=r"pip install 'hfi\[postgres\]'"):
            use("postgresql://ann:secret@host/db")


def test_what_is_printed_of_a_url_has_no_password() -> None:
    for given in (
        "postgresql://ann:secret@host/db",
        "postgresql://host/db?user=ann&password=secret&sslpassword=secret",
        "x://ann:secret@h:p",
    ):
        assert "secret" not in shown(given)
    assert shown("postgresql://ann:secret@host/db?sslmode=require") == "postgresql://ann@host/db?sslmode=require"


# --- what can be wrong with a server ---


def test_no_output_holds_the_password(space: Workspace, hfi: Callable, postgres: Server, url: str) -> None:
    (shutil.rmtree(space.path), space.path.mkdir())
    postgres.drop(url)
    missing = hfi("init", space.path)
    assert missing.exit_code == 1 and "createdb" in missing.errors[0] and len(missing.errors) == 1
    postgres.run(f"CREATE DATABASE {url.rpartition('/')[2]} OWNER hfi")
    outputs = [missing.output]
    for words in (
        ["init", space.path],
        ["db", "status", "-w", space.path],
        ["db", "upgrade", "-w", space.path],
        ["doctor", "-w", space.path],
    ):
        done = hfi(*words, "--json")
        assert done.exit_code == 0, done.output
        outputs.append(done.output)
    assert "postgresql://hfi@127.0.0.1" in outputs[2]
    wrong = hfi("concept", "list", "-w", space.path)
    os.environ["HFI_DATABASE_URL"] = url.replace("%40", "%41")
    refused = hfi("concept", "list", "-w", space.path)
    assert "does not take this password for hfi" in refused.errors[0] and "@ as %40" in refused.errors[0]
    everything = "".join([*outputs, wrong.output, refused.output])
    written = b"".join(path.read_bytes() for path in space.path.rglob("*") if path.is_file())
    for secret in (PASSWORD, url.split(":")[2].partition("@")[0]):
        assert secret not in everything and secret.encode() not in written


def test_a_password_of_libpq_is_used(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = shown(url)
    assert PASSWORD not in bare and "@127" in bare
    with pytest.raises(HfiError, match="asks for the password of hfi, and none was given"):
        connect(bare)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    connect(bare).dispose()
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:hfi:" + PASSWORD.replace("\\", "\\\\").replace(":", "\\:") + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    connect(bare).dispose()


def test_each_fault_is_one_sentence(postgres: Server, url: str) -> None:
    def told(given: str) -> str:
        with pytest.raises(HfiError) as e:
            connect(given)
        assert "\n" not in str(e.value) and PASSWORD not in str(e.value)
        return str(e.value)

    assert "cannot reach the database" in told(f"postgresql://hfi@127.0.0.1:{free_port()}/db")
    assert "cannot reach the database" in told("postgresql://hfi@no.such.host.invalid/db")
    assert "cannot reach the database" in told("postgresql:///db?host=/nowhere/at/all")
    assert "make it with 'createdb nothing'" in told(postgres.url("nothing"))
    assert "does not take this password for nobody" in told(postgres.url("filled", user="nobody"))
    assert "option that PostgreSQL does not know" in told(f"{url}?colour=red")


def test_a_read_only_database_is_said(postgres: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine = connect(url)
    with pytest.raises(HfiError, match="is read-only"):
        person(engine, "Ann")
    with reading(engine) as s:
        assert q.images(s) == []
    engine.dispose()


def test_a_user_who_may_not_write_is_told(postgres: Server, engine: Engine) -> None:
    postgres.run("CREATE ROLE reader LOGIN PASSWORD 'reader'")
    other = connect(postgres.url(str(engine.url.database), "reader", "reader"))
    with pytest.raises(HfiError, match="the user reader may not do this"):
        person(other, "Ann")
    other.dispose()


def test_a_server_that_goes_away_is_said_and_found_again() -> None:
    with serving_postgres() as server:
        engine = connect(server.url("filled"))
        asked.concept(engine)

        def interrupted() -> None:
            with writing(engine) as s:
                q.ensure_annotator(s, "Ann")
                server.stop(signal.SIGINT)
                s.scalar(select(func.count()).select_from(m.Image))

        with pytest.raises(Away, match="cannot reach the database"):
            interrupted()
        with pytest.raises(Away, match="cannot reach the database"), reading(engine):
            pass
        server.start()
        with reading(engine) as s:  # the same engine, whose connections are all dead
            assert q.annotators(s) == [] and len(q.concepts_list(s)) == 1
        engine.dispose()


def test_a_server_that_is_full_is_away_for_a_while(postgres: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.run("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 0")
    postgres.run("CREATE ROLE many LOGIN PASSWORD 'many'")
    with pytest.raises(Away, match=r"has no connection free .*raise its max_connections"):
        connect(postgres.url(name, "few", "few"))
    postgres.run(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    with pytest.raises(Away, match=r"has no connection free .*raise its max_connections"):
        connect(postgres.url(name, "many", "many"))


def test_transactions_see_what_the_one_before_wrote_whatever_the_server_would_do(postgres: Server, url: str) -> None:
    postgres.run(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_isolation = 'repeatable read'")
    engine = connect(url)
    for alone in (True, False):
        with writing(engine, alone=alone) as s:
            assert s.scalar(text("SHOW transaction_isolation")) == "read committed"
    with reading(engine) as s:
        assert s.scalar(text("SHOW transaction_isolation")) == "repeatable read"
    engine.dispose()


def test_a_value_that_does_not_fit_is_said(engine: Engine) -> None:
    for key in ("k" * 300, "nul\0"):
        with pytest.raises(HfiError, match="does not fit"), writing(engine) as s:
            q.add_image(s, q.Provenance(key=key, sha256="0" * 64, width=8, height=8, source="generated"))


def test_a_removal_stops_where_its_transaction_has_ended(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stalls for longer than the server waits: the lock is free, and others refer to what is about to go."""
    engine, other, store = (
        connect(f"{url}?options=-c%20idle_in_transaction_session_timeout%3D2000"),
        connect(url),
        ImageStore(tmp_path),
    )
    pictures = {store.put(image): png(image) for image in (Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3))}
    files = sorted(store.files(), key=lambda file: file.name)
    unlink, stalled = Path.unlink, list[str]()

    def refer(sha: str) -> None:
        add(other, store, pictures[sha], q.Provenance(key=sha, sha256=sha, width=8, height=8, source="imported"))

    def stalling(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".png" and not stalled:
            stalled.append(path.stem)
            refer_later = threading.Thread(target=lambda: [refer(sha) for sha in sorted(pictures)])
            refer_later.start()  # waits for its turn
            refer_later.join(20)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stalling)
    with pytest.raises(HfiError, match="1 images were removed after the database came to refer to them, first") as told:
        remove(engine, store, files)
    assert stalled[0][:12] in str(told.value)
    assert store.shas() == set(pictures) - set(stalled)
    engine.dispose()
    other.dispose()


# --- people at the same time ---


def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, Pictures(Workspace(tmp_path).images))


def test_many_at_once_fill_a_campaign_exactly(engine: Engine, url: str, tmp_path: Path) -> None:
    """Eight people, on two servers, with two tabs each: what one tab has answered the other may ask for in the same moment."""
    campaign = asked.campaign(engine, asked.images(engine, 40), overlap=2, extra_votes=1)
    seats, said, failed = [desk(engine, tmp_path), desk(connect(url), tmp_path)], set[str](), list[str]()

    def judge(number: int) -> None:
        who, seat = person(engine, f"person {number % 8}"), seats[number % 2]
        for n in range(1000):
            state = again(lambda: label.state(seat, who, campaign.id))
            if state["task"] is None:
                return
            once = f"load-{number}-{n}-{state['task']['token'][:4]}"
            try:
                label.judge(
                    seat, who, Answer(token=state["task"]["token"], verdict=("shows", "clean")[(number + n) % 2], once=once)
                )
                said.add(once)
            except HfiError as e:
                if "judged this already" not in str(e):  # by the other tab
                    failed.append(str(e))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(judge, range(16)))
    assert failed == []
    assert verify(engine, said) == {"lost": 0, "unacknowledged": 0, "duplicates": 0, "over_overlap": 0}
    with reading(engine) as s:
        rows = s.execute(select(m.Task.wanted, m.Task.answers, m.Task.held, m.Task.free)).all()
        assert all(row.answers == row.wanted and (row.held, row.free) == (0, 0) for row in rows), (
            "nobody was told too early that it is over"
        )
        assert sum(row.answers for row in rows) == len(said) >= 80
        done = s.execute(select(m.Participant.annotator_id, m.Participant.done)).tuples().all()
        counted = select(m.Judgment.annotator_id, func.count()).group_by(m.Judgment.annotator_id)
        assert dict(done) == dict(s.execute(counted).tuples().all())
        assert s.scalar(select(func.sum(m.Shift.judgments))) == len(said)
    seats[1].engine.dispose()


def test_two_answers_at_once_are_both_counted(engine: Engine) -> None:
    """Without its lock each of two transactions would count its own answer alone."""
    campaign = asked.campaign(engine, asked.images(engine, 1), overlap=2)
    held = []
    for name in ("Ann", "Bob"):
        who = person(engine, name)
        with writing(engine, alone=False) as s:
            held.append((judging.claim_next(s, campaign.id, who.id), who))
    gate = threading.Barrier(2)

    def answer(claim: judging.Claim, who: q.Annotator) -> None:
        with writing(engine, alone=False) as s:
            gate.wait()
            judging.submit(s, claim.token, who.id, "shows", f"once {who.id}")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(answer, *one) for one in held]:
            done.result()
    with reading(engine) as s:
        assert s.execute(select(m.Task.answers, m.Task.held, m.Task.free)).one() == (2, 0, 0)


def test_of_two_late_answers_one_is_taken(engine: Engine) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 1), overlap=1, lease_seconds=60)
    held = []
    for n, name in enumerate(("Ann", "Bob")):
        who = person(engine, name)
        with writing(engine, alone=False) as s:
            held.append((judging.claim_next(s, campaign.id, who.id, NOON + timedelta(seconds=90 * n)), who))
    late = NOON + timedelta(hours=1)
    with writing(engine) as s:
        judging.expire_leases(s, late)
    gate = threading.Barrier(2)

    def answer(claim: judging.Claim, who: q.Annotator) -> str:
        try:
            with writing(engine, alone=False) as s:
                gate.wait()
                judging.submit(s, claim.token, who.id, "shows", f"once {who.id}", now=late)
            return "taken"
        except HfiError as e:
            return str(e)

    with ThreadPoolExecutor(2) as pool:
        found = sorted(done.result() for done in [pool.submit(answer, *one) for one in held])
    assert found[0] == "taken" and "others have judged it" in found[1]


def test_the_same_answer_twice_at_once_is_one(engine: Engine, tmp_path: Path) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 3), overlap=3)
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    seat = desk(engine, tmp_path)
    tokens = {who.id: label.state(seat, who, campaign.id)["task"]["token"] for who in (ann, bob)}
    gate = threading.Barrier(4)

    def answer(who: q.Annotator) -> str:
        gate.wait()
        try:
            label.judge(seat, who, Answer(token=tokens[who.id], verdict="shows", once="the same for all"))
        except HfiError as e:
            return str(e)
        return who.name

    with ThreadPoolExecutor(4) as pool:
        found = [done.result() for done in [pool.submit(answer, who) for who in (ann, ann, bob, bob)]]
    (winner,) = {name for name in found if name in ("Ann", "Bob")}
    assert found.count(winner) == 2 and sum("given by somebody else" in text for text in found) == 2
    with reading(engine) as s:
        assert s.scalar(select(func.count()).select_from(m.Judgment)) == 1


def test_whoever_comes_while_the_last_task_is_written_waits_for_it(engine: Engine, tmp_path: Path) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 1), overlap=2)
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    with ThreadPoolExecutor(1) as pool:
        with writing(engine, alone=False) as s:
            assert judging.claim_next(s, campaign.id, ann.id)
            with writing(engine, alone=False) as other:
                hand = judging.serve(other, campaign.id, bob.id)
                assert (hand.task, hand.busy) == (None, True)
            with pytest.raises(Again), writing(engine, alone=False) as other:
                judging.claim_next(other, campaign.id, bob.id)
            found = pool.submit(label.state, desk(engine, tmp_path), bob, campaign.id)
            with pytest.raises(TimeoutError):
                found.result(0.3)
        assert found.result(20)["task"]
    with writing(engine, alone=False) as s:  # and with nothing left at all nobody waits
        cem = q.ensure_annotator(s, "Cem")
        assert judging.serve(s, campaign.id, cem.id).busy is False


def test_gold_that_somebody_writes_is_passed_over(engine: Engine) -> None:
    ids = asked.images(engine, 6)
    campaign = asked.campaign(engine, ids[2:], overlap=3, gold_every=1, gold={ids[0]: "shows", ids[1]: "clean"})
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    with writing(engine, alone=False) as s:
        first = judging.claim_next(s, campaign.id, ann.id)
        with writing(engine, alone=False) as other:
            second = judging.claim_next(other, campaign.id, bob.id)
    assert first and second and {first.images[0].image_id, second.images[0].image_id} == set(ids[:2])


def test_signing_in_at_once_counts_every_wrong_password(engine: Engine) -> None:
    with writing(engine) as s:
        people.add_account(s, "Ann", "correct horse", "manager")

    def wrong(n: int) -> int | None:
        with pytest.raises(people.SignInRefused) as refused:
            people.check_password(engine, "Ann", "wrong horse", NOON)
        return refused.value.wait

    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(wrong, range(12)))
    assert waits.count(None) == people.FREE_TRIES
    with reading(engine) as s:
        assert s.scalar(select(m.LoginFailure.failures)) == people.FREE_TRIES


def test_what_writes_alone_adds_nothing_twice(engine: Engine) -> None:
    gate = threading.Barrier(6)

    def work(n: int) -> tuple[int, int, int]:
        gate.wait()
        with writing(engine) as s:
            who = q.ensure_annotator(s, "Ann")
            picture = q.add_image(s, q.Provenance(key="same", sha256="0" * 64, width=8, height=8, source="generated"))
            campaign = campaigns.ensure_campaign(s, "smoking", "people", image_ids=[picture.id])
            return who.id, picture.id, campaign.id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(work, range(6)))) == 1


def test_somebody_who_withdraws_while_they_judge_leaves_right_counts(engine: Engine, tmp_path: Path) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 300), overlap=2)
    seat, crowd = desk(engine, tmp_path), [person(engine, f"p{n}") for n in range(4)]

    def judge(who: q.Annotator) -> None:
        while (state := label.state(seat, who, campaign.id))["task"]:
            label.judge(
                seat, who, Answer(token=state["task"]["token"], verdict="shows", once=f"{who.id} {state['task']['token']}")
            )

    with ThreadPoolExecutor(4) as pool:
        judging_now = [pool.submit(judge, who) for who in crowd]
        wait_until(lambda: label.state(seat, crowd[0], campaign.id)["done"] >= 3)
        with writing(engine) as s:
            people.withdraw(s, crowd[0].id)
        with pytest.raises(NotFound, match="not yours, or was withdrawn"):
            judging_now[0].result()
        for one in judging_now[1:]:
            one.result()
    fields = (m.Task.id, m.Task.answers, m.Task.held, m.Task.free)
    with writing(engine) as s:
        before = s.execute(select(*fields).order_by(m.Task.id)).all()
        judging.recount(s, [row.id for row in before])
        assert s.execute(select(*fields).order_by(m.Task.id)).all() == before


# --- clients that die ---

_CLIENT = """
import sys
from datetime import UTC, datetime
from hfi.store import judging
from hfi.store.session import connect, writing
url, campaign, who, keep = sys.argv[1:]
now = datetime(2026, 11, 27, 12, tzinfo=UTC)
engine = connect(url)
with writing(engine, alone=False) as s:
    assert judging.claim_next(s, int(campaign), int(who), now)
    if keep == "in mid-transaction":
        print("ready", flush=True)
        sys.stdin.read()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["in mid-transaction", "with a lease"])
def test_a_killed_client_leaves_no_lock_and_its_lease_for_its_time(engine: Engine, url: str, when: str) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 1), lease_seconds=60)
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    words = [sys.executable, "-c", _CLIENT, url, str(campaign.id), str(ann.id), when]
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None and client.stdout.readline() == "ready\n"

    def claimed(seconds: float) -> judging.Claim | None:
        with writing(engine, alone=False) as s:
            return judging.claim_next(s, campaign.id, bob.id, NOON + timedelta(seconds=seconds))

    if when == "in mid-transaction":
        with pytest.raises(Again):
            claimed(0)
    client.send_signal(signal.SIGKILL)
    client.wait()
    if when == "in mid-transaction":  # nothing was claimed: the task is free as soon as the server knows

        def free() -> judging.Claim | None:
            try:
                return claimed(1)
            except Again:
                return None

        assert wait_until(free)
    else:
        assert claimed(59.9) is None
        assert claimed(60) is not None


def test_every_connection_ends_what_nobody_ends(engine: Engine) -> None:
    with engine.connect() as connection:
        for name, value in {
            "idle_in_transaction_session_timeout": "1min",
            "lock_timeout": "30s",
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
            "application_name": "hfi",
        }.items():
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value


def test_a_client_that_hangs_in_a_transaction_is_shut_out(engine: Engine) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 1))
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    hanging = text(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
        " AND pid != pg_backend_pid()"
    )

    def shut_out() -> bool:
        with engine.connect() as watch:
            return watch.scalar(hanging) == 0

    def hang() -> None:
        with writing(engine, alone=False) as s:
            s.execute(text("SET LOCAL idle_in_transaction_session_timeout = '3s'"))
            assert judging.claim_next(s, campaign.id, ann.id)
            assert not shut_out()
            wait_until(shut_out)
            judging.left(s, campaign.id, ann.id)

    with pytest.raises(Away, match="idle-in-transaction timeout"):
        hang()
    with writing(engine, alone=False) as s:
        assert judging.claim_next(s, campaign.id, bob.id)


def test_an_export_takes_as_long_as_what_it_copies(engine: Engine, url: str) -> None:
    asked.answers(engine, asked.campaign(engine, asked.images(engine, 2)), "Ann", lambda claim: "shows")
    hasty = connect(f"{url}?options=-c%20idle_in_transaction_session_timeout%3D1s")

    def slow() -> None:
        with reading(hasty) as s:
            q.concept(s, "smoking")
            time.sleep(1.5)
            q.concept(s, "smoking")

    with pytest.raises(Away, match="idle-in-transaction timeout"):
        slow()
    with frozen(hasty, "smoking") as found:
        time.sleep(1.5)
        assert len(list(found.judgments)) == 2
    with hasty.connect() as connection:
        assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "1s"
    hasty.dispose()


def test_a_lock_that_others_hold_for_long_is_one_sentence(engine: Engine) -> None:
    campaign = asked.campaign(engine, asked.images(engine, 1))
    ann = person(engine, "Ann")

    def impatient() -> None:
        with writing(engine, alone=False) as s:
            s.execute(text("SET LOCAL lock_timeout = '100ms'"))
            judging.claim_next(s, campaign.id, ann.id)

    with writing(engine) as s:
        locks.hold_person(s, ann.id)
        with pytest.raises(Again, match="run the same command again"):
            impatient()


def test_nobody_is_locked_twice(engine: Engine) -> None:
    ann = person(engine, "Ann")
    statements: list[str] = []
    from sqlalchemy import event

    event.listen(engine, "before_cursor_execute", lambda conn, cursor, statement, *rest: statements.append(statement))
    with writing(engine, alone=False) as s:
        for _ in range(3):
            locks.hold_person(s, ann.id)
    assert sum("FOR NO KEY UPDATE" in statement for statement in statements) == 1


# --- the schema ---


def test_several_who_bring_a_database_up_at_once_do_it_once(postgres: Server) -> None:
    url = postgres.new("template1")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: upgrade(url), range(4)))
    assert {one.after for one in found} == {HEAD} and sum(one.before is None for one in found) >= 1
    engine = connect(url)
    assert status(engine).current
    engine.dispose()
    postgres.drop(url)


def test_a_database_of_version_0001_is_brought_up_with_every_row(postgres: Server, tmp_path: Path) -> None:
    url = postgres.new("template1")
    engine = migrating(parse(url))
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    old = tmp_path / "old.db"
    old.write_bytes(gzip.decompress((ASSETS / "0001-thousand.db.gz").read_bytes()))
    with engine.begin() as connection, closing(sqlite3.connect(old)) as source:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001_initial")
        for table in [t for t in m.Base.metadata.sorted_tables if t.name in inspect(connection).get_table_names()]:
            read = source.execute(f"SELECT * FROM {table.name} ORDER BY id")
            names = [column[0] for column in read.description]
            truth = [i for i, name in enumerate(names) if name == "simulated"]
            rows = [[bool(v) if i in truth else v for i, v in enumerate(row)] for row in read]
            values = ", ".join(f":{name}" for name in names)
            connection.execute(
                text(f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values})"),
                [dict(zip(names, row, strict=True)) for row in rows],
            )
    done = upgrade(url)
    assert (done.before, done.after, done.backup) == ("0001_initial", HEAD, None)
    assert {(c, side): freeze(engine, c, side).sha256 for c, side in THOUSAND} == THOUSAND  # type: ignore[arg-type]
    engine.dispose()
    postgres.drop(url)


# --- moving ---


@pytest.fixture
def judged(tmp_path: Path) -> Workspace:
    """A workspace on SQLite with rows in every table."""
    space = Workspace.create(tmp_path / "judged")
    (space.path / "hfi.db").write_bytes(gzip.decompress((ASSETS / "0002.db.gz").read_bytes()))
    upgrade(f"sqlite:///{space.path / 'hfi.db'}")
    return space


def export(space: Workspace, hfi: Callable, name: str) -> bytes:
    file = space.path.parent / name
    assert hfi("labels", "export", "-w", space.path, "--concept", "smoking", "--out", file).exit_code == 0
    return file.read_bytes()


def test_a_workspace_moves_to_postgresql_and_back(
    judged: Workspace, postgres: Server, hfi: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = export(judged, hfi, "before.jsonl")
    url = postgres.new("template1")
    moved = hfi("db", "copy", "-w", judged.path, "--to", url, "--json")
    assert moved.exit_code == 0, moved.output
    assert PASSWORD not in moved.output
    told = json.loads(moved.stdout)
    assert len(told["tables"]) == 20 and all(table["rows"] for table in told["tables"].values())
    monkeypatch.setenv("HFI_DATABASE_URL", url)
    assert export(judged, hfi, "there.jsonl") == before
    engine = judged.engine()
    assert {c: freeze(engine, c, "include").sha256 for c in TODAY} == TODAY
    with writing(engine) as s:  # numbers go on after the last one
        last = s.scalar(select(func.max(m.Annotator.id))) or 0
        assert q.ensure_annotator(s, "A newcomer").id == last + 1
    engine.dispose()
    again = hfi("db", "copy", "-w", judged.path, "--to", f"sqlite:///{judged.path}/back.db")
    assert again.exit_code == 0, again.output
    assert f"{told['rows'] + 1:,} rows are the same" in again.stdout
    monkeypatch.setenv("HFI_DATABASE_URL", f"sqlite:///{judged.path}/back.db")
    assert export(judged, hfi, "back.jsonl") == before
    postgres.drop(url)


def test_only_an_empty_database_is_copied_into(judged: Workspace, postgres: Server, hfi: Callable, url: str) -> None:
    source = judged.engine()
    copy(source, url)  # a schema without rows is empty
    assert f"{shown(url)} is not empty, it has rows in" in hfi("db", "copy", "-w", judged.path, "--to", url).errors[0]
    itself = hfi("db", "copy", "-w", judged.path, "--to", f"sqlite:///{judged.path}/hfi.db")
    assert "is not empty" in itself.errors[0]
    other = postgres.new("template1")
    engine = migrating(parse(other))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE recipes (id int)"))
    assert "tables of something else (recipes)" in hfi("db", "copy", "-w", judged.path, "--to", other).errors[0]
    engine.dispose()
    source.dispose()
    postgres.drop(other)


def test_a_copy_that_is_broken_off_leaves_nothing(judged: Workspace, postgres: Server, tmp_path: Path) -> None:
    source, targets = judged.engine(), [postgres.new("template1"), f"sqlite:///{tmp_path / 'new.db'}"]

    def stop(n: int, table: str) -> None:
        if table == "judgments":
            raise KeyboardInterrupt

    for url in targets:
        with pytest.raises(KeyboardInterrupt):
            copy(source, url, stop)
        engine = connect(url)
        assert inspect(engine).get_table_names() == []
        engine.dispose()
        assert sum(one.rows for one in copy(source, url)) > 100
    source.dispose()
    postgres.drop(targets[0])


def test_a_copy_that_differs_is_not_kept(judged: Workspace, postgres: Server) -> None:
    url, source = postgres.new(), judged.engine()
    engine = migrating(parse(url))
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION meddle() RETURNS trigger AS $$ BEGIN NEW.verdict := 'skip'; RETURN NEW; END $$ LANGUAGE plpgsql"
            )
        )
        connection.execute(text("CREATE TRIGGER meddle BEFORE INSERT ON judgments FOR EACH ROW EXECUTE FUNCTION meddle()"))
    with pytest.raises(HfiError, match=r"copy of judgments is not the same .* nothing was kept"):
        copy(source, url)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM images")) == 0
    engine.dispose()
    source.dispose()
    postgres.drop(url)


@pytest.mark.parametrize("to", ["postgresql", "sqlite"])
def test_a_copy_of_what_changed_meanwhile_is_not_kept(judged: Workspace, postgres: Server, tmp_path: Path, to: str) -> None:
    source = judged.engine()
    url = postgres.new("template1") if to == "postgresql" else f"sqlite:///{tmp_path / 'new.db'}"
    with reading(source) as s:
        ann = s.scalar(select(m.Annotator.id).where(m.Annotator.withdrawn_at.is_(None)).limit(1))

    def withdraw(s: Session) -> None:
        people.withdraw(s, ann)

    def judge_and_sign_in(s: Session) -> None:  # one row more, and one less
        s.add(m.Setting(key="new", value="1", changed_at=NOON))
        s.execute(delete(m.LoginFailure).where(m.LoginFailure.id == select(func.min(m.LoginFailure.id)).scalar_subquery()))

    todo: list[Callable[[Session], None]] = []

    def meanwhile(n: int, table: str) -> None:
        if table == "judgments" and todo:
            with writing(source) as s:
                todo.pop()(s)

    for change, where in ((judge_and_sign_in, "login_failures, settings"), (withdraw, "annotators")):
        todo.append(change)
        with pytest.raises(HfiError, match=f"changed while it was copied, in .*{where}.*: nothing was kept, stop the labeling"):
            copy(source, url, meanwhile)
        engine = connect(url)
        assert inspect(engine).get_table_names() == []
        engine.dispose()
    assert sum(one.rows for one in copy(source, url)) > 100
    source.dispose()
    if to == "postgresql":
        postgres.drop(url)


def test_a_row_that_postgresql_cannot_hold_is_said(judged: Workspace, postgres: Server) -> None:
    source = judged.engine()
    with writing(source) as s:
        s.execute(update(m.Image).values(prompt="a\0b"))
    url = postgres.new("template1")
    with pytest.raises(HfiError, match="does not fit into the database"):
        copy(source, url)
    source.dispose()
    postgres.drop(url)

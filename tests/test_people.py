"""Accounts, signing in, consent, withdrawal: the verbs, and `hfi user`. Against a running server: test_ui_security.py."""

import json
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import select, text

from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.store import campaigns, judging, people, record
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.people import SignInRefused, check_password
from hfi.store.session import Engine, Session, reading, writing
from hfi.workspace import Workspace
from ui.app import build_app

pytestmark = pytest.mark.databases

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
GOOD, OTHER = "correct horse battery", "another password"


@pytest.fixture
def engine(workspace: Workspace) -> Engine:
    """Ann manages, Bob judges."""
    engine = workspace.engine()
    with writing(engine) as s:
        people.add_account(s, "Ann", GOOD, "manager")
        people.add_account(s, "Bob", OTHER)
    return engine


def the(engine: Engine, name: str) -> int:
    with reading(engine) as s:
        return people.find(s, name).id


def agreed(s: Session, annotator_id: int) -> bool:
    found = people.standing(s, annotator_id)
    assert found is not None
    return found.agreed


def may_enter(engine: Engine, name: str, password: str, now: datetime | None = None) -> bool:
    try:
        return check_password(engine, name, password, now).annotator.id == the(engine, name)
    except SignInRefused:
        return False


# --- accounts ---


def test_the_first_account_is_a_managers_and_one_manager_remains(workspace: Workspace) -> None:
    engine = workspace.engine()
    with pytest.raises(HfiError, match="first account must be a manager's"), writing(engine) as s:
        people.add_account(s, "Bob", OTHER)
    with writing(engine) as s:
        assert not people.has_accounts(s)
        ann = people.add_account(s, "Ann", GOOD, "manager").annotator.id
        bob = people.add_account(s, "Bob", OTHER).annotator.id
        assert people.has_accounts(s)
    for act in (
        lambda s: people.set_role(s, ann, "annotator"),
        lambda s: people.set_active(s, ann, False),
        lambda s: people.withdraw(s, ann),
    ):
        with pytest.raises(HfiError, match="make another account a manager first"), writing(engine) as s:
            act(s)
    with writing(engine) as s:
        people.set_role(s, bob, "manager")
        people.set_active(s, ann, False)
    with pytest.raises(HfiError, match="a manager first"), writing(engine) as s:
        people.set_role(s, bob, "annotator")  # a manager who is switched off is none
    with reading(engine) as s:
        assert [(a.annotator.name, a.role, a.active) for a in people.accounts(s)] == [
            ("Ann", "manager", False),
            ("Bob", "manager", True),
        ]


def test_a_name_has_one_account_and_keeps_what_was_judged_without_one(workspace: Workspace) -> None:
    engine = workspace.engine()
    with writing(engine) as s:
        before = q.ensure_annotator(s, "Ann")
        q.ensure_annotator(s, "robot", simulated=True)
        assert people.add_account(s, " ANN ", GOOD, "manager").annotator == before
    for name, words in (
        ("ann", "has an account already"),
        ("robot", "simulated annotator"),
        ("", "1 to 80"),
        ("x" * 300, "1 to 80"),
    ):
        with pytest.raises(HfiError, match=words), writing(engine) as s:
            people.add_account(s, name, GOOD)


def test_names_that_look_alike_are_one_or_are_refused(workspace: Workspace) -> None:
    engine = workspace.engine()
    with writing(engine) as s:
        zoe = q.ensure_annotator(s, "Zoë Ünal").id
        for same in (unicodedata.normalize("NFD", "zoë ünal"), "ZOË\u00a0\u3000ÜNAL", "Zoë\u200d Ünal", "Zoë \ufe0fÜnal"):
            assert q.ensure_annotator(s, same).id == zoe, ascii(same)
        for odd in ("a\x00b", "a\x1b[31m", "a\u202eb", "\u200b", "a\u2066b", "\ud800", "\u3164", "a\ufeff", "\u200d", "\ue000"):
            with pytest.raises(HfiError, match="cannot name an annotator") as e:
                q.ensure_annotator(s, odd)
            assert str(e.value).isprintable(), "the sentence can be printed anywhere"
        for fine in ("=1+1", "<b>Ann</b>", "'; DROP TABLE annotators; --", "김민지", "عبد الله", "می‌خواهم", "👩‍🔬", "Z" * 80):
            assert q.ensure_annotator(s, fine).name == unicodedata.normalize("NFKC", fine)
    with pytest.raises(HfiError) as e, reading(engine) as s:
        people.find(s, "x" * 300)
    assert len(str(e.value)) < 150


def test_passwords_are_salted_hashes_of_any_unicode(engine: Engine) -> None:
    ann, bob = the(engine, "Ann"), the(engine, "Bob")
    with writing(engine) as s:
        people.set_password(s, ann, "Zoë's 密碼 ﬁne")
        people.set_password(s, bob, "Zoë's 密碼 ﬁne")
        hashes = list(s.scalars(select(m.Account.password_hash)))
    assert len(set(hashes)) == 2
    assert all(h.startswith("scrypt$16384$8$1$") and "密碼" not in h and len(h) < 255 for h in hashes)
    assert may_enter(engine, "Ann", unicodedata.normalize("NFD", "Zoë's 密碼 fine"))
    assert not may_enter(engine, "Ann", "zoë's 密碼 fine")
    for wrong in ("short", "x" * 201, "", "ﬁ" * 3):
        with pytest.raises(HfiError, match="8 to 200"), writing(engine) as s:
            people.set_password(s, ann, wrong)
    assert not may_enter(engine, "Ann", "\ud800 and more")


# --- signing in ---


def test_wrong_passwords_make_the_next_try_wait_longer_and_a_right_one_forgets_them(engine: Engine) -> None:
    for _ in range(people.FREE_TRIES):
        with pytest.raises(SignInRefused) as e:
            check_password(engine, "Bob", "not this one", NOON)
        assert e.value.wait is None
    now, waits = NOON, []
    for _ in range(12):
        with pytest.raises(SignInRefused) as e:
            check_password(engine, "bob", OTHER, now)  # while it waits not even the right one is taken
        assert e.value.wait
        waits.append(e.value.wait)
        with pytest.raises(SignInRefused, match=f"try again in {e.value.wait} s"):
            check_password(engine, "bob", OTHER, now)
        now += timedelta(seconds=e.value.wait)
        with pytest.raises(SignInRefused) as e:
            check_password(engine, "BOB", "not this one", now)
        assert e.value.wait is None
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]
    assert may_enter(engine, "Ann", GOOD, now), "one name's wait is nobody else's"
    assert may_enter(engine, "Bob", OTHER, now + timedelta(seconds=900))
    assert not may_enter(engine, "Bob", "not this one", now + timedelta(seconds=901))
    assert may_enter(engine, "Bob", OTHER, now + timedelta(seconds=901)), "the count began anew"


def test_waiting_survives_a_restart_and_ends_with_a_new_password(engine: Engine, workspace: Workspace) -> None:
    for _ in range(people.FREE_TRIES):
        assert not may_enter(engine, "Bob", "not this one", NOON)
    engine.dispose()
    again = workspace.engine()
    assert not may_enter(again, "Bob", OTHER, NOON)
    with writing(again) as s:
        people.set_password(s, the(again, "Bob"), "the third password")
    assert may_enter(again, "Bob", "the third password", NOON)


def test_a_try_is_counted_before_the_password_is_looked_at(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(people, "_fits", killed)
        for _ in range(people.FREE_TRIES):
            with pytest.raises(KeyboardInterrupt):
                check_password(engine, "Bob", OTHER, NOON)
    assert not may_enter(engine, "Bob", OTHER, NOON)


def test_nobody_learns_who_has_an_account(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(engine) as s:
        people.add_account(s, "Off", GOOD)
        people.set_active(s, people.find(s, "Off").id, False)

    def answers(name: str, password: str) -> list[str]:
        said = []
        for _ in range(people.FREE_TRIES + 1):
            with pytest.raises(SignInRefused) as e:
                check_password(engine, name, password, NOON)
            said.append(str(e.value))
        return said

    known = answers("Bob", "not this one")
    assert answers("Nobody", "not this one") == known
    assert answers("Off", GOOD) == known, "an account that is switched off looks like none"
    assert answers("x" * 300, "not this one")[:5] == known[:5]

    spent: list[tuple[int, ...]] = []
    real = people._scrypt
    monkeypatch.setattr(people, "_scrypt", lambda words, salt, *cost: spent.append(cost) or real(words, salt, *cost))

    def work(name: str) -> list[tuple[int, ...]]:
        spent.clear()
        with pytest.raises(SignInRefused, match="wrong:"):
            check_password(engine, name, "not this one", NOON + timedelta(days=2))
        return [*spent]

    assert work("Ann") == work("Stranger") == [(people._N, people._R, people._P)], "a name that is none takes as long"


def test_what_ends_a_session(engine: Engine) -> None:
    bob = the(engine, "Bob")

    def version() -> int:
        with reading(engine) as s:
            found = people.standing(s, bob)
        assert found is not None
        return found.session_version

    seen = [version()]
    for act in (
        lambda s: people.set_password(s, bob, "the third password"),
        lambda s: people.sign_out_everywhere(s, bob),
        lambda s: people.set_active(s, bob, False),
        lambda s: people.withdraw(s, bob),
    ):
        with writing(engine) as s:
            act(s)
        seen.append(version())
    assert seen == sorted(set(seen))
    with writing(engine) as s:
        assert people.standing(s, 999) is None
        with pytest.raises(NotFound, match="no account"):
            people.set_password(s, q.ensure_annotator(s, "Eve").id, GOOD)


# --- consent ---


def test_a_new_text_is_asked_for_again_and_the_same_is_not(engine: Engine) -> None:
    bob = the(engine, "Bob")
    with writing(engine) as s:
        assert people.consent_text(s) is None
        assert agreed(s, bob)
        assert people.set_consent_text(s, "You may see **harm**.\n") == 1
        assert not agreed(s, bob)
        for _ in range(2):
            people.agree(s, bob, 1)
        assert agreed(s, bob)
        assert people.set_consent_text(s, "You may see **harm**.") == 1
        assert agreed(s, bob)
        assert people.set_consent_text(s, "You will see harm.") == 2
        assert not agreed(s, bob)
    for wrong in (1, 3, 0):
        with pytest.raises(HfiError, match="read it once more"), writing(engine) as s:
            people.agree(s, bob, wrong)
    with pytest.raises(HfiError, match="empty"), writing(engine) as s:
        people.set_consent_text(s, "  \n ")
    with reading(engine) as s:
        assert [a.agreed for a in people.accounts(s)] == [None, 1]


def test_the_programs_text_gives_way_to_a_managers(engine: Engine) -> None:
    def now() -> tuple[int, str]:
        with reading(engine) as s:
            found = people.consent_text(s)
        assert found is not None
        return found.version, found.body

    with writing(engine) as s:
        people.offer_consent_text(s, "about smoking")
    assert now() == (1, "about smoking")
    with writing(engine) as s:
        people.offer_consent_text(s, "about smoking\n")
    assert now() == (1, "about smoking")
    with writing(engine) as s:
        people.offer_consent_text(s, "about smoking and gore")
    assert now() == (2, "about smoking and gore")
    with writing(engine) as s:
        people.set_consent_text(s, "ours")
        people.offer_consent_text(s, "about everything")
    assert now() == (3, "ours")


# --- withdrawal ---


def judged(space: Workspace, engine: Engine, names: tuple[str, ...], images: int = 4, overlap: int = 2) -> int:
    """A campaign in which each of them has judged every image, with a comment; its id."""
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
        ids = []
        for i in range(images):
            sha = space.images.put(Image.new("RGB", (8, 8), (i, 100, 200)))
            ids.append(q.add_image(s, q.Provenance(key=f"{i:064}", sha256=sha, width=8, height=8, source="generated")).id)
        campaign = campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, asking=campaigns.Asking(overlap=overlap))
        for name in names:
            who = q.ensure_annotator(s, name)
            while claim := judging.claim_next(s, campaign.id, who.id):
                judging.submit(s, claim.token, who.id, "shows", f"{name}-{claim.token}", comment=f"{name} was here")
    return campaign.id


def test_withdrawing_takes_the_name_the_words_and_the_weight_of_judgments(workspace: Workspace, engine: Engine) -> None:
    campaign = judged(workspace, engine, ("Ann", "Bob"))
    bob = the(engine, "Bob")
    with pytest.raises(SignInRefused):
        check_password(engine, "Bob", "not this one", NOON)
    with writing(engine) as s:
        eve = q.ensure_annotator(s, "Eve").id
        assert judging.claim_next(s, campaign, eve) is None, "everything is judged twice"
        judging.undo(s, campaign, bob)  # one task is open in Bob's hands
        people.set_consent_text(s, "text")
        decided = m.Adjudication(
            task_id=s.scalar(select(m.Task.id)), annotator_id=bob, verdict="clean", note="I am Bob", created_at=NOON
        )
        s.add(decided)
        done = people.withdraw(s, bob, NOON)
        assert (done.judgments, done.comments, done.tasks) == (3, 5, 4)
        s.refresh(decided)
        assert decided.note is None
        assert people.withdraw(s, bob) == people.Withdrawn(done.pseudonym, 0, 0, 0)
    with reading(engine) as s:
        rows = record.current_judgments(s, "smoking")
        assert {row.comment for row in rows} == {"Ann was here"}
        assert len(rows) == 4
        tasks = s.execute(select(m.Task.answers, m.Task.held, m.Task.free)).all()
        assert [tuple(t) for t in tasks] == [(1, 0, 1)] * 4
        assert people.names(s, 9) == ["Ann", "Eve"]
        for table in ("annotators", "accounts", "login_failures", "judgments", "settings"):
            assert "bob" not in str(s.execute(text(f"SELECT * FROM {table}")).all()).lower().replace("'bob-", ""), table
        found = people.standing(s, bob)
        assert found is not None and found.withdrawn and not found.active
        assert found.annotator.name == done.pseudonym
        assert people.find(s, done.pseudonym).id == bob
    assert not may_enter(engine, done.pseudonym, OTHER, NOON)
    with pytest.raises(HfiError, match="withdrew"), writing(engine) as s:
        people.set_active(s, bob, True)
    with writing(engine) as s:
        claims = 0
        while claim := judging.claim_next(s, campaign, eve):
            judging.submit(s, claim.token, eve, "clean", f"eve-{claim.token}")
            claims += 1
        assert claims == 4, "the images go to somebody else"
        assert q.ensure_annotator(s, "Bob").id != bob, "the name is free again"
        assert q.ensure_annotator(s, done.pseudonym).id != bob, "a pseudonym that is typed opens nothing"
    with pytest.raises(HfiError, match="no person"), writing(engine) as s:
        people.withdraw(s, q.ensure_annotator(s, "robot", simulated=True).id)


# --- the command ---


def test_the_command_keeps_accounts(workspace: Workspace, hfi: Callable, tmp_path: Path) -> None:
    here = ("--workspace", workspace.path)
    secret, other = tmp_path / "secret.txt", tmp_path / "other.txt"
    secret.write_text(f"\ufeff{GOOD}\nand a second line\n", encoding="utf-8")
    other.write_text(OTHER)
    assert "no account yet" in hfi("user", "list", *here).stdout
    assert "may sign in as manager" in hfi("user", "add", "Ann", "--role", "manager", "--password-file", secret, *here).stdout
    assert hfi("user", "add", "Bob", "--password-file", other, *here).exit_code == 0
    engine = workspace.engine()
    assert may_enter(engine, "Ann", GOOD)
    assert hfi("user", "password", "bob", "--password-file", secret, *here).exit_code == 0
    assert may_enter(engine, "Bob", GOOD)
    for words, after in (
        (("role", "Bob", "manager"), ("manager", True, 2)),
        (("disable", "Bob"), ("manager", False, 3)),
        (("enable", "Bob"), ("manager", True, 3)),
        (("sign-out", "Bob"), ("manager", True, 4)),
    ):
        assert hfi("user", *words, *here).exit_code == 0, words
        with reading(engine) as s:
            found = people.standing(s, the(engine, "Bob"))
        assert found is not None
        assert (found.role, found.active, found.session_version) == after, words
    rows = json.loads(hfi("user", "list", "--json", *here).stdout)
    assert [(row["annotator"], row["role"], row["active"], row["withdrawn"]) for row in rows] == [
        ("Ann", "manager", True, False),
        ("Bob", "manager", True, False),
    ]
    assert not any("hash" in key or "password" in key for row in rows for key in row)
    done = json.loads(hfi("user", "withdraw", "Bob", "--yes", "--json", *here).stdout)
    assert done["judgments"] == 0
    assert "withdrawn" in hfi("user", "list", *here).stdout


def test_the_command_sets_what_people_agree_to(workspace: Workspace, hfi: Callable, tmp_path: Path) -> None:
    here = ("--workspace", workspace.path)
    with writing(workspace.engine()) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
    ours = hfi("user", "consent", *here).stdout
    with writing(workspace.engine()) as s:
        assert people.consent_text(s) is None, "printing sets nothing"
        people.add_account(s, "Ann", GOOD, "manager")
    build_app(workspace, workspace.engine())
    with reading(workspace.engine()) as s:
        offered = people.consent_text(s)
    assert offered is not None
    assert (ours, "Smoking" in ours) == (f"{offered.body}\n", True), "what a server offers when it starts"
    (file := tmp_path / "consent.md").write_text(
        "<!-- en -->\nYou will see harm.\n<!-- ko -->\n해로운 이미지가 보입니다.\n", encoding="utf-8"
    )
    assert "version 2" in hfi("user", "consent", file, "--contact", " Dr. Park \n", *here).stdout
    assert hfi("user", "consent", *here).stdout == file.read_text(encoding="utf-8")
    with reading(workspace.engine()) as s:
        assert people.contact(s) == "Dr. Park"
    assert "no contact" in hfi("user", "consent", "--contact", "", *here).stdout


def test_the_command_says_what_is_wrong_in_one_sentence(workspace: Workspace, hfi: Callable, tmp_path: Path) -> None:
    (secret := tmp_path / "secret.txt").write_text(GOOD)
    (short := tmp_path / "short.txt").write_text("short")
    (binary := tmp_path / "binary").write_bytes(b"\xff\xfe\x00")

    def error(code: int, *words: object) -> str:
        done = hfi("user", *words, "--workspace", workspace.path)
        assert (done.exit_code, len(done.errors)) == (code, 1), done.output
        assert done.stderr.count("\n") == 1
        return str(done.errors[0])

    assert "first account must be a manager's" in error(1, "add", "Bob", "--password-file", secret)
    assert "8 to 200" in error(1, "add", "Ann", "--role", "manager", "--password-file", short)
    assert "not UTF-8" in error(1, "add", "Ann", "--role", "manager", "--password-file", binary)
    assert "No such file" in error(1, "add", "Ann", "--role", "manager", "--password-file", tmp_path / "none")
    assert "--password-file FILE" in error(2, "add", "Ann", "--role", "manager")
    assert "'boss'" in error(2, "add", "Ann", "--role", "boss")
    assert "U+202E" in error(1, "add", "A\u202en", "--role", "manager")
    with reading(workspace.engine()) as s:
        assert not people.has_accounts(s)
        assert people.names(s, 9) == [], "a refused account leaves nobody behind"
    assert hfi("user", "add", "Ann", "--role", "manager", "--password-file", secret, "-w", workspace.path).exit_code == 0
    assert "has an account already" in error(1, "add", "ann", "--password-file", secret)
    assert "known are Ann" in error(1, "password", "Bob", "--password-file", secret)
    assert "a manager first" in error(1, "role", "Ann", "annotator")
    assert "a manager first" in error(1, "disable", "Ann")
    assert "--yes" in error(2, "withdraw", "Ann")
    assert "cannot read" in error(1, "consent", tmp_path / "none.md")
    with writing(workspace.engine()) as s:
        q.ensure_annotator(s, "Eve")
    for words in (
        ("disable", "Eve"),
        ("role", "Eve", "manager"),
        ("sign-out", "Eve"),
        ("password", "Eve", "--password-file", secret),
    ):
        assert "no account" in error(1, *words), words

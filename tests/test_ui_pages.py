"""The pages around judging: what they say, in which language, and where they lead. Attacks on them: test_ui_security.py."""

import json
import re
from string import Formatter

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

from hfi.concepts import Concept
from hfi.store import campaigns, judging, people
from hfi.store import queries as q
from hfi.store.campaigns import Asking
from hfi.store.session import Away, Engine, reading, writing
from hfi.workspace import Workspace
from ui import messages, pages
from ui.app import build_app
from ui.messages import DEFAULT, languages, load

pytestmark = pytest.mark.databases

PASSWORD = "correct horse battery"


def client_of(space: Workspace, **given: object) -> TestClient:
    app = build_app(space, space.engine(), **given)  # type: ignore[arg-type]
    return TestClient(app, base_url="http://127.0.0.1:7860", follow_redirects=False)


def fill(space: Workspace, *slugs: str, images: int = 4) -> Engine:
    """A campaign about each concept, and the accounts of Ann, who manages, and Bob."""
    engine = space.engine()
    with writing(engine) as s:
        ids = []
        for i in range(images):
            sha = space.images.put(Image.new("RGB", (8, 8), (i, 100, 200)))
            ids.append(q.add_image(s, q.Provenance(key=f"{i:064}", sha256=sha, width=8, height=8, source="generated")).id)
        for slug in slugs:
            q.add_concept(s, Concept(slug, slug.capitalize()))
            campaigns.ensure_campaign(s, slug, "people", image_ids=ids, asking=campaigns.Asking(overlap=3))
        people.add_account(s, "Ann", PASSWORD, "manager")
        people.add_account(s, "Bob", PASSWORD)
    return engine


def enter(client: TestClient, name: str = "Bob", password: str = PASSWORD) -> None:
    assert client.post("/enter", data={"name": name, "password": password}).status_code == 303
    page = client.get("/consent")
    if page.status_code == 200:
        (version,) = re.findall(r'name="version" value="(\d+)"', page.text)
        assert client.post("/consent", data={"version": version, "age": "yes"}).headers["location"] == "/"


# --- languages ---


def test_a_database_that_is_away_is_no_fault_of_a_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object) -> None:
        raise Away("cannot reach the database")

    client = TestClient(build_app(workspace, workspace.engine()), base_url="http://127.0.0.1:7860")
    monkeypatch.setattr("ui.pages.queries.ensure_annotator", away)
    answer = client.post("/enter", data={"name": "Kim"}, headers={"accept": "text/html,*/*;q=0.8"})
    assert answer.status_code == 503 and "<h1>One moment, please</h1>" in answer.text
    assert client.post("/enter", data={"name": "Kim"}).json() == {"detail": "cannot reach the database"}


def test_every_language_says_everything_and_fills_in_the_same() -> None:
    assert {"en", "ko"} <= set(languages())
    texts = {tag: json.loads((messages._FOLDER / f"{tag}.json").read_text("utf-8")) for tag in languages()}

    def blanks(text: str) -> list[str]:
        return sorted({name for _, name, _, _ in Formatter().parse(text) if name is not None})

    wanted = {key: blanks(text) for key, text in texts[DEFAULT].items()}
    for tag, found in texts.items():
        assert {key: blanks(text) for key, text in found.items()} == wanted, tag
        assert all(text.strip() for text in found.values()), tag


def test_every_message_of_a_page_is_said_somewhere() -> None:
    sources = [*pages.TEMPLATES.glob("*.html"), *pages.TEMPLATES.parent.glob("*.py")]
    said = "\n".join(path.read_text("utf-8") for path in sources)
    made = {f"page.work.{question}" for question in ("binary", "ranking", "compare")}
    made |= {f"page.consent.{about}" for about in pages.ABOUT}
    made |= {f"page.{key}.{part}" for key in ("withdrawn", "refused", "missing", "broken", "away") for part in ("title", "text")}
    assert [key for key in load(DEFAULT) if key.startswith("page.") and key not in made and f'"{key}"' not in said] == []


@pytest.mark.parametrize(
    ("wish", "chosen", "tag"),
    [
        ("", "", "en"),
        ("ko", "", "ko"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8", "", "ko"),
        ("en;q=0.5, ko;q=0.8", "", "ko"),
        ("fr, de;q=0.9, KO;q=0.1", "", "ko"),
        ("fr", "", "en"),
        ("ko;q=0", "", "en"),
        ("ko", "en", "en"),
        ("en", "ko", "ko"),
        ("ko", "../en", "ko"),
        ("ko;q=9..9,;;,=", "", "en"),
    ],
)
def test_the_language_is_the_one_chosen_or_liked_best(wish: str, chosen: str, tag: str) -> None:
    headers = [(b"accept-language", wish.encode()), (b"cookie", f"hfi-lang={chosen}".encode())]
    assert messages.language(Request({"type": "http", "headers": headers})) == tag


def test_a_page_comes_in_the_language_that_was_chosen(workspace: Workspace) -> None:
    fill(workspace, "smoking")
    client = client_of(workspace)
    assert "Sign in" in client.get("/").text
    assert '<html lang="ko">' in client.get("/", headers={"accept-language": "ko"}).text
    client.post("/language", data={"to": "ko", "back": "/"})
    page = client.get("/").text
    assert "로그인" in page
    assert "English" in page
    client.post("/enter", data={"name": "Bob", "password": PASSWORD})
    text = client.get("/consent").text
    assert "무엇을 보게 되나요?" in text
    assert "What you will see" not in text


# --- consent ---


def test_the_programs_text_names_the_concepts_and_the_contact(workspace: Workspace) -> None:
    engine = fill(workspace, "smoking", "gore")
    with writing(engine) as s:
        people.set_contact(s, "Dr. Park, park@example.org")
    client = client_of(workspace)
    client.post("/enter", data={"name": "Bob", "password": PASSWORD})
    page = client.get("/consent").text
    assert "This work is about: Smoking, Gore." in page
    assert "Dr. Park, park@example.org" in page
    for word in ("disturbing", "pseudonym", "stop at any moment", "take everything back", "18 years"):
        assert word in page, word
    with writing(engine) as s:
        q.add_concept(s, Concept("guns", "Guns"))
    enter(client)
    with writing(engine) as s:
        bob = people.standing(s, people.find(s, "Bob").id)
    assert bob is not None
    assert bob.agreed
    enter(client_of(workspace), "Ann")  # whoever signs in next, the text is about guns as well
    with reading(engine) as s:
        text = people.consent_text(s)
    assert text is not None
    assert "Guns" in text.body


def test_consent_takes_a_tick_and_leaving_signs_out(workspace: Workspace) -> None:
    engine = fill(workspace, "smoking")
    client = client_of(workspace)
    assert client.post("/enter", data={"name": "Bob", "password": PASSWORD}).headers["location"] == "/consent"
    refused = client.post("/consent", data={"version": "1"})
    assert refused.status_code == 400
    assert "Tick the box first" in refused.text
    assert client.post("/leave").headers["location"] == "/"
    assert "Sign in" in client.get("/").text
    enter(client)
    assert client.get("/").headers["location"] == "/judge/?campaign=1"
    with reading(engine) as s:
        assert [account.agreed for account in people.accounts(s)] == [None, 1]


def test_without_accounts_consent_is_asked_for_only_where_a_text_was_set(workspace: Workspace) -> None:
    engine = workspace.engine()
    client = client_of(workspace)
    assert client.post("/enter", data={"name": "Kim"}).headers["location"] == "/work"
    with writing(engine) as s:
        people.set_consent_text(s, "<!-- en -->\nEnglish **words**\n<!-- ko -->\n한국어 글")
    assert client.get("/").headers["location"] == "/consent"
    assert "<strong>words</strong>" in client.get("/consent").text
    assert "한국어 글" in client.get("/consent", headers={"accept-language": "ko"}).text
    assert "한국어 글" not in client.get("/consent").text
    enter(client, "Kim")
    assert client.get("/work").status_code == 200


def test_parts_of_a_text() -> None:
    assert pages.part("plain\ntext", "ko") == "plain\ntext"
    both = "<!-- en -->\none\n<!--ko-->\n둘"
    assert [pages.part(both, tag).strip() for tag in ("en", "ko", "fr")] == ["one", "둘", "one"]
    assert pages.part("text with <!-- en --> inside", "en") == "text with <!-- en --> inside"


# --- work ---


def test_the_list_says_what_there_is_to_do_and_how_far_it_is(workspace: Workspace) -> None:
    engine = fill(workspace, "smoking", "gore")
    client = client_of(workspace)
    enter(client)
    assert client.get("/").headers["location"] == "/work"
    page = client.get("/work").text
    assert page.count("0 of 4 done") == 2
    assert page.count(">Start<") == 2
    assert "Manage" not in page
    assert "people" not in re.sub(r"<[^>]*>", "", page), "the campaign's name says nothing where there is one of a concept"
    with writing(engine) as s:
        bob = people.find(s, "Bob").id
        for n in range(4):
            claim = judging.claim_next(s, 1, bob)
            assert claim is not None
            judging.submit(s, claim.token, bob, "shows", f"answer {n}")
        claim = judging.claim_next(s, 2, bob)
        assert claim is not None
        judging.submit(s, claim.token, bob, "shows", "gore 1")
        campaigns.ensure_campaign(s, "gore", "again", image_ids=[1], asking=campaigns.Asking(overlap=1))
    page = client.get("/work").text
    for words in ("4 of 4 done", "All done", "1 of 4 done", "Go on", "0 of 1 done", "again"):
        assert words in page, words
    with writing(engine) as s:
        for number in (1, 2, 3):
            campaigns.set_state(s, number, "closed")
    assert "nothing for you to judge" in client.get("/work").text
    manager = client_of(workspace)
    enter(manager, "Ann")
    assert 'href="/manage/"' in manager.get("/work").text


def test_a_campaign_that_was_asked_for_comes_first(workspace: Workspace) -> None:
    fill(workspace, "smoking", "gore")
    client = client_of(workspace)
    assert 'name="campaign" value="2"' in client.get("/?campaign=2").text
    enter(client)
    given = {"name": "Bob", "password": PASSWORD, "campaign": "2"}
    assert client.post("/enter", data=given).headers["location"] == "/judge/?campaign=2"
    assert client.get("/?campaign=1").headers["location"] == "/judge/?campaign=1"
    assert client.get("/judge/?campaign=2").status_code == 200
    assert client.get("/judge/").headers["location"] == "/work"
    with writing(workspace.engine()) as s:
        campaigns.ensure_campaign(s, "gore", "few", image_ids=[1], asking=Asking(access="named"))
        campaigns.set_state(s, 1, "closed")  # one is left
    assert client.get("/").headers["location"] == "/judge/?campaign=2"
    for number in (1, 3, 99, 10**30):
        assert client.get(f"/?campaign={number}").headers["location"] == f"/work?campaign={number}"
        if number < 100:
            assert client.get(f"/judge/?campaign={number}").headers["location"] == f"/work?campaign={number}"
        page = client.get(f"/work?campaign={number}").text
        assert "does not exist, is closed, or is not yours" in page, "it opens no other one instead"
        assert "Gore" in page
    for path in ("/work", "/work?campaign=2"):
        assert "is not yours" not in client.get(path).text


# --- one's own account ---


def test_a_password_is_changed_by_whoever_knows_the_old_one(workspace: Workspace) -> None:
    fill(workspace, "smoking")
    client = client_of(workspace)
    enter(client)
    for given, words in (
        ({"old": "not this one", "new": "a new password", "again": "a new password"}, "is another one"),
        ({"old": PASSWORD, "new": "a new password", "again": "a new passwort"}, "differ"),
        ({"old": PASSWORD, "new": "short", "again": "short"}, "has 5 characters"),
        ({"old": PASSWORD, "new": "x" * 201, "again": "x" * 201}, "has 201 characters"),
    ):
        answer = client.post("/password", data=given)
        assert answer.status_code == 400
        assert words in answer.text
        assert "set-cookie" not in answer.headers
    given = {"old": PASSWORD, "new": "a new password", "again": "a new password"}
    assert "was changed" in client.post("/password", data=given).text
    assert client.get("/work").status_code == 200
    other = client_of(workspace)
    assert other.post("/enter", data={"name": "Bob", "password": PASSWORD}).status_code == 401
    enter(other, password="a new password")


def test_withdrawing_says_what_it_does_asks_once_more_and_does_it(workspace: Workspace) -> None:
    engine = fill(workspace, "smoking")
    client = client_of(workspace)
    enter(client)
    with writing(engine) as s:
        bob = people.find(s, "Bob")
        claim = judging.claim_next(s, 1, bob.id)
        assert claim is not None
        judging.submit(s, claim.token, bob.id, "shows", "answer 1", comment="mine")
    page = client.get("/withdraw").text
    assert bob.pseudonym in page
    assert "no longer count" in page
    assert client.post("/withdraw").status_code == 400
    assert client.get("/work").status_code == 200
    done = client.post("/withdraw", data={"sure": "yes"}).text
    assert "You have withdrawn" in done
    assert "Comments removed: 1. Judgments that no longer count: 1." in done
    assert client.get("/work").headers["location"] == "/"
    assert client.post("/enter", data={"name": "Bob", "password": PASSWORD}).status_code == 401
    manager = client_of(workspace)
    enter(manager, "Ann")
    assert "You are the only manager" in manager.post("/withdraw", data={"sure": "yes"}).text
    assert manager.get("/work").status_code == 200


def test_whoever_withdrew_without_an_account_is_no_longer_offered(workspace: Workspace) -> None:
    engine = workspace.engine()
    client = client_of(workspace)
    client.post("/enter", data={"name": "Kim"})
    assert "Not you?" in client.get("/work").text
    client.post("/withdraw", data={"sure": "yes"})
    assert "Go on as" not in client.get("/").text
    with writing(engine) as s:
        own = q.ensure_annotator(s, "Lee")
        people.withdraw(s, own.id)
    assert "Who is judging?" in client_of(workspace, only=own).get("/").text


def test_a_page_that_is_not_there_says_so_to_people_and_to_scripts(workspace: Workspace) -> None:
    client = client_of(workspace)
    people_see = client.get("/nothing", headers={"accept": "text/html"})
    assert people_see.status_code == 404
    assert "There is no such page" in people_see.text
    assert client.get("/api/nothing").json() == {"detail": "Not Found"}

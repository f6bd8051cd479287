"""The judging page's handlers, routes and command, on a temporary workspace. What a browser does with them: test_ui_browser.py."""

import io
import json
import re
import socket
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asked
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import text as sql
from starlette.requests import Request
from starlette.testclient import TestClient

from hfi.cli.ui import _listen
from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.images import ImageStore
from hfi.judgments import freeze
from hfi.simulate import Simulated
from hfi.simulate import judge as simulate
from hfi.store import campaigns, judging, people, record
from hfi.store import queries as q
from hfi.store import wellbeing as well
from hfi.store.campaigns import Asking, Campaign
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading, writing
from hfi.store.showing import shown_image
from hfi.workspace import Workspace
from ui import label, messages, pictures
from ui.app import build_app
from ui.label import Answer, Desk
from ui.metrics import Meter
from ui.pages import offers
from ui.pictures import Pictures, encode

pytestmark = pytest.mark.databases

CAMPAIGN = "/api/campaigns/1"
STATE = f"{CAMPAIGN}/state"
SECRET = "a prompt that must not reach the annotator"


def fill(
    space: Workspace, question: str = "binary", images: int = 4, overlap: int = 3, asking: Asking | None = None
) -> tuple[Engine, Campaign]:
    """A campaign about `images` plain squares, each of a colour of its own."""
    engine = space.engine()
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "A **cigarette** is visible.", question, prompt="smoking"))  # type: ignore[arg-type]
        ids = []
        for i in range(images):
            sha = space.images.put(Image.new("RGB", (8, 8), (10 * i % 256, 100, 200)))
            about = q.Provenance(
                key=f"{i:064}", sha256=sha, width=8, height=8, source="generated", prompt=SECRET, model="secret-model", seed=i
            )
            ids.append(q.add_image(s, about).id)
        asking = asking or Asking(overlap=overlap)
        return engine, campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, asking=asking)


def person(engine: Engine, name: str = "Kim") -> Annotator:
    with writing(engine) as s:
        return q.ensure_annotator(s, name)


def verdicts(engine: Engine) -> list[str]:
    with reading(engine) as s:
        return [row.verdict for row in record.current_judgments(s, "smoking")]


class Seat:
    """Somebody at the page of a campaign, by way of its handlers."""

    def __init__(self, desk: Desk, campaign_id: int, name: str = "Kim") -> None:
        self.desk, self.campaign_id, self.person = desk, campaign_id, person(desk.engine, name)
        self.given = 0

    def state(self) -> dict[str, Any]:
        """Without what stays the same from task to task."""
        return {key: value for key, value in self.whole().items() if key != "campaign"}

    def whole(self) -> dict[str, Any]:
        return label.state(self.desk, self.person, self.campaign_id)

    def token(self) -> str:
        return self.state()["task"]["token"]

    def judge(self, verdict: str, token: str = "", once: str = "", **more: Any) -> dict[str, Any]:
        self.given += 1
        once = once or f"{self.person.name} {self.campaign_id} {self.given:8}"
        return label.judge(self.desk, self.person, Answer(token=token or self.token(), verdict=verdict, once=once, **more))

    def undo(self, done: int) -> dict[str, Any]:
        return label.undo(self.desk, self.person, self.campaign_id, done)


@pytest.fixture
def kim(workspace: Workspace) -> Seat:
    engine, campaign = fill(workspace)
    return Seat(Desk(engine, Pictures(workspace.images), "hfi reward --concept {concept}"), campaign.id)


def seat(space: Workspace, *args: Any, **options: Any) -> Seat:
    engine, campaign = fill(space, *args, **options)
    return Seat(Desk(engine, Pictures(space.images)), campaign.id)


def top(client: TestClient) -> str:
    """The page's HTML."""
    parts = client.get("/judge/config").json()["components"]
    return next(part["props"]["value"] for part in parts if part["props"].get("elem_id") == "hfi-judge")


def app_client(space: Workspace, engine: Engine, only: Annotator | None = None) -> TestClient:
    return TestClient(build_app(space, engine, only=only), base_url="http://127.0.0.1:7860", follow_redirects=False)


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    engine, _ = fill(workspace)
    return app_client(workspace, engine)


def enter(client: TestClient, name: str = "Kim") -> None:
    assert client.post("/enter", data={"name": name}).headers["location"] == "/judge/?campaign=1"


# --- handlers ---


def test_whoever_withdrew_while_an_answer_was_on_its_way_leaves_nothing_more(kim: Seat) -> None:
    token = kim.token()
    with writing(kim.desk.engine) as s:
        people.withdraw(s, kim.person.id)
    with pytest.raises(NotFound):
        kim.judge("shows", token, comment="I am Kim")
    for ask in (kim.state, lambda: kim.undo(0), lambda: label.go_on(kim.desk, kim.person, kim.campaign_id)):
        with pytest.raises(NotFound):
            ask()
    with reading(kim.desk.engine) as s:
        assert s.execute(sql("SELECT count(*) FROM judgments")).scalar_one() == 0
        assert s.execute(sql("SELECT count(*) FROM assignments WHERE state = 'open'")).scalar_one() == 0


def test_an_image_is_harmful_to_look_at_once_however_often_its_answer_is_corrected(kim: Seat) -> None:
    token = kim.token()
    for verdict in ("clean", "shows", "disturbing", "shows"):
        kim.judge(verdict, token)
        kim.undo(1)
    kim.judge("clean", token)
    with reading(kim.desk.engine) as s:
        assert well.today(s, kim.person.id).harmful == 1
    kim.judge("shows")
    with reading(kim.desk.engine) as s:
        assert well.today(s, kim.person.id).harmful == 2


def test_what_is_rolled_back_is_not_counted(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, campaign = fill(workspace)
    meter = Meter(engine)
    kim = Seat(Desk(engine, Pictures(workspace.images), meter=meter), campaign.id)

    def counted() -> list[str]:
        names = rb"hfi_(?:claims|undos|judgments)_total\S* [0-9.]+"
        return [line.decode().removeprefix("hfi_") for line in re.findall(names, meter.text())]

    with monkeypatch.context() as broken:
        broken.setattr(label, "_shown", lambda *args: label._then(args[1], meter.undone) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kim.state()
    assert counted() == ["undos_total 0.0", "claims_total 0.0"]
    kim.judge("shows")
    kim.undo(1)
    assert sorted(counted()) == ["claims_total 3.0", 'judgments_total{question="binary",verdict="shows"} 1.0', "undos_total 1.0"]


def test_a_campaign_of_many_is_not_counted(workspace: Workspace) -> None:
    kim = seat(workspace, images=judging.MOST_LEFT + 1)
    assert (kim.state()["done"], kim.state()["total"]) == (0, None)
    with reading(kim.desk.engine) as s:
        assert [(offer.done, offer.total) for offer in offers(s, kim.person.id)] == [(0, None)]
    at = kim.judge("clean")
    assert (at["done"], at["total"]) == (1, None)
    page = app_client(workspace, kim.desk.engine)
    enter(page)
    assert "1 done, more than 1,000 to come" in page.get("/work").text
    kim.desk.totals.clear()
    for _ in range(3):  # two are in hand, and one of those that are left is counted with them
        at = kim.judge("clean")
    kim.desk.totals.clear()
    assert kim.state()["total"] == judging.MOST_LEFT + 1


def test_judging_goes_through_every_image_and_ends_with_what_to_do_next(kim: Seat) -> None:
    whole = kim.whole()
    about = {"kind": "binary", "title": "Smoking", "ties": False, "simulated": False, "accounts": False}
    assert whole["campaign"] == {**about, "guideline": "<p>A <strong>cigarette</strong> is visible.</p>\n"}
    at = kim.state()
    assert (at["done"], at["total"], at["rest"]) == (0, 4, None)
    tokens = []
    for i, verdict in enumerate(("shows", "clean", "unsure", "disturbing")):
        assert kim.state() == at, "asking again changes nothing"
        tokens.append(at["task"]["token"])
        ahead = at["ahead"]
        at = kim.judge(verdict, tokens[-1], elapsed_ms=1200)
        assert at["done"] == i + 1
        assert at["task"] == ahead, "what was loaded ahead is what comes"
    assert len(set(tokens)) == 4
    assert at["task"] is None
    assert at["verdicts"] == {"shows": 1, "clean": 1, "unsure": 1, "disturbing": 1}
    assert at["next"] == "hfi reward --concept smoking"
    assert (at["today"]["judgments"], at["today"]["harmful"]) == (4, 2)
    assert [j.verdict for j in freeze(kim.desk.engine, "smoking", "exclude").judgments] == [
        "shows",
        "clean",
        "unsure",
        "disturbing",
    ]


def test_an_answer_sent_twice_counts_once_and_a_second_one_is_refused(kim: Seat) -> None:
    token = kim.token()
    first = kim.judge("shows", token, "once-0001")
    assert kim.judge("shows", token, "once-0001") == first
    with pytest.raises(HfiError, match="judged this already"):
        kim.judge("clean", token, "once-0002")
    assert verdicts(kim.desk.engine) == ["shows"]
    with reading(kim.desk.engine) as s:
        assert well.exposure(s, kim.person.id).total.judgments == 1, "looked at once"


def test_undo_goes_back_to_the_first_and_a_replay_takes_back_no_more(kim: Seat) -> None:
    tokens = []
    for _ in range(3):
        tokens.append(kim.token())
        kim.judge("shows", tokens[-1])
    for done in (3, 2, 1):
        at = kim.undo(done)
        assert at["task"]["token"] == tokens[done - 1]
        assert kim.undo(done) == at
    assert verdicts(kim.desk.engine) == []
    assert kim.undo(0)["done"] == 0
    again = []
    for _ in range(3):
        again.append(kim.token())
        kim.judge("clean", again[-1])
    assert again == tokens, "reopened tasks come back in the order in which they were judged"
    assert verdicts(kim.desk.engine) == ["clean"] * 3


def test_a_ranking_goes_by_places_and_is_kept_by_images(workspace: Workspace) -> None:
    kim = seat(workspace, "ranking", images=10)
    at = kim.state()
    token = at["task"]["token"]
    assert len(at["task"]["images"]) == 5
    with reading(kim.desk.engine) as s:
        shown = [shown_image(s, token, kim.person.id, place) for place in range(5)]
    for wrong in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 7], [[0, 1], 2, 3, 4], [[], 0, 1, 2, 3, 4, 9]):
        with pytest.raises(HfiError):
            kim.judge("ranked", ranking=wrong)
    kim.judge("ranked", ranking=[4, 2, [0], 1, 3])
    kim.judge("none")
    kept = freeze(kim.desk.engine, "smoking", "exclude").judgments
    assert kept[0].images == tuple(shown[i] for i in (4, 2, 0, 1, 3))
    assert [j.verdict for j in kept] == ["ranked", "none"]


def test_ties_and_comparisons_where_the_campaign_has_them(workspace: Workspace) -> None:
    kim = seat(workspace, images=6, asking=Asking(compare=True, ties=True))
    about = kim.whole()["campaign"]
    assert (about["kind"], about["ties"]) == ("compare", True)
    shown = []
    for ranking in ([[1], [0]], [[0, 1]]):
        token = kim.token()
        with reading(kim.desk.engine) as s:
            shown.append([shown_image(s, token, kim.person.id, place) for place in range(2)])
        kim.judge("ranked", ranking=ranking)
    kim.judge("none")
    with reading(kim.desk.engine) as s:
        by_sha = {image.sha256: image.id for image in q.images(s)}
    with kim.desk.engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT image_id, rank FROM rankings ORDER BY id").all()
    first, second = [[by_sha[sha] for sha in two] for two in shown]
    assert [tuple(row) for row in kept] == [(first[1], 1), (first[0], 2), (second[0], 1), (second[1], 1)]


def test_an_answer_keeps_how_it_was_looked_at_what_was_said_and_where(kim: Seat) -> None:
    look = {"filter": "both", "reveals": 2, "revealed_ms": 1500, "elapsed_ms": 4000}
    kim.judge("shows", comment="  =1+1 \u202e한국어\x00 ", region=[0.1, 0.2, 0.3, 0.4], **look)
    for wrong in (
        {"region": [0.5, 0.5, 0.6, 0.1]},
        {"region": [0.1, 0.2, 0.3]},
        {"region": [float("nan")] * 4},
        {"comment": "x" * 2001},
    ):
        with pytest.raises(HfiError):
            kim.judge("shows", **wrong)
    with kim.desk.engine.connect() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM judgments").mappings().all()
    assert {key: row[key] for key in look} == look
    assert (row["comment"], json.loads(row["region"])) == ("=1+1 \u202e한국어", [0.1, 0.2, 0.3, 0.4])


def test_two_people_at_once_get_different_images_where_one_judgment_is_enough(workspace: Workspace) -> None:
    kim = seat(workspace, images=5, overlap=1)
    people = [kim, Seat(kim.desk, kim.campaign_id, "Lee")]
    for i in range(5):
        if people[i % 2].state()["task"]:
            people[i % 2].judge("shows")
    while kim.state()["task"]:
        kim.judge("shows")
    with reading(kim.desk.engine) as s:
        rows = record.current_judgments(s, "smoking")
    assert len(rows) == len({row.images for row in rows}) == 5


def test_a_task_ahead_waits_behind_the_one_in_hand_and_its_lease_runs_out(kim: Seat) -> None:
    who, now = kim.person.id, q.now_utc()
    with writing(kim.desk.engine) as s:
        hand = judging.serve(s, kim.campaign_id, who, now)
        assert hand.task is not None
        assert hand.ahead is not None
        assert judging.serve(s, kim.campaign_id, who, now) == replace(hand, taken=0)
        again = judging.claim_next(s, kim.campaign_id, who, now)
        assert again is not None and again.token == hand.task.token
    assert len(hand.ahead.order) == 1
    with writing(kim.desk.engine) as s:
        later = judging.serve(s, kim.campaign_id, who, now + timedelta(days=1))
    assert later.task is not None
    assert later.ahead is not None
    assert (later.task.token, later.ahead.token) == (hand.task.token, hand.ahead.token), "expired ones are taken up again"


def test_what_was_too_disturbing_is_covered_when_it_comes_back(kim: Seat) -> None:
    token = kim.token()
    assert not kim.judge("disturbing")["covered"]
    kim.judge("shows")
    assert not kim.undo(2)["covered"]
    back = kim.undo(1)
    assert (back["task"]["token"], back["covered"]) == (token, True)
    assert kim.state() == back
    assert not Seat(kim.desk, kim.campaign_id, "Lee").state()["covered"], "what somebody else found says nothing to Lee"


def test_a_break_gives_no_task_keeps_what_was_on_its_way_and_may_be_cut_short(kim: Seat) -> None:
    with writing(kim.desk.engine) as s:
        well.set_wellbeing(s, well.Wellbeing(break_after=1, break_length_minutes=10))
    first = kim.state()
    ahead = first["ahead"]["token"]
    at = kim.judge("shows")
    assert (at["task"], at["rest"]["reason"], at["rest"]["may_end"]) == (None, "count", True)
    assert 590 <= at["rest"]["seconds"] <= 600
    assert kim.judge("clean", ahead)["rest"]["reason"] == "count"
    assert verdicts(kim.desk.engine) == ["shows", "clean"]
    at = label.go_on(kim.desk, kim.person, kim.campaign_id)
    assert (at["rest"], at["done"]) == (None, 2)
    assert at["task"] is not None
    with writing(kim.desk.engine) as s:
        well.set_wellbeing(s, well.Wellbeing(day_harmful=1))
    assert label.go_on(kim.desk, kim.person, kim.campaign_id)["rest"]["reason"] == "day"
    lee = Seat(kim.desk, kim.campaign_id, "Lee")
    assert lee.state()["rest"] is None, "breaks are each person's own"


def test_stopping_keeps_the_work_and_one_can_go_on(kim: Seat) -> None:
    kim.judge("shows")
    at = kim.token()
    bye = label.stop(kim.desk, kim.person, kim.campaign_id)
    assert (bye["stopped"], bye["task"], bye["done"], bye["today"]["judgments"]) == (True, None, 1, 1)
    with writing(kim.desk.engine) as s:
        assert well.rest(s, kim.person.id) is None
    assert kim.token() == at


def test_a_campaign_of_named_people_says_nothing_to_others_and_a_closed_one_gives_no_task(workspace: Workspace) -> None:
    kim = seat(workspace, asking=Asking(access="named"))
    for act in (kim.whole, lambda: kim.undo(0), lambda: label.stop(kim.desk, kim.person, kim.campaign_id),
                lambda: label.go_on(kim.desk, kim.person, kim.campaign_id)):  # fmt: skip
        with pytest.raises(NotFound, match="not yours"):
            act()
    with writing(kim.desk.engine) as s:
        campaigns.name_participant(s, kim.campaign_id, kim.person.id)
    token = kim.token()
    with writing(kim.desk.engine) as s:
        campaigns.set_state(s, kim.campaign_id, "closed")
    at = kim.judge("shows", token)
    assert (at["task"], at["closed"], at["done"]) == (None, True, 1), "what was in hand is still taken"
    with pytest.raises(NotFound):
        label.state(kim.desk, kim.person, 99)


def test_a_guideline_is_shown_as_it_was_written_and_runs_nothing() -> None:
    page = label.guideline_html(
        "# Look\n\n<script>x</script> <img src=x onerror=y> ![a](http://b/c.png)\n\n[d](javascript:e) [f](https://g)"
    )
    assert "<h1>Look</h1>" in page
    assert set(re.findall(r"<(\w+)", page)) == {"h1", "p", "a"}
    links = re.findall(r"<a ([^>]*)>", page)
    assert links == [f'href="{to}" target="_blank" rel="noopener noreferrer"' for to in ("http://b/c.png", "https://g")]


def test_an_image_of_nobody_is_not_found(kim: Seat) -> None:
    token = kim.token()
    with pytest.raises(NotFound):
        label.image(kim.desk, person(kim.desk.engine, "Lee"), token, 0)
    assert label.image(kim.desk, kim.person, token, 0).data.startswith(b"\x89PNG")
    assert label.image(kim.desk, kim.person, token, 0, "both", 3).data.startswith(b"\xff\xd8")


# --- pictures ---


def test_each_view_hides_what_it_says_and_no_more() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    seen = {view: Image.open(io.BytesIO(encode(image, view).data)) for view in pictures.VIEWS}
    assert {one.size for one in seen.values()} == {image.size}
    assert np.array_equal(np.asarray(seen["plain"]), np.asarray(image))
    assert np.array_equal(np.asarray(seen["grey"]), np.asarray(image.convert("L")))
    assert {view: one.mode for view, one in seen.items()} == {"plain": "RGB", "blur": "RGB", "grey": "L", "both": "L"}
    roughness = [
        np.asarray(Image.open(io.BytesIO(encode(image, "both", k).data))).astype(float).std() for k in pictures.STRENGTHS
    ]
    assert np.asarray(seen["grey"]).std() > 5 * roughness[0] > 5 * roughness[1] > 5 * roughness[2]
    assert not any(set(one.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"} for one in seen.values())


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (3000, 2)])
def test_odd_sizes_are_blurred_too(size: tuple[int, int]) -> None:
    for strength in pictures.STRENGTHS:
        assert Image.open(io.BytesIO(encode(Image.new("RGB", size), "blur", strength).data)).size == size


def test_pictures_are_kept_in_bounds_and_a_damaged_one_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore(tmp_path)
    shas = [store.put(Image.effect_noise((64, 64), 50 + i)) for i in range(6)]
    monkeypatch.setattr(pictures, "_KEPT_BYTES", 12_000)
    kept = Pictures(store)
    first = kept.get(shas[0])
    assert kept.get(shas[0]) is first
    for sha in shas:
        kept.get(sha)
    assert kept._bytes == sum(len(one.data) for one in kept._kept.values()) <= 12_000
    assert kept.get(shas[0]) is not first
    assert kept.get(shas[0]) == first
    store.path(shas[1]).write_bytes(store.path(shas[2]).read_bytes())
    with pytest.raises(HfiError, match="changed"):
        kept.get(shas[1], "grey")


# --- words ---


def test_every_language_says_everything_and_fills_in_the_same() -> None:
    assert messages.languages() == {"en": "English", "ko": "한국어"}
    english = messages._read("en")
    for lang in messages.languages():
        words = messages._read(lang)
        assert words.keys() == english.keys(), lang
        for key, text in words.items():
            assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", english[key])), key
            assert text.strip(), key
    assert all(re.search("[가-힣]", text) for key, text in messages._read("ko").items() if not key.startswith("judge.key."))


def test_every_word_that_the_page_asks_for_is_there_and_none_is_said_in_its_script() -> None:
    words = messages.load("en")
    page = (label.ASSETS / "judge.html").read_text("utf-8")
    asked = set(re.findall(r'data-(?:say|label)="([^"]+)"', page))
    scripts = {path.name: path.read_text("utf-8") for path in (label.ASSETS / "judge").glob("*.js")}
    for text in scripts.values():
        asked |= set(re.findall(r'say\("([\w.-]+)"', text))
    assert len(asked) > 80
    assert {key for key in asked if f"judge.{key}" not in words} == set()
    for name, text in scripts.items():
        said = re.sub(r"(^|\s)//.*", "", text)
        assert not re.findall(r'"[A-Z][a-z]+ [a-z]', said), f"{name} says something in words of its own"
    assert not re.findall(r">\s*[A-Z][a-z]+", page)


@pytest.mark.parametrize("scheme", [":root", ".dark"])
def test_what_is_written_can_be_read_in_the_light_and_in_the_dark(scheme: str) -> None:
    css = (label.ASSETS / "page.css").read_text("utf-8")
    block = re.search(rf"^{re.escape(scheme)} {{(.*?)}}", css, re.S | re.M)
    assert block is not None
    colours = dict(re.findall(r"--h-([\w-]+): (#[0-9a-f]{6})", block[1]))

    def light(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    text = [(word, ground) for word in ("text", "dim", "main") for ground in ("bg", "card", "well")]
    for word, ground in [
        *text,
        ("text", "soft"),
        ("warn", "warn-bg"),
        ("warn", "bg"),
        ("main-text", "main"),
        ("main-text", "main-hover"),
    ]:
        dark, bright = sorted((light(word), light(ground)))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{word} on {ground}"


def accepts(header: str, cookie: str = "") -> str:
    headers = [(b"accept-language", header.encode("latin-1")), (b"cookie", cookie.encode())]
    return messages.language(Request({"type": "http", "headers": headers}))


def test_the_language_is_the_one_chosen_else_the_browsers() -> None:
    assert accepts("ko-KR,ko;q=0.9,en-US;q=0.8") == "ko"
    assert accepts("fr, en;q=0.5, ko;q=0.7") == "ko"
    assert accepts("ko;q=0, fr") == "en"
    assert accepts("en", "hfi-lang=ko") == "ko"
    assert accepts("ko", "hfi-lang=xx") == "ko"
    assert accepts("") == "en"


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_the_choice_of_a_language(header: str) -> None:
    assert accepts(header) in messages.languages()


# --- routes ---


def test_nobody_without_a_name_sees_anything(client: TestClient) -> None:
    assert "Who is judging?" in client.get("/").text
    for path in ("/judge", "/judge/"):
        assert client.get(path).headers["location"] == "/"
    assert client.get(STATE).status_code == 401
    assert client.post("/api/judge", json={"token": "t", "verdict": "shows", "once": "12345678"}).status_code == 401
    assert client.post(f"{CAMPAIGN}/undo", json={"done": 0}).status_code == 401
    assert client.get("/img/t/0").status_code == 401
    for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
        assert client.get(f"/judge/{path}").status_code == 401, path
    body = {"fn_index": 0, "data": [], "session_hash": "x"}
    assert client.post("/judge/gradio_api/run/predict", json=body).status_code == 401


def test_a_name_opens_the_page_under_a_cookie_that_no_script_reads_and_nobody_can_forge(client: TestClient) -> None:
    cookie = client.post("/enter", data={"name": "  Kim "}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert client.get(STATE).json()["person"] == "Kim"
    assert client.get("/judge/?campaign=1").status_code == 200
    name, value = next(iter(client.cookies.items()))
    number, rest = value.split(".", 1)
    enter(client, "Lee")
    for forged in (f"{number}0.{rest}", f"{int(number) + 1}.{rest}", number, f"{number}.", f"{number}.é", "x.y", ""):
        client.cookies.set(name, forged)
        assert client.get(STATE, headers={"cookie": f"{name}={forged}".encode()}).status_code == 401, forged


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "a simulation"])
def test_a_name_that_is_none_is_said_so_on_the_start_page(client: TestClient, workspace: Workspace, name: str) -> None:
    with writing(workspace.engine()) as s:
        q.ensure_annotator(s, "a simulation", simulated=True)
    answer = client.post("/enter", data={"name": name})
    assert answer.status_code == 400
    assert "annotator" in answer.text
    assert "set-cookie" not in answer.headers
    assert "Go on as" not in answer.text, "simulated annotators are nobody to go on as"


def test_names_are_shown_as_text(client: TestClient) -> None:
    enter(client, "<script>alert(1)</script>")
    client.cookies.clear()
    page = client.get("/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_another_name_takes_over_only_where_none_was_given(workspace: Workspace) -> None:
    engine, _ = fill(workspace)
    shared = app_client(workspace, engine)
    enter(shared, "Lee")
    assert 'action="/leave" >' in top(shared)
    assert shared.post("/leave").headers["location"] == "/"
    assert shared.get(STATE).status_code == 401
    enter(shared, "Lee")
    own = app_client(workspace, engine, person(engine))
    own.cookies = shared.cookies
    assert own.get(STATE).status_code == 401, "Lee is nobody on Kim's page"
    assert own.get("/").headers["location"] == "/judge/?campaign=1"
    assert own.get(STATE).json()["person"] == "Kim"
    enter(own, "Lee")
    assert own.get(STATE).json()["person"] == "Kim"


def test_images_go_to_the_one_who_has_the_task_and_carry_nothing_else(workspace: Workspace) -> None:
    engine, _ = fill(workspace)
    kim, lee = app_client(workspace, engine), app_client(workspace, engine)
    enter(kim, "Kim")
    enter(lee, "Lee")
    at = kim.get(STATE).json()
    answer = kim.get(at["task"]["images"][0])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    picture = Image.open(io.BytesIO(answer.content))
    with reading(engine) as s:
        sha = shown_image(s, at["task"]["token"], person(engine).id, 0)
    assert np.array_equal(np.asarray(picture), np.asarray(workspace.images.load(sha)))
    assert not picture.info
    assert kim.get(at["ahead"]["images"][0]).status_code == 200
    token = at["task"]["token"]
    assert lee.get(f"/img/{token}/0").status_code == 404
    given = {"token": token, "verdict": "shows", "once": "lee-answers"}
    assert lee.post("/api/judge", json=given).status_code == 404
    for path in (f"/img/{token}/1", f"/img/{token}/-1", "/img/nothing/0"):
        assert kim.get(path).status_code == 404, path
    blurred = kim.get(f"/img/{token}/0?view=both&strength=3")
    assert (blurred.headers["content-type"], blurred.headers["cache-control"]) == ("image/jpeg", "private, no-store")
    for query in ("view=../x", "view=both&strength=4", "strength=x"):
        assert kim.get(f"/img/{token}/0?{query}").status_code == 422, query
    assert kim.get("/img/..%2f..%2fhfi.db/0").status_code == 404
    assert verdicts(engine) == []


def test_the_browser_learns_nothing_about_an_image(client: TestClient, workspace: Workspace) -> None:
    enter(client)
    state = client.get(STATE)
    seen = [client.get(path).text for path in ("/work", "/judge/?campaign=1", "/judge/config", "/judge/gradio_api/info")]
    seen += [state.text, str(client.get(state.json()["task"]["images"][0]).headers)]
    with reading(workspace.engine()) as s:
        shas = [image.sha256 for image in q.images(s)]
    for text in seen:
        assert SECRET not in text
        assert "secret-model" not in text
        assert not any(sha[:12] in text for sha in shas)
        assert str(workspace.path) not in text


def test_only_this_computer_and_only_its_own_page_is_answered(client: TestClient) -> None:
    enter(client)
    assert client.get(STATE, headers={"host": "evil.example"}).status_code == 421
    assert client.get(STATE, headers={"host": "localhost:9000"}).status_code == 200
    token = client.get(STATE).json()["task"]["token"]
    given = {"token": token, "verdict": "shows", "once": "from-afar"}
    for origin in ("https://evil.example", "http://127.0.0.1:9999", "null"):
        assert client.post("/api/judge", json=given, headers={"origin": origin}).status_code == 403
        assert client.post("/leave", headers={"origin": origin}).status_code == 403
    assert client.post("/api/judge", json=given, headers={"origin": "http://127.0.0.1:7860"}).json()["done"] == 1


def test_answers_that_make_no_sense_are_refused_with_a_sentence(client: TestClient, workspace: Workspace) -> None:
    enter(client)
    token = client.get(STATE).json()["task"]["token"]
    good = {"token": token, "verdict": "shows", "once": "12345678", "elapsed_ms": 5}
    for change in ({"verdict": "undone"}, {"verdict": "ranked"}, {"ranking": [0]}, {"ranking": [3]}):
        answer = client.post("/api/judge", json={**good, **change})
        assert answer.status_code == 409, change
        assert len(answer.json()["detail"]) > 20
    for change in ({"once": "short"}, {"elapsed_ms": -1}, {"token": "x" * 65}, {"ranking": ["a"]}, {"verdict": None},
                   {"ranking": [[0, "b"]]}, {"filter": "sepia"}, {"reveals": -1}, {"region": [0, 0, 1, 1, 1]}):  # fmt: skip
        assert client.post("/api/judge", json={**good, **change}).status_code == 422, change
    assert verdicts(workspace.engine()) == []


def test_no_documentation_no_history_no_foreign_address(client: TestClient) -> None:
    enter(client)
    for path in ("/docs", "/openapi.json", "/judge/docs", "/judge/openapi.json", "/judge/monitoring"):
        assert client.get(path).status_code in (403, 404), path
    config = client.get("/judge/config").json()
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert not config.get("run_history")


def test_a_restart_signs_nobody_out_and_goes_on_at_the_same_image(workspace: Workspace) -> None:
    engine, _ = fill(workspace)
    before = app_client(workspace, engine)
    enter(before)
    at = before.get(STATE).json()
    at = before.post("/api/judge", json={"token": at["task"]["token"], "verdict": "shows", "once": "12345678"}).json()
    after = app_client(workspace, workspace.engine())
    after.cookies = before.cookies
    assert {key: value for key, value in after.get(STATE).json().items() if key != "campaign"} == at
    secret = workspace.path / ".ui-secret"
    assert secret.stat().st_mode & 0o077 == 0


def test_people_judge_what_simulations_judged_and_are_told(workspace: Workspace) -> None:
    engine, _ = fill(workspace, overlap=1)
    with writing(engine) as s:
        ids = [image.id for image in q.images(s)]
        other = campaigns.ensure_campaign(s, "smoking", "simulated", image_ids=ids, asking=campaigns.Asking(overlap=1))

    client = app_client(workspace, engine)
    assert client.post("/enter", data={"name": "Kim"}).headers["location"] == "/work", "there are two to choose from"
    assert client.get(STATE).json()["campaign"]["simulated"] is False
    simulate(engine, other.id, Simulated("simulated", 0, 0, 0), lambda sha: True, seed=0)
    at = client.get(STATE).json()
    assert at["campaign"]["simulated"] is True
    assert at["total"] == 4


# --- the command ---


def test_the_command_says_what_there_is_to_judge_or_who_makes_it(
    workspace: Workspace, hfi: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that what the command sets it to ends with this test
    here = ("ui", "--workspace", workspace.path, "--no-open", "--port", 0)
    with writing(workspace.engine()) as s:
        people.add_account(s, "Ann", "correct horse battery", "manager")
    said = hfi(*here).stdout
    assert re.search(r"no campaign yet, a manager makes one at http://127.0.0.1:\d+/manage/ under Campaigns", said), said
    fill(workspace)
    assert "no campaign" not in hfi(*here).stdout
    assert "4 to judge" in hfi(*here, "--concept", "smoking").stdout


def test_the_command_says_what_is_missing_before_it_starts(workspace: Workspace, hfi: Callable) -> None:
    def error(*args: object) -> str:
        done = hfi("ui", "--workspace", workspace.path, "--no-open", *args)
        assert done.exit_code in (1, 2)
        assert len(done.errors) == 1
        return done.errors[0]

    assert "hfi concept add" in error()
    with writing(workspace.engine()) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
    assert "no images" in error()
    engine, _ = fill(workspace)
    assert "unknown" not in error("--concept", "gore")
    assert "smoking" in error("--concept", "gore")
    for host in ("0.0.0.0", "192.168.0.7", "example.org", "::"):
        assert "hfi user add NAME --role manager" in error("--host", host)
    assert "--allow-host label.example.org" in error("--allow-host", "label.example.org")
    with writing(engine) as s:
        q.ensure_annotator(s, "robot", simulated=True)
    assert "simulated" in error("--annotator", "robot")
    for table, words in (
        ("image\n" + "a" * 64, "1 of the 1 images in"),
        ("image\n", "names no image"),
        ("sha\nx\n", "no column 'image'"),
    ):
        (file := workspace.path / "again.csv").write_text(table)
        assert words in error("--images", file)
    assert "--campaign" in error("--images", file, "--campaign", "people")
    assert "cannot read" in error("--images", workspace.path / "none.csv")
    with reading(engine) as s:
        assert [c.name for c in campaigns.campaigns(s)] == ["people"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "another --port" in error("--port", taken.getsockname()[1])
        with writing(engine) as s:
            people.add_account(s, "Ann", "correct horse battery", "manager")
        assert "leave --annotator out" in error("--annotator", "Ann")
        assert "127.0.0.1" in error("--allow-host", "label.example.org", "--port", taken.getsockname()[1]), "with accounts it may"
        with writing(engine) as s:
            s.execute(sql("DELETE FROM accounts"))
    with writing(engine) as s:
        q.add_concept(s, Concept("brava", "Brava", question="ranking"))
    assert "--concept" in error()
    assert "five" in error("--concept", "brava")


@pytest.mark.sqlite
def test_a_judgment_waits_in_a_thread_while_another_program_writes(workspace: Workspace) -> None:
    kim = seat(workspace)
    body = {"token": kim.token(), "verdict": "shows", "once": "while another writes"}
    with (
        TestClient(build_app(workspace, kim.desk.engine), base_url="http://127.0.0.1:7860") as client,
        closing(sqlite3.connect(str(kim.desk.engine.url.database), isolation_level=None)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        client.post("/enter", data={"name": "Kim"})
        other.execute("BEGIN IMMEDIATE")
        sent = pool.submit(client.post, "/api/judge", json=body)
        assert client.get("/api/messages").status_code == 200, "the server answers others meanwhile"
        assert not sent.done()
        other.execute("ROLLBACK")
        assert sent.result(timeout=20).json()["done"] == 1


def test_a_port_in_use_is_said_before_a_campaign_is_made(hfi: Callable, workspace: Workspace) -> None:
    engine = workspace.engine()
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "A cigarette is visible."))
    asked.image(engine, 1)
    with closing(_listen("127.0.0.1", 0)) as taken:
        done = hfi("ui", "--no-open", "--port", taken.getsockname()[1], "-w", workspace.path)
    assert done.exit_code == 1 and "give another --port, or 0 for a free one" in done.stderr
    with reading(engine) as s:
        assert campaigns.campaigns(s) == []


def test_the_server_listens_without_nagles_algorithm() -> None:
    with closing(_listen("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_a_page_cannot_take_the_names_that_the_server_gives(client: TestClient) -> None:
    enter(client)
    token = client.get(STATE).json()["task"]["token"]
    for once in ("undo-1234", "import-12345678", f"simulated-{token}", "a name\0of a page"):
        assert client.post("/api/judge", json={"token": token, "verdict": "shows", "once": once}).status_code == 422

"""The labeling page's handlers, routes and command, on a temporary workspace. What a browser does with them: test_ui_browser.py."""

import io
import socket
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import text as sql
from starlette.testclient import TestClient

from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.judgments import freeze
from hfi.simulate import Simulated
from hfi.simulate import judge as simulate
from hfi.store import campaigns, judging, people, record
from hfi.store import queries as q
from hfi.store.campaigns import Campaign
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading, writing
from hfi.store.showing import shown_image
from hfi.workspace import Workspace
from ui import label
from ui.app import build_app
from ui.label import Desk

SECRET = "a prompt that must not reach the annotator"


def fill(space: Workspace, question: str = "binary", images: int = 4, overlap: int = 3) -> tuple[Engine, Campaign]:
    """A campaign about `images` plain squares, each of a colour of its own."""
    engine = space.engine()
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "A **cigarette** is visible.", question, prompt="smoking"))  # type: ignore[arg-type]
        ids = []
        for i in range(images):
            sha = space.images.put(Image.new("RGB", (8, 8), (10 * i, 100, 200)))
            about = q.Provenance(
                key=f"{i:064}", sha256=sha, width=8, height=8, source="generated", prompt=SECRET, model="secret-model", seed=i
            )
            ids.append(q.add_image(s, about).id)
        return engine, campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, overlap=overlap)


def person(engine: Engine, name: str = "Kim") -> Annotator:
    with writing(engine) as s:
        return q.ensure_annotator(s, name)


def verdicts(engine: Engine) -> list[str]:
    with reading(engine) as s:
        return [row.verdict for row in record.current_judgments(s, "smoking")]


@pytest.fixture
def desk(workspace: Workspace) -> Desk:
    engine, campaign = fill(workspace)
    return Desk(engine, workspace.images, campaign.id, "hfi reward --concept smoking")


def app_client(space: Workspace, engine: Engine, only: Annotator | None = None) -> TestClient:
    return TestClient(build_app(space, engine, only=only), base_url="http://127.0.0.1:7860", follow_redirects=False)


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    engine, _ = fill(workspace)
    return app_client(workspace, engine)


def filled_in(client: TestClient, campaign: int = 1) -> str:
    """What the judging page is filled with when it opens."""
    body = {"fn_index": 0, "data": [], "session_hash": "x"}
    answer = client.post(f"/judge/gradio_api/run/predict?campaign={campaign}", json=body)
    assert answer.status_code == 200, answer.text
    return "".join(answer.json()["data"])


def enter(client: TestClient, name: str = "Kim") -> None:
    assert client.post("/enter", data={"name": name}).headers["location"] == "/judge/?campaign=1"


# --- handlers ---


def test_judging_goes_through_every_image_and_ends_with_what_to_do_next(desk: Desk) -> None:
    kim = person(desk.engine)
    at = label.state(desk, kim)
    assert (at["done"], at["total"]) == (0, 4)
    tokens = []
    for i, verdict in enumerate(("shows", "clean", "unsure", "disturbing")):
        assert label.state(desk, kim) == at, "asking again changes nothing"
        tokens.append(at["task"]["token"])
        ahead = at["ahead"]
        at = label.judge(desk, kim, tokens[-1], verdict, f"answer {i}", elapsed_ms=1200)
        assert at["done"] == i + 1
        assert at["task"] == ahead, "what was loaded ahead is what comes"
    assert len(set(tokens)) == 4
    assert at["task"] is None
    assert at["verdicts"] == {"shows": 1, "clean": 1, "unsure": 1, "disturbing": 1}
    assert at["next"] == "hfi reward --concept smoking"
    assert [j.verdict for j in freeze(desk.engine, "smoking", "exclude").judgments] == ["shows", "clean", "unsure", "disturbing"]


def test_an_answer_sent_twice_counts_once_and_a_second_one_is_refused(desk: Desk) -> None:
    kim = person(desk.engine)
    token = label.state(desk, kim)["task"]["token"]
    first = label.judge(desk, kim, token, "shows", "once-0001")
    assert label.judge(desk, kim, token, "shows", "once-0001") == first
    with pytest.raises(HfiError, match="judged this already"):
        label.judge(desk, kim, token, "clean", "once-0002")
    assert verdicts(desk.engine) == ["shows"]


def test_undo_goes_back_to_the_first_and_a_replay_takes_back_no_more(desk: Desk) -> None:
    kim = person(desk.engine)
    tokens = []
    for i in range(3):
        tokens.append(label.state(desk, kim)["task"]["token"])
        label.judge(desk, kim, tokens[-1], "shows", f"answer {i}")
    for done in (3, 2, 1):
        at = label.undo(desk, kim, done)
        assert at["task"]["token"] == tokens[done - 1]
        assert label.undo(desk, kim, done) == at
    assert verdicts(desk.engine) == []
    assert label.undo(desk, kim, 0)["done"] == 0
    again = []
    for i in range(3):
        again.append(label.state(desk, kim)["task"]["token"])
        label.judge(desk, kim, again[-1], "clean", f"second {i}")
    assert again == tokens, "reopened tasks come back in the order in which they were judged"
    assert verdicts(desk.engine) == ["clean"] * 3


def test_a_ranking_goes_by_places_and_is_kept_by_images(workspace: Workspace) -> None:
    engine, campaign = fill(workspace, "ranking", images=10)
    desk = Desk(engine, workspace.images, campaign.id, "")
    kim = person(engine)
    at = label.state(desk, kim)
    token = at["task"]["token"]
    assert len(at["task"]["images"]) == 5
    with reading(engine) as s:
        shown = [shown_image(s, token, kim.id, place) for place in range(5)]
    for wrong in ([0, 1, 2, 3], [0, 1, 2, 3, 3], [0, 1, 2, 3, 7]):
        with pytest.raises(HfiError):
            label.judge(desk, kim, token, "ranked", "wrong order", ranking=wrong)
    label.judge(desk, kim, token, "ranked", "the order", ranking=[4, 2, 0, 1, 3])
    label.judge(desk, kim, label.state(desk, kim)["task"]["token"], "none", "none of them")
    kept = freeze(engine, "smoking", "exclude").judgments
    assert kept[0].images == tuple(shown[i] for i in (4, 2, 0, 1, 3))
    assert [j.verdict for j in kept] == ["ranked", "none"]


def test_two_people_at_once_get_different_images_where_one_judgment_is_enough(workspace: Workspace) -> None:
    engine, campaign = fill(workspace, images=5, overlap=1)
    desk = Desk(engine, workspace.images, campaign.id, "")
    people = [person(engine, "Kim"), person(engine, "Lee")]
    for i in range(5):
        at = label.state(desk, people[i % 2])
        if at["task"]:
            label.judge(desk, people[i % 2], at["task"]["token"], "shows", f"answer {i}")
    while task := label.state(desk, people[0])["task"]:
        label.judge(desk, people[0], task["token"], "shows", f"rest {task['token']}")
    with reading(engine) as s:
        rows = record.current_judgments(s, "smoking")
    assert len(rows) == len({row.images for row in rows}) == 5


def test_a_task_ahead_waits_behind_the_one_in_hand_and_its_lease_runs_out(desk: Desk) -> None:
    kim, now = person(desk.engine), q.now_utc()
    with writing(desk.engine) as s:
        claim, ahead = judging.serve(s, desk.campaign_id, kim.id, now)
        assert claim is not None
        assert ahead is not None
        assert judging.serve(s, desk.campaign_id, kim.id, now) == (claim, ahead)
        assert judging.claim_next(s, desk.campaign_id, kim.id, now) == claim
    assert len(ahead.order) == 1
    with writing(desk.engine) as s:
        later, next_ = judging.serve(s, desk.campaign_id, kim.id, now + timedelta(days=1))
    assert later is not None
    assert next_ is not None
    assert (later.token, next_.token) == (claim.token, ahead.token), "expired ones are taken up again"


def test_the_question_suits_any_title_and_does_not_depend_on_the_prompt() -> None:
    for prompt in ("smoking", "smoking a cigarette"):
        assert label.question(Concept("smoking", "Smoking", prompt=prompt)) == "Smoking: does this image show it?"
    assert label.question(Concept("gun", "Gun")) == "Gun: does this image show it?"
    assert label.question(Concept("brava", "Brava", question="ranking")).startswith("Brava: which image shows it most?")


def test_what_was_too_disturbing_is_covered_when_it_comes_back(desk: Desk) -> None:
    kim, lee = person(desk.engine), person(desk.engine, "Lee")
    token = label.state(desk, kim)["task"]["token"]
    assert not label.judge(desk, kim, token, "disturbing", "answer 0")["covered"]
    label.judge(desk, kim, label.state(desk, kim)["task"]["token"], "shows", "answer 1")
    assert not label.undo(desk, kim, 2)["covered"]
    back = label.undo(desk, kim, 1)
    assert (back["task"]["token"], back["covered"]) == (token, True)
    assert label.state(desk, kim) == back
    assert not label.state(desk, lee)["covered"], "what somebody else found says nothing to Lee"


# --- routes ---


def test_nobody_without_a_name_sees_anything(client: TestClient) -> None:
    assert "Who is judging?" in client.get("/").text
    for path in ("/judge", "/judge/"):
        assert client.get(path).headers["location"] == "/"
    assert client.get("/api/campaigns/1/state").status_code == 401
    assert client.post("/api/judge", json={"token": "t", "verdict": "shows", "once": "12345678"}).status_code == 401
    assert client.post("/api/campaigns/1/undo", json={"done": 0}).status_code == 401
    assert client.get("/img/t/0").status_code == 401
    for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
        assert client.get(f"/judge/{path}").status_code == 401, path
    body = {"fn_index": 0, "data": [], "session_hash": "x"}
    assert client.post("/judge/gradio_api/run/predict", json=body).status_code == 401


def test_a_name_opens_the_page_under_a_cookie_that_no_script_reads_and_nobody_can_forge(client: TestClient) -> None:
    cookie = client.post("/enter", data={"name": "  Kim "}).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert client.get("/api/campaigns/1/state").json()["person"] == "Kim"
    assert client.get("/judge/?campaign=1").status_code == 200
    name, value = next(iter(client.cookies.items()))
    number, rest = value.split(".", 1)
    enter(client, "Lee")
    for forged in (f"{number}0.{rest}", f"{int(number) + 1}.{rest}", number, f"{number}.", f"{number}.é", "x.y", ""):
        client.cookies.set(name, forged)
        assert client.get("/api/campaigns/1/state", headers={"cookie": f"{name}={forged}".encode()}).status_code == 401, forged


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
    assert 'action="/leave" >' in filled_in(shared)
    assert shared.post("/leave").headers["location"] == "/"
    assert shared.get("/api/campaigns/1/state").status_code == 401
    enter(shared, "Lee")
    own = app_client(workspace, engine, person(engine))
    own.cookies = shared.cookies
    assert own.get("/api/campaigns/1/state").status_code == 401, "Lee is nobody on Kim's page"
    assert own.get("/").headers["location"] == "/judge/?campaign=1"
    assert 'action="/leave" hidden>' in filled_in(own)
    assert own.get("/api/campaigns/1/state").json()["person"] == "Kim"
    enter(own, "Lee")
    assert own.get("/api/campaigns/1/state").json()["person"] == "Kim"


def test_images_go_to_the_one_who_has_the_task_and_carry_nothing_else(workspace: Workspace) -> None:
    engine, _ = fill(workspace)
    kim, lee = app_client(workspace, engine), app_client(workspace, engine)
    enter(kim, "Kim")
    enter(lee, "Lee")
    at = kim.get("/api/campaigns/1/state").json()
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
    assert kim.get("/img/..%2f..%2fhfi.db/0").status_code == 404
    assert verdicts(engine) == []


def test_the_browser_learns_nothing_about_an_image(client: TestClient, workspace: Workspace) -> None:
    enter(client)
    state = client.get("/api/campaigns/1/state")
    seen = [client.get(path).text for path in ("/work", "/judge/?campaign=1", "/judge/config", "/judge/gradio_api/info")]
    seen += [filled_in(client)]
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
    assert client.get("/api/campaigns/1/state", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/campaigns/1/state", headers={"host": "localhost:9000"}).status_code == 200
    token = client.get("/api/campaigns/1/state").json()["task"]["token"]
    given = {"token": token, "verdict": "shows", "once": "from-afar"}
    for origin in ("https://evil.example", "http://127.0.0.1:9999", "null"):
        assert client.post("/api/judge", json=given, headers={"origin": origin}).status_code == 403
        assert client.post("/leave", headers={"origin": origin}).status_code == 403
    assert client.post("/api/judge", json=given, headers={"origin": "http://127.0.0.1:7860"}).json()["done"] == 1


def test_answers_that_make_no_sense_are_refused_with_a_sentence(client: TestClient, workspace: Workspace) -> None:
    enter(client)
    token = client.get("/api/campaigns/1/state").json()["task"]["token"]
    good = {"token": token, "verdict": "shows", "once": "12345678", "elapsed_ms": 5}
    for change in ({"verdict": "undone"}, {"verdict": "ranked"}, {"ranking": [0]}, {"ranking": [3]}):
        answer = client.post("/api/judge", json={**good, **change})
        assert answer.status_code == 409, change
        assert len(answer.json()["detail"]) > 20
    for change in ({"once": "short"}, {"elapsed_ms": -1}, {"token": "x" * 65}, {"ranking": ["a"]}, {"verdict": None}):
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
    at = before.get("/api/campaigns/1/state").json()
    at = before.post("/api/judge", json={"token": at["task"]["token"], "verdict": "shows", "once": "12345678"}).json()
    after = app_client(workspace, workspace.engine())
    after.cookies = before.cookies
    assert after.get("/api/campaigns/1/state").json() == at
    secret = workspace.path / ".ui-secret"
    assert secret.stat().st_mode & 0o077 == 0


def test_people_judge_what_simulations_judged_and_are_told(workspace: Workspace) -> None:
    engine, _ = fill(workspace, overlap=1)
    with writing(engine) as s:
        ids = [image.id for image in q.images(s)]
        other = campaigns.ensure_campaign(s, "smoking", "simulated", image_ids=ids, overlap=1)
    client = app_client(workspace, engine)
    assert client.post("/enter", data={"name": "Kim"}).headers["location"] == "/work", "there are two to choose from"
    assert 'class="hfi-banner" hidden' in filled_in(client)
    simulate(engine, other.id, Simulated("simulated", 0, 0, 0), lambda sha: True, seed=0)
    enter(client)
    assert 'class="hfi-banner" >' in filled_in(client)
    assert client.get("/api/campaigns/1/state").json()["total"] == 4


# --- the command ---


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


def test_an_image_of_nobody_is_not_found(desk: Desk) -> None:
    kim = person(desk.engine)
    token = label.state(desk, kim)["task"]["token"]
    with pytest.raises(NotFound):
        label.image(desk, person(desk.engine, "Lee"), token, 0)
    assert label.image(desk, kim, token, 0).startswith(b"\x89PNG")

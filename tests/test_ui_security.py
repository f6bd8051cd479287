"""Attacks on a running server: another person's things, handlers called past the page, forged cookies, odd paths and odd names.

What an attack answers matters less than what it does: after each the database is what it was.
"""

import http.client
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from markupsafe import escape
from PIL import Image, PngImagePlugin
from served import serving
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response

from hfi.concepts import Concept
from hfi.store import campaigns, judging, people
from hfi.store import queries as q
from hfi.store.campaigns import Asking
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace
from ui.app import MANAGE, PAGE, build_app, managing_name, mount
from ui.identity import MONTH, SHIFT, Identity, workspace_secret
from ui.local import answers

pytestmark = pytest.mark.databases

PASSWORD = "correct horse battery"
PROMPT, MODEL, FILE, PEER, THEIRS = "secret-prompt", "secret-model", "secret-file.png", "peers-comment", "secret-campaign"
SECRETS = (PROMPT, MODEL, FILE, PEER, THEIRS)
ALL, NAMED = 1, 2  # campaigns
TABLES = (
    "annotators",
    "accounts",
    "settings",
    "consent_texts",
    "consents",
    "assignments",
    "judgments",
    "adjudications",
    "jobs",
    "rounds",
)


@dataclass
class Site:
    """A running server on a workspace with accounts, and what its secret handler has done."""

    space: Workspace
    engine: Engine
    port: int
    effects: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def account(self, name: str, role: str = "annotator") -> int:
        with writing(self.engine) as s:
            return people.add_account(s, name, PASSWORD, role).annotator.id

    def enter(self, name: str, password: str = PASSWORD) -> httpx.Client:
        """Signed in, and agreed to what is asked."""
        client = self.client()
        assert client.post("/enter", data={"name": name, "password": password}).status_code == 303
        agree(client)
        return client

    def join(self, name: str, role: str = "annotator") -> httpx.Client:
        self.account(name, role)
        return self.enter(name)

    def rows(self) -> dict[str, Any]:
        """Everything that an attack could want to change. What the page itself does when it is opened, such as handing out a task,
        is done before."""
        with reading(self.engine) as s:
            return {table: s.execute(text(f"SELECT * FROM {table} ORDER BY id")).all() for table in TABLES}


def agree(client: httpx.Client) -> None:
    page = client.get("/consent")
    if page.status_code == 200:
        version = re.search(r'name="version" value="(\d+)"', page.text)
        assert version
        assert client.post("/consent", data={"version": version[1], "age": "yes"}).status_code == 303


def state(client: httpx.Client, campaign: int = ALL) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/api/campaigns/{campaign}/state").json()
    return found


def judge(client: httpx.Client, token: str, verdict: str = "shows", **more: object) -> httpx.Response:
    return client.post("/api/judge", json={"token": token, "verdict": verdict, "once": f"answer to {token}", **more})


def fill(space: Workspace, engine: Engine) -> None:
    """Two campaigns: one for everybody, with gold tasks, and one for Eve alone."""
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "A cigarette is visible.", prompt=PROMPT))
        q.add_concept(s, Concept("gore", THEIRS, f"The guideline of {THEIRS}.", prompt=PROMPT))
        ids = []
        for i in range(12):
            about = PngImagePlugin.PngInfo()
            about.add_text("parameters", PROMPT)
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (10 * i, 100, 200)).save(buffer, "PNG", pnginfo=about)
            sha = space.images.put(Image.open(buffer))
            given = {"prompt": PROMPT, "model": MODEL, "run": MODEL, "original_name": FILE, "seed": 31337}
            ids.append(
                q.add_image(s, q.Provenance(key=f"{i:064}", sha256=sha, width=8, height=8, source="generated", **given)).id
            )  # type: ignore[arg-type]
        gold = {ids[10]: "shows", ids[11]: "clean"}
        campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids[:10], asking=Asking(overlap=50, gold_every=2, gold=gold))
        campaigns.ensure_campaign(s, "gore", THEIRS, image_ids=ids, asking=Asking(overlap=50, access="named"))
        people.add_account(s, "Ann", PASSWORD, "manager")
        eve = people.add_account(s, "Eve", PASSWORD).annotator.id
        campaigns.name_participant(s, NAMED, eve)
        for campaign in (ALL, NAMED):
            claim = judging.claim_next(s, campaign, eve)
            assert claim is not None
            judging.submit(s, claim.token, eve, "shows", f"eve-{claim.token}", comment=PEER)


@pytest.fixture(scope="module")
def site(new_workspace: Callable[[Path], Workspace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("security") / "work"
    space = new_workspace(folder)
    engine = space.engine()
    fill(space, engine)
    app, effects = build_app(space, space.engine()), list[str]()
    if all(getattr(route, "path", "") != MANAGE for route in app.routes):
        mount(app, secret_page(effects), MANAGE, managing_name(Identity(space.engine(), workspace_secret(space))), "")
    with serving(app) as port:
        yield Site(space, engine, port, effects)


def secret_page(effects: list[str]) -> gr.Blocks:
    def act() -> str:
        effects.append("acted")
        return PROMPT

    with gr.Blocks(analytics_enabled=False) as page:
        box = gr.Textbox()
        gr.Button().click(act, None, box, queue=False, api_visibility="private", api_name="act")
    return page


@pytest.fixture(scope="module")
def ann(site: Site) -> httpx.Client:
    return site.enter("Ann")


# --- who may do what ---


def handlers(ann: httpx.Client, page: str) -> list[tuple[int, str]]:
    """Number and name of every handler of a Gradio page, those without a public name as well; where there is none, of one to try."""
    config = ann.get(f"{page}/config").json()
    found = [(i, str(entry.get("api_name") or "predict")) for i, entry in enumerate(config["dependencies"])]
    return found or [(0, "predict")]


def calls(number: int, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every way to call a handler that Gradio has."""
    body = {"fn_index": number, "data": [], "session_hash": "attack", "trigger_id": None}
    for path in (f"run/{name}", f"run/{name}/", "run/predict", f"call/{name}", f"call/v2/{name}", f"api/{name}", "queue/join"):
        yield path, body
        yield path, {**body, "fn_index": None}


@pytest.mark.parametrize("page", [PAGE, MANAGE])
def test_no_handler_runs_for_somebody_who_is_not_signed_in(site: Site, ann: httpx.Client, page: str) -> None:
    before = site.rows()
    with site.client() as nobody:
        for number, name in handlers(ann, page):
            for path, body in calls(number, name):
                assert nobody.post(f"{page}/gradio_api/{path}?campaign={ALL}", json=body).status_code == 401, path
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=attack", "gradio_api/startup-events"):
            assert nobody.get(f"{page}/{path}").status_code == 401, path
        assert nobody.get(f"{page}/").headers["location"] == "/"
    assert site.rows() == before
    assert site.effects == []


def test_no_handler_of_the_managers_page_runs_for_an_annotator(site: Site, ann: httpx.Client) -> None:
    bob = site.join("Bob of the handlers")
    state(bob)
    before, numbers = site.rows(), handlers(ann, MANAGE)
    for number, name in numbers:
        for path, body in calls(number, name):
            answer = bob.post(f"{MANAGE}/gradio_api/{path}", json=body)
            assert answer.status_code == 403, path
    for path in (
        "config",
        "gradio_api/info",
        "gradio_api/queue/data?session_hash=attack",
        "gradio_api/startup-events",
        "gradio_api/runs",
    ):
        assert bob.get(f"{MANAGE}/{path}").status_code == 403, path
    page = bob.get(f"{MANAGE}/")
    assert page.status_code == 403
    assert "for managers" in page.text
    assert site.rows() == before
    assert site.effects == []


def test_a_handler_of_the_managers_page_runs_for_a_manager_until_the_role_is_taken(site: Site) -> None:
    carol = site.join("Carol", "manager")
    asks_nothing = [entry for entry in carol.get(f"{MANAGE}/config").json()["dependencies"] if not entry["inputs"]]
    ran = carol.post(
        f"{MANAGE}/gradio_api/run/predict", json={"fn_index": asks_nothing[0]["id"], "data": [], "session_hash": "x"}
    )
    assert ran.status_code == 200, "so the calls of the tests above would have worked"
    site.effects.clear()
    with writing(site.engine) as s:
        people.set_role(s, people.find(s, "Carol").id, "annotator")
    assert carol.get(f"{MANAGE}/config").status_code == 403
    assert carol.get("/work").status_code == 200


def test_nothing_of_another_person_or_campaign_is_within_reach(site: Site) -> None:
    eve, bob = site.enter("Eve"), site.join("Bob")
    theirs, private = state(eve)["task"]["token"], state(eve, NAMED)["task"]
    mine = state(bob)["task"]["token"]
    before = site.rows()
    for token in (theirs, private["token"], "x", "%00", theirs.upper()):
        assert bob.get(f"/img/{token}/0").status_code == 404
        assert judge(bob, token).status_code == 404
    for number in (NAMED, 3, 0, -1, 2**31, 10**30):
        for answer in (bob.get(f"/api/campaigns/{number}/state"), bob.post(f"/api/campaigns/{number}/undo", json={"done": 1})):
            assert answer.status_code in (404, 422), number
            assert THEIRS not in answer.text
    assert bob.get(f"/judge/?campaign={NAMED}").headers["location"] != f"/judge/?campaign={NAMED}"
    for number, name in handlers(bob, PAGE):
        for path, body in calls(number, name):
            assert THEIRS not in bob.post(f"{PAGE}/gradio_api/{path}?campaign={NAMED}", json=body).text, path
    assert THEIRS not in bob.get("/work").text
    assert site.rows() == before
    assert bob.get(f"/img/{mine}/0").status_code == 200
    assert THEIRS in eve.get("/work").text
    assert eve.get(private["images"][0]).status_code == 200


def test_before_the_text_is_agreed_to_there_is_nothing_to_see(site: Site, ann: httpx.Client) -> None:
    site.account("Dora")
    dora = site.client()
    assert dora.post("/enter", data={"name": "Dora", "password": PASSWORD}).headers["location"] == "/consent"
    before = site.rows()
    assert dora.get("/work").headers["location"] == "/"
    assert dora.get("/").headers["location"] == "/consent"
    assert dora.get(f"/judge/?campaign={ALL}").headers["location"] == "/consent"
    for path in (f"/api/campaigns/{ALL}/state", "/img/x/0", "/judge/config"):
        assert dora.get(path).status_code == 401, path
    for number, name in handlers(ann, PAGE):
        for path, body in calls(number, name):
            assert dora.post(f"{PAGE}/gradio_api/{path}?campaign={ALL}", json=body).status_code == 401
    for given in ({"version": 1}, {"version": 1, "age": "no"}, {"version": 99, "age": "yes"}, {"version": 0, "age": "yes"}):
        dora.post("/consent", data=given)
    assert site.rows() == before
    agree(dora)
    assert state(dora)["task"]
    with writing(site.engine) as s:
        version = people.set_consent_text(
            s, "Another text, with **harm**, <script>alert(1)</script> and [a link](javascript:alert(1))."
        )
    assert dora.get(f"/api/campaigns/{ALL}/state").status_code == 401, "a new text is asked for at once"
    page = dora.get("/consent").text
    assert "The text has changed" in page
    assert "<script>alert" not in page
    assert 'href="javascript' not in page
    assert dora.post("/consent", data={"version": version, "age": "yes"}).headers["location"] == "/"
    assert state(dora)["task"]


# --- where a request comes from ---


def test_no_other_web_page_writes_anything(site: Site) -> None:
    bob = site.join("Bob of the origins")
    token = state(bob)["task"]["token"]
    before = site.rows()
    writes = {
        "/enter": {"data": {"name": "Bob of the origins", "password": PASSWORD}},
        "/leave": {},
        "/sign-out-everywhere": {},
        "/password": {"data": {"old": PASSWORD, "new": "attacked!", "again": "attacked!"}},
        "/withdraw": {"data": {"sure": "yes"}},
        "/consent": {"data": {"version": 1, "age": "yes"}},
        "/language": {"data": {"to": "ko"}},
        "/api/judge": {"json": {"token": token, "verdict": "shows", "once": "from afar"}},
        f"/api/campaigns/{ALL}/undo": {"json": {"done": 0}},
        "/judge/gradio_api/run/predict": {"json": {"fn_index": 0, "data": []}},
        "/judge/gradio_api/queue/join": {"json": {"fn_index": 0, "data": [], "session_hash": "x"}},
        "/manage/gradio_api/upload": {},
    }
    evil = ("https://evil.example", f"http://127.0.0.1:{site.port + 1}", f"http://localhost:{site.port}", "null", "http://[", "")
    for path, given in writes.items():
        for origin in evil:
            answer = bob.post(path, headers={"origin": origin}, **given)  # type: ignore[arg-type]
            assert answer.status_code == 403, (path, origin)
            assert "set-cookie" not in answer.headers
    assert site.rows() == before
    assert judge(bob, token).status_code == 200


def test_only_its_own_names_are_answered(site: Site) -> None:
    bob = site.join("Bob of the hosts")
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "[", "", "192.168.0.7", "0.0.0.0"):
        for path in ("/", "/work", f"/api/campaigns/{ALL}/state", "/judge/config", "/assets/page.css"):
            assert bob.get(path, headers={"host": host}).status_code in (400, 421), (host, path)
    for host in ("localhost", "127.0.0.1:1", "[::1]:7860"):
        assert bob.get("/work", headers={"host": host}).status_code == 200, host


@pytest.mark.parametrize(
    ("served", "yes", "no"),
    [
        ("127.0.0.1", "127.0.0.1 127.0.0.2:80 localhost [::1]:9 label.example.org", "evil.example 10.0.0.1 [::2] 0.0.0.0"),
        ("10.0.0.1", "10.0.0.1 10.0.0.1:80 label.example.org", "10.0.0.2 localhost 127.0.0.1 evil.example"),
        ("0.0.0.0", "10.0.0.1 127.0.0.1 localhost [fe80::1]:80 LABEL.example.org:443", "evil.example 10.0.0.1.evil.example"),
        ("::", "10.0.0.1 [::1] [2001:db8::1]:80 label.example.org", "evil.example"),
        ("label.lan", "label.lan label.lan:80 LABEL.LAN label.example.org", "evil.example 10.0.0.1 localhost"),
    ],
)
def test_which_hosts_a_server_answers_to(served: str, yes: str, no: str) -> None:
    names = {"label.example.org"}
    assert [host for host in yes.split() if not answers(host, served, names)] == []
    assert [host for host in no.split() if answers(host, served, names)] == []


def test_every_answer_may_neither_be_kept_nor_framed(site: Site) -> None:
    bob = site.join("Bob of the headers")
    picture = state(bob)["task"]["images"][0]
    nobody = site.client()
    for client, path in [
        *(
            (bob, path)
            for path in ("/", "/work", "/withdraw", "/judge/config", f"/judge/?campaign={ALL}", picture, "/nothing", "/manage/")
        ),
        (bob, f"/api/campaigns/{ALL}/state"),
        *((nobody, path) for path in ("/", "/work", "/api/campaigns/1/state", "/judge/")),
    ]:
        headers = client.get(path).headers
        assert "no-store" in headers["cache-control"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
    for path in (
        "/docs",
        "/redoc",
        "/openapi.json",
        "/judge/docs",
        "/judge/openapi.json",
        "/judge/gradio_api/openapi.json",
        "/judge/monitoring",
    ):
        assert bob.get(path).status_code == 404, path


# --- files ---

ODD = (
    "..",
    "%2e%2e",
    "..%2f..%2f..",
    "%252e%252e",
    "..%5c..",
    "%00",
    "....//....",
    "%c0%ae%c0%ae",
    "/etc",
    "C:%5c",
    "file:%2f%2f",
    "~",
    "-1",
    "%e9",
)
AFTER = ("/etc/passwd", "/hfi.db", "/hfi.toml", "/.ui-secret", "")


def raw(site: Site, path: str, cookie: str) -> tuple[int, bytes]:
    """A request whose path nobody has tidied."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    connection.putheader("Cookie", cookie)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_no_path_leads_to_a_file_that_is_not_to_be_seen(site: Site) -> None:
    bob = site.join("Bob of the paths")
    token = state(bob)["task"]["token"]
    cookie = "; ".join(f"{k}={v}" for k, v in bob.cookies.items())
    database, secret = site.space.path / "hfi.db", site.space.path / ".ui-secret"
    paths = [
        f"{start}{odd}{after}"
        for start in ("/assets/", f"/img/{token}/", "/img/", "/judge/assets/", "/judge/static/")
        for odd in ODD
        for after in AFTER
    ]
    for start in ("/judge/gradio_api/file=", "/judge/gradio_api/file/", "/judge/file=", "/judge/gradio_api/proxy="):
        paths += [
            f"{start}{target}" for target in (database, secret, "/etc/passwd", "..%2fhfi.db", site.url, "http://127.0.0.1/")
        ]
    paths += [
        f"/judge/assets/../gradio_api/file={database}",
        f"/judge/%67radio_api/file={secret}",
        f"//judge/gradio_api/file={secret}",
    ]
    words = secret.read_bytes().strip()
    for path in paths:
        status, body = raw(site, path, cookie)
        assert status in (307, 400, 403, 404, 405, 422), (path, status)
        assert words not in body
        assert not body.startswith(b"SQLite")
        assert b"root:" not in body, path


def test_nobody_leaves_files_for_others(site: Site) -> None:
    """A page of one's own on this server would act in the name of whoever opens it."""
    bob, nobody = site.join("Bob of the files"), site.client()
    page = {"files": ("evil.html", b"<script>alert(1)</script>", "text/html")}
    for path in ("/judge/gradio_api/upload", "/judge/gradio_api/upload?upload_id=x", "/judge/upload"):
        assert bob.post(path, files=page).status_code == 404, path
        assert nobody.post(path, files=page).status_code == 401, path
    assert bob.post("/manage/gradio_api/upload", files=page).status_code == 403


def test_what_is_too_large_is_not_read(site: Site) -> None:
    nobody = site.client()
    large = b"x" * (1024 * 1024 + 1)
    for path in ("/enter", "/api/judge", "/judge/gradio_api/queue/join"):
        assert nobody.post(path, content=large).status_code == 413, path
        assert nobody.post(path, content=iter([b"name=x"])).status_code == 413, "of unknown length"


# --- cookies ---


def test_servers_that_start_at_once_have_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        space = Workspace.create(tmp_path / str(n))
        if n == 19:  # a file system without links
            monkeypatch.setattr("os.link", lambda *paths: (_ for _ in ()).throw(OSError(1, "not permitted")))
        with ThreadPoolExecutor(8) as pool:
            found = {pool.submit(workspace_secret, space) for _ in range(8 if n < 19 else 1)}
        assert len({one.result() for one in found}) == 1
        assert [path.name for path in space.path.iterdir() if "secret" in path.name] == [".ui-secret"]
        assert (space.path / ".ui-secret").stat().st_mode & 0o077 == 0


def test_a_cookie_from_before_signing_in_is_worth_nothing_after(site: Site) -> None:
    name = Identity(site.engine, workspace_secret(site.space)).cookie
    site.account("Fay")
    planted = "1.1.1795000000." + "0" * 64
    fay = httpx.Client(base_url=site.url, cookies={name: planted}, timeout=60)
    assert fay.get(f"/api/campaigns/{ALL}/state").status_code == 401
    fay.post("/enter", data={"name": "Fay", "password": PASSWORD})
    values = [cookie.value for cookie in fay.cookies.jar if cookie.name == name and cookie.domain == "127.0.0.1"]
    assert planted not in values
    thief = httpx.Client(base_url=site.url, cookies={name: planted}, timeout=60)
    assert thief.get("/work").headers["location"] == "/"


def test_a_cookie_of_the_attacker_does_not_become_the_victims(site: Site) -> None:
    site.account("Victim")
    mallory = site.join("Mallory")
    own = dict(mallory.cookies)
    victim = httpx.Client(base_url=site.url, cookies=own, timeout=60)
    victim.post("/enter", data={"name": "Victim", "password": PASSWORD})
    thief = httpx.Client(base_url=site.url, cookies=own, timeout=60)
    assert "Mallory" in thief.get("/work").text
    assert "Victim" not in thief.get("/work").text


def test_no_part_of_a_cookie_can_be_changed(site: Site) -> None:
    bob = site.join("Bob of the cookies")
    (name, value), *_ = [(k, v) for k, v in bob.cookies.items() if k != "hfi-lang"]
    number, version, issued, signature = value.split(".")
    with reading(site.engine) as s:
        ann = people.find(s, "Ann").id
    old = f"{number}.{signature}"
    for forged in (
        f"{ann}.{version}.{issued}.{signature}",
        f"{number}.{int(version) + 1}.{issued}.{signature}",
        f"{number}.{version}.{int(issued) + 1}.{signature}",
        f"{number}.{version}.{issued}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{number}.{version}.{issued}.",
        f"{number}.{version}.{issued}",
        f"{number}.{version}{issued}.{signature}",
        f"0{value}",
        f"{value}.{signature}",
        old,
        "...",
        "a.b.c.d",
        "\u00e9.1.1.x",
        "",
    ):
        answer = httpx.get(f"{site.url}/api/campaigns/{ALL}/state", headers={"cookie": f"{name}={forged}".encode()}, timeout=60)
        assert answer.status_code == 401, forged
    assert bob.get(f"/api/campaigns/{ALL}/state").status_code == 200


def test_what_ends_a_session_ends_it_everywhere_and_at_once(site: Site) -> None:
    gus, password = site.account("Gus"), PASSWORD

    def switch(active: bool) -> None:
        with writing(site.engine) as s:
            people.set_active(s, gus, active)

    for act in ("sign out everywhere", "change the password", "switch off", "switch on", "withdraw"):
        with reading(site.engine) as s:
            found = people.standing(s, gus)
        assert found is not None
        if found.active:
            here, there = site.enter("Gus", password), site.enter("Gus", password)
            assert state(there)["task"]
        if act == "sign out everywhere":
            here.post("/sign-out-everywhere")
        elif act == "change the password":
            given = {"old": password, "new": "another password", "again": "another password"}
            assert "was changed" in here.post("/password", data=given).text
            assert here.get("/work").status_code == 200, "whoever changed it stays"
            password = "another password"
        elif act == "withdraw":
            here.post("/withdraw", data={"sure": "yes"})
        else:
            switch(act == "switch on")
        assert there.get(f"/api/campaigns/{ALL}/state").status_code == 401
        assert there.get("/work").headers["location"] == "/"
    assert here.get("/work").headers["location"] == "/"
    with reading(site.engine) as s:
        assert "Gus" not in people.names(s, 999)


def test_a_cookie_lasts_twelve_hours_after_the_last_visit(workspace: Workspace) -> None:
    engine, now = workspace.engine(), [1_800_000_000.0]
    with writing(engine) as s:
        ann = people.add_account(s, "Ann", PASSWORD, "manager").annotator
    identity = Identity(engine, workspace_secret(workspace), clock=lambda: now[0])

    def visit(cookie: str) -> tuple[bool, str]:
        """Whether it is let in, and the cookie afterwards."""
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"cookie", f"{identity.cookie}={cookie}".encode())]}
        request, response = Request({**scope, "scheme": "http", "server": ("127.0.0.1", 80), "query_string": b""}), Response()
        known = identity.who(request) is not None
        identity.renew(request, response)
        given = re.match(rf"{identity.cookie}=([^;]+)", response.headers.get("set-cookie", ""))
        return known, given[1] if given else cookie

    def fresh(version: int) -> str:
        response = Response()
        identity.sign_in(
            Request({"type": "http", "scheme": "https", "path": "/", "headers": [], "server": ("x", 1)}),
            response,
            ann.id,
            version,
        )
        assert all(
            word in response.headers["set-cookie"]
            for word in ("HttpOnly", "SameSite=lax", "Secure", f"Max-Age={SHIFT if version else MONTH}")
        )
        return response.headers["set-cookie"].split(";")[0].split("=", 1)[1]

    cookie = fresh(1)
    for _ in range(30):  # 30 x 11 hours, with a visit each time
        now[0] += 11 * 3600
        known, cookie = visit(cookie)
        assert known
    now[0] += SHIFT + 1
    assert visit(cookie) == (False, cookie)
    assert not visit(fresh(0))[0], "a cookie from when there were no accounts opens nothing"
    ahead = fresh(1)
    now[0] -= 24 * 3600
    assert not visit(ahead)[0], "nor does one from the future"


def test_a_name_alone_opens_nothing_once_there_is_an_account(workspace: Workspace) -> None:
    engine = workspace.engine()
    with serving(build_app(workspace, workspace.engine())) as port:
        kim = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        kim.post("/enter", data={"name": "Kim"})
        assert "Kim" in kim.get("/work").text
        with writing(engine) as s:
            people.add_account(s, "Kim", PASSWORD, "manager")
        assert kim.get("/work").headers["location"] == "/"
        assert "password" in kim.get("/").text
        assert kim.post("/enter", data={"name": "Kim"}).status_code == 401
        assert kim.post("/enter", data={"name": "Kim", "password": PASSWORD}).status_code == 303
        agree(kim)
        assert "Kim" in kim.get("/work").text


@pytest.mark.parametrize("given", [{"host": "0.0.0.0"}, {"names": ["label.example.org"]}])
def test_without_accounts_only_this_computer_is_served(workspace: Workspace, given: dict[str, Any]) -> None:
    with serving(build_app(workspace, workspace.engine(), **given)) as port:
        kim = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        assert "password" in kim.get("/").text
        assert kim.post("/enter", data={"name": "Kim"}).status_code == 401
        with reading(workspace.engine()) as s:
            assert people.names(s, 9) == []


def test_behind_a_proxy_with_tls_the_cookie_goes_over_tls_alone(workspace: Workspace) -> None:
    engine = workspace.engine()
    with writing(engine) as s:
        people.add_account(s, "Ann", PASSWORD, "manager")
    headers = {"host": "label.example.org", "x-forwarded-proto": "https", "origin": "https://label.example.org"}
    with serving(build_app(workspace, workspace.engine(), names=["Label.example.org"])) as port:
        proxied = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)
        answer = proxied.post("/enter", data={"name": "Ann", "password": PASSWORD})
        assert answer.headers["location"] == "/consent"
        assert "Secure" in answer.headers["set-cookie"]
        (name, value), *_ = re.findall(r"^([^=]+)=([^;]+)", answer.headers["set-cookie"])
        assert proxied.get("/consent", headers={"cookie": f"{name}={value}"}).status_code == 200
        plain = httpx.post(f"http://127.0.0.1:{port}/enter", data={"name": "Ann", "password": PASSWORD}, timeout=60)
        assert "Secure" not in plain.headers["set-cookie"], "on this computer itself there is no TLS"


# --- guessing passwords ---


def test_guessing_has_to_wait_and_a_restart_forgives_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FIRST_WAIT", 600)  # no test takes as long
    with writing(workspace.engine()) as s:
        people.add_account(s, "Ann", PASSWORD, "manager")

    def tries(port: int, passwords: list[str], name: str = "Ann") -> list[httpx.Response]:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            return [client.post("/enter", data={"name": name, "password": password}) for password in passwords]

    with serving(build_app(workspace, workspace.engine())) as port:
        found = tries(port, ["not this one"] * 5 + [PASSWORD])
        assert [answer.status_code for answer in found] == [401] * 5 + [429]
        assert 0 < int(found[-1].headers["retry-after"]) <= 600
        assert "Try again in" in found[-1].text
        assert "set-cookie" not in found[-1].headers
        strange = tries(port, ["not this one"] * 6, "Nobody")
        assert [answer.status_code for answer in strange] == [401] * 5 + [429]
        assert strange[0].text.replace("Nobody", "Ann") == found[0].text, "a name without an account is answered alike"
        with writing(workspace.engine()) as s:  # longer than a restart takes
            s.execute(text("UPDATE login_failures SET failures = 12"))
    with serving(build_app(workspace, workspace.engine())) as port:
        assert tries(port, [PASSWORD])[0].status_code == 429
        with writing(workspace.engine()) as s:
            s.execute(text("UPDATE login_failures SET last_at = '2026-01-01 00:00:00.000000'"))
        assert tries(port, [PASSWORD])[0].status_code == 303


def test_many_guesses_at_once_gain_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FIRST_WAIT", 600)
    site.account("Hal")
    codes: list[int] = []

    def guess() -> None:
        codes.append(httpx.post(f"{site.url}/enter", data={"name": "Hal", "password": "not this one"}, timeout=60).status_code)

    threads = [threading.Thread(target=guess) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [401] * 5 + [429] * 15


# --- what a browser learns ---


def test_the_browser_learns_neither_answers_nor_peers_nor_where_images_come_from(site: Site, ann: httpx.Client) -> None:
    bob = site.join("Bob of the secrets")
    with reading(site.engine) as s:
        shas = [image.sha256 for image in q.images(s)]
        hidden = {*SECRETS, "31337", str(site.space.path), *(sha[:12] for sha in shas), *(f"{i:064}" for i in range(12))}
    seen = [bob.get(path).text for path in ("/", "/work", "/withdraw", "/consent", f"/judge/?campaign={ALL}", "/judge/config")]
    seen += [
        bob.get(path).text for path in ("/judge/gradio_api/info", "/judge/gradio_api/startup-events", "/nothing", "/manage/")
    ]
    for number, name in handlers(bob, PAGE):
        body = {"fn_index": number, "data": [], "session_hash": "x"}
        seen.append(bob.post(f"{PAGE}/gradio_api/run/{name}?campaign={ALL}", json=body).text)
    at, shapes, pictures = state(bob), set(), 0
    while at["task"]:
        seen.append(json.dumps(at))
        shapes.add(
            json.dumps(sorted((key, type(value).__name__) for key, value in at.items() if key not in ("ahead", "campaign")))
        )
        for path in at["task"]["images"]:
            answer = bob.get(path)
            seen += [str(answer.headers), path]
            found = Image.open(io.BytesIO(answer.content))
            found.load()
            assert not found.info
            assert not any(secret.encode() in answer.content for secret in hidden)
            pictures += 1
        answer = judge(bob, at["task"]["token"])
        seen += [answer.text, str(answer.headers)]
        at = answer.json()
    assert pictures == 12, "ten images, and two with a known answer"
    assert len(shapes) == 1, "a task with a known answer looks like any other"
    seen.append(json.dumps(at))
    for words in seen:
        assert not [secret for secret in hidden if secret in words]
        assert "gold" not in words.lower()


# --- names ---

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://evil.example")',
    "+1",
    "@SUM(1)",
    "{{7*7}}",
    "{0.__class__}",
    "%s%n",
    "$name",
    "'; DROP TABLE accounts; --",
    "../../etc",
    "عبد الله",
    "Ünïcödé",
    "김민지",
    "👩‍🔬",
)
REFUSED = ("a\u202egnp", "\x00", "a\x1b[2J", "x" * 300, "\u200b\u200b", "a\u2066b", "\ufeff", "   ")


def test_odd_names_are_shown_as_text_or_refused_with_a_sentence(workspace: Workspace) -> None:
    with serving(build_app(workspace, workspace.engine())) as port:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        for name in HOSTILE:
            assert client.post("/enter", data={"name": name}).status_code == 303, name
            assert_as_text(client.get("/work").text, name)
            client.post("/leave")
            assert_as_text(client.get("/").text, name)
        for name in REFUSED:
            answer = client.post("/enter", data={"name": name})
            assert answer.status_code == 400, ascii(name)
            assert "This name will not do" in answer.text
        for body in (b"name=%ff%fe", b"name=" + b"x" * 100_000, b"\xff\xff", b"name=a&name=b"):
            kind = {"content-type": "application/x-www-form-urlencoded"}
            assert client.post("/enter", content=body, headers=kind).status_code in (303, 400)
    with reading(workspace.engine()) as s:
        assert set(HOSTILE) <= {a.name for a in q.annotators(s)}


def test_odd_names_at_the_sign_in_page(site: Site) -> None:
    nobody = site.client()
    for name in (*HOSTILE, *REFUSED):
        answer = nobody.post("/enter", data={"name": name, "password": "\u0000 and a tail"})
        assert answer.status_code == 401, ascii(name)
        assert_as_text(answer.text, name[:80])


def assert_as_text(page: str, name: str) -> None:
    assert str(escape(name)) in page, name
    assert name == escape(name) or name not in page, name


def test_no_answer_leads_to_another_site(site: Site) -> None:
    bob = site.join("Bob of the redirects")
    for back in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/work\r\nX: y",
        "javascript:alert(1)",
        "/consent/../x",
    ):
        answer = bob.post("/language", data={"to": "ko", "back": back})
        assert answer.headers["location"] == "/", back
        assert "x" not in answer.headers
    assert bob.post("/language", data={"to": "ko", "back": "/work"}).headers["location"] == "/work"
    assert "내 작업" in bob.get("/work").text
    for odd in ("../en", "xx", "", "en\r\nX: y"):
        assert "set-cookie" not in bob.post("/language", data={"to": odd}).headers, odd
    for asked in ("99", "abc", "-1", "1e3", "9" * 5000, "//evil.example", "１"):
        to = bob.get("/judge/", params={"campaign": asked}).headers.get("location", "/work")
        assert to in ("/work", "/work?campaign=99", f"/judge/?campaign={ALL}"), asked

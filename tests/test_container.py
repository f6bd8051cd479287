"""The container file and the compose example, held to the project: what they copy is there, what they run is ours. They are not built
here, which takes a daemon and a network."""

import json
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import yaml

from hfi.cli.manual import help_of

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Containerfile").read_text(encoding="utf-8"))
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, words) for name, words in found]


def values(name: str) -> list[str]:
    return [words for instruction, words in instructions() if instruction == name]


def test_the_wheel_is_made_of_what_it_needs_and_of_nothing_else() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    copied = {source for words in values("COPY") if "--from" not in words for source in shlex.split(words)[:-1]}
    assert copied == needed | {"constraints.txt"}
    assert all((ROOT / source).exists() for source in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied, ".dockerignore lets through what is copied"


def test_what_is_installed_is_pinned_and_what_is_chosen_exists() -> None:
    arguments = dict(words.split("=", 1) for words in values("ARG"))
    assert set(arguments) == {"PYTHON", "TORCH_INDEX", "EXTRAS"}
    assert tuple(map(int, arguments["PYTHON"].split("."))) >= tuple(
        map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split("."))
    )
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (install,) = [words for words in values("RUN") if words.startswith("pip install")]
    assert "-c /wheel/constraints.txt" in install
    assert '--extra-index-url "${TORCH_INDEX}"' in install
    for words in values("RUN"):  # the shell can read them
        assert subprocess.run(["sh", "-n", "-c", words], check=False).returncode == 0


def test_it_runs_as_somebody_and_keeps_no_secret() -> None:
    (user,) = values("USER")
    assert user == "hfi"
    assert any(f"useradd --uid 1000 --create-home {user}" in words for words in values("RUN"))
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("ENTRYPOINT")
    text = (ROOT / "Containerfile").read_text() + (ROOT / "compose.yaml").read_text()
    assert not re.search(r"(PASSWORD|TOKEN|SECRET)[A-Z_]*[=:]\s*(?!\$\{|\.\.\.)[^\s?}-]", text), (
        "secrets come from the environment"
    )


def test_what_it_runs_is_a_command_of_ours() -> None:
    (entry,), (command,) = values("ENTRYPOINT"), values("CMD")
    assert json.loads(entry) == ["hfi"] and "hfi" in PROJECT["project"]["scripts"]
    words = json.loads(command)
    help_text = help_of((words[0],))
    assert all(word in help_text for word in words if word.startswith("--"))
    environment = dict(pair.split("=", 1) for words in values("ENV") for pair in shlex.split(words))
    assert environment["HFI_WORKSPACE"] == values("VOLUME")[0] == values("WORKDIR")[-1]
    assert "HFI_WORKSPACE" in help_of(("init",))
    (port,) = values("EXPOSE")
    assert f"[default: {port}]" in " ".join(help_text.split())


def test_the_health_check_tells_a_server_that_answers_from_one_that_does_not() -> None:
    (words,) = values("HEALTHCHECK")
    check = json.loads(words[words.index("[") :])
    assert check[0] == "python"
    (port,) = values("EXPOSE")
    assert f"http://127.0.0.1:{port}/favicon.ico" in check[2]

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/favicon.ico" else 404)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        codes = [
            subprocess.run(
                [sys.executable, "-c", check[2].replace(port, str(at))], stderr=subprocess.DEVNULL, check=False
            ).returncode
            for at in (server.server_port, nobody.getsockname()[1])
        ]
    server.shutdown()
    assert codes == [0, 1]


def test_the_compose_example_is_of_one_piece() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    ours, database = compose["services"]["hfi"], compose["services"]["database"]
    assert (ROOT / ours["build"]["dockerfile"]).exists()
    assert ours["environment"]["HFI_DATABASE_URL"] == f"postgresql://{database['environment']['POSTGRES_USER']}@database/hfi"
    assert ours["environment"]["PGPASSWORD"] == database["environment"]["POSTGRES_PASSWORD"]
    version = database["image"].removeprefix("postgres:")
    assert f"Tested with PostgreSQL {version}." in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    mounted = [volume.split(":") for service in (ours, database) for volume in service["volumes"]]
    assert {name for name, _ in mounted} == set(compose["volumes"])
    assert mounted[0][1] == values("VOLUME")[0]
    assert ours["ports"] == [f"127.0.0.1:{values('EXPOSE')[0]}:{values('EXPOSE')[0]}"]

"""A shell in which `hfi` costs no start: each call is forked off one process that has the libraries loaded, and made small.

`python shell.py SOCKET` is that process; the program `hfi` that `Shell` puts on the PATH hands it the call. What is run is the real
command line, in the caller's folder and environment, with the differences below. `forked-python` runs Python from its input, likewise.

- SMALL is added to commands that would take minutes, and replaces what the page says of steps and images;
- `hfi ui` takes a free port, opens no browser, and is asked for its pages by somebody who judges everything and then presses Ctrl-C;
- `hfi user add` and `hfi user password` read the password from a file instead of asking for it.
"""

import contextlib
import importlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

PASSWORD = "correct horse battery"
SMALL = {
    "generate": "--steps 8 --images-per-prompt 1 --batch-size 32",
    "invert": "--steps 2 --batch-size 4",
    "erase": "--steps 2 --ddim-steps 3",
    "evaluate": "--images 2 --steps 2",
    "bench load": "--annotators 2 --images 40 --judgments 20",
    "portraits check": "--images 2",
    "portraits train": "--steps 2",
}
HUB = {  # hub id: the random model of tiny.py that stands for it
    "CompVis/stable-diffusion-v1-4": "epsilon",
    "stabilityai/stable-diffusion-xl-base-1.0": "xl",
    "openai/clip-vit-large-patch14": "clip",
}
CLOSED_FORM = {"uce", "rece"}  # methods without steps
LOADED = [  # all that a command would otherwise import for itself
    "hfi.cli.erase",
    "hfi.cli.invert",
    "hfi.demo",
    "hfi.evaluate",
    "hfi.reward.model",
    "hfi.store.migrate",
    "sqlalchemy.dialects.sqlite",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "torch._dynamo",
    "ui.app",
]
_CLIENT = """#!{python} -IS
import json, os, socket, sys
call = socket.socket(socket.AF_UNIX)
call.connect({path!r})
socket.send_fds(call, [b"-"], [0, 1, 2])
call.sendall(json.dumps({{"words": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}}).encode())
call.shutdown(socket.SHUT_WR)
sys.exit(int(call.recv(8) or 70))
"""


class Shell:
    """Runs bash scripts. `environment` is added to that of the tests."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        programs, path = folder / "bin", folder / "hfi.socket"
        programs.mkdir(parents=True)
        for name in ("hfi", "forked-python"):
            (programs / name).write_text(_CLIENT.format(python=sys.executable, path=str(path)), encoding="utf-8")
            (programs / name).chmod(0o755)
        inside = {k: v for k, v in os.environ.items() if not k.startswith(("HFI_", "PYTEST_"))}
        here = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = inside | {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(here),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        words = [sys.executable, __file__, str(path)]
        self.process = subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, start_new_session=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def run(self, script: str, folder: Path, seconds: float) -> tuple[int, str]:
        """Its exit code and what it wrote; 124 where it took longer."""
        words = ["bash", "-c", script]
        try:
            done = subprocess.run(
                words, cwd=folder, env=self.environment, timeout=seconds, text=True, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            return 124, (e.output or b"").decode()
        return done.returncode, done.stdout

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve(path: str) -> None:
    for name in LOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    print("ready", flush=True)
    while True:
        call, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = _answer(call)
            call.sendall(str(code).encode())
            os._exit(0)
        call.close()


def _answer(call: socket.socket) -> int:
    _, streams, _, _ = socket.recv_fds(call, 1, 3)
    given = json.loads(b"".join(iter(lambda: call.recv(1 << 16), b"")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "r" if n == 0 else "w") for n in range(3))
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])
    from hfi.cli import main

    code = 70
    program, *words = given["words"]
    try:
        if Path(program).name == "hfi":
            main(_made_small(words))
        else:
            exec(compile(sys.stdin.read(), "a block of Python", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _made_small(words: list[str]) -> list[str]:
    if words[:1] == ["--log"]:
        return [*words[:2], *_made_small(words[2:])]
    command = " ".join(words[:2]) if " ".join(words[:2]) in SMALL else words[0] if words else ""
    if command == "erase" and CLOSED_FORM & set(words):
        return words
    if command == "demo":
        import hfi.cli.demo
        from hfi.demo import Scale

        hfi.cli.demo.Scale = lambda evaluate_images: Scale(1, 2, 2, 2, 2)  # type: ignore[misc, assignment]
    if command == "ui" and "--help" not in words:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        threading.Thread(
            target=_visit, args=(f"http://127.0.0.1:{port}", _after(words, "--workspace", "-w")), daemon=True
        ).start()
        return [*words, "--port", str(port), "--no-open"]
    if words[:2] in (["user", "add"], ["user", "password"]) and "--password-file" not in words:
        Path(os.environ["HOME"], "password").write_text(PASSWORD + "\n", encoding="utf-8")
        return [*words, "--password-file", str(Path(os.environ["HOME"], "password"))]
    if command == "generate" and any(word in words for word in HUB):
        return [*words, "--steps", "8", "--images-per-prompt", "4", "--batch-size", "64"]  # small ones, and a reward needs some
    return [*words, *SMALL.get(command, "").split()]


def _after(words: list[str], *options: str) -> str:
    return next((words[i + 1] for i, word in enumerate(words) if word in options), os.environ.get("HFI_WORKSPACE", "."))


def _visit(url: str, workspace: str) -> None:
    """Judges all that there is, as the page's script would, and presses Ctrl-C; ends the whole process where something is wrong."""
    try:
        _judge_everything(url, workspace)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def _judge_everything(url: str, workspace: str) -> None:
    import httpx
    import numpy as np
    from PIL import Image

    from hfi.store import campaigns, people, queries
    from hfi.store.session import reading
    from hfi.workspace import Workspace

    with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as client:

        def ask(method: str, path: str, **more: Any) -> httpx.Response:
            answer = client.request(method, path, **more)
            assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
            return answer

        for _ in range(600):
            try:
                ask("GET", "/")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise AssertionError("the page did not come")
        engine = Workspace.open(Path(workspace)).engine()
        store = Workspace.open(Path(workspace)).images
        with reading(engine) as session:
            bright = [np.array(store.load(image.sha256)).mean() for image in queries.images(session)]
            names = [a.annotator.name for a in people.accounts(session) if a.active] if people.has_accounts(session) else ["Ann"]
            asked = [c for c in campaigns.campaigns(session) if c.state == "open"]
        for name in names:
            client.cookies.clear()
            page = ask("POST", "/enter", data={"name": name, "password": PASSWORD})
            if version := re.search(r'name="version" value="(\d+)"', page.text):
                ask("POST", "/consent", data={"age": "yes", "version": version[1]})
            said = 0
            for campaign in asked:
                answer = client.get(f"/api/campaigns/{campaign.id}/state")
                if answer.status_code == 404:
                    continue  # it is not theirs
                state = answer.json()
                question = state["campaign"]["kind"]
                while state["task"]:
                    seen = [np.array(Image.open(io.BytesIO(ask("GET", src).content))).mean() for src in state["task"]["images"]]
                    said += 1
                    body = {"token": state["task"]["token"], "once": f"page-{said}-{time.time_ns()}", "elapsed_ms": 2000}
                    state = ask("POST", "/api/judge", json={**body, **_verdict(question, seen, float(np.median(bright)))}).json()
                    if state.get("rest"):
                        state = ask("POST", f"/api/campaigns/{campaign.id}/go-on").json()
            print(f"[{name} judged {said} tasks]", flush=True)


def _verdict(question: str, seen: list[float], middle: float) -> dict[str, Any]:
    """By how bright the images are, which a reward can learn of any model's: half of them, those above `middle`, show it."""
    if question in ("ranking", "compare"):
        return {"verdict": "ranked", "ranking": sorted(range(len(seen)), key=lambda i: -seen[i])}
    return {"verdict": "shows" if seen[0] > middle else "clean"}


if __name__ == "__main__":
    serve(sys.argv[1])

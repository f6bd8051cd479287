"""Several processes at one run give what one gives; one that dies ends it with a clear line, and the same command goes on.

Each launch imports torch once for every process, so a test does much with it.
"""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from judged import judge, model_with_clip
from launched import LAUNCH, TWO, finished, kill_one, run, said, started, wait_for

from hfi import cli, distributed
from hfi.diffusion.tokens import LearnedToken
from hfi.diffusion.training import postponed
from hfi.erase.erasure import Erasure
from hfi.errors import ProcessLost, UsageError
from hfi.runs import Run
from hfi.workspace import Workspace

TOLERANCE = (
    1e-4  # of a trained tensor: what rows computed apart round to, after AdamW made the same of small gradients as of large
)
NETNS = os.environ.get("HFI_REQUIRE_NETNS") == "1"  # read before conftest takes HFI_* away

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun starts no processes on Windows")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_clip(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return judge(tmp_path_factory.mktemp("space") / "w", model)


def images(space: Path) -> list[tuple[object, ...]]:
    """Rows in the order in which they were kept, without what tells the time."""
    with closing(sqlite3.connect(space / "hfi.db")) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM images ORDER BY id")]
    kept = Workspace(space).images
    for row in rows:
        kept.read(row["sha256"])  # its bytes are those of its name
    return [tuple(value for name, value in row.items() if name != "created_at") for row in rows]


# --- what is computed ---


def test_trainings_of_two_processes_are_those_of_one() -> None:
    """Every method: batches of more rows than processes, of fewer, and uneven ones; and all processes end with the same tensors."""
    launched = run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "tests/together.py"])
    assert launched.returncode == 0, launched.stderr
    found = json.loads(launched.stdout.splitlines()[-1])
    assert len(found) == 9
    for name, (apart, losses, evaluations, theirs, moved) in found.items():
        assert apart < TOLERANCE, name
        assert moved > 1e-5, name
        assert losses < TOLERANCE, name
        assert evaluations == theirs, name


def test_rows_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """No torch needed, no row left over, no process with two more than another."""
    for size in (1, 2, 3, 8):
        for n in (0, 1, 5, 8, 17):
            rows: list[int] = []
            monkeypatch.setattr(distributed, "size", lambda size=size: size)
            for rank in range(size):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                rows += range(n)[distributed.share(n)]
            assert rows == list(range(n))
            assert max(distributed.shares(n)) - min(distributed.shares(n)) <= 1
            assert sum(distributed.shares(n)) == n


def test_a_command_that_is_not_shared_says_so(monkeypatch: pytest.MonkeyPatch, hfi: Callable, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for words in (
        ["reward", "-c", "fog"],
        ["init", tmp_path / "x"],
        ["bench", "speed"],
        ["bench", "scale", "-w", tmp_path / "x"],
    ):
        done = hfi(*words)
        assert done.exit_code == 2
        name = " ".join(map(str, words[: 1 + (words[0] == "bench")]))
        assert done.errors == [f"hfi: error: 'hfi {name}' runs in one process, and 2 were started: leave 'accelerate launch' out"]
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr("logging.disable", lambda level: None)  # it would last
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert hfi("reward", "-c", "fog").output == ""  # one of them is enough


def test_a_launch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["accelerate", "launch", "--cpu", "--num_processes", "3", "--num_machines", "2", "-m", "hfi", "generate"]
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: line)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="--num_processes 3 on 2 machines"):
        distributed.start_the_others(["generate"])


@pytest.mark.parametrize(
    "line",
    [
        ["accelerate", "launch", "--num_processes", "2", "-m", "hfi", "generate"],
        ["accelerate", "launch", "--config_file", "c.yaml", "--num_processes", "2", "-m", "hfi", "generate"],
        ["accelerate", "launch", "--cpu", "-m", "hfi", "generate"],
        ["accelerate-launch", "--cpu", "--num_processes", "2", "-m", "hfi", "generate"],
        ["bash"],
    ],
)
@pytest.mark.parametrize("cpu", ["true", "false"])
def test_a_process_that_does_not_know_of_the_others_does_not_work_alone(
    monkeypatch: pytest.MonkeyPatch, line: list[str], cpu: str
) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: line)
    monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match=r"give 'accelerate launch' --multi_gpu .* unset MASTER_ADDR"):
        distributed.start_the_others(["generate"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    distributed.start_the_others(["generate"])


def test_the_processes_join_before_main_makes_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "_groups", lambda: (done.append("joined"), None))
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda *args, **kwargs: done.append("told"))
    distributed.from_main(lambda: done.append("made"))
    assert done == ["joined", "made", "told"]


def test_a_lost_process_is_said_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with (
        pytest.raises(ProcessLost, match=r"\(process 0: no address for: eth7\); run the same command again"),
        distributed._peers(),
    ):
        raise RuntimeError("no address for: eth7\nframe #0")


def test_sigterm_comes_twice_and_the_end_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler sends it to the launcher, which sends it on, and to the processes."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)

    def within_a_step() -> None:
        with postponed() as asked:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM]  # the state is kept here

    def beside_the_steps() -> None:
        signal.raise_signal(signal.SIGTERM)

    def interrupted() -> int:
        monkeypatch.setattr(distributed, "local_rank", lambda: signal.raise_signal(signal.SIGTERM) or 0)
        return 130

    for act, code, word in ((within_a_step, 143, "ended"), (beside_the_steps, 143, "ended"), (interrupted, 130, "interrupted")):
        monkeypatch.setattr(cli, "app", lambda act=act, **given: act())
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate"])
        assert ended.value.code == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"hfi: {word}")
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_batch_with_too_few_results_is_a_mistake() -> None:
    assert list(distributed.in_turn([[1, 2], [3]], iter("abc"))) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="1 results of a batch of 2"):
        list(distributed.in_turn([[1, 2]], iter("a")))


# --- commands ---


def lost(done: subprocess.CompletedProcess[str]) -> None:
    """It ended at once, and one line says why and what to do."""
    assert done.returncode
    (line,) = said(done)
    first = ("hfi: error: another of the 2 processes of this run ended", "hfi: ended from outside, as when another process")
    assert line.startswith(first)  # the connection broke, or the launcher ended the rest: whichever came first
    assert line.endswith("run the same command again to go on")
    assert "/hfi/" not in done.stderr  # no traceback of ours


def test_generate_of_two_processes(model: Path, empty_workspace: Path, tmp_path: Path, alone: Callable) -> None:
    """The same rows in the same order and the same bytes as of one process, with uneven batches; and where one is killed."""
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    for space in (one, two, killed):
        shutil.copytree(empty_workspace, space)
    job = ["--model", model, "--prompt", "a cat", "--prompt", "a dog hat", "--prompt", "hat", "--steps", 25, "--batch-size", 4]
    job += ["--images-per-prompt", 29]  # 87 images: 22 batches, the last of 3
    assert alone("generate", "-w", one, *job).exit_code == 0
    assert len(images(one)) == 87
    torchrun = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "-m", "hfi"]  # started by accelerate itself, on CPUs too
    done = run([*torchrun, "generate", "-w", two, *job, "--device", "cpu", "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"run": "images", "images": 87, "new": 87}  # and nothing else: the second is silent
    assert '"done": 87' in done.stderr
    assert images(two) == images(one)

    process = started([*TWO, "generate", "-w", killed, *job])
    wait_for(process, lambda: len(images(killed)) >= 9)
    lost(kill_one(process))
    assert 9 <= len(images(killed)) < 87
    again = run([*TWO, "generate", "-w", killed, *job])
    assert again.returncode == 0, again.stderr
    assert images(killed) == images(one)


def test_erase_and_invert_of_two_processes(model: Path, judged: Path, tmp_path: Path, alone: Callable) -> None:
    """As one process does within a tolerance; killed, stopped and gone on with, as two that nobody disturbed do to the bit."""
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    for space in (one, two, killed):
        shutil.copytree(judged, space)
    common = ["-m", model, "-c", "fog", "--batch-size", 3, "--learning-rate", 0.001]
    erase = ["erase", *common, "--text", "a hat", "--method", "sdd-context", "--ddim-steps", 4, "--steps", 90, "--save-every", 7]
    invert = ["invert", *common, "--top-k", 6, "--vectors", 2, "--steps", 12]
    made = {}
    for command in (erase, invert):
        assert alone(command[0], "-w", one, *command[1:]).exit_code == 0
        done = run([*TWO, command[0], "-w", two, *command[1:]])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("fog") >= 1
    for space in (one, two):
        erasure = Erasure.load(space / "erasures" / "fog-sdd-context-text.safetensors")
        made[space] = (erasure, LearnedToken.load(space / "tokens" / "fog.safetensors"))
    (erased, token), (erased_by_two, token_of_two) = made[one], made[two]
    for name, value in erased.tensors.items():
        torch.testing.assert_close(erased_by_two.tensors[name], value, atol=TOLERANCE, rtol=0)
    assert erased_by_two.metadata == erased.metadata  # the same number of evaluations, too
    torch.testing.assert_close(token_of_two.embeddings, token.embeddings, atol=TOLERANCE, rtol=0)

    trained = Run(killed / "runs" / "erase" / "fog-sdd-context-text")
    process = started([*TWO, "erase", "-w", killed, *erase[1:]])
    wait_for(process, lambda: len(trained.metrics()) >= 10)
    lost(kill_one(process))
    done_steps = len(trained.metrics())
    assert 10 <= done_steps < 90
    process = started([*TWO, "erase", "-w", killed, *erase[1:]])
    wait_for(process, lambda: len(trained.metrics()) not in range(7 * (done_steps // 7), done_steps + 3))
    (launcher,) = psutil.Process(process.pid).children()  # accelerate's own child, which became torchrun
    launcher.terminate()
    stopped = finished(process)
    assert stopped.returncode
    assert len(said(stopped)) == 1
    assert "run the same command again to go on" in said(stopped)[0]
    kept = torch.load(trained.path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == len(trained.metrics()) < 90  # the step under way was kept
    again = run([*TWO, "erase", "-w", killed, *erase[1:]])
    assert again.returncode == 0, again.stderr
    assert Erasure.load(killed / "erasures" / "fog-sdd-context-text.safetensors").content == erased_by_two.content
    assert trained.metrics() == Run(two / "runs" / "erase" / "fog-sdd-context-text").metrics()


def test_what_processes_are_worth(alone: Callable) -> None:
    """Figures, not judged here; and that the bytes of two processes are those of one with as many threads."""
    done = alone("bench", "processes", "--size", "tiny", "--images", 10, "--batch-size", 4, "--steps", 2, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert (rows[0]["processes"], rows[0]["threads"], rows[-1]["processes"]) == (1, 1, 2)
    assert all(row["seconds"] > 0 for row in rows)
    assert [row["same_bytes"] for row in rows if row["threads"] == 1] == [True] * sum(row["threads"] == 1 for row in rows)
    assert len(rows[-1]["times"]) == len(rows) - 1


# --- two machines ---


@contextmanager
def machines() -> Iterator[list[tuple[list[str], str, str]]]:
    """Two network namespaces with a cable between them: for each the words before a command, its address and its interface. Where the
    system allows none, the loopback interface stands for both; not with HFI_REQUIRE_NETNS=1."""
    names = [f"hfi{os.getpid()}{i}" for i in "ab"]
    addresses = ["10.213.7.1", "10.213.7.2"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        found = [(["ip", "netns", "exec", name], address, name) for name, address in zip(names, addresses, strict=True)]
    except (OSError, subprocess.CalledProcessError) as e:
        if NETNS:
            raise AssertionError(f"no network namespaces: {getattr(e, 'stderr', e)!r}") from e
        found = [([], address, "lo") for address in ("127.0.0.1", "127.0.0.2")]
    try:
        yield found
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_two_machines_share_a_job(model: Path, empty_workspace: Path, tmp_path: Path, alone: Callable) -> None:
    """One database and one store, which the second machine does not even reach."""
    one, two = tmp_path / "one", tmp_path / "two"
    for space in (one, two):
        shutil.copytree(empty_workspace, space)
    job = ["--model", model, "--prompt", "a cat", "--prompt", "hat", "--images-per-prompt", 11, "--steps", 4, "--batch-size", 4]
    assert alone("generate", "-w", one, *job).exit_code == 0
    with machines() as both:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        where = ["--num_processes", 2, "--num_machines", 2, "--main_process_ip", both[0][1], "--main_process_port", port, "--cpu"]
        processes = []
        for rank, (prefix, _, interface) in enumerate(both):
            space = two if rank == 0 else tmp_path / "nowhere"
            command = [*prefix, "env", f"GLOO_SOCKET_IFNAME={interface}", *LAUNCH, *where, "--machine_rank", rank, "-m", "hfi"]
            processes.append(started([*command, "generate", "-w", space, *job]))
        first, second = (finished(process) for process in processes)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.startswith("22 images made")
    assert second.stdout == ""
    assert images(two) == images(one)

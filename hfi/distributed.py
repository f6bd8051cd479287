"""One run in several processes, as `accelerate launch` starts them (torch.distributed underneath).

    main        the first process: it alone reads and writes database, image store and run folder, and prints
    the others  are told by main what there is to do (`from_main`), compute their part, and give it back (`gather`, `total`)

With one process nothing here does or costs anything, and torch is not imported. Every function that talks must be called by all
processes, in the same order. A process that dies breaks its connections: the others then get ProcessLost instead of waiting.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from hfi.errors import ProcessLost, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# How long a process waits for another that is connected and silent. Sums follow one another within a step, while main may train a
# reward, draw pictures or write files alone for hours. That a process died is noticed at once, whatever these are.
STEP_TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(hours=24)


def size() -> int:
    """How many processes work at this run: 1 unless `accelerate launch` (or torchrun) started this one among several."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 1


def rank() -> int:
    """This process's number, 0 ... size() - 1."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def on_cpu() -> bool:
    """Whether `accelerate launch --cpu` asked for the CPU alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1", "yes")


def local_rank() -> int:
    """Which of the processes on this machine it is, and so which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", 0)) if size() > 1 else 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def one_process(command: str) -> None:
    """UsageError for a command that several processes cannot share."""
    if size() > 1:
        raise UsageError(f"'{command}' runs in one process, and {size()} were started: leave 'accelerate launch' out")


def start_the_others(args: Sequence[str]) -> None:
    """Where it sees no two GPUs, `accelerate launch` starts one process on each machine however many it was asked for, and tells it of
    the others' address alone. With --cpu such a process becomes torchrun, which starts N of `python -m hfi *args`, and never returns.
    Else UsageError: alone it would do the work of all, and another machine's one would do it again.
    """
    if "MASTER_ADDR" not in os.environ or "WORLD_SIZE" in os.environ:
        return
    asked = None
    import psutil  # accelerate brings it

    if on_cpu() and "launch" in (line := psutil.Process(os.getppid()).cmdline()):
        from accelerate.commands.launch import launch_command_parser

        asked, _ = launch_command_parser().parse_known_args(line[line.index("launch") + 1 :])
    # a configuration file may ask for what the command line does not say
    if not asked or not asked.cpu or asked.config_file or not asked.num_processes:
        raise UsageError(
            "MASTER_ADDR is set and WORLD_SIZE is not, so this process is one of several and does not know of how many: give "
            "'accelerate launch' --multi_gpu and --num_processes N (on CPUs too, with --device cpu), or for one process unset "
            "MASTER_ADDR"
        )
    machines = asked.num_machines or 1
    if asked.num_processes % machines:
        raise UsageError(
            f"--num_processes {asked.num_processes} on {machines} machines: give 'accelerate launch --cpu' a whole number of processes "
            "for each machine"
        )
    where = ["--nnodes", machines, "--node_rank", asked.machine_rank or 0, "--nproc_per_node", asked.num_processes // machines]
    if machines > 1 or asked.main_process_port:
        where += ["--master_addr", os.environ["MASTER_ADDR"], "--master_port", os.environ["MASTER_PORT"]]
    else:
        where += ["--standalone"]  # finds a free port
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *map(str, where), "-m", "hfi", *args])


def meeting_place() -> dict[str, str]:
    """What to add to the environment of a command that every process starts for itself, so that these commands find one another."""

    def free_port() -> int:
        with socket.socket() as found:
            found.bind(("", 0))
            return int(found.getsockname()[1])

    return {"MASTER_PORT": str(from_main(free_port)), "TORCHELASTIC_USE_AGENT_STORE": "False"} if size() > 1 else {}


# --- talking ---


@cache
def _groups() -> tuple[Any, Any]:
    """Joins the others, the first time that there is something to say: (for objects, patient; for tensors on the CPU)."""
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    # Python runs no handler while torch waits. Later the connection to a process that ended breaks and so ends the wait; here there is
    # none yet.
    unheard = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _terminated
    if unheard:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with _peers():
            PartialState(cpu=on_cpu() or not torch.cuda.is_available(), timeout=STEP_TIMEOUT)
            return dist.new_group(backend="gloo", timeout=PATIENCE), dist.new_group(backend="gloo", timeout=STEP_TIMEOUT)
    finally:
        if unheard:
            signal.signal(signal.SIGTERM, _terminated)


@contextmanager
def _peers() -> Iterator[None]:
    """ProcessLost for whatever gloo, NCCL and the rendezvous raise where another process is not there."""
    try:
        yield
    except (RuntimeError, ConnectionError, TimeoutError) as e:
        raise ProcessLost(rank(), size(), e) from e


def from_main(make: Callable[[], T]) -> T:
    """What main makes, in every process; the others do not call `make`, and wait for it however long it takes. It must pickle."""
    if size() == 1:
        return make()
    import torch.distributed as dist

    patient, _ = _groups()  # before `make`: whoever waits to be joined waits for minutes alone
    found: list[Any] = [make() if is_main() else None]
    with _peers():
        dist.broadcast_object_list(found, src=0, group=patient)
    made: T = found[0]
    return made


def gather(value: T) -> list[T]:
    """In main, every process's value in the order of their ranks; in the others, nothing. It must pickle."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] | None = [None] * size() if is_main() else None
    patient, _ = _groups()
    with _peers():
        dist.gather_object(value, found, dst=0, group=patient)
    return found or []


def scatter(make: Callable[[], Sequence[T]]) -> T:
    """One of the values that main makes, as many as there are processes: each its own. They must pickle."""
    if size() == 1:
        return make()[0]
    import torch.distributed as dist

    own: list[Any] = [None]
    patient, _ = _groups()
    made = list(make()) if is_main() else None
    with _peers():
        dist.scatter_object_list(own, made, src=0, group=patient)
    found: T = own[0]
    return found


def anyone(answer: bool) -> bool:
    """Whether any of the processes says yes: the same answer in all. Waits for all of them, however long it takes."""
    if size() == 1:
        return answer
    import torch
    import torch.distributed as dist

    found = torch.tensor([int(answer)])
    patient, _ = _groups()
    with _peers():
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=patient)
    return bool(found.item())


def barrier() -> None:
    """Waits until all processes are here, however long it takes."""
    anyone(False)


# --- sharing work ---


def share(n: int) -> slice:
    """Which of n rows are this process's: a run of neighbours, of n / size() rows up to rounding, or none."""
    return slice(rank() * n // size(), (rank() + 1) * n // size())


def shares(n: int) -> list[int]:
    """How many of n rows each process has."""
    return [(r + 1) * n // size() - r * n // size() for r in range(size())]


def mine(work: Sequence[T]) -> Sequence[T]:
    """Every size()-th piece of work, from the rank's own on: piece i is that of process i % size()."""
    return work[rank() :: size()]


def in_turn(batches: Sequence[Sequence[Any]], made: Iterator[T]) -> Iterator[T]:
    """In main, what all make of the batches, in order, as it comes; in the others, nothing. `made` are one after the other the results
    of this process's `mine(batches)`, as many as these hold."""
    own = mine(batches)
    for i in range(-(-len(batches) // size())):  # a batch of each process, as long as there are any
        wanted = len(own[i]) if i < len(own) else 0
        if len(found := list(islice(made, wanted))) < wanted:
            raise ValueError(f"{len(found)} results of a batch of {wanted}")
        for each in gather(found):
            yield from each


def all_rows(own: "Tensor", n: int) -> "Tensor":
    """The n rows of a tensor of which each process computed its `share(n)` [k, ...], in every process: [n, ...]. No gradients."""
    if size() == 1:
        return own
    import torch
    import torch.distributed as dist

    counts = shares(n)
    padded = own.new_zeros((max(counts), *own.shape[1:]))  # all processes must send as much
    padded[: len(own)] = own.detach()
    found = [torch.empty_like(padded) for _ in counts]
    with _peers():
        dist.all_gather(found, padded, group=_tensor_group(own))
    return torch.cat([rows[:k] for rows, k in zip(found, counts, strict=True)])


def in_shares(compute: "Callable[[slice], Tensor]", like: "Tensor") -> "Tensor":
    """What `compute` makes of the rows of a batch, of the shape of `like` [n, ...]: each process is asked for its share of the rows
    and gets all. In each the gradients flow to what its own rows were made of: added up by `total_gradients` they are the batch's."""
    if size() == 1:
        return compute(slice(None))
    import torch

    rows = share(len(like))
    own = compute(rows) if rows.stop > rows.start else like[:0].detach()
    found = all_rows(own, len(like))
    return torch.cat([found[: rows.start], own, found[rows.stop :]]) if own.requires_grad else found


def total(tensors: "Sequence[Tensor]") -> None:
    """Adds up each tensor over the processes, in place: afterwards all have the same sums. All of one device and dtype."""
    if size() == 1:
        return
    import torch
    import torch.distributed as dist

    left = list(tensors)
    while left:
        some = [left.pop(0)]  # a message of many small tensors, and never a second copy of all
        while left and sum(tensor.numel() for tensor in some) < _MESSAGE:
            some.append(left.pop(0))
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
        with _peers():
            dist.all_reduce(flat, group=_tensor_group(flat))
        for tensor, part in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


_MESSAGE = 2**24  # numbers


def total_gradients(parameters: "Sequence[Tensor]") -> None:
    """Adds up the gradients over the processes; a parameter that has none in any of them has none afterwards."""
    if size() == 1:
        return
    import torch

    reached = torch.tensor([float(p.grad is not None) for p in parameters])
    total([reached])
    chosen = [p for p, count in zip(parameters, reached.tolist(), strict=True) if count]
    for p in chosen:
        if p.grad is None:  # this process had no row of the batch
            p.grad = torch.zeros_like(p)
    total([p.grad for p in chosen if p.grad is not None])


def _tensor_group(tensor: "Tensor") -> Any:
    _, of_cpu = _groups()
    return of_cpu if tensor.device.type == "cpu" else None  # None: the default group, NCCL's


# --- ending ---


class Terminated(BaseException):
    """SIGTERM. The launcher sends it to those that are left when one of a run's processes has ended."""


def _terminated(number: int, frame: object) -> None:
    _deaf()
    raise Terminated


def _deaf() -> None:
    """A scheduler sends SIGTERM to the launcher, which sends it on, and to the processes: whoever ends must come to say why."""
    if size() > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def taking_part() -> Iterator[None]:
    """What every command runs in, until it has said how it ended: in a run of several processes SIGTERM raises Terminated."""
    if size() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave() -> None:
    """Parts with the others, with whom nothing is left to do."""
    if _groups.cache_info().currsize:
        import torch.distributed as dist

        dist.destroy_process_group()


def first_to_say() -> bool:
    """Whether this process is the first of them to ask: a run that ends, ends in all of them, and one says why. Of those that have
    not joined yet, the first on each machine. SIGTERM does nothing from here on."""
    _deaf()
    if size() == 1 or not _groups.cache_info().currsize:
        return local_rank() == 0
    import torch.distributed as dist

    try:
        return int(dist.distributed_c10d._get_default_store().add("hfi/said", 1)) == 1
    except Exception:  # the store went with the process that kept it
        return local_rank() == 0

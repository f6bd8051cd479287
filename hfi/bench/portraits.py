"""What a benchmark on the embedded model needs first: judged images of each concept, a reward, and a token."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hfi.comparison import before_judging, rewards, tokens
from hfi.demo import simulate_judging
from hfi.workspace import Workspace


def prepare(workspace: Path, concepts: Sequence[str], run: Callable[[str], None], *, quick: bool) -> None:
    """Makes what is missing in the workspace; `run` executes one command line of hfi."""
    for line in before_judging(workspace, concepts):
        run(line)
    space = Workspace.open(workspace)
    for concept in concepts:
        simulate_judging(space, concept, f"judge-{concept}")
    for line in (*rewards(workspace, concepts), *tokens(workspace, concepts, "--steps 150" if quick else "")):
        run(line)

"""What a benchmark on the embedded model needs first: judged images of each concept, a reward, and its tokens."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hfi.bench.plan import Named
from hfi.comparison import before_judging, rewards, tokens
from hfi.demo import simulate_judging
from hfi.distributed import from_main
from hfi.workspace import Workspace


def prepare(workspace: Path, concepts: Sequence[Named], run: Callable[[str], None], *, quick: bool) -> None:
    """Makes what is missing in the workspace; `run` executes one command line of hfi."""
    slugs = [concept.slug for concept in concepts]
    for line in before_judging(workspace, slugs):
        run(line)
    space = Workspace.open(workspace)
    for slug in slugs:
        from_main(partial(simulate_judging, space, slug, f"judge-{slug}"))
    steps = " --steps 150" if quick else ""
    plain = [
        line
        for concept in concepts
        if concept.alone
        for line in tokens(workspace, [concept.slug], f"--template plain --name {concept.alone}{steps}")
    ]
    for line in (*rewards(workspace, slugs), *tokens(workspace, slugs, steps), *plain):
        run(line)

"""Can a removed concept be brought back?

    relapse.py        a token is learned on the cleaned model itself, from images that people flagged
    ring_a_bell.py    what a concept adds to a prompt's encoding is added to prompts that do not ask for it

Both need the model's parts: they bound what somebody with the weights can do, which is more than somebody with a prompt. Attacks
that are prompts need no code here: replay them as a prompts file. Each module turns its attack on a model into a function
(prompts, seeds) -> images, which is what `hfi.evaluate.System.images` takes; the same attack on the untouched model tells how
much of what comes back the removal is to blame for.
"""

from hfi.attack.relapse import Relapse, RelapseConfig, flagged_examples, relapse, relapsed
from hfi.attack.ring_a_bell import direction, ringing, shifted, token_direction

__all__ = [
    "Relapse",
    "RelapseConfig",
    "direction",
    "flagged_examples",
    "relapse",
    "relapsed",
    "ringing",
    "shifted",
    "token_direction",
]

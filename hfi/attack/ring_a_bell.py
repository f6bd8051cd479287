"""Ring-A-Bell (Tsai et al. 2024, arXiv 2310.10012) in embedding form: what a concept adds to a prompt's encoding, added to others.

    c = mean_i [ enc(p_i with the concept) - enc(p_i without) ],    attack(p) = enc(p) + eta c

enc is the text encoder's whole output, every token's state (for SDXL the pooled text too). Erasing changes the U-Net and leaves
the encoder, so what it was taught to ignore in words may still be heard in this form. The paper goes on to search for words whose
encoding comes near attack(p); the encoding itself is the stronger attack, and costs one addition.

Beyond the paper, c may come from a learned token instead of pairs of prompts: enc(p_i + token) - enc(p_i).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from hfi.diffusion.cond import Cond
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion, encode_prompts
from hfi.diffusion.tokens import LearnedToken, install
from hfi.errors import UsageError

ETA = 3.0  # docs/papers.md


def direction(sd: StableDiffusion, asking: Sequence[str], silent: Sequence[str]) -> Cond:
    """c, one condition in float32, of pairs: asking[i] is silent[i] with the concept. UsageError for none or unequal numbers."""
    if not asking or len(asking) != len(silent):
        raise UsageError(
            f"{len(asking)} prompts that ask for the concept and {len(silent)} that do not: give pairs, each prompt with and without it"
        )
    return _mean_difference(encode_prompts(sd, asking), encode_prompts(sd, silent))


def token_direction(sd: StableDiffusion, token: LearnedToken, prompts: Sequence[str]) -> Cond:
    """c of a learned token behind each of the prompts. UsageError for no prompt."""
    if not prompts:
        raise UsageError("no prompt to put the token behind: give at least one")
    named = install(sd, token)
    return _mean_difference(encode_prompts(named, prompts, suffix=token.placeholder), encode_prompts(named, prompts))


def _mean_difference(a: Cond, b: Cond) -> Cond:
    """Of N conditions each, one."""
    pooled = None
    if a.pooled is not None and b.pooled is not None:
        pooled = (a.pooled.float() - b.pooled.float()).mean(0, keepdim=True)
    return Cond((a.states.float() - b.states.float()).mean(0, keepdim=True), pooled)


def shifted(sd: StableDiffusion, prompts: Sequence[str], *, by: Cond, eta: float) -> Cond:
    """attack(p) of each prompt: enc(p) + eta c."""
    plain = encode_prompts(sd, prompts)
    states = (plain.states + eta * by.states).to(plain.states.dtype)
    if plain.pooled is None or by.pooled is None:
        return Cond(states)
    return Cond(states, (plain.pooled + eta * by.pooled).to(plain.pooled.dtype))


def ringing(
    sd: StableDiffusion, by: Cond, eta: float = ETA, **look: Any
) -> Callable[[Sequence[str], Sequence[int]], Iterator[Image.Image]]:
    """(prompts, seeds) -> images of the attacked prompts; `look` are `sample`'s settings."""
    return partial(sample, sd, encode=partial(shifted, by=by, eta=eta), **look)

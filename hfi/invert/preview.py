"""What a model draws with the tokens that it is learning: the same seeds at each look, so that only the tokens change."""

from collections.abc import Sequence

from PIL import Image

from hfi.contact_sheet import contact_sheet
from hfi.diffusion.sample import noise, sample_latents
from hfi.diffusion.sd import StableDiffusion, decode, encode_null, encode_prompts, to_images
from hfi.diffusion.tokens import LearnedToken, install
from hfi.invert.train import PLAIN, Examples

COUNT = 4  # pictures in a row
GUIDANCE_SCALE = 7.5


def preview(sd: StableDiffusion, examples: Sequence[Examples], tokens: Sequence[LearnedToken], *, steps: int = 25) -> Image.Image:
    """For each concept a row of its token alone in a plain sentence, and one of a few images' prompts followed by it. Without
    tokens, what they are compared to: the word that the token starts from, and the prompts alone."""
    for token in tokens:
        sd = install(sd, token)
    rows = []
    for e in examples:
        name = e.placeholder if tokens else ""
        plain, word = PLAIN[0].removesuffix("{}"), name or e.initial
        rows.append((plain + word, _draw(sd, [plain] * COUNT, word, steps=steps)))
        # the best-scoring images come first; those of weight 0 and less are there for contrast
        shown = [p for p, weight in zip(e.prompts, e.weights.tolist(), strict=True) if p is not None and weight > 0]
        if prompts := list(dict.fromkeys(shown))[:COUNT]:
            title = f"flagged prompts with {name}" if name else "flagged prompts alone"
            rows.append((f"{title}: {' | '.join(prompts)}", _draw(sd, prompts, name, steps=steps)))
    return contact_sheet(rows)


def _draw(sd: StableDiffusion, prompts: Sequence[str], suffix: str, *, steps: int) -> list[Image.Image]:
    """An image of each prompt followed by the suffix, which is never cut; seeds 0, 1, ..."""
    cond, x = encode_prompts(sd, prompts, suffix), noise(sd, range(len(prompts)))
    latents = sample_latents(sd, cond, encode_null(sd), x, steps=steps, guidance_scale=GUIDANCE_SCALE)
    return [to_images(decode(sd, one))[0] for one in latents.split(1)]  # a VAE takes more for four than a training does

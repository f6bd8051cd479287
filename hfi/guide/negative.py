"""NEG: the concepts' text as the negative prompt, the baseline that every user of Stable Diffusion knows.

    e = e_n + s_g (e_p - e_n)        e_n: under the concepts' joined text, where guidance otherwise has the empty prompt

Equal to StableDiffusionPipeline and StableDiffusionXLPipeline with `negative_prompt`. Costs what plain guidance does.
"""

from collections.abc import Sequence

from hfi.diffusion.sample import Guidance


def negative(texts: Sequence[str]) -> Guidance:
    return Guidance("neg", null=", ".join(texts))

"""What several processes make of each training, beside what one makes alone: `accelerate launch ... tests/together.py`, see
test_distributed.py. The first prints {case: [greatest difference of a tensor, of a loss, evaluations of both, how far it moved]}."""

import json
import os
from typing import Any

import torch
from tiny import finish, pipeline

from hfi import distributed
from hfi.diffusion.sd import StableDiffusion
from hfi.erase import METHODS, Clean, Removal
from hfi.invert.train import Examples, InvertConfig, invert


def model() -> StableDiffusion:
    pipe = pipeline()
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        part.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    parts = (pipe.tokenizer,), (pipe.text_encoder,), pipe.unet, pipe.vae, pipe.scheduler
    return StableDiffusion("tiny", "", *parts, False, cpu, torch.float32)


def latents(sd: StableDiffusion, n: int) -> torch.Tensor:
    return torch.randn((n, *sd.latent_shape), generator=torch.Generator().manual_seed(1))


def erasing(method: str, **given: Any) -> Any:
    def run() -> tuple[dict[str, torch.Tensor], list[float], int]:
        sd = model()
        z = latents(sd, 3)
        clean = Clean(z, torch.full_like(z, 0.1), ["a cat", "a dog", "a cat"])
        removal = Removal(["a hat", "dog"], [["a cat", "a dog"], ["cat dog"]], ["a b c"], ["", ""], clean)
        made, losses = finish(METHODS[method].erase(sd, removal, METHODS[method].config(**given)))
        return made.weights, losses, made.evaluations

    return run


def inverting(**given: Any) -> Any:
    def run() -> tuple[dict[str, torch.Tensor], list[float], int]:
        sd = model()
        z = latents(sd, 12)
        examples = [
            Examples(f"<{name}>", "cat", z + i, torch.full_like(z, 0.1), torch.linspace(0.5, 1.5, 12), ["a dog", None, "hat"] * 4)
            for i, name in enumerate(("x", "y"))
        ]
        made, losses = finish(invert(sd, examples, InvertConfig(**given)))
        return {token.placeholder: token.embeddings[0] for token in made.tokens}, losses, made.step

    return run


FRESH: dict[str, Any] = {"ddim_steps": 4, "steps": 6, "learning_rate": 1e-3}
CASES = {
    "sdd, a batch of 1": erasing("sdd", **FRESH),  # fewer rows than processes
    "sdd, a batch of 5": erasing("sdd", **FRESH, batch_size=5, ema_decay=0.9),
    "sdd, bent on the frozen model": erasing("sdd", **FRESH, batch_size=3, null="frozen", error="velocity", timesteps="beta"),
    "sdd-context": erasing("sdd-context", **{**FRESH, "steps": 12}, batch_size=4),
    "esd-x": erasing("esd-x", **FRESH, batch_size=2),
    "esd-u": erasing("esd-u", **FRESH, batch_size=3),
    "uce": erasing("uce"),
    "invert": inverting(steps=12, batch_size=5),
    "invert, the best": inverting(steps=12, batch_size=4, keep="best", validate_every=6),
}


def main() -> None:
    together = {name: run() for name, run in CASES.items()}
    equal = {name: distributed.gather([w.clone() for w in made[0].values()]) for name, made in together.items()}
    if not distributed.is_main():
        return
    os.environ.pop("WORLD_SIZE")  # and now alone
    found = {}
    for name, run in CASES.items():
        weights, losses, count = run()
        theirs, their_losses, their_count = together[name]
        assert all(torch.equal(a, b) for each in equal[name] for a, b in zip(each, theirs.values(), strict=True)), name
        tensors = max(float((weights[key] - theirs[key]).abs().max()) for key in weights)
        lost = max(abs(a - b) for a, b in zip(losses, their_losses, strict=True)) if losses else 0.0
        found[name] = [tensors, lost, count, their_count, moved(weights)]
    print(json.dumps(found))


def moved(weights: dict[str, torch.Tensor]) -> float:
    """How far training took the furthest tensor, so that an agreement of nothing with nothing shows; 1 for a token."""
    before = dict(model().unet.named_parameters())
    return max((float((value - before[name]).abs().max()) for name, value in weights.items() if name in before), default=1.0)


if __name__ == "__main__":
    main()

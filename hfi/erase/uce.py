"""UCE: Unified Concept Editing (Gandikota et al., WACV 2024, equation 7), a closed form for all matrices that read the text.

For W, keys or values of a cross-attention, with edited text states c_i, what they should be read as t_i, and kept states p_j:

    W' = argmin  sum_i || W' c_i - W t_i ||^2  +  b sum_j || W' p_j - W p_j ||^2  +  lambda || W' - W ||^2
       = W (sum t_i c_i^T + b sum p_j p_j^T + lambda I) (sum c_i c_i^T + b sum p_j p_j^T + lambda I)^-1
       = W (I + sum_i (t_i - c_i) v_i^T),     v_i = (sum c_i c_i^T + b sum p_j p_j^T + lambda I)^-1 c_i

So W' = W E with one matrix E for every W: the text is edited before it is read. The change has rank N at most, the number of edited
states, and a LoRA of that rank is exact. (The paper weighs the first sum too; only ratios of the weights matter, and its is 1. What
it writes v_i is W t_i here; lambda, which keeps the inverse bounded, is of the authors' code and not of the equation.)

    c_i  the states of the concept's text at its own tokens, one by one, and at the end-of-text token, which sums it up
    t_i  the states of the empty text at the same positions
    p_j  the states of the empty text, all of them, as half of guidance reads nothing else and every prompt starts with the first of
         them; and of each retained prompt those at its own tokens and end of text

Padding repeats the end of a text, so a prompt's padding is not kept once more: it would count for many times its words. Nothing is
sampled, and the U-Net is never evaluated. SDXL's pooled text does not pass these matrices and stays as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hfi.config import check, option
from hfi.diffusion.sd import StableDiffusion, encode_prompts, tokenize
from hfi.diffusion.trainable import Part, select
from hfi.diffusion.training import State, Step, Training
from hfi.erase.distil import Distilled
from hfi.erase.removal import Removal


@dataclass(frozen=True, kw_only=True)
class UCEConfig:
    """The defaults are those of UCE's code."""

    train: ClassVar[Part] = "kv"
    save_every: ClassVar[int] = 1
    checkpoint_every: ClassVar[int] = 0
    validate_every: ClassVar[int] = 0
    retain_weight: float = option(1.0, "weight of holding harmless prompts to the frozen model", low=0)
    lamb: float = option(0.5, "lambda, the weight of leaving the matrices as they are", above=0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def steps(self) -> int:
        return 1


@dataclass(frozen=True)
class Edit:
    """E = I + u^T v of text states; u, v [N, D], float64."""

    u: Tensor
    v: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """E x of each state: [M, D] -> [M, D]."""
        return states + (states @ self.v.T) @ self.u

    def of(self, w: Tensor) -> Tensor:
        """W E: [out, D] -> [out, D]."""
        return w + (w @ self.u.T) @ self.v

    def after(self, first: "Edit") -> "Edit":
        """`first` E, for matrices that `first` has edited already."""
        return Edit(torch.cat([first.u, self.u]), torch.cat([self.of(first.v), self.v]))

    def state(self) -> State:
        return {"u": self.u, "v": self.v}


@dataclass(frozen=True)
class Texts:
    """Text states, float64: edited and wanted [N, D], kept [M, D]."""

    edited: Tensor
    wanted: Tensor
    kept: Tensor


def uce_edit(texts: Texts, retain_weight: float, lamb: float) -> Edit:
    """The minimum above. One factorisation for all matrices."""
    c, p = texts.edited, texts.kept
    gram = c.T @ c + retain_weight * p.T @ p + lamb * torch.eye(c.shape[1], dtype=c.dtype)
    v = torch.cholesky_solve(c.T, torch.linalg.cholesky(gram)).T
    return Edit(texts.wanted - c, v)


def texts_of(sd: StableDiffusion, removal: Removal) -> Texts:
    """See above. On the CPU, which has float64 everywhere."""
    (nothing,) = encode_prompts(sd, [""]).states.double().cpu()
    edited = own_states(sd, removal.texts)
    retained = own_states(sd, list(dict.fromkeys(p for p in removal.retain if p)))
    wanted = [nothing[1 : 1 + len(states)] for states in edited]
    return Texts(torch.cat(edited), torch.cat(wanted), torch.cat([nothing, *retained]))


def own_states(sd: StableDiffusion, prompts: Sequence[str]) -> list[Tensor]:
    """Of each prompt the states at its own tokens and at the first end-of-text token, [m, D] float64."""
    if not prompts:
        return []
    ends = (tokenize(sd, prompts)[:, 0] == sd.tokenizers[0].eos_token_id).int().argmax(1).tolist()
    states = encode_prompts(sd, prompts).states.double().cpu()
    return [rows[1 : end + 1] for rows, end in zip(states, ends, strict=True)]


def left(matrices: Iterable[Tensor], edit: Edit, texts: Texts) -> float:
    """How far the edited states are still read from what is wanted, as a share of how far they were: squared, over all matrices."""
    now, before = edit(texts.edited) - texts.wanted, texts.edited - texts.wanted
    sums = torch.stack([torch.stack([(x @ w.T).square().sum() for x in (now, before)]) for w in matrices]).sum(0)
    return float(sums[0] / sums[1])


def matrices_of(sd: StableDiffusion, part: Part) -> dict[str, Tensor]:
    return {name: w.detach().double().cpu() for name, w in select(sd.unet, part).items()}


def erase_uce(sd: StableDiffusion, removal: Removal, config: UCEConfig, state: State | None = None) -> Training[Distilled]:
    """One step. `removal.texts` are the concepts, as words or learned tokens, `removal.retain` the prompts to keep."""
    matrices = matrices_of(sd, config.train)
    if state:
        edit = Edit(state["u"], state["v"])
    else:
        texts = texts_of(sd, removal)
        edit = uce_edit(texts, config.retain_weight, config.lamb)
        yield Step(1, left(matrices.values(), edit, texts), edit.state, {"evaluations": 0})
    return Distilled({name: edit.of(w).float() for name, w in matrices.items()}, 0)

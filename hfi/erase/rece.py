"""RECE: Reliable and Efficient Concept Erasure (Gong et al. 2024): what UCE left open is looked for and edited too, in rounds.

After an edit of the matrices W into W', text may still exist that is read through W' as the concept was through W. For a state c of
the concept, the nearest such state is

    c' = argmin  sum_W || W' c' - W c ||^2  +  mu || c' ||^2  =  (mu I + sum_W W'^T W')^-1 (sum_W W'^T W) c

A round finds c' for every c and edits, as in uce.py, the matrices W' of the round before so that c' too is read as the empty text.
The first step is UCE's own. The sums run over all keys and values, W' = W E, so with S = sum_W W^T W the D x D matrices suffice:
sum W'^T W' = E^T S E and sum W'^T W = E^T S.

Their code solves for all 77 positions of the concept's text, edits the model that UCE's code made, and keeps the round in which a
detector finds least; here the positions are those of uce.py, and the number of rounds is a setting.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.sd import StableDiffusion
from hfi.diffusion.training import State, Step, Training
from hfi.erase.distil import Distilled
from hfi.erase.removal import Removal
from hfi.erase.uce import Edit, UCEConfig, left, matrices_of, texts_of, uce_edit


@dataclass(frozen=True, kw_only=True)
class RECEConfig(UCEConfig):
    """The defaults are those of RECE's code for nudity."""

    retain_weight: float = option(0.1, "weight of holding harmless prompts to the frozen model", low=0)
    lamb: float = option(0.1, "lambda, the weight of leaving the matrices as they are", above=0)
    regular_scale: float = option(0.1, "mu, the weight of keeping a text that brings the concept back small", above=0)
    rounds: int = option(5, "times that such a text is looked for and edited", low=1)

    @property
    def steps(self) -> int:
        return 1 + self.rounds


def regenerating(gram: Tensor, edit: Edit, concept: Tensor, mu: float) -> Tensor:
    """c' of each state [N, D], with gram = sum_W W^T W [D, D]."""
    identity = torch.eye(len(gram), dtype=gram.dtype)
    e = edit.of(identity)
    both = e.T @ gram  # sum W'^T W
    return torch.cholesky_solve(both @ concept.T, torch.linalg.cholesky(mu * identity + both @ e)).T


def erase_rece(sd: StableDiffusion, removal: Removal, config: RECEConfig, state: State | None = None) -> Training[Distilled]:
    """One step for UCE's edit, and one a round. `removal` as in `erase_uce`."""
    matrices, texts = matrices_of(sd, config.train), texts_of(sd, removal)
    gram = torch.stack([w.T @ w for w in matrices.values()]).sum(0)
    nothing = torch.zeros(0, gram.shape[1], dtype=gram.dtype)
    edit, done = (Edit(state["u"], state["v"]), int(state["step"])) if state else (Edit(nothing, nothing), 0)
    for step in range(done + 1, config.steps + 1):
        found = texts.edited if step == 1 else regenerating(gram, edit, texts.edited, config.regular_scale)
        now = replace(texts, edited=found)
        edit = uce_edit(now, config.retain_weight, config.lamb).after(edit)
        yield Step(step, left(matrices.values(), edit, now), edit.state, {"evaluations": 0})
    return Distilled({name: edit.of(w).float() for name, w in matrices.items()}, 0)

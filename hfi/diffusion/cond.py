"""What the U-Net is told of the prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, cat


@dataclass(frozen=True)
class Cond:
    """N conditions: hidden states of the text [N, L, D], and for SDXL its pooled embedding [N, P]."""

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: Tensor | list[int] | slice) -> "Cond":
        """Those rows; an index tensor may lie on another device."""
        if isinstance(rows, Tensor):
            rows = rows.to(self.states.device)
        return Cond(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def expand(self, n: int) -> "Cond":
        """One condition, n times, without a copy."""
        return Cond(self.states.expand(n, -1, -1), None if self.pooled is None else self.pooled.expand(n, -1))

    @staticmethod
    def cat(parts: Sequence["Cond"]) -> "Cond":
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Cond(cat([part.states for part in parts]), cat(pooled) if pooled else None)

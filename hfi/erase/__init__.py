"""Methods that change a model's weights. To add one: a file with its configuration, target and function, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hfi.diffusion.training import Training
from hfi.erase.context import ContextConfig, erase_context
from hfi.erase.distil import Distilled
from hfi.erase.esd import ESDUConfig, ESDXConfig, erase_esd
from hfi.erase.rece import RECEConfig, erase_rece
from hfi.erase.removal import Clean, Removal
from hfi.erase.sdd import SDDConfig, erase_sdd
from hfi.erase.uce import UCEConfig, erase_uce


@dataclass(frozen=True)
class Method:
    """A configuration, the function that takes it, and what it reads beside the concepts' texts: the concepts' judgments (flagged
    prompts, clean images), prompts that must stay."""

    config: type[Any]
    erase: Callable[..., Training[Distilled]]
    judged: bool = False
    holds: bool = False


METHODS = {
    "sdd": Method(SDDConfig, erase_sdd),
    "sdd-context": Method(ContextConfig, erase_context, judged=True, holds=True),
    "esd-x": Method(ESDXConfig, erase_esd),
    "esd-u": Method(ESDUConfig, erase_esd),
    "uce": Method(UCEConfig, erase_uce, holds=True),
    "rece": Method(RECEConfig, erase_rece, holds=True),
}

__all__ = ["METHODS", "Clean", "Method", "Removal"]

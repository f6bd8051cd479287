"""Methods that change a model's weights. To add one: a file with its configuration, target and function, and a line here."""

from hfi.erase.context import ContextConfig, erase_context
from hfi.erase.removal import Clean, Removal
from hfi.erase.sdd import SDDConfig, erase_sdd

METHODS = {"sdd": (SDDConfig, erase_sdd), "sdd-context": (ContextConfig, erase_context)}

__all__ = ["METHODS", "Clean", "Removal"]

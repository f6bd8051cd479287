"""Human Feedback Inversion: judgments, through the reward model, become a learned token."""

from hfi.invert.train import Examples, Inversion, InvertConfig, invert

__all__ = ["Examples", "Inversion", "InvertConfig", "invert"]

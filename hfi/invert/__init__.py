"""Human Feedback Inversion: judgments, through the reward model, become a learned token."""

from hfi.invert.train import Examples, InvertConfig, invert

__all__ = ["Examples", "InvertConfig", "invert"]

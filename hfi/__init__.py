"""Human Feedback Inversion: people decide what a text-to-image model must not make."""

__version__ = "0.1.0"

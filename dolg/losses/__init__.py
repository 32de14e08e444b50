"""Losses: `forward(outputs, labels)` gives a dict of scalars with `total`."""
from dolg.losses.builders import build_loss

__all__ = ["build_loss"]

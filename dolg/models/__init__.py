"""Backbones and the retrieval models on top of them."""
from dolg.models.builders import build_model

__all__ = ["build_model"]

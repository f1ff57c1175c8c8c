"""The demo: SmolLM2 and a Wikipedia sample from packages, coders trained and compared."""

from sae_binary_ext.demo.config import DemoConfig

__all__ = ["DemoConfig"]

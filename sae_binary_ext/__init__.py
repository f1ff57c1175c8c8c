"""Binary autoencoders for SAELens and EleutherAI sparsify.

Importing this package registers its coders with every host it supports: a host imported before is
registered at once, one imported later the moment it is. Nothing heavy is imported until then.
"""

from sae_binary_ext.registration import register

__version__ = "0.1.0"
__all__ = ["__version__", "register"]

register()

"""Binary autoencoders for SAELens and EleutherAI sparsify.

Importing this package registers its coders with each host, at once or when the host is imported.
"""

from sae_binary_ext.registration import register

__version__ = "0.1.0"
__all__ = ["__version__", "register"]

register()

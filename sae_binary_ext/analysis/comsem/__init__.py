"""ComSem: what the tokens have in common that a latent stands out on (arXiv 2509.20997)."""

from sae_binary_ext.analysis.comsem.config import ComsemConfig
from sae_binary_ext.analysis.comsem.run import run_comsem
from sae_binary_ext.analysis.comsem.scores import ComsemScore

__all__ = ["ComsemConfig", "ComsemScore", "run_comsem"]

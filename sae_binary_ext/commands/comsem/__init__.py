"""`sae-binary comsem`: what a latent's tokens have in common (arXiv 2509.20997)."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "comsem",
    "what the tokens of each latent have in common (ComSem)",
    room="comsem",
    settings="ComsemConfig",
    does="run_comsem",
)

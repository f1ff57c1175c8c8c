"""`sae-binary gradients`: a surrogate's gradient beside the true loss."""

from sae_binary_ext.commands.command import MeasuringCommand

COMMAND = MeasuringCommand(
    "gradients",
    "the gradients of surrogates in training, beside the true loss",
    room="gradients",
    settings="GradientsConfig",
    does="run_gradients",
    takes_coders=False,
)

"""`sae-binary run`: a host's module or a script with the binary coders registered."""

from sae_binary_ext.commands.run.host_module import RunCommand

COMMAND = RunCommand(
    "run",
    """run a host's module or a script with the binary coders registered:
sae-binary run -m sae_lens.llm_sae_training_runner --architecture binary ...
sae-binary run -m sparsify MODEL DATASET --activation topk_binary ...
sae-binary run -m delphi MODEL CODERS --hookpoints layers.9 ...
sae-binary run script.py ...""",
    shows_tracebacks=True,
)

"""Checks of a training run, and losses added to the loss of SAELens or sparsify."""

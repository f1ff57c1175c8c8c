"""Checks of a training run, and losses added to a host's own."""
